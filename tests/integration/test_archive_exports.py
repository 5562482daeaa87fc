"""Parts out of a real Postgres: by the plans that were meant, whatever is there, under one lease."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from archive_svc.columns import JOURNAL, ORDERS, SHAPES, Shape
from archive_svc.errors import LeaseLost
from archive_svc.export import Exporter
from archive_svc.lifecycle import State
from archive_svc.segment import Key
from archive_svc.stretch import SESSION, Stretch, rows_of
from archive_svc.throttle import Throttle
from chassis import pg
from chassis.clock import SYSTEM_CLOCK
from tests.archiving import AUGUST, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3

COUNT = 1500


@pytest.fixture
async def server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as running:
        yield running


@pytest.fixture
async def archive(shard_database: DatabaseFactory, server: InProcessS3) -> AsyncIterator[Archive]:
    database = await shard_database()
    async with opened(database, Place.of(server)) as ready:
        await fill(database, COUNT, users=["user.a", *["user.b"] * 8, *map("user.c.{}".format, range(20))])
        yield ready


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every node of a plan, from the top."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


@pytest.mark.parametrize(
    ("shape", "scan", "meant"),
    [
        (ORDERS, True, ["Subquery Scan", "Sort", "Bitmap Heap Scan", "Bitmap Index Scan"]),
        (JOURNAL, True, ["Subquery Scan", "Sort", "Seq Scan"]),
        (JOURNAL, False, ["Subquery Scan", "Sort", "Nested Loop", "Sort", "Index Only Scan", "Index Scan"]),
    ],
)
async def test_rows_are_read_as_they_lie_and_sorted_once(
    archive: Archive, shape: Shape, scan: bool, meant: list[str]
) -> None:
    await archive.want(AUGUST)
    await archive.work(until=State.PLANNED)
    await archive.shard.execute("VACUUM (ANALYZE) ordermesh.orders, ordermesh.order_journal")
    parts = await archive.catalog.parts((await archive.month(AUGUST)).archive_id)
    assert len(parts) > 4
    connection = await asyncpg.connect(
        archive.database.dsn, server_settings={**SESSION, "search_path": "ordermesh"}
    )
    try:
        sql = rows_of(Stretch(shape, tuple(parts[:4])), scan=scan).strip().rstrip(";")
        keys = (*parts[0].after[:3], *parts[3].until[:3])
        await connection.execute(
            f"PREPARE copied (text, timestamptz, uuid, text, timestamptz, uuid) AS {sql}"
        )
        given = ", ".join(f"'{key}'" for key in keys)
        said = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE copied ({given})")
    finally:
        await connection.close()
    (plan,) = json.loads(said)
    found = list(nodes(plan["Plan"]))
    assert [node["Node Type"] for node in found] == meant
    rows = sum(each.order_count if shape is ORDERS else each.journal_count for each in parts[:4])
    assert found[0]["Actual Rows"] == rows
    assert [key.split(".")[-1].split(" ")[0] for key in found[1]["Sort Key"]] == list(shape.key)


OF_PART = "(user_id, created_at, order_id) > ($1, $2, $3) AND (user_id, created_at, order_id) <= ($4, $5, $6)"
SUMS_OF_PART = (
    "SELECT currency_code, status, count(*), sum(amount_minor)::bigint FROM {table} WHERE "
    + OF_PART
    + ' GROUP BY 1, 2 ORDER BY currency_code COLLATE "C", status COLLATE "C"'
)
ENTRIES_OF_PART = "SELECT count(*) FROM {table} WHERE " + OF_PART


def key_of(key: Key) -> tuple[object, ...]:
    return key.user_id, key.created_at, key.order_id


async def test_postgres_says_of_all_parts_at_once_what_it_says_of_each(archive: Archive) -> None:
    await archive.want(AUGUST)
    await archive.work(until=State.PLANNED)
    archive_id = (await archive.month(AUGUST)).archive_id
    parts = await archive.catalog.parts(archive_id)
    ends = [part.until.user_id for part in parts]
    assert len(set(ends)) < len(ends), "no user has the ends of two parts"
    orders, journal = [await archive.catalog.sums(parts, shape) for shape in SHAPES.values()]
    assert set(orders) == set(journal) == {part.number for part in parts}
    for part in parts:
        rows = await archive.rows(
            SUMS_OF_PART.format(table=part.orders_table), *key_of(part.after), *key_of(part.until)
        )
        assert [[*each.by, each.rows, each.total] for each in orders[part.number]] == [[*row] for row in rows]
        entries = ENTRIES_OF_PART.format(table=part.journal_table)
        there = await archive.value(entries, *key_of(part.after), *key_of(part.until))
        assert sum(each.rows for each in orders[part.number]) == part.order_count
        assert sum(each.rows for each in journal[part.number]) == there == part.journal_count


@pytest.mark.parametrize(
    "gone",
    [
        "of_table = 'orders'",
        "of_table = 'order_journal' AND part % 3 = 1",
        "(of_table = 'orders') = (part % 2 = 0)",
        "part IN (0, 7, 8, 9)",
    ],
)
async def test_whatever_is_lacking_is_copied_and_nothing_else(archive: Archive, gone: str) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    await archive.work(until=State.EXPORTED)
    every = len(await archive.segments())
    await archive.shard.execute(f"DELETE FROM ordermesh.archive_segments WHERE {gone}")
    await archive.shard.execute("UPDATE ordermesh.archive_months SET state = 'PLANNED'")
    kept = {each.stored.key for each in await archive.segments()}
    assert 0 < len(kept) < every
    await archive.work(until=State.VERIFIED)
    segments = await archive.segments()
    assert len(segments) == every
    assert kept < {each.stored.key for each in segments}
    assert (await archive.work()).state is State.DROPPED
    assert await twin.differences(AUGUST) == {}


async def test_a_lease_that_was_lost_lets_one_segment_be_stored_and_none_be_noted(
    archive: Archive, server: InProcessS3
) -> None:
    await archive.want(AUGUST)
    await archive.work(until=State.PLANNED)
    old = await archive.fence()
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch', holder = 'other'")
    assert await archive.catalog.take_lease("other", timedelta(seconds=30)) is not None
    settings = pg.PgSettings(dsn=archive.database.dsn, session=SESSION)

    def sessions() -> Any:
        return pg.open_session(settings, name="archive")

    exporter = Exporter(archive.catalog, archive.store, sessions, Throttle(1e9, SYSTEM_CLOCK))
    with pytest.raises(LeaseLost):
        await exporter.export(await archive.month(AUGUST), old)
    assert await archive.segments() == []
    stored = server.buckets[archive.store.settings.bucket].objects
    assert len([key for key in stored if key.endswith(".parquet")]) == 1
