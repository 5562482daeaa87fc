"""Tests of the tests: each rule that the page and the projector live by is broken on purpose, and a short
life of a shard shows it. The same lives pass while nothing is broken.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from chassis.errors import StaleRoute
from history_svc import catalog, descent, page, reader
from history_svc.channel import log as shard_log
from history_svc.page import Filter, Source
from history_svc.parts import ShardPart
from history_svc.projector.domain import Progress
from history_svc.projector.indexer import Indexing
from history_svc.reader import ServedBy
from history_svc.readmodel.port import Verdict
from history_svc.settings import HistorySettings
from history_svc.store import QUERIES, Shards
from order_svc.events import Verdict as Said
from tests.databases import Database
from tests.leaving import Leaving
from tests.model.history_world import DEDICATED, DEDICATED_BASE, SPANS_MAX, Violation, World, nothing
from tests.readmodels import Died
from tests.shards import opened
from tests.unit.orders import relabelled

Life = Callable[[World], Awaitable[None]]
Fault = Callable[[World, pytest.MonkeyPatch], None]
OLD = timedelta(hours=2)
EVERYTHING = Filter()


@pytest.fixture
async def world(shard_database: Callable[[], Awaitable[Database]]) -> AsyncIterator[World]:
    database, other = await shard_database(), await shard_database()
    dsns = {"s1": database.dsn, "v1": other.dsn}
    wanted = HistorySettings(tls_dir=Path(), subject_dir=Path(), profile="local", shards=dsns)
    async with (
        opened(database) as shard,
        opened(other, partition_base=DEDICATED_BASE) as dedicated,
        Shards.open(wanted) as shards,
    ):
        made = World(shard, shards, dedicated)
        yield made
        await made.close()


async def looks(world: World, user: str = "alice", shown: Filter = EVERYTHING, size: int = 2) -> None:
    """Somebody walks a list to its end."""
    walk = await world.start_walk(user, shown, size)
    while walk.before is not None:
        await world.next_page(walk)


async def is_indexed_while_it_is_read(world: World) -> None:
    orders = [await world.create("alice") for _ in range(3)]
    await world.pass_time(OLD)
    await world.index()
    await world.change(orders[1].order_id, relabelled({"n": "1"}))
    await world.looked("alice", EVERYTHING, 10, meanwhile=world.index)


async def commits_late(world: World) -> None:
    await world.index()
    await world.begin("alice")
    await world.create("alice")
    await world.index()
    await world.end(0, commit=True)
    await world.index()
    await world.pass_time(OLD)
    await looks(world)


async def grows_old(world: World) -> None:
    await world.index()
    await world.create("alice")
    await world.index()
    await world.pass_time(OLD)
    await looks(world)


async def dies_before_the_refresh(world: World) -> None:
    await world.index()
    await world.create("alice")

    async def at(name: str) -> None:
        if name == "refresh":
            raise Died

    await index_with(world, at)
    await world.index()
    await world.pass_time(OLD)
    await looks(world)


async def step_and_prove(indexing: Indexing) -> None:
    await indexing.step()
    await indexing.prove()


async def index_with(world: World, at: Callable[[str], Awaitable[None]]) -> None:
    """Index while something happens at the read model's awaits; then the process is gone."""
    world.read_model.at = at
    assert world.indexing is not None
    with pytest.raises((Died, BaseExceptionGroup)):
        await step_and_prove(world.indexing)
    world.read_model.at = nothing
    await world.end_indexing()


async def has_a_slow_partition(world: World) -> None:
    await world.index()
    assert world.source is not None
    world.source.held.add(701 % 8)
    await world.create("alice")
    await world.create("bob")
    await world.index()
    await world.pass_time(OLD)
    await looks(world)


async def spans_many_months(world: World) -> None:
    orders = []
    for _ in range(5):
        orders.append(await world.create("alice"))
        await world.pass_time(timedelta(days=31))
        await world.index()
    await world.change(orders[0].order_id, relabelled({"n": "1"}))
    await looks(world, size=3)


async def loses_a_batch(world: World) -> None:
    await world.index()
    assert world.source is not None
    await world.create("alice")
    world.source.loses = 1
    await world.index()
    await world.create("alice")
    for _ in range(3):
        await world.index()
    await world.pass_time(OLD)
    await looks(world)


async def is_moved_away(world: World) -> None:
    await grows_old(world)
    await world.shard.db.execute("UPDATE bucket_fence SET state = 'MOVED', owner = 's2' WHERE bucket = 701")
    with pytest.raises(StaleRoute):
        await world.checked_page("alice", EVERYTHING, 2)


async def hides_what_was_found(world: World) -> None:
    orders = [await world.create("alice") for _ in range(16)]
    await world.pass_time(OLD)
    await world.index()
    for order in orders[4:]:
        await world.change(order.order_id, world.settling(order.order_id, Said.SUCCEEDED))
    await world.checked_page("alice", Filter(status="PENDING"), 2)


async def makes_orders_in_one_millisecond(world: World) -> None:
    at = await world.shard.value("SELECT ordermesh.clock()")
    for _ in range(6):
        await world.create("alice", at_ms=int(at.timestamp() * 1000))
    await world.pass_time(OLD)
    await world.index()
    await looks(world, size=1)


async def is_archived_on_one_of_two_shards(world: World) -> None:
    await world.create("alice")
    world.buckets["alice"].append(DEDICATED)
    await world.create("alice")
    await world.pass_time(timedelta(days=32))
    await world.create("alice")
    await world.index()
    await world.archive("v1")
    await looks(world)
    await world.clear_out("v1")
    await looks(world, shown=Filter(status="SUCCESS"))
    await looks(world)


async def changes_before_it_is_archived(world: World) -> None:
    order = await world.create("alice")
    await world.index()
    await world.pass_time(timedelta(days=32))
    await world.create("alice")
    await world.change(order.order_id, world.settling(order.order_id, Said.SUCCEEDED))
    await world.archive("s1")
    await looks(world)


async def comes_back_while_it_is_read(world: World) -> None:
    """By a restore that ends just after the shard has said what it has."""
    await world.create("alice")
    await world.pass_time(timedelta(days=32))
    await world.create("alice")
    await world.index()
    await world.archive("s1")
    await world.clear_out("s1")
    await looks(world)
    world.read_model.down = True

    async def come_back() -> None:
        await world.restore("s1")

    world.between = [nothing_yet, come_back]
    await looks(world, size=100)
    for late in world.between:
        await late()
    world.between = []
    await looks(world, size=100)


async def nothing_yet() -> None:
    """The first of two reads."""


async def is_built_again_on_one_of_two_shards(world: World) -> None:
    ours = await world.create("alice")
    world.buckets["alice"].append(DEDICATED)
    await world.create("alice")
    await world.pass_time(OLD)
    await world.index()
    await world.change_over("s1")
    await world.change(ours.order_id, world.settling(ours.order_id, Said.SUCCEEDED))
    await world.index()
    served = await world.checked_page("alice", Filter(status="PENDING"), 2)
    assert served.served_by is ServedBy.READ_MODEL, "both indices are read"


def counts_whatever_is_in_an_index(world: World, patch: pytest.MonkeyPatch) -> None:
    def months_in(*asked: Any) -> Any:
        months = catalog.months_in(*asked)
        return {
            month: tuple(replace(place, stream_partitions=None) for place in places)
            for month, places in months.items()
        }

    patch.setattr(reader, "months_in", months_in)


def asks_one_shard_where_the_archive_begins(world: World, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reader, "floor_of", lambda parts: parts[0].archived_to)


def shows_what_changed_below_the_floor(world: World, patch: pytest.MonkeyPatch) -> None:
    sound = ShardPart.above

    def above(part: ShardPart, floor: Any) -> ShardPart:
        return replace(sound(part, floor), changed=part.changed)

    patch.setattr(ShardPart, "above", above)


def searches_below_the_floor(world: World, patch: pytest.MonkeyPatch) -> None:
    sound = reader._above

    def above(floor: Any, wish: Any, parts: Any) -> Any:
        return wish, sound(floor, wish, parts)[1]

    patch.setattr(reader, "_above", above)


def reads_the_floor_after_the_rows(world: World, patch: pytest.MonkeyPatch) -> None:
    sound = Shards._fetch

    async def fetch(shards: Shards, database: Any, shard: str, *rest: Any) -> Any:
        part = await sound(shards, database, shard, *rest)
        if world.between:
            await world.between.pop(0)()
        return replace(part, archived_to=await Leaving(world.homes[shard]).floor())

    patch.setattr(Shards, "_fetch", fetch)


def reads_watermarks_late(world: World, patch: pytest.MonkeyPatch) -> None:
    """The search comes first and the watermark after it."""
    model = world.read_model

    class Late(reader.Reader):
        async def read(self, *args: Any, **options: Any) -> Any:
            early = {name: dict(documents) for name, documents in model.visible.items()}
            await model.at("search")
            search = type(model).search

            async def searched(_: Any, *asked: Any, **how: Any) -> Any:
                now, model.visible = model.visible, early
                try:
                    return await search(model, *asked, **how)
                finally:
                    model.visible = now

            patch.setattr(type(model), "search", searched)
            try:
                return await super().read(*args, **options)
            finally:
                patch.undo()

    sound = world.make_reader(world)
    world.reader = Late(sound._shards, sound._searcher, sound._hot_window)


def reads_beyond_the_fence(world: World, patch: pytest.MonkeyPatch) -> None:
    sound = shard_log.QUERIES.read_tail
    patch.setattr(shard_log.QUERIES, "read_tail", sound.replace("pg_snapshot_xmin(", "pg_snapshot_xmax(", 1))


def publishes_before_the_refresh(world: World, patch: pytest.MonkeyPatch) -> None:
    async def refresh(names: Any) -> None:
        return None

    patch.setattr(world.read_model, "refresh", refresh)


def takes_a_conflict_for_searchable(world: World, patch: pytest.MonkeyPatch) -> None:
    class Hasty(Indexing):
        def _note(self, writes: Any, owners: Any, outcomes: Any) -> None:
            before = set(self._pending.indices)
            super()._note(writes, owners, outcomes)
            stored = {w.index for w, o in zip(writes, outcomes, strict=True) if o.verdict is Verdict.STORED}
            self._pending.indices = before | stored

    world.indexing_class = Hasty


def keeps_one_watermark_for_all(world: World, patch: pytest.MonkeyPatch) -> None:
    class Joined(Indexing):
        async def _mark(self, pending: Any, ahead: Any, catalog_version: int) -> Any:
            joined = dict.fromkeys(self._stored, max(pending.ends.values()))
            return await super()._mark(pending, joined, catalog_version)

    world.indexing_class = Joined


def forgets_the_horizon(world: World, patch: pytest.MonkeyPatch) -> None:
    def merge(sources: Any, *rest: Any) -> Any:
        return page.merge([Source(source.rows, None) for source in sources], *rest)

    patch.setattr(descent, "merge", merge)


def skips_over_gaps(world: World, patch: pytest.MonkeyPatch) -> None:
    sound = Progress.follow

    def follow(self: Progress, records: Any) -> Any:
        fresh = list(records)
        for record in fresh:
            self.ends[record.stream_partition] = max(self.end(record.stream_partition), record.prev)
        return sound(self, fresh)

    patch.setattr(Progress, "follow", follow)


def believes_any_route(world: World, patch: pytest.MonkeyPatch) -> None:
    sound = QUERIES.page_of_shard
    patch.setattr(
        QUERIES,
        "page_of_shard",
        sound.replace("WHERE f.state IS DISTINCT FROM 'OWNED'", "WHERE false AND ('' = ''", 1).replace(
            "f.epoch IS DISTINCT FROM a.epoch", "f.epoch IS DISTINCT FROM a.epoch)", 1
        ),
    )


def asks_for_no_more_than_a_page(world: World, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reader, "hits_wanted", lambda size, parts: size + 1)


def sorts_equal_times_otherwise(world: World, patch: pytest.MonkeyPatch) -> None:
    model = world.read_model
    sound = model.search

    async def search(*args: Any, limit: int, **options: Any) -> Any:
        rows = await sound(*args, limit=1 << 20, **options)
        rows.sort(key=lambda row: (-row.key.created_at.timestamp(), row.key.order_id.int))
        return rows[:limit]

    patch.setattr(model, "search", search)


FAULTS: dict[Fault, Life] = {
    reads_watermarks_late: is_indexed_while_it_is_read,
    reads_beyond_the_fence: commits_late,
    publishes_before_the_refresh: grows_old,
    takes_a_conflict_for_searchable: dies_before_the_refresh,
    keeps_one_watermark_for_all: has_a_slow_partition,
    forgets_the_horizon: spans_many_months,
    skips_over_gaps: loses_a_batch,
    believes_any_route: is_moved_away,
    asks_for_no_more_than_a_page: hides_what_was_found,
    sorts_equal_times_otherwise: makes_orders_in_one_millisecond,
    asks_one_shard_where_the_archive_begins: is_archived_on_one_of_two_shards,
    shows_what_changed_below_the_floor: changes_before_it_is_archived,
    searches_below_the_floor: is_archived_on_one_of_two_shards,
    reads_the_floor_after_the_rows: comes_back_while_it_is_read,
    counts_whatever_is_in_an_index: is_built_again_on_one_of_two_shards,
}


@pytest.mark.parametrize("life", FAULTS.values(), ids=lambda life: life.__name__)
async def test_each_life_keeps_every_promise_while_nothing_is_broken(world: World, life: Life) -> None:
    await life(world)
    assert world.served, "somebody looked"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_each_deliberate_fault_is_caught(
    world: World, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(world, monkeypatch)
    with pytest.raises((Violation, BaseExceptionGroup)) as caught:
        await FAULTS[fault](world)
    assert isinstance(caught.value, Violation), "it is the page that gives it away"
    assert SPANS_MAX >= 2
