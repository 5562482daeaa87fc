"""One page over a real shard and a read model: complete and as of now, whoever serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from chassis.errors import ShardUnavailable
from chassis.ids import user_bucket
from chassis.placement import Held
from history_svc.errors import ReadModelUnavailable
from history_svc.finder import Finder
from history_svc.page import EVERY_ORDER, NEWEST, OLDEST, Filter, Key, Window
from history_svc.reader import Reader, Served, ServedBy, Wish
from history_svc.search import Searcher
from history_svc.settings import HistorySettings
from history_svc.store import Shards
from order_svc.domain import open_order
from order_svc.events import Verdict
from order_svc.order import Order
from tests.databases import Database
from tests.projections import TWO_DAYS, Projection
from tests.readmodels import MemoryReadModel
from tests.shards import Shard, opened
from tests.unit.orders import rules, told

ALICE = user_bucket("alice")
HERE = {"s1": (Held(ALICE, 1),)}
READ_S = 5.0


@dataclass
class History:
    """A shard, its projection, and who reads both."""

    shard: Shard
    read_model: MemoryReadModel
    projection: Projection
    shards: Shards
    clock: list[float]

    def reader(self) -> Reader:
        searcher = Searcher(self.read_model, READ_S, now=lambda: self.clock[0])
        return Reader(self.shards, searcher, TWO_DAYS)

    async def old(self, count: int) -> list[Order]:
        """Orders that are older than the hot window; whether they are indexed is up to the test."""
        made = [(await self.shard.create()).order for _ in range(count)]
        await self.shard.let_pass(timedelta(days=3))
        return made

    async def settle(self, order: Order, verdict: Verdict = Verdict.SUCCEEDED) -> Order:
        """Let the upstream answer."""
        row = await self.shard.rows(
            "SELECT * FROM orders WHERE order_id = $1 AND created_at = $2", order.order_id, order.created_at
        )
        assert row
        event = _told(order, verdict)
        return (await self.shard.decide(order, event)).order

    async def page(self, size: int = 20, **changes: Any) -> Served:
        at = await self.shard.value("SELECT ordermesh.clock()")
        return await self.reader().read(HERE, wish(size, **changes), now=at, timeout_s=READ_S)

    async def walk(self, size: int, **changes: Any) -> list[Any]:
        rows: list[Any] = []
        before: Key | None = NEWEST
        while before is not None:
            served = await self.page(size, before=before, **changes)
            rows += served.page.rows
            before = served.page.next_after
        return rows


def _told(order: Order, verdict: Verdict) -> Any:
    from order_svc.order import Seen, Tally

    return told(Seen(order, Tally(), None, order.created_at), verdict)


def wish(size: int, *, before: Key = NEWEST, not_before: datetime = OLDEST, **changes: Any) -> Wish:
    shown = changes.pop("shown", Filter())
    return replace(Wish(Window("alice", before, not_before, shown), size), **changes)


@pytest.fixture
async def history(
    shard_database: Callable[[], Awaitable[Database]], tmp_path: Path
) -> AsyncIterator[History]:
    database = await shard_database()
    async with reading(database.dsn) as shards, opened(database) as shard:
        read_model = MemoryReadModel()
        yield History(shard, read_model, Projection(shard, read_model), shards, [0.0])


@asynccontextmanager
async def reading(dsn: str, **more: str) -> AsyncIterator[Shards]:
    settings = HistorySettings(
        tls_dir=Path(), subject_dir=Path(), profile="local", shards={"s1": dsn, **more}
    )
    async with Shards.open(settings) as shards:
        yield shards


def ids(rows: Any) -> list[UUID]:
    return [row.key.order_id for row in rows]


def newest_first(orders: list[Order]) -> list[UUID]:
    ordered = sorted(orders, key=lambda order: (order.created_at, order.order_id), reverse=True)
    return [order.order_id for order in ordered]


async def test_a_page_within_the_hot_window_asks_the_shard_alone(history):
    await history.old(3)
    await history.projection.catch_up()
    recent = [(await history.shard.create()).order for _ in range(4)]
    served = await history.page(3)
    assert (served.served_by, served.asked_read_model) == (ServedBy.SQL, False)
    assert ids(served.page.rows) == newest_first(recent)[:3]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
async def test_a_walk_crosses_from_the_shard_to_the_read_model_without_a_seam(history, size):
    old = await history.old(7)
    await history.projection.catch_up()
    recent = [(await history.shard.create()).order for _ in range(4)]
    rows = await history.walk(size)
    assert ids(rows) == newest_first([*old, *recent])


async def test_a_change_of_an_old_order_shows_at_once_at_its_old_place(history):
    old = await history.old(5)
    await history.projection.catch_up()
    changed = await history.settle(old[2])
    served = await history.page()
    assert (served.served_by, served.overlay) == (ServedBy.MERGED, 1)
    assert ids(served.page.rows) == newest_first(old)
    shown = next(row for row in served.page.rows if row.key.order_id == changed.order_id)
    assert (shown.version, shown.columns["status"]) == (changed.version, "SUCCESS")
    await history.projection.catch_up()
    indexed = await history.page()
    assert (indexed.served_by, indexed.overlay) == (ServedBy.READ_MODEL, 0)
    assert [row.version for row in indexed.page.rows] == [row.version for row in served.page.rows]


@pytest.mark.parametrize("changed", [range(9), range(0, 9, 2), range(4)])
async def test_however_many_orders_changed_a_page_overlays_no_more_of_them_than_it_shows(history, changed):
    """The newest, the oldest, or every other one of nine; every page is full and as of now."""
    old = await history.old(9)
    await history.projection.catch_up()
    now = {order.order_id: 1 for order in old}
    for number in changed:
        now[old[number].order_id] = (await history.settle(old[number])).version
    rows: list[Any] = []
    before: Key | None = NEWEST
    while before is not None:
        served = await history.page(2, before=before)
        assert served.overlay <= 3
        assert len(served.page.rows) == 2 or served.page.next_after is None
        rows += served.page.rows
        before = served.page.next_after
    assert [(row.key.order_id, row.version) for row in rows] == [
        (order_id, now[order_id]) for order_id in newest_first(old)
    ]


async def test_a_filter_judges_the_order_as_it_is_now_and_the_page_stays_full(history):
    old = await history.old(12)
    await history.projection.catch_up()
    settled = [await history.settle(order) for order in old[::2]]
    pending = await history.walk(3, shown=Filter(status="PENDING"))
    assert ids(pending) == newest_first(old[1::2])
    first = await history.page(6, shown=Filter(status="SUCCESS"))
    assert ids(first.page.rows) == newest_first(settled)
    assert len((await history.page(3, shown=Filter(status="PENDING"))).page.rows) == 3


async def test_a_filtered_list_sees_recent_orders_that_are_not_indexed_yet(history):
    await history.projection.catch_up()
    recent = (await history.shard.create()).order
    assert ids(await history.walk(5, shown=Filter(kind="payment"))) == [recent.order_id]
    assert await history.walk(5, shown=Filter(kind="purchase")) == []


async def test_an_order_that_the_read_model_refused_is_shown_from_the_shard(history):
    old = await history.old(4)
    await history.projection.quarantine(old[1])
    await history.projection.catch_up()
    assert ids(await history.walk(2)) == newest_first(old)
    assert ids(await history.walk(2, shown=Filter(asked=("book",)))) == newest_first(old)


async def test_words_find_old_and_changed_orders_alike(history):
    old = await history.old(3)
    await history.projection.catch_up()
    await history.settle(old[0])
    assert ids(await history.walk(2, shown=Filter(asked=("boo",)))) == newest_first(old)
    assert await history.walk(2, shown=Filter(asked=("booo",))) == []


async def test_what_is_not_indexed_at_all_comes_from_the_shard_and_says_so(history):
    old = await history.old(4)
    served = await history.page(3)
    assert (served.served_by, served.unreachable) == (ServedBy.SQL_FALLBACK, ("read-model",))
    assert ids(await history.walk(3)) == newest_first(old)
    filtered = await history.walk(3, shown=Filter(status="PENDING"))
    assert ids(filtered) == newest_first(old)
    with pytest.raises(ReadModelUnavailable):
        await history.page(shown=Filter(asked=("book",)))


async def test_a_read_model_that_is_down_is_left_alone_for_a_while_and_then_asked_again(history):
    old = await history.old(4)
    await history.projection.catch_up()
    reader = history.reader()
    at = await history.shard.value("SELECT ordermesh.clock()")

    async def page() -> Served:
        served: Served = await reader.read(HERE, wish(10), now=at, timeout_s=READ_S)
        return served

    history.read_model.down = True
    assert (await page()).served_by is ServedBy.SQL_FALLBACK
    history.read_model.down = False
    resting = await page()
    assert (resting.served_by, ids(resting.page.rows)) == (ServedBy.SQL_FALLBACK, newest_first(old))
    history.clock[0] += 1.0
    assert (await page()).served_by is ServedBy.READ_MODEL


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE shard_identity SET log_epoch = 2",
        "DELETE FROM watermarks WHERE stream_partition = 701 % 8",
        "INSERT INTO outbox_floor (log_epoch, xid, raised_at) VALUES (1, '9999999', clock_timestamp())",
        "UPDATE projection_index SET state = 'BUILDING'",
        "UPDATE projection_index SET index_uuid = 'another'",
    ],
)
async def test_what_cannot_be_relied_on_is_not_and_nothing_is_missing(history, harm):
    old = await history.old(4)
    await history.projection.catch_up()
    assert (await history.page()).served_by is ServedBy.READ_MODEL
    await history.shard.db.execute(harm)
    history.read_model.visible = {name: {} for name in history.read_model.visible}
    served = await history.page()
    assert (served.served_by, ids(served.page.rows)) == (ServedBy.SQL_FALLBACK, newest_first(old))


async def test_each_shards_orders_are_found_in_the_generation_that_it_serves_and_in_no_other(
    history, shard_database
):
    """What s1 has left, or found wrong, still stands in the index that v1 reads."""
    database = await shard_database()
    async with (
        opened(database, partition_base=8) as dedicated,
        reading(history.shard.dsn, v1=database.dsn) as shards,
    ):
        both = {**HERE, "v1": (Held(4096, 1),)}
        wished = await dedicated.wish(user_id="alice", bucket=4096)
        made = await dedicated.store.create(open_order(wished, rules()), epoch=1, fingerprint=b"f")
        await dedicated.let_pass(timedelta(days=3))
        mine = await history.old(2)
        for projection in (history.projection, Projection(dedicated, history.read_model)):
            await projection.catch_up()
        at = await history.shard.value("SELECT ordermesh.clock()")
        searcher = Searcher(history.read_model, READ_S, now=lambda: 0.0)

        async def page(shown: Filter = EVERY_ORDER) -> tuple[ServedBy, dict[Any, int]]:
            wished = wish(20, shown=shown)
            served = await Reader(shards, searcher, TWO_DAYS).read(both, wished, now=at, timeout_s=READ_S)
            return served.served_by, {row.key.order_id: row.version for row in served.page.rows}

        async def found(shown: Filter = EVERY_ORDER) -> dict[Any, int]:
            everybodys = Window(None, NEWEST, OLDEST, shown)
            found = await Finder(shards, searcher).find(everybodys, 20, timeout_s=READ_S)
            return {row.key.order_id: row.version for row in found.page.rows}

        everything = {mine[0].order_id: 1, mine[1].order_id: 1, made.order.order_id: 1}
        assert await page() == (ServedBy.READ_MODEL, everything)
        assert await found() == everything

        model = history.read_model
        (name,) = model.stored
        newer = await model.create(name.replace("-v1-", "-v2-"))
        model.visible[newer.name] = {
            str(order.order_id): model.visible[name][str(order.order_id)] for order in mine
        }
        leftovers: list[dict[str, Any]] = [{"version": 9}, {"status": "FAILED"}]
        for order, left in zip(mine, leftovers, strict=True):
            document = model.visible[name][str(order.order_id)]
            model.visible[name] = {**model.visible[name], str(order.order_id): {**document, **left}}
        await history.shard.db.execute(
            "UPDATE projection_index SET generation = 2, index_name = $1, cluster_uuid = $2, index_uuid = $3",
            *newer,
        )
        for shown, expected in (
            (EVERY_ORDER, everything),
            (Filter(status="PENDING"), everything),
            (Filter(asked=("book",)), everything),
            (Filter(status="FAILED"), {}),
        ):
            assert await page(shown) == (ServedBy.READ_MODEL, expected)
            assert await found(shown) == expected

        await history.shard.db.execute("UPDATE projection_index SET state = 'BUILDING'")
        assert await found() == {made.order.order_id: 1}, (
            "a month that no index serves is left out, not guessed"
        )
        assert await page() == (ServedBy.SQL_FALLBACK, everything)


async def test_an_index_that_two_shards_take_for_different_ones_is_believed_by_neither(
    history, shard_database
):
    """One shard has noticed that it was lost and has built it again, the other one has not noticed yet."""
    database = await shard_database()
    async with (
        opened(database, partition_base=8) as dedicated,
        reading(history.shard.dsn, v1=database.dsn) as shards,
    ):
        wished = await dedicated.wish(user_id="alice", bucket=4096)
        await dedicated.store.create(open_order(wished, rules()), epoch=1, fingerprint=b"f")
        await dedicated.let_pass(timedelta(days=3))
        mine = await history.old(2)
        await history.projection.catch_up()
        (name,) = history.read_model.stored
        await history.read_model.drop(name)
        await Projection(dedicated, history.read_model).catch_up()
        at = await history.shard.value("SELECT ordermesh.clock()")
        for placement in ({**HERE, "v1": (Held(4096, 1),)}, {"v1": (Held(4096, 1),), **HERE}):
            reader = Reader(shards, Searcher(history.read_model, READ_S), TWO_DAYS)
            served = await reader.read(placement, wish(20), now=at, timeout_s=READ_S)
            assert (served.served_by, len(served.page.rows)) == (ServedBy.SQL_FALLBACK, len(mine) + 1)


async def test_a_shard_that_is_away_may_be_left_out_only_when_that_is_asked_for(history):
    old = await history.old(3)
    await history.projection.catch_up()
    recent = (await history.shard.create()).order
    await history.projection.catch_up()
    await history.page()
    at = await history.shard.value("SELECT ordermesh.clock()")
    gone = {**HERE, "s2": (Held(4097, 1),)}
    async with reading(history.shard.dsn, s2="postgresql://x:y@127.0.0.1:1/s2") as shards:
        reader = Reader(shards, Searcher(history.read_model, READ_S), TWO_DAYS)
        with pytest.raises(ShardUnavailable):
            await reader.read(gone, wish(10), now=at, timeout_s=READ_S)
        with pytest.raises(ShardUnavailable):
            # Which indices the shard's orders are in is not known either.
            await reader.read(gone, wish(10, partial=True), now=at, timeout_s=READ_S)
        shards._catalogs["s2"] = history.shards.last_catalog("s1")
        served = await reader.read(gone, wish(10, partial=True), now=at, timeout_s=READ_S)
    assert served.unreachable == ("shards/s2",)
    assert ids(served.page.rows) == newest_first([*old, recent])
    assert served.as_of is None


async def test_changes_that_stand_the_other_way_round_in_the_log_do_not_turn_an_order_back(
    history,
):
    """The state comes from the order and never from the log: the newest row of the log may be an older
    version.
    """
    (old,) = await history.old(1)
    await history.projection.catch_up()
    changed = await history.settle(old)
    await history.shard.db.execute("UPDATE outbox SET version = 3 - version")
    (row,) = (await history.page()).page.rows
    assert (row.version, row.columns["status"]) == (changed.version, "SUCCESS")
