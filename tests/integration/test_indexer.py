"""The indexer over a real shard: what it says is searchable is, whatever it meets and wherever it dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from chassis import faults
from chassis.clock import SYSTEM_CLOCK
from chassis.ids import user_bucket
from chassis.testing import eventually
from history_svc import metrics
from history_svc.channel.outbox import LoggedDeadLetters
from history_svc.errors import EventsUnavailable, ReadModelUnavailable
from history_svc.page import Filter
from history_svc.position import Position
from history_svc.projector import indexer
from history_svc.projector.indexer import AFTER_REFRESH, AFTER_WRITE, Indexer, Indexing, Parts
from history_svc.projector.store import AFTER_MARK, BEFORE_MARK, ProjectionStore, Proof
from history_svc.reader import ServedBy
from history_svc.settings import HistorySettings
from history_svc.store import Shards
from tests.databases import Database
from tests.model.history_world import QUARANTINE_MAX, World
from tests.shards import opened
from tests.unit.orders import relabelled

EVERYTHING = Filter()
OLD = timedelta(hours=2)
WITHIN_S = 30.0


@pytest.fixture
async def world(shard_database: Callable[[], Awaitable[Database]]) -> AsyncIterator[World]:
    database = await shard_database()
    wanted = HistorySettings(tls_dir=Path(), subject_dir=Path(), profile="local", shards={"s1": database.dsn})
    async with opened(database) as shard, Shards.open(wanted) as shards:
        made = World(shard, shards)
        yield made
        await made.close()


async def watermarks(world: World) -> dict[int, tuple[int, int]]:
    rows = await world.shard.rows("SELECT stream_partition, xid, seq FROM watermarks")
    return {row["stream_partition"]: (row["xid"], row["seq"]) for row in rows}


async def quarantined(world: World) -> dict[str, int]:
    rows = await world.shard.rows("SELECT order_id, version FROM quarantine")
    return {str(row["order_id"]): row["version"] for row in rows}


@pytest.mark.parametrize("point", [AFTER_WRITE, AFTER_REFRESH, BEFORE_MARK, AFTER_MARK])
async def test_wherever_it_dies_the_next_one_says_no_more_than_is_searchable_and_misses_nothing(
    world: World, point: str
) -> None:
    await world.index()
    orders = [await world.create("alice") for _ in range(3)]
    faults.arm(f"{point}=raise")
    await world.index()
    assert world.indexing is None, "it died"
    await world.pass_time(OLD)
    await world.checked_page("alice", EVERYTHING, 10)
    await world.index()
    served = await world.checked_page("alice", EVERYTHING, 10)
    assert (served.served_by, len(served.page.rows)) == (ServedBy.READ_MODEL, len(orders))


async def test_a_refused_document_delays_nobody_and_its_order_is_shown_as_it_is_now(world: World) -> None:
    poison, other = await world.create("alice"), await world.create("alice")
    world.read_model.refuses.add(str(poison.order_id))
    await world.index()
    await world.change(poison.order_id, relabelled({"n": "2"}))
    await world.index()
    await world.pass_time(OLD)
    served = await world.checked_page("alice", EVERYTHING, 10)
    assert {row.key.order_id for row in served.page.rows} == {poison.order_id, other.order_id}
    assert (served.served_by, await quarantined(world)) == (ServedBy.MERGED, {str(poison.order_id): 2})


async def test_an_order_leaves_quarantine_when_a_version_at_least_as_high_is_searchable(world: World) -> None:
    poison = await world.create("alice")
    world.read_model.refuses.add(str(poison.order_id))
    await world.index()
    world.read_model.refuses.clear()
    await world.index()
    assert await quarantined(world) == {str(poison.order_id): 1}
    await world.change(poison.order_id, relabelled({"n": "2"}))
    await world.index()
    assert await quarantined(world) == {}


async def test_a_full_quarantine_takes_new_versions_and_who_leaves_makes_room(world: World) -> None:
    poison = [await world.create("alice") for _ in range(QUARANTINE_MAX)]
    world.read_model.refuses |= {str(order.order_id) for order in poison}
    await world.index()
    await world.change(poison[0].order_id, relabelled({"n": "2"}))
    await world.index()
    assert await quarantined(world) == {str(poison[0].order_id): 2, str(poison[1].order_id): 1}
    another = await world.create("alice")
    world.read_model.refuses = {str(another.order_id)}
    await world.change(poison[0].order_id, relabelled({"n": "3"}))
    await world.index()
    assert await quarantined(world) == {str(another.order_id): 1, str(poison[1].order_id): 1}
    await world.pass_time(OLD)
    assert len((await world.checked_page("alice", EVERYTHING, 10)).page.rows) == 3


async def test_a_mass_of_poison_makes_no_dead_letters_however_often_it_is_tried(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters: list[object] = []

    async def put(_: object, record: object, reason: str) -> None:
        letters.append(record)

    monkeypatch.setattr(LoggedDeadLetters, "put", put)
    orders = [await world.create("alice") for _ in range(QUARANTINE_MAX + 1)]
    world.read_model.refuses |= {str(order.order_id) for order in orders}
    for _ in range(3):
        await world.index()
    assert letters == []
    world.read_model.refuses.pop()
    await world.index()
    assert len(letters) == QUARANTINE_MAX


async def test_watermarks_of_two_epochs_of_the_log_are_kept_each_in_its_own(world: World) -> None:
    """After a failover the topic still holds changes of the lost epoch, whose xids mean nothing now."""
    await world.index()
    store = ProjectionStore("s1", world.shard.db)
    ends = {0: Position(2, 7, 1), 1: Position(1, 1 << 40, 3)}
    version = (await store.catalog()).version
    await store.mark(Proof(ends, {}, version, [], {}), quarantine_max=QUARANTINE_MAX)
    stored = (await store.started()).watermarks
    assert {partition: stored[partition] for partition in ends} == ends


async def test_a_mass_of_poison_stops_the_watermark_and_loses_nothing(world: World) -> None:
    await world.index()
    before = await watermarks(world)
    orders = [await world.create("alice") for _ in range(QUARANTINE_MAX + 1)]
    world.read_model.refuses |= {str(order.order_id) for order in orders}
    for _ in range(2):
        await world.index()
    assert (await watermarks(world), await quarantined(world)) == (before, {})
    await world.pass_time(OLD)
    served = await world.checked_page("alice", EVERYTHING, 10)
    assert len(served.page.rows) == len(orders)
    world.read_model.refuses.clear()
    await world.index()
    assert (await world.checked_page("alice", EVERYTHING, 10)).served_by is ServedBy.READ_MODEL


@pytest.mark.parametrize(
    "payload",
    [
        "'{\"what\": 1}'",
        "payload || '{\"description\": null}'",
        "payload || '{\"request_id\": 5}'",
        "payload || '{\"updated_at\": [1]}'",
    ],
)
async def test_a_change_that_cannot_be_understood_holds_its_partition_and_no_other(
    world: World, payload: str
) -> None:
    await world.index()
    strange = await world.create("alice")
    await world.create("bob")
    await world.shard.db.execute(
        f"UPDATE outbox SET payload = {payload} WHERE order_id = $1", strange.order_id
    )
    before = await watermarks(world)
    for _ in range(2):
        await world.index()
    after = await watermarks(world)
    held = {partition for partition, mark in after.items() if mark <= before[partition]}
    assert 701 % 8 in held
    await world.pass_time(OLD)
    for user in ("alice", "bob"):
        assert len((await world.checked_page(user, EVERYTHING, 10)).page.rows) == 1


async def test_a_lost_index_is_not_read_again_before_its_month_is_built_anew(world: World) -> None:
    order = await world.create("alice")
    await world.index()
    for name in list(world.read_model.stored):
        world.read_model.lose(name)
    await world.change(order.order_id, relabelled({"n": "2"}))
    await world.create("bob")
    for _ in range(3):
        await world.index()
    states = await world.shard.rows("SELECT state FROM projection_index")
    assert "BUILDING" in {row["state"] for row in states}
    await world.pass_time(OLD)
    served = await world.checked_page("alice", EVERYTHING, 10)
    assert (served.served_by, len(served.page.rows)) == (ServedBy.SQL_FALLBACK, 1)


async def test_while_the_read_model_is_away_nothing_is_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.index()
    assert world.indexing is not None
    assert world.source is not None
    parts, asked = world.indexing._parts, []

    async def rewind(watermarks: object) -> None:
        asked.append(watermarks)

    monkeypatch.setattr(world.source, "rewind", rewind)
    world.read_model.down = True
    with pytest.raises(ReadModelUnavailable):
        await Indexing.begin(parts, again=True)
    assert asked == []
    world.read_model.down = False
    await Indexing.begin(parts, again=True)
    assert len(asked) == 1


async def steps(indexing: Indexing) -> None:
    while True:
        await indexing.step()


def calls(ask: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def asked() -> bool:
        return ask()

    return asked


def has_landed(indexing: Indexing) -> Callable[[], Awaitable[bool]]:
    return calls(lambda: all(flight.is_over for flight in indexing._flights))


async def test_what_is_on_its_way_holds_the_watermarks_of_all_that_was_taken_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "MANY", 1)
    await world.index()
    assert world.indexing is not None
    world.indexing = await Indexing.begin(replace(world.indexing._parts, tick_s=60.0))
    before, arrived, writes = await watermarks(world), asyncio.Event(), 0

    async def at(name: str) -> None:
        nonlocal writes
        writes += name == "write"
        if name == "write" and writes == 1:
            await arrived.wait()

    world.read_model.at = at
    running = asyncio.create_task(steps(world.indexing))
    orders = []
    for number, user in enumerate(("alice", "bob"), start=1):
        orders.append(await world.create(user))
        await eventually(calls(lambda: writes == number), within_s=WITHIN_S)  # noqa: B023 - it is awaited here
    stored = {each for documents in world.read_model.stored.values() for each in documents}
    assert str(orders[1].order_id) in stored, "it was taken and written meanwhile"
    assert str(orders[0].order_id) not in stored
    world.indexing._begin_proof()
    await world.indexing._end_proof()
    assert await watermarks(world) == before
    arrived.set()
    await eventually(has_landed(world.indexing), within_s=WITHIN_S)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await world.indexing.prove()
    after = await watermarks(world)
    assert all(after[mark] > before[mark] for mark in (user_bucket(user) % 8 for user in ("alice", "bob")))
    for user in ("alice", "bob"):
        assert len((await world.checked_page(user, EVERYTHING, 10)).page.rows) == 1


async def test_what_is_under_way_ends_with_its_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer, "MANY", 1)
    await world.index()
    assert world.indexing is not None
    tasks = asyncio.all_tasks()
    never = asyncio.Event()

    async def at(name: str) -> None:
        if name in ("write", "refresh"):
            await never.wait()

    world.read_model.at = at
    await world.create("alice")
    await world.indexing.step()
    assert asyncio.all_tasks() != tasks
    await world.end_indexing()
    assert asyncio.all_tasks() == tasks


def told_until() -> float | None:
    return REGISTRY.get_sample_value("ordermesh_indexed_until_seconds", {"shard": "s1"})


async def proved_until(world: World) -> float:
    (row,) = await world.shard.rows("SELECT extract(epoch FROM min(source_at))::float8 AS at FROM watermarks")
    return float(row["at"])


@asynccontextmanager
async def indexer_of(parts: Parts) -> AsyncIterator[None]:
    """A process that has just begun."""
    running = asyncio.create_task(Indexer(replace(parts, clock=SYSTEM_CLOCK)).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert told_until() is None, "who indexes no more tells nothing"


async def parts_of_the_next(world: World) -> Parts:
    await world.index()
    assert world.indexing is not None
    parts = world.indexing._parts
    await world.end_indexing()
    metrics.INDEXED_UNTIL.remove_by_labels({"shard": "s1"})  # Another process begins.
    return parts


async def test_who_begins_while_nothing_can_be_indexed_says_that_nothing_was(world: World) -> None:
    parts = await parts_of_the_next(world)
    await world.shard.rows("DELETE FROM watermarks RETURNING stream_partition")
    world.read_model.down = True
    async with indexer_of(parts):
        await eventually(calls(lambda: told_until() == 0.0), within_s=WITHIN_S)
        assert told_until() == 0.0


async def test_who_begins_while_the_channel_is_away_says_until_when_those_before_it_have_indexed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.create("alice")
    parts = await parts_of_the_next(world)
    away = asyncio.Event()

    async def take(**_: object) -> list[object]:
        away.set()
        raise EventsUnavailable("nobody listens")

    monkeypatch.setattr(parts.source, "take", take)
    stands_at = await proved_until(world)
    async with indexer_of(parts):
        await asyncio.wait_for(away.wait(), WITHIN_S)
        assert told_until() == pytest.approx(stands_at, abs=1e-3)
        assert stands_at > 0


async def test_it_is_told_until_when_the_whole_shard_is_indexed_whoever_moved_the_other_partitions(
    world: World,
) -> None:
    """Several processes share a shard's partitions: what only one of them knows of is still part of it."""
    await world.index()
    store, stored = ProjectionStore("s1", world.shard.db), await watermarks(world)
    version = (await store.catalog()).version
    start = (await store.started()).indexed_until
    assert start is not None
    first, *others = sorted(stored)

    async def mark(partitions: list[int], later_s: int) -> None:
        ends = {each: Position(1, stored[each][0] + later_s, 1) for each in partitions}
        as_of = dict.fromkeys(partitions, start + timedelta(seconds=later_s))
        marked = await store.mark(Proof(ends, as_of, version, [], {}), quarantine_max=QUARANTINE_MAX)
        assert marked.indexed_until == (await store.started()).indexed_until == told

    told = (await store.started()).indexed_until
    until = await proved_until(world)
    await mark(others, 60)
    assert told is not None
    assert told.timestamp() == pytest.approx(until, abs=1e-3), "the first one stands"
    told = start + timedelta(seconds=60)
    await mark([first], 90)
    await world.shard.rows("DELETE FROM watermarks WHERE stream_partition = $1 RETURNING xid", first)
    assert (await store.started()).indexed_until is None, "one partition was never indexed"
