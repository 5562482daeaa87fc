"""A shard with old months, an S3, and an archiver over both that is driven step by step."""

from __future__ import annotations

import io
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from prometheus_client import REGISTRY

from archive_svc.archiver import Archiver, Pacing
from archive_svc.catalog import Catalog
from archive_svc.codec.reading import csv_rows
from archive_svc.columns import COPY_BACK_OPTIONS, JOURNAL, ORDERS, Shape
from archive_svc.detach import Detacher
from archive_svc.entries import CataloguedSegment
from archive_svc.erase import Eraser
from archive_svc.export import Exporter
from archive_svc.holds import Holds
from archive_svc.lifecycle import Month, State
from archive_svc.recall import Recalls
from archive_svc.restore import Restorer
from archive_svc.retention import NOT_LOCKED, Retention
from archive_svc.segment import Step
from archive_svc.stretch import SESSION
from archive_svc.sweep import Sweeper, Sweeping, Sweeps
from archive_svc.throttle import Throttle
from archive_svc.verify import Verifier
from chassis import pg
from chassis.clock import SYSTEM_CLOCK
from chassis.ids import user_bucket
from chassis.s3 import ObjectStore
from tests.buckets import Place
from tests.databases import Database
from tests.shards import prepare

AUGUST, SEPTEMBER = date(2023, 8, 1), date(2023, 9, 1)
TABLES = (ORDERS, JOURNAL)
PACING = Pacing(
    months_min=24,
    days_min=7,
    settle=timedelta(0),
    grace=timedelta(0),
    reach=None,
    lease=timedelta(seconds=30),
    look_s=0.05,
    enough_for=timedelta(days=365),
    part_bytes=64 * 1024,
)
SWEEPING = Sweeping(grace=timedelta(0), every=None, deletes=False)
STEPS_MAX = 100
TEXTS = (
    "",
    "a book",
    'say "it", twice',
    "two\nlines\r\n",
    "\\N",
    "\\.",
    "₹ पुस्तक",
    "كتاب",
    "=1+1",
    "a,b;c\td",
)


def damages(shard: str) -> float:
    """How many segments of a shard were found damaged by anybody in this process."""
    labels = [{"shard": shard, "proof": step.value} for step in Step]
    return sum(REGISTRY.get_sample_value("ordermesh_archive_damages_total", each) or 0.0 for each in labels)


@dataclass(frozen=True)
class Archive:
    """One shard named s1, its bucket, and who archives it."""

    database: Database
    shard: pg.Database
    catalog: Catalog
    store: ObjectStore
    verifier: Verifier
    archiver: Archiver
    sweeps: Sweeps
    holds: Holds

    async def rows(self, sql: str, *args: object) -> list[asyncpg.Record]:
        return await self.shard.fetch(sql, *args)

    async def value(self, sql: str, *args: object) -> Any:
        return await self.shard.fetchval(sql, *args)

    async def want(self, month: date, reach: State = State.DROPPED) -> Month:
        await self.catalog.want(month, uuid4(), reach, "a test", "it is old enough")
        return await self.month(month)

    async def month(self, month: date) -> Month:
        return next(each for each in await self.catalog.months() if each.month == month)

    async def fence(self) -> int:
        fence = await self.catalog.take_lease("a test", timedelta(seconds=30))
        assert fence is not None, "somebody else archives the shard"
        return fence

    async def work(self, *, until: State | None = None, month: date = AUGUST) -> Month:
        """Do steps until there are none, or until the month stands there; then the month."""
        fence = await self.fence()
        for _ in range(STEPS_MAX):
            if until is not None and (await self.month(month)).state is until:
                break
            if not await self.archiver.once(fence):
                break
        else:
            raise AssertionError(f"still not done after {STEPS_MAX} steps: {await self.month(month)}")
        return await self.month(month)

    async def segments(self, month: date = AUGUST) -> list[CataloguedSegment]:
        return await self.catalog.segments((await self.month(month)).archive_id)

    async def exists(self, table: str) -> bool:
        return bool(await self.value("SELECT to_regclass('ordermesh.' || $1) IS NOT NULL", table))

    async def is_attached(self, table: str) -> bool:
        return bool(
            await self.value(
                "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass($1))", table
            )
        )


@asynccontextmanager
async def opened(
    database: Database,
    place: Place,
    *,
    bucket: str = "",
    pacing: Pacing = PACING,
    retention: Retention = NOT_LOCKED,
    others: Mapping[str, pg.Database] | None = None,
    **changes: Any,
) -> AsyncIterator[Archive]:
    """A prepared shard of a fresh database, with August and September 2023 and everything searchable."""
    await prepare(database.dsn)
    async with AsyncExitStack() as stack:
        settings = pg.PgSettings(dsn=database.dsn, pool_size=4, queue=100)
        shard = await stack.enter_async_context(pg.open_database(settings, name="archive"))
        for month in (AUGUST, SEPTEMBER):
            await shard.execute(
                "SELECT ordermesh.ensure_month($1)", datetime(*month.timetuple()[:3], tzinfo=UTC)
            )
        await searchable(shard)
        locks = retention.keeps is not None
        store = await stack.enter_async_context(place.store(bucket, object_lock=locks))
        await store.make_bucket(locks=locks)
        yield archive_of(database, shard, store, replace(pacing, **changes), retention, others)


def archive_of(
    database: Database,
    shard: pg.Database,
    store: ObjectStore,
    pacing: Pacing,
    retention: Retention = NOT_LOCKED,
    others: Mapping[str, pg.Database] | None = None,
) -> Archive:
    """Who archives a shard that is there already. others: shards on which statements may stand as well."""
    catalog, sweeps = Catalog("s1", shard), Sweeps("s1", shard)
    throttle = Throttle(1e9, SYSTEM_CLOCK)
    verifier = Verifier(catalog, store, throttle, enough_for=pacing.enough_for)
    patient = pg.PgSettings(dsn=database.dsn, session={"statement_timeout": "60000", "lock_timeout": "20000"})

    def sessions():
        return pg.open_session(patient, name="archive")

    def exporting():
        return pg.open_session(patient.model_copy(update={"session": SESSION}), name="archive")

    sweeper = Sweeper(sweeps, store, throttle, SWEEPING)
    archiver = Archiver(
        catalog,
        store,
        Exporter(catalog, store, exporting, throttle, retention),
        verifier,
        Detacher(catalog, verifier, sessions),
        Restorer(catalog, verifier, sessions),
        Eraser(
            catalog, store, verifier, sessions, Recalls({"s1": shard, **(others or {})}), sweeper, retention
        ),
        sweeper,
        pacing,
        SYSTEM_CLOCK,
        lambda: 0.0,
        holder="a test",
        retention=retention,
    )
    return Archive(database, shard, catalog, store, verifier, archiver, sweeps, Holds("s1", shard))


async def searchable(shard: pg.Database) -> None:
    """Let the read model have everything that happens within a day from now."""
    await shard.execute(
        "INSERT INTO ordermesh.watermarks (stream_partition, log_epoch, xid, seq, updated_at, source_at) "
        "SELECT n, 1, '3', 0, clock_timestamp(), clock_timestamp() + interval '1 day' "
        "FROM generate_series(0, 7) n "
        "ON CONFLICT DO NOTHING"
    )


async def fill(
    database: Database, count: int, month: date = AUGUST, *, seed: int = 1, users: Sequence[str] | None = None
) -> list[UUID]:
    """Settled orders of a month with their journals, of all kinds of text; their ids."""
    dice = random.Random(seed)
    names = users or [f"user.{number}" for number in range(max(1, count // 20))]
    orders, entries = [], []
    for number in range(count):
        order, journal = _life(dice, dice.choice(names), month, number)
        orders.append(order)
        entries += journal
    connection = await asyncpg.connect(database.dsn, server_settings={"search_path": "ordermesh"})
    try:
        for shape, rows in ((ORDERS, orders), (JOURNAL, entries)):
            await connection.copy_records_to_table(shape.table, columns=shape.names, records=rows)
    finally:
        await connection.close()
    return [order[0] for order in orders]


def _life(
    dice: random.Random, user: str, month: date, number: int
) -> tuple[tuple[Any, ...], list[tuple[Any, ...]]]:
    order = _order(dice, user, month, number)
    return tuple(order[name] for name in ORDERS.names), [
        tuple(entry[name] for name in JOURNAL.names) for entry in _entries(dice, order)
    ]


def _order(dice: random.Random, user: str, month: date, number: int) -> dict[str, Any]:
    start = datetime(*month.timetuple()[:3], tzinfo=UTC)
    at_ms = int(start.timestamp() * 1000) + dice.randrange(27 * 86_400_000)
    bucket = user_bucket(user)
    order_id = at_ms << 80 | 7 << 76 | (number & 0xFFF) << 64 | 2 << 62 | bucket << 46 | dice.getrandbits(46)
    created_at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=at_ms)
    settled_at = created_at + timedelta(seconds=dice.uniform(0.1, 90), microseconds=dice.randrange(1000))
    currency, exponent = dice.choice((("EUR", 2), ("JPY", 0), ("KWD", 3), ("INR", 2)))
    is_success = dice.random() < 0.8
    return {
        "order_id": UUID(int=order_id), "created_at": created_at, "user_id": user, "bucket": bucket,
        "route_epoch": 1, "read_routing": user, "version": 2, "stage": "DONE", "kind": "payment",
        "status": "SUCCESS" if is_success else "FAILED", "legs": ["payments"], "leg": 0, "attempt": 1,
        "amount_minor": dice.randrange(1, 2**40), "currency_code": currency, "currency_exp": exponent,
        "description": dice.choice(TEXTS), "labels": json.dumps({"cart": str(number)}),
        "upstream_ref": f"ref-{number}" if is_success else "",
        "failure_reason": "" if is_success else "DECLINED", "basis": "UPSTREAM",
        "request_id": UUID(int=dice.getrandbits(128)), "updated_at": settled_at, "settled_at": settled_at,
        "erased_at": None, "traceparent": "", "schema_version": 1,
    }  # fmt: skip


def _entries(dice: random.Random, order: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = ("order_id", "created_at", "user_id", "bucket", "route_epoch", "leg", "attempt", "traceparent")
    both = {name: order[name] for name in names} | {"actor": "order_svc", "evidence": '{"n": 1}'}
    status = order["status"]
    opened_ = {
        "version": 1, "event_id": UUID(int=dice.getrandbits(128)), "kind": "OPENED", "from_status": None,
        "to_status": "PENDING", "from_stage": None, "to_stage": "SUBMITTING", "proof": None,
        "at": order["created_at"],
    }  # fmt: skip
    settled = {
        "version": 2, "event_id": UUID(int=dice.getrandbits(128)), "kind": "VERDICT",
        "from_status": "PENDING", "to_status": status, "from_stage": "SUBMITTING", "to_stage": "DONE",
        "at": order["settled_at"],
        "proof": "UPSTREAM_SUCCEEDED" if status == "SUCCESS" else "UPSTREAM_FAILED",
    }  # fmt: skip
    return [both | opened_, both | settled]


class Twin:
    """What a shard had before anything was archived, to compare with what there is after: rows in the
    database, and those of segments for months that have left it.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    async def remember(self) -> None:
        """Keep a copy of every row."""
        for shape in TABLES:
            await self._archive.shard.execute(
                f"CREATE TABLE public.twin_{shape.table} AS "
                f"SELECT {shape.column_list()} FROM ordermesh.{shape.table}"
            )

    async def forget(self, user_id: str) -> None:
        """Let there never have been an order of this user."""
        for shape in TABLES:
            await self._archive.shard.execute(
                f"DELETE FROM public.twin_{shape.table} WHERE user_id = $1", user_id
            )

    async def differences(self, *months: date) -> dict[str, int]:
        """How many rows are lost or invented, by table; nothing when database and archive are what there was.

        months: those that are read from their segments; their tables, if any, are left out.
        """
        found: dict[str, int] = {}
        connection = await asyncpg.connect(self._archive.database.dsn, server_settings={"timezone": "UTC"})
        try:
            for shape in TABLES:
                await connection.execute(f"CREATE TEMP TABLE copied ({shape.staging_columns()})")
                for month in months:
                    for segment in await self._archive.segments(month):
                        if segment.table == shape.table:
                            await self._copy_back(connection, shape, segment)
                lost = f"SELECT {shape.column_list()} FROM public.twin_{shape.table}"
                kept = (
                    f"SELECT {shape.column_list()} FROM ordermesh.{shape.table}"
                    f" WHERE date_trunc('month', created_at)::date <> ALL ($1::date[])"
                    f" UNION ALL SELECT {shape.restore_list('copied')} FROM copied"
                )
                # jsonb and arrays compare; so does everything else.
                count = await connection.fetchval(
                    f"SELECT count(*) FROM (({lost} EXCEPT ALL ({kept})) "
                    f"UNION ALL (({kept}) EXCEPT ALL {lost})) AS d",
                    list(months),
                )
                if count:
                    found[shape.table] = count
                await connection.execute("DROP TABLE copied")
        finally:
            await connection.close()
        return found

    async def _copy_back(self, connection: Any, shape: Shape, segment: CataloguedSegment) -> None:
        body = await self._archive.store.read(segment.stored)
        for piece in csv_rows(shape, body):
            await connection.copy_to_table("copied", source=io.BytesIO(piece), **COPY_BACK_OPTIONS)
