"""The page over real Postgres: complete or refused, and cheap."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from chassis.errors import InternalError, ShardUnavailable, StaleRoute
from chassis.ids import id_bucket, user_bucket
from chassis.placement import Held
from history_svc.page import EVERY_ORDER, NEWEST, OLDEST, Filter, Key, Row, Window
from history_svc.reader import Reader, ServedBy, Wish
from history_svc.search import Searcher
from history_svc.settings import HistorySettings
from history_svc.store import QUERIES, SESSION, Reading, Shards
from tests.databases import Database
from tests.histories import Shard, Stored, connected, order_at, scattered
from tests.readmodels import MemoryReadModel

ALICE = user_bucket("alice")
DEDICATED = 4097
READ_S = 5.0
PAGE = 21
Placement = Mapping[str, Sequence[Held]]
ShardFactory = Callable[..., Awaitable[Shard]]


@pytest.fixture
def shard(shard_database: Callable[[], Awaitable[Database]]) -> ShardFactory:
    """Makes shards with databases of their own."""

    async def make(name: str, *buckets: int) -> Shard:
        return await Shard(name, await shard_database()).prepare(*buckets)

    return make


@asynccontextmanager
async def reading(*shards: Shard, **dsns: str) -> AsyncIterator[Shards]:
    """The store over these shards."""
    settings = HistorySettings(
        tls_dir=Path(),
        subject_dir=Path(),
        profile="local",
        shards={**{shard.name: shard.database.dsn for shard in shards}, **dsns},
    )
    async with Shards.open(settings) as opened:
        yield opened


def window(**changes: Any) -> Window:
    return replace(Window("alice", NEWEST, OLDEST, EVERY_ORDER), **changes)


async def walk(store: Shards, placement: Placement, wanted: Window, size: int) -> list[Row]:
    """A whole list, page by page, while nothing was ever indexed: so the shards alone serve it."""
    reader = Reader(store, Searcher(MemoryReadModel(), READ_S), timedelta(days=2))
    rows: list[Row] = []
    before: Key | None = wanted.before
    while before is not None:
        wish = Wish(replace(wanted, before=before), size)
        served = await reader.read(placement, wish, now=datetime.now(UTC), timeout_s=READ_S)
        assert served.served_by is ServedBy.SQL_FALLBACK
        rows += served.page.rows
        before = served.page.next_after
    return rows


def everything(held: Sequence[Held], limit: int = 5) -> tuple[Sequence[Held], Reading]:
    """What a shard is asked for everything it has of alice."""
    return held, Reading(window(), OLDEST, limit)


def newest_first(orders: list[Stored]) -> list[UUID]:
    return [order.order_id for order in sorted(orders, key=lambda order: order.sort_key, reverse=True)]


@pytest.mark.parametrize(("size", "status"), [(1, None), (7, None), (100, None), (5, "SUCCESS")])
async def test_a_walk_over_two_shards_shows_every_order_once_newest_first(shard, size, status):
    s1, v1 = await shard("s1"), await shard("v1", DEDICATED)
    old, new = scattered(40, seed=1), scattered(40, seed=2, bucket=DEDICATED)
    await s1.store(*old, *scattered(20, seed=3, user_id="bob"))
    await v1.store(*new)
    placement = {"s1": (Held(ALICE, 1),), "v1": (Held(DEDICATED, 1),)}
    async with reading(s1, v1) as store:
        rows = await walk(store, placement, window(filter=Filter(status=status)), size)
    expected = [order for order in [*old, *new] if status in (None, order.status)]
    assert [row.key.order_id for row in rows] == newest_first(expected)


async def test_a_time_range_includes_its_start_and_not_its_end(shard):
    noon = datetime(2026, 4, 10, 12, tzinfo=UTC)
    orders = [order_at(noon + timedelta(milliseconds=ms)) for ms in (-1, 0, 0, 1, 2)]
    s1 = await shard("s1")
    await s1.store(*orders)
    bounds = window(not_before=noon, before=Key(noon + timedelta(milliseconds=2), UUID(int=0)))
    async with reading(s1) as store:
        rows = await walk(store, {"s1": (Held(ALICE, 1),)}, bounds, 2)
    assert [row.key.order_id for row in rows] == newest_first(orders[1:4])


async def test_an_order_that_two_shards_hold_is_shown_once_in_its_greatest_version(shard):
    s1, s2 = await shard("s1"), await shard("s2")
    order = order_at(datetime(2026, 4, 1, tzinfo=UTC))
    await s1.store(order)
    await s2.store(replace(order, version=3, status="SUCCESS"))
    async with reading(s1, s2) as store:
        rows = await walk(store, {"s1": (Held(ALICE, 1),), "s2": (Held(ALICE, 1),)}, window(), 5)
    assert [(row.version, row.columns["status"]) for row in rows] == [(3, "SUCCESS")]


async def test_rows_of_a_bucket_that_was_moved_away_are_not_shown_from_here(shard):
    s1 = await shard("s1")
    await s1.store(
        order_at(datetime(2026, 4, 1, tzinfo=UTC)), order_at(datetime(2026, 4, 2, tzinfo=UTC), bucket=4100)
    )
    async with reading(s1) as store:
        rows = await walk(store, {"s1": (Held(4100, 1),)}, window(), 5)
    assert [id_bucket(row.key.order_id) for row in rows] == [4100]


@pytest.mark.parametrize("orders", [0, 3])
@pytest.mark.parametrize(
    ("fence", "facts"),
    [
        (
            {"state": "MOVED", "owner": "s2"},
            {"bucket": str(ALICE), "epoch": "1", "owner": "s2", "state": "MOVED"},
        ),
        ({"state": "FROZEN_RW"}, {"state": "FROZEN_RW"}),
        ({"epoch": 2}, {"epoch": "2", "state": "OWNED"}),
    ],
)
async def test_a_shard_that_does_not_own_the_bucket_refuses_and_says_who_does(shard, fence, facts, orders):
    s1 = await shard("s1")
    await s1.store(*scattered(orders, seed=4))
    await s1.fence(ALICE, **fence)
    async with reading(s1) as store:
        with pytest.raises(StaleRoute) as refused:
            await store.read("s1", *everything((Held(4000, 1), Held(ALICE, 1))), timeout_s=READ_S)
    assert facts.items() <= refused.value.facts.items()


async def test_a_bucket_that_was_never_here_is_a_stale_route_and_not_an_empty_list(shard):
    s1 = await shard("s1", 1)
    async with reading(s1) as store:
        with pytest.raises(StaleRoute) as refused:
            await store.read("s1", *everything((Held(ALICE, 1),)), timeout_s=READ_S)
    assert refused.value.facts == {"bucket": str(ALICE)}


async def test_a_shard_that_is_away_makes_the_page_unavailable_and_never_short(shard):
    s1 = await shard("s1")
    await s1.store(*scattered(5, seed=5))
    gone = "postgresql://ordermesh:x@127.0.0.1:1/s2"
    async with reading(s1, s2=gone) as store:
        for missing in ("s2", "s9"):
            placement = {"s1": (Held(ALICE, 1),), missing: (Held(DEDICATED, 1),)}
            with pytest.raises(ShardUnavailable) as refused:
                await walk(store, placement, window(), 5)
            assert refused.value.facts == {"shard": missing}
        assert await walk(store, {"s1": (Held(ALICE, 1),)}, window(), 5)


async def test_the_read_side_cannot_write(shard):
    s1 = await shard("s1")
    async with reading(s1) as store:
        with pytest.raises(InternalError) as refused:
            await store._primaries["s1"].execute("DELETE FROM orders")
    assert refused.value.facts == {"sqlstate": "25006"}


async def test_a_page_reads_the_months_it_needs_and_stops_when_it_is_full(shard):
    s1 = await shard("s1")
    others = [order for n in range(20) for order in scattered(50, seed=n, user_id=f"user-{n}", months=12)]
    await s1.store(*scattered(600, seed=99, months=12), *others)
    async with connected(s1) as connection:
        await connection.execute("ANALYZE")
        newest = await _read_by_plan(connection, OLDEST, NEWEST)
        may = datetime(2026, 5, 2, tzinfo=UTC), Key(datetime(2026, 5, 30, tzinfo=UTC), UUID(int=0))
        of_may = await _read_by_plan(connection, *may)
    assert sum(newest.values()) <= PAGE
    assert len(newest) <= 3, "months behind the full page are not touched"
    assert of_may == {"orders_2026_05": PAGE}


async def _read_by_plan(connection: Any, not_before: datetime, before: Key) -> dict[str, int]:
    """How many rows of which months are read."""
    scans = await _scans(connection, "false", "orders_2", not_before, before)
    done = [scan for scan in scans if scan["Actual Loops"]]
    assert {scan["Node Type"] for scan in scans} == {"Index Scan"}
    assert all("user_id_created_at_order_id" in scan["Index Name"] for scan in done)
    return {scan["Relation Name"]: int(scan["Actual Rows"]) for scan in done}


async def _scans(
    connection: Any, changes: str, table: str, not_before: datetime = OLDEST, before: Key = NEWEST
) -> list[dict[str, Any]]:
    """How a page scans tables whose names begin so, by the generic plan of the read side's own sessions."""
    for name, value in {**SESSION, "plan_cache_mode": "force_generic_plan"}.items():
        await connection.execute(f"SET {name} = {value}")
    await connection.execute("SET search_path = ordermesh")
    kinds = (
        "int[], bigint[], text, timestamptz, timestamptz, uuid, timestamptz, int, boolean, int, int, bigint"
    )
    await connection.execute(f"PREPARE page ({kinds}) AS {QUERIES.page_of_shard}")
    bounds = f"'{not_before}', '{before.created_at}', '{before.order_id}'"
    given = f"'{{{ALICE}}}', '{{1}}', 'alice', {bounds}, '{OLDEST}', {PAGE}, {changes}, 500, 2001, -1"
    (plan,) = await connection.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON, TIMING OFF) EXECUTE page ({given})")
    await connection.execute("DEALLOCATE page")
    scans: list[dict[str, Any]] = []
    _collect(json.loads(plan[0])[0]["Plan"], table, scans)
    return scans


def _collect(node: dict[str, Any], prefix: str, scans: list[dict[str, Any]]) -> None:
    if str(node.get("Relation Name", "")).startswith(prefix):
        scans.append(node)
    for child in node.get("Plans", ()):
        _collect(child, prefix, scans)


_MANY_CHANGES = """
INSERT INTO outbox (event_id, order_id, created_at, user_id, bucket, route_epoch, stream_partition,
read_routing,
                    version, kind, occurred_at, payload)
SELECT gen_random_uuid(), $1, ordermesh.id_time($1), $2, $3, 1, $3 % 8, $2, n, 'PROBED', clock_timestamp(),
       '{}'
  FROM generate_series(1, $4::int) AS n
"""
_MARKS = """
INSERT INTO watermarks (stream_partition, log_epoch, xid, seq, updated_at, source_at)
SELECT p, 1, $1::text::xid8, 0, clock_timestamp(), clock_timestamp() FROM generate_series(0, 7) AS p
ON CONFLICT (stream_partition) DO UPDATE SET xid = excluded.xid
"""


@pytest.mark.parametrize(("behind", "looked_at"), [(False, 0), (True, 2001)])
async def test_what_changed_after_the_watermark_is_found_by_user_and_within_a_bound(shard, behind, looked_at):
    s1 = await shard("s1")
    mine, others = (
        order_at(datetime(2026, 4, 1, tzinfo=UTC)),
        order_at(datetime(2026, 4, 1, tzinfo=UTC), "bob"),
    )
    await s1.store(mine, others)
    async with connected(s1) as connection:
        await connection.execute("SET search_path = ordermesh")
        await connection.execute("SELECT ensure_partitions()")
        first = await connection.fetchval("SELECT pg_current_xact_id()::text")
        for order, user, count in ((others, "bob", 30_000), (mine, "alice", 5000)):
            bucket = id_bucket(order.order_id)
            await connection.execute(_MANY_CHANGES, order.order_id, user, bucket, count)
        last = await connection.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
        await connection.execute(_MARKS, first if behind else last)
        await connection.execute("ANALYZE")
        scans = await _scans(connection, "true", "outbox_2")
    done = [scan for scan in scans if scan["Actual Loops"]]
    assert {scan["Node Type"] for scan in done} <= {"Index Scan", "Index Only Scan"}
    assert all("user_id_xid_seq" in scan["Index Name"] for scan in done)
    assert sum(int(scan["Actual Rows"]) for scan in done) == looked_at
