"""What a statement reads of real shards and an S3: everything once, nothing else, and never a short list."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from archive_svc.codec.writer import SegmentWriter
from archive_svc.errors import (
    ArchiveCold,
    OrdersMoved,
    OrdersUnsettled,
    StatementIncomplete,
    StorageUnavailable,
)
from archive_svc.lifecycle import State
from archive_svc.statement import legs
from archive_svc.statement.fetching import AT_ONCE, Fetcher, Read
from archive_svc.statement.legs import QUERIES, SESSION, ShardReader
from archive_svc.statement.rows import Row, select_list
from chassis import pg
from chassis.errors import OrdermeshError, ShardUnavailable, StaleRoute
from chassis.ids import user_bucket
from chassis.placement import Held
from chassis.testing import eventually
from ops import ports
from ops.postgres import PostgresServer
from ops.replica import PRIMARY_SETTINGS, PostgresReplica
from tests.archiving import AUGUST, SEPTEMBER, Archive, damages, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.databases import Databases
from tests.inprocess_s3 import InProcessS3
from tests.papers import (
    AS_OF,
    SINCE,
    UNTIL,
    Impatient,
    known_rows,
    reader,
    rows_of,
    waits_or_ends,
    wanted,
    within,
)

USERS = ("user.a", "user.b", "user.c")


@pytest.fixture
async def s3_server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as server:
        yield server


@pytest.fixture
async def archive(shard_database: DatabaseFactory, s3_server: InProcessS3) -> AsyncIterator[Archive]:
    database = await shard_database()
    async with opened(database, Place.of(s3_server)) as ready:
        await fill(database, 300, AUGUST, seed=1, users=USERS)
        await fill(database, 100, SEPTEMBER, seed=2, users=USERS)
        yield ready


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of some dozen orders."""
    defaults = SegmentWriter.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "group_bytes", 6 * 1024)


async def archived(archive: Archive, *months: Any, state: State = State.DROPPED) -> None:
    for month in months:
        await archive.want(month, state)
        assert (await archive.work(month=month)).state is state


class Hooked:
    """A session that tells when a statement was answered."""

    def __init__(self, session: pg.Session, after: Callable[[str], Awaitable[None]]) -> None:
        self._session = session
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def fetch(self, sql: str, *args: object, **options: Any) -> Any:
        found = await self._session.fetch(sql, *args, **options)
        await self._after(sql)
        return found


def hooked(archive: Archive, dsn: str, after: Callable[[str], Awaitable[None]]) -> ShardReader:
    """A reader that lets something happen after a statement."""

    @asynccontextmanager
    async def sessions() -> AsyncIterator[Any]:
        settings = pg.PgSettings(dsn=dsn, session=SESSION)
        async with pg.open_session(settings, name="statement") as session:
            yield Hooked(session, after)

    return ShardReader("s1", sessions, Fetcher(archive.store))


async def read_while_august_leaves(archive: Archive) -> list[Row]:
    """A statement whose catalog is read while August is whole, and whose rows when it left or tries to."""
    going: list[asyncio.Task[Any]] = []

    async def after(sql: str) -> None:
        if sql == QUERIES.archived and not going:
            await archive.want(AUGUST)
            going.append(asyncio.create_task(archive.work(), name="August leaves"))
            await waits_or_ends(archive, going[0])

    found = await rows_of([hooked(archive, archive.database.dsn, after)], wanted("user.a"))
    assert (await going[0]).state is State.DROPPED
    return found


async def test_a_month_that_leaves_after_the_catalog_was_read_waits_for_the_reader(archive: Archive) -> None:
    known = (await known_rows(archive))["user.a"]
    assert await read_while_august_leaves(archive) == known
    assert await rows_of([reader(archive.database.dsn, archive.store)], wanted("user.a")) == known


async def test_without_the_lock_it_would_not_wait(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    known = (await known_rows(archive))["user.a"]
    monkeypatch.setattr(QUERIES, "keep_attached", "SELECT 1")
    september = [row for row in known if row in within(known, datetime(2023, 9, 1, tzinfo=UTC), UNTIL)]
    assert await read_while_august_leaves(archive) == september, "the hole that the lock closes is there"


@pytest.fixture
async def replicated(
    server_dir: Path, clean_machine: None, s3_server: InProcessS3
) -> AsyncIterator[tuple[Archive, str]]:
    """A shard and the address of its replica."""
    home = server_dir / f"statements-{uuid4().hex}"
    primary = PostgresServer(home / "s1", ports.free_port(), durable=False, settings=PRIMARY_SETTINGS)
    standby = PostgresReplica(home / "s1.replica", ports.free_port(), primary=primary, durable=False)
    await primary.start()
    try:
        database = await Databases(primary).create("shard")
        await standby.start()
        async with opened(database, Place.of(s3_server)) as ready:
            await fill(database, 300, AUGUST, seed=1, users=USERS)
            await fill(database, 100, SEPTEMBER, seed=2, users=USERS)
            yield ready, standby.dsn(database.name)
    finally:
        await standby.stop()
        await primary.stop()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("lock", "refusal"),
    [
        # The tables themselves are locked: the replica ends the reader before it lets them go.
        (QUERIES.keep_attached, ShardUnavailable),
        # Without that the reader finds out by itself.
        ("LOCK TABLE ONLY ordermesh.orders IN ACCESS SHARE MODE", OrdersMoved),
    ],
)
async def test_a_replica_never_gives_a_short_statement(
    replicated: tuple[Archive, str],
    monkeypatch: pytest.MonkeyPatch,
    lock: str,
    refusal: type[OrdermeshError],
) -> None:
    archive, replica = replicated
    known = (await known_rows(archive))["user.a"]
    settings = pg.PgSettings(dsn=replica)
    up_to_now = replace(wanted("user.a"), until=AS_OF)
    with pytest.raises(OrdersUnsettled):
        await rows_of([reader(replica, archive.store, clock=Impatient())], up_to_now)
    monkeypatch.setattr(QUERIES, "keep_attached", lock)

    async def caught_up() -> None:
        at = await archive.value("SELECT pg_current_wal_lsn()::text")
        async with pg.open_session(settings, name="look") as session:

            async def there() -> bool:
                return bool(await session.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", at))

            assert await eventually(there, within_s=60)

    async def after(sql: str) -> None:
        if sql == QUERIES.archived:
            await archive.want(AUGUST)
            assert (await archive.work()).state is State.DROPPED, "nobody waits for a reader of a replica"
            await caught_up()

    async with pg.open_session(settings, name="patience") as session:
        await session.execute("ALTER SYSTEM SET max_standby_streaming_delay = '1s'")
        await session.execute("SELECT pg_reload_conf()")
    await caught_up()
    assert await rows_of([reader(replica, archive.store)], wanted("user.a")) == known
    # The primary keeps old row versions as long, so that the replica does not end the reader for their sake.
    keeper = pg.PgSettings(dsn=archive.database.dsn, session=SESSION)
    async with pg.open_session(keeper, name="keeper") as session, session.snapshot():
        await session.fetchval("SELECT count(*) FROM ordermesh.archive_months")
        with pytest.raises(refusal):
            await rows_of([hooked(archive, replica, after)], wanted("user.a"))
    assert await rows_of([reader(replica, archive.store)], wanted("user.a")) == known


async def test_only_the_footers_and_the_groups_of_a_user_are_read(
    archive: Archive, s3_server: InProcessS3, small_groups: None
) -> None:
    known = await known_rows(archive)
    await archived(archive, AUGUST, SEPTEMBER)
    segments = [s for m in (AUGUST, SEPTEMBER) for s in await archive.segments(m) if s.table == "orders"]
    mine = [s.facts for s in segments if s.facts.groups_of("user.b")]
    groups = [facts.groups[n] for facts in mine for n in facts.groups_of("user.b")]
    assert len(groups) < sum(len(s.facts.groups) for s in segments), "others have groups of their own"
    fetcher = Fetcher(archive.store)
    for is_again in (False, True):
        read = Read()
        s3_server.seen.clear()
        asked = reader(archive.database.dsn, archive.store, fetcher=fetcher)
        assert await rows_of([asked], wanted("user.b"), read=read) == known["user.b"]
        footers = 0 if is_again else sum(facts.footer_bytes for facts in mine)
        assert read.archive_bytes == footers + sum(group.size_bytes for group in groups)
        assert read.archive_reads == len(groups) + (0 if is_again else len(mine))
        assert s3_server.seen["GetObject"] == read.archive_reads
        assert (read.rows, read.archived_rows) == (len(known["user.b"]), len(known["user.b"]))
        assert read.archived == {("s1", AUGUST), ("s1", SEPTEMBER)}


async def test_a_period_reads_no_segment_of_another_month_and_nobody_reads_none(
    archive: Archive, s3_server: InProcessS3
) -> None:
    known = await known_rows(archive)
    await archived(archive, AUGUST, SEPTEMBER)
    asked = reader(archive.database.dsn, archive.store)
    september = (datetime(2023, 9, 1, tzinfo=UTC), datetime(2023, 9, 11, tzinfo=UTC))
    read = Read()
    assert await rows_of([asked], wanted("user.c", *september), read=read) == within(
        known["user.c"], *september
    )
    assert {month for _, month in read.archived} == {SEPTEMBER}
    s3_server.seen.clear()
    assert await rows_of([asked], wanted("zzz")) == []
    assert await rows_of([asked], wanted("aaa")) == []
    assert s3_server.seen["GetObject"] == 0


async def test_one_user_with_most_of_a_month_is_read_out_of_many_groups_in_order(
    archive: Archive, s3_server: InProcessS3, small_groups: None
) -> None:
    await fill(archive.database, 2500, AUGUST, seed=7, users=["vip.1"])
    known = (await known_rows(archive))["vip.1"]
    await archived(archive, AUGUST)
    segments = [s for s in await archive.segments() if s.table == "orders"]
    alone = [s for s in segments if s.facts.first and s.facts.first.user_id == "vip.1"]
    assert len(alone) > 3, "there are parts that are all his"
    asked = reader(archive.database.dsn, archive.store)
    assert await rows_of([asked], wanted("vip.1")) == known
    half = SINCE + timedelta(days=13, seconds=1)
    assert await rows_of([asked], wanted("vip.1", half)) == within(known, half, UNTIL)

    # Who reads slowly is not read ahead of without end.
    groups = sum(len(s.facts.groups_of("vip.1")) for s in segments)
    s3_server.seen.clear()
    rows = asked.rows(wanted("vip.1"), Read())
    await anext(rows)
    assert s3_server.seen["GetObject"] <= AT_ONCE + 2 < groups
    await rows.aclose()

    # What the catalog says of a part that is his alone is compared with what is read of it.
    await archive.shard.execute(
        "UPDATE ordermesh.archive_segments SET facts = jsonb_set(facts, '{sums,0,1}', '1') WHERE key = $1",
        alone[1].stored.key,
    )
    with pytest.raises(StatementIncomplete) as refused:
        await rows_of([asked], wanted("vip.1"))
    assert refused.value.facts["what"] == "sums"


async def test_what_is_damaged_on_the_way_is_read_again_and_what_is_damaged_at_rest_is_not_told(
    archive: Archive, s3_server: InProcessS3
) -> None:
    known = (await known_rows(archive))["user.a"]
    await archived(archive, AUGUST)

    def fresh() -> ShardReader:
        return reader(archive.database.dsn, archive.store)

    s3_server.flip_on_the_way_out()
    assert await rows_of([fresh()], wanted("user.a")) == known
    (bucket,) = s3_server.buckets
    for segment in await archive.segments():
        s3_server.flip_at_rest(bucket, segment.stored.key)
    before = damages("s1")
    with pytest.raises(StatementIncomplete) as damaged:
        await rows_of([fresh()], wanted("user.a"))
    assert damaged.value.facts["what"] == "SHA-256"
    assert damages("s1") == before + 1, "somebody is woken"


async def test_a_storage_that_does_not_answer_is_said_to_be_away(
    archive: Archive, s3_server: InProcessS3
) -> None:
    await archived(archive, AUGUST)
    s3_server.fail("GetObject", 503, "SlowDown", times=1000)
    with pytest.raises(StorageUnavailable):
        await rows_of([reader(archive.database.dsn, archive.store)], wanted("user.a"))


async def test_a_segment_in_cold_storage_is_said_to_lie_there(
    archive: Archive, s3_server: InProcessS3
) -> None:
    await archived(archive, AUGUST)
    s3_server.fail("GetObject", 403, "InvalidObjectState", times=1000)
    before = s3_server.seen["GetObject"]
    with pytest.raises(ArchiveCold) as cold:
        await rows_of([reader(archive.database.dsn, archive.store)], wanted("user.a"))
    assert cold.value.facts["key"] in {each.stored.key for each in await archive.segments()}
    assert s3_server.seen["GetObject"] - before <= AT_ONCE, "it is not asked for again"


async def test_a_segment_that_is_gone_or_was_never_catalogued_ends_the_statement(archive: Archive) -> None:
    in_august = within((await known_rows(archive))["user.a"], SINCE, datetime(2023, 9, 1, tzinfo=UTC))
    await archived(archive, AUGUST)
    first = next(s for s in await archive.segments() if s.facts.groups_of("user.a"))
    before = damages("s1")
    await archive.store.delete(first.stored)
    with pytest.raises(StatementIncomplete) as gone:
        await rows_of([reader(archive.database.dsn, archive.store)], wanted("user.a"))
    assert gone.value.facts["what"] in ("ObjectNotFound", "ObjectChanged")
    await archive.shard.execute("DELETE FROM ordermesh.archive_segments WHERE key = $1", first.stored.key)
    with pytest.raises(StatementIncomplete) as lost:
        await rows_of([reader(archive.database.dsn, archive.store)], wanted("user.a"))
    assert lost.value.facts["what"] == "a segment"
    assert damages("s1") == before + 2, "whoever finds it, somebody is woken"
    asked = reader(archive.database.dsn, archive.store)
    with pytest.raises(StatementIncomplete):
        await asked.archived_order("user.a", UUID(in_august[0].order_id))
    assert damages("s1") == before + 3


async def test_two_shards_make_one_statement(
    archive: Archive, shard_database: DatabaseFactory, s3_server: InProcessS3
) -> None:
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(opened(await shard_database(), Place.of(s3_server)))
        await fill(other.database, 200, AUGUST, seed=3, users=USERS)
        both = [(await known_rows(each))["user.a"] for each in (archive, other)]
        bucket = user_bucket("user.a")
        wish = wanted("user.a", placements={"s1": (Held(bucket, 1),), "s2": (Held(bucket, 1),)})
        readers = [
            reader(archive.database.dsn, archive.store),
            reader(other.database.dsn, other.store, shard="s2"),
        ]
        assert await rows_of(readers, wish) == sorted(both[0] + both[1])
        await archived(other, AUGUST)
        read = Read()
        assert await rows_of(readers, wish, read=read) == sorted(both[0] + both[1])
        assert (read.archived_rows, read.archived) == (len(both[1]), {("s2", AUGUST)})


async def test_a_bucket_that_is_not_owned_at_its_epoch_is_refused(archive: Archive) -> None:
    asked, bucket = reader(archive.database.dsn, archive.store), user_bucket("user.a")
    both = {"s1": (Held(bucket, 1), Held(5000, 1))}
    with pytest.raises(StaleRoute) as unknown:
        await rows_of([asked], wanted("user.a", placements=both))
    assert unknown.value.facts["bucket"] == "5000"
    fence = "UPDATE ordermesh.bucket_fence SET epoch = $2, state = $3, owner = $4 WHERE bucket = $1"
    for epoch, state, owner, read_at in (
        (1, "FROZEN_W", "s1", 1),  # somebody is just leaving, perhaps this user
        (2, "OWNED", "s1", 1),  # somebody left
        (1, "OWNED", "s1", 2),  # the map is ahead: the shard does not know yet
        (1, "MOVED", "s2", 1),
    ):
        await archive.shard.execute(fence, bucket, epoch, state, owner)
        with pytest.raises(StaleRoute) as stale:
            await rows_of([asked], wanted("user.a", placements={"s1": (Held(bucket, read_at),)}))
        told = {"bucket": str(bucket), "epoch": str(epoch), "state": state, "owner": owner}
        assert told.items() <= stale.value.facts.items()
    assert await rows_of([asked], wanted("user.a", placements={"s1": (Held(4096, 1),)})) == []


async def test_hot_orders_come_by_the_users_index_one_month_at_a_time(archive: Archive) -> None:
    async with pg.open_session(pg.PgSettings(dsn=archive.database.dsn), name="plan") as session:
        sql = QUERIES.hot.format(columns=select_list("o"))
        await session.execute(f"PREPARE hot AS {sql}")
        plan = json.dumps(
            await session.fetchval(
                "EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE hot "
                f"('user.a', '2023-08-03Z', '2023-08-20Z', ARRAY[{user_bucket('user.a')}])"
            )
        )
    assert '"Sort' not in plan
    assert '"Seq Scan"' not in plan
    assert '"Subplans Removed"' in plan
    assert plan.count('"Relation Name"') == 1, "one month"


async def test_batches_are_bounded_and_who_leaves_early_leaves_nothing_open(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legs, "BATCH_ROWS", 10)
    rows = reader(archive.database.dsn, archive.store).rows(wanted("user.a"), Read())
    assert len(await anext(rows)) == 10
    await rows.aclose()

    async def gone() -> bool:
        return not await archive.value(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ordermesh-statement' "
            "AND datname = current_database()"
        )

    assert await eventually(gone, within_s=10)
