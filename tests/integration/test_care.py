"""Months are built again, compared and repaired over a real shard, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from chassis import faults
from chassis.faults import FaultFired
from chassis.testing import eventually
from history_svc.care import operating, verifying, writing
from history_svc.care.operation import Findings, Kind, Operation, Phase, State
from history_svc.errors import ReadModelUnavailable
from history_svc.page import Filter
from history_svc.projector.indexer import QuarantineFull
from history_svc.reader import ServedBy
from history_svc.readmodel.port import IndexIdentity
from history_svc.settings import HistorySettings
from history_svc.store import Shards
from tests.care import FAST, TERM, Keeper
from tests.databases import Database
from tests.faults.points import CARE_POINTS
from tests.model.history_world import QUARANTINE_MAX, World
from tests.shards import opened
from tests.unit.orders import relabelled

EVERYTHING = Filter()
OLD = timedelta(hours=2)


@pytest.fixture
async def world(shard_database: Callable[[], Awaitable[Database]]) -> AsyncIterator[World]:
    database = await shard_database()
    wanted = HistorySettings(tls_dir=Path(), subject_dir=Path(), profile="local", shards={"s1": database.dsn})
    async with opened(database) as shard, Shards.open(wanted) as shards:
        made = World(shard, shards)
        yield made
        await made.close()


@pytest.fixture
async def keeper(world: World) -> Keeper:
    made = Keeper(world)
    await made.lead()
    return made


async def served_by(world: World) -> ServedBy:
    return (await world.checked_page("alice", EVERYTHING, 100)).served_by


async def test_a_month_is_built_anew_and_serves_once_it_is_proven(world: World, keeper: Keeper) -> None:
    await keeper.create(5)
    asked = await keeper.ask(Kind.REBUILD)
    async with keeper.indexing():
        done = await keeper.work()
    assert [(each.operation_id, each.state, each.orders) for each in done] == [
        (asked.operation_id, State.SUCCEEDED, 5)
    ]
    assert done[0].findings == Findings()
    assert await keeper.states() == {1: "SERVING", 2: "SERVING"}
    await keeper.upkeep.step()
    assert await keeper.states() == {2: "SERVING"}
    await world.pass_time(OLD)
    assert await served_by(world) is ServedBy.READ_MODEL


async def test_it_copies_only_when_everybody_who_writes_knows_the_new_index(
    world: World, keeper: Keeper
) -> None:
    await keeper.create(2)
    await keeper.ask(Kind.REBUILD)
    for _ in range(3):
        await keeper.step()
    (waiting,) = await keeper.all()
    assert (waiting.phase, "waits" in waiting.note) == (Phase.WAIT, True)
    await keeper.create(1)  # Its projector learns of the new index here, and begins anew.
    await keeper.index()
    await keeper.step()
    assert (await keeper.all())[0].phase is Phase.COPY


async def test_what_changes_while_a_month_is_built_is_in_its_new_index(world: World, keeper: Keeper) -> None:
    await keeper.create(5)
    await keeper.ask(Kind.REBUILD)
    async with keeper.indexing():
        while (await keeper.all())[0].state is State.OPEN:
            await keeper.step()
            order_id = next(iter(world.orders))
            await world.change(order_id, relabelled({"n": str(len(world.orders))}))
            await world.create("alice")
    await keeper.upkeep.step()
    await keeper.index()
    await world.pass_time(OLD)
    assert await served_by(world) is ServedBy.READ_MODEL


@pytest.mark.parametrize("point", [point for point in CARE_POINTS if point != operating.AFTER_RESET])
async def test_a_rebuild_that_dies_is_carried_on_by_the_next(
    world: World, keeper: Keeper, point: str
) -> None:
    await keeper.create(3)
    await keeper.ask(Kind.REBUILD)
    faults.arm(f"{point}=raise")
    async with keeper.indexing():
        died = False
        for _ in range(20):
            try:
                await keeper.step()
            except FaultFired:
                died = True
                faults.arm("")
                break
        done = await keeper.work()
    assert (died, [each.state for each in done]) == (True, [State.SUCCEEDED])
    await world.pass_time(OLD)
    assert await served_by(world) is ServedBy.READ_MODEL


async def test_a_reset_that_dies_is_done_again(world: World, keeper: Keeper) -> None:
    await keeper.create(3)
    await keeper.ask(Kind.RESET)
    faults.arm(f"{operating.AFTER_RESET}=raise")
    with pytest.raises(FaultFired):
        await keeper.step()
    async with keeper.indexing():
        done = await keeper.work()
    assert {each.state for each in done} == {State.SUCCEEDED}
    await world.pass_time(OLD)
    assert await served_by(world) is ServedBy.READ_MODEL


async def test_a_lost_index_is_found_and_its_month_built_again_by_itself(
    world: World, keeper: Keeper
) -> None:
    await keeper.create(3)
    for name in list(world.read_model.stored):
        world.read_model.lose(name)
    await keeper.create(1)
    async with keeper.indexing():
        while "BUILDING" not in (await keeper.states()).values():
            await keeper.create(1, "bob")
        await world.pass_time(OLD)
        assert await served_by(world) is ServedBy.SQL_FALLBACK
        done = await keeper.work()
    assert {(each.kind, each.state) for each in done} == {(Kind.REBUILD, State.SUCCEEDED)}
    assert await served_by(world) is ServedBy.READ_MODEL


async def test_comparing_finds_what_is_missing_and_what_is_stale_and_repairs_it(
    world: World, keeper: Keeper
) -> None:
    await keeper.create(4)
    first, second = list(world.orders)[:2]
    (name,) = [name for name, stored in world.read_model.stored.items() if stored]
    old = dict(world.read_model.stored[name][str(second)])
    await world.change(second, relabelled({"n": "2"}))
    await keeper.index()
    for shown in (world.read_model.stored[name], world.read_model.visible[name]):
        del shown[str(first)]
        shown[str(second)] = old
    asked = await keeper.ask(Kind.VERIFY)
    async with keeper.indexing():
        found = {each.operation_id: each for each in await keeper.work()}[asked.operation_id]
        assert found.findings == Findings(missing=1, stale=1)
        asked = await keeper.ask(Kind.VERIFY, repairs=True)
        found = {each.operation_id: each for each in await keeper.work()}[asked.operation_id]
        assert found.findings == Findings(missing=1, stale=1, repaired=2)
        again = await keeper.ask(Kind.VERIFY)
        found = {each.operation_id: each for each in await keeper.work()}[again.operation_id]
    assert (found.findings, found.state) == (Findings(), State.SUCCEEDED)
    await world.pass_time(OLD)
    assert len((await world.checked_page("alice", EVERYTHING, 100)).page.rows) == 4


async def test_a_day_of_many_orders_is_compared_page_by_page_on_both_sides(
    world: World, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "ENTRIES_MAX", 3)
    await keeper.create(10)
    (name,) = [name for name, stored in world.read_model.stored.items() if stored]
    ids = sorted(map(str, world.orders))
    forged = [str(UUID(int=UUID(ids[5]).int + 1 + number)) for number in range(4)]
    for shown in (world.read_model.stored[name], world.read_model.visible[name]):
        for order_id in forged:
            shown[order_id] = {**shown[ids[5]], "order_id": order_id}
        for order_id in (ids[0], ids[1], ids[9]):
            del shown[order_id]
    asked = await keeper.ask(Kind.VERIFY)
    async with keeper.indexing():
        found = {each.operation_id: each for each in await keeper.work()}[asked.operation_id]
    assert found.findings == Findings(missing=3, extra=4)


async def test_an_index_that_knows_more_than_the_shard_is_not_read_until_it_is_built_again(
    world: World, keeper: Keeper
) -> None:
    await keeper.create(3)
    first = next(iter(world.orders))
    (name,) = [name for name, stored in world.read_model.stored.items() if stored]
    for shown in (world.read_model.stored[name], world.read_model.visible[name]):
        shown[str(first)] = {**shown[str(first)], "version": 9, "h32": 1}
    async with keeper.indexing():
        asked = await keeper.ask(Kind.VERIFY, repairs=True)
        await keeper.step()
        found = {each.operation_id: each for each in await keeper.all()}[asked.operation_id]
        assert (found.state, found.findings) == (State.SUCCEEDED, Findings(ahead=1))
        await world.pass_time(OLD)
        assert await served_by(world) is ServedBy.SQL_FALLBACK
        done = await keeper.work()
    assert {(each.kind, each.state) for each in done} == {
        (Kind.VERIFY, State.SUCCEEDED),
        (Kind.REBUILD, State.SUCCEEDED),
    }
    assert (await keeper.states())[2] == "SERVING"
    assert await served_by(world) is ServedBy.READ_MODEL


async def test_what_is_only_late_is_no_difference(world: World, keeper: Keeper) -> None:
    await keeper.create(3)
    asked = await keeper.ask(Kind.VERIFY)
    working = asyncio.create_task(keeper.step())
    for _ in range(10):
        await world.create("alice")
        await world.change(next(iter(world.orders)), relabelled({"n": "x"}))
    async with keeper.indexing():
        await working
        found = {each.operation_id: each for each in await keeper.work()}[asked.operation_id]
    assert (found.findings, found.state) == (Findings(), State.SUCCEEDED)


async def test_orders_leave_quarantine_when_they_are_written_again(world: World, keeper: Keeper) -> None:
    await keeper.create(1)
    stays, leaves = await world.create("alice"), await world.create("alice")
    world.read_model.refuses |= {str(stays.order_id), str(leaves.order_id)}
    await keeper.index()
    world.read_model.refuses -= {str(leaves.order_id)}
    asked = await keeper.ask(Kind.RETRY)
    found = {each.operation_id: each for each in await keeper.work()}[asked.operation_id]
    assert (found.findings.repaired, found.findings.refused) == (1, 1)
    rows = await world.shard.rows("SELECT order_id FROM quarantine")
    assert [row["order_id"] for row in rows] == [stays.order_id]
    await world.pass_time(OLD)
    assert len((await world.checked_page("alice", EVERYTHING, 100)).page.rows) == 3


async def test_when_changes_are_gone_everything_is_built_again_by_itself(
    world: World, keeper: Keeper
) -> None:
    await keeper.create(3)
    await world.create("alice")
    await world.shard.db.execute("DELETE FROM outbox")
    await world.shard.db.execute(
        "INSERT INTO outbox_floor (log_epoch, xid, raised_at)"
        " SELECT log_epoch, pg_current_xact_id(), clock_timestamp() FROM shard_identity"
    )
    world.indexing = None
    await world.pass_time(OLD)
    assert await served_by(world) is ServedBy.SQL_FALLBACK
    async with keeper.indexing():
        await keeper.step()
        assert [(each.kind, each.state) for each in await keeper.all()] == [(Kind.RESET, State.SUCCEEDED)]
        done = await keeper.work()
    assert {(each.kind, each.state) for each in done} == {
        (Kind.RESET, State.SUCCEEDED),
        (Kind.REBUILD, State.SUCCEEDED),
    }
    assert await served_by(world) is ServedBy.READ_MODEL
    assert len((await world.checked_page("alice", EVERYTHING, 100)).page.rows) == 4


async def test_after_a_restore_that_lost_commits_the_shards_part_begins_anew(
    world: World, keeper: Keeper
) -> None:
    """A restored shard repeats transaction ids and versions, so it gets another log epoch."""
    await keeper.create(3)
    await world.shard.db.execute("UPDATE shard_identity SET log_epoch = log_epoch + 1")
    await world.pass_time(OLD)
    assert await served_by(world) is ServedBy.SQL_FALLBACK
    async with keeper.indexing():
        await world.create("alice")
        done = await keeper.work()
    assert {(each.kind, each.state) for each in done} == {
        (Kind.RESET, State.SUCCEEDED),
        (Kind.REBUILD, State.SUCCEEDED),
    }
    await world.pass_time(OLD)
    assert await served_by(world) is ServedBy.READ_MODEL
    assert len((await world.checked_page("alice", EVERYTHING, 100)).page.rows) == 4


async def test_while_the_read_model_is_away_an_operation_waits_and_says_why(
    world: World, keeper: Keeper
) -> None:
    await keeper.create(2)
    await keeper.ask(Kind.REBUILD)
    world.read_model.down = True
    await keeper.step()
    (waiting,) = await keeper.all()
    assert (waiting.state, "ReadModelUnavailable" in waiting.note) == (State.OPEN, True)
    world.read_model.down = False
    async with keeper.indexing():
        assert {each.state for each in await keeper.work()} == {State.SUCCEEDED}


async def test_an_operation_that_fails_lets_the_others_go_on(world: World, keeper: Keeper) -> None:
    await keeper.create(2)
    patient = Keeper(world, replace(FAST, every_s=30.0))
    failing = await keeper.ask(Kind.REBUILD)
    world.read_model.down = True
    await patient.step()
    world.read_model.down = False
    other = await keeper.ask(Kind.VERIFY)
    async with keeper.indexing():
        while await patient.step():
            pass
    found = {each.operation_id: each.state for each in await keeper.all()}
    assert found == {failing.operation_id: State.OPEN, other.operation_id: State.SUCCEEDED}


async def test_comparing_a_month_that_no_index_serves_fails(world: World, keeper: Keeper) -> None:
    await keeper.create(2)
    await world.shard.db.execute("UPDATE projection_index SET state = 'BUILDING'")
    asked = await keeper.ask(Kind.VERIFY)

    async def keep(_: Operation) -> None:
        raise AssertionError("nothing is compared")

    assert (await operating.step(keeper.parts, asked, TERM, keep)).state is State.FAILED


async def test_a_repair_that_is_asked_for_while_a_comparison_runs_is_not_lost(
    world: World, keeper: Keeper
) -> None:
    await keeper.create(2)
    running = await keeper.ask(Kind.VERIFY)
    asked = await keeper.ask(Kind.VERIFY, repairs=True)
    assert (asked.operation_id, asked.repairs) == (running.operation_id, True)
    assert not await keeper.store.keep(replace(running, state=State.SUCCEEDED), TERM)
    assert await keeper.store.keep(replace(asked, state=State.SUCCEEDED), TERM)


async def test_a_reset_in_a_term_that_is_over_changes_nothing(world: World, keeper: Keeper) -> None:
    await keeper.create(2)
    asked = await keeper.ask(Kind.RESET)
    before = await keeper.states()
    assert await keeper.store.reset(asked.operation_id, TERM + 1) is None
    assert await keeper.states() == before
    assert await keeper.store.reset(asked.operation_id, TERM) == len(await keeper.projection_months())


async def test_a_shard_that_serves_an_older_generation_than_others_builds_a_newer_one(
    world: World, keeper: Keeper
) -> None:
    await keeper.create(2)
    older = await keeper.projection.catalog()
    await keeper.ask(Kind.REBUILD)
    async with keeper.indexing():
        await keeper.work()
        newer = await keeper.projection.catalog()
        first = min(index.month for index in older.indices)
        await keeper.upkeep._catch_up(first, {"s1": older, "s2": newer})
        done = await keeper.work()
    assert [each.reason for each in done] == ["others serve a newer one", "a test asks for it"]
    assert (await keeper.states())[3] == "SERVING"


async def test_a_month_that_is_planned_meanwhile_is_not_planted(world: World, keeper: Keeper) -> None:
    """Whoever plants waits for whoever holds the catalog, and then sees what that one wrote."""
    long_ago = date(2020, 1, 1)
    seeding = await asyncpg.connect(
        world.shard.dsn, server_settings={"search_path": "ordermesh, public", "timezone": "UTC"}
    )

    async def waits() -> bool:
        return bool(await world.shard.value("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    try:
        async with seeding.transaction():
            await seeding.execute("SELECT FROM plan_index($1, true, true)", long_ago)
            planting = asyncio.create_task(
                keeper.store.plant(long_ago, 2, IndexIdentity("orders-v2-2020.01", "memory", "1"))
            )
            await eventually(waits, within_s=0.9, every_s=0.01)
        await planting
    finally:
        await seeding.close()
    rows = await world.shard.rows("SELECT generation, state FROM projection_index WHERE month = $1", long_ago)
    assert [tuple(row) for row in rows] == [(1, "BUILDING")]


async def test_a_month_that_is_known_is_noted_once_and_moves_the_catalog_once(
    world: World, keeper: Keeper
) -> None:
    long_ago = date(2020, 1, 1)
    identity = IndexIdentity("orders-v1-2020.01", "memory", "1")
    before = (await keeper.projection.catalog()).version
    for _ in range(3):
        await keeper.projection.add_index(long_ago, identity)
    catalog = await keeper.projection.catalog()
    assert (catalog.version, catalog.serving()[long_ago].identity) == (before + 1, identity)


async def test_a_read_model_that_takes_no_documents_holds_nobody_for_ever(
    world: World, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keeper.create(2)
    monkeypatch.setattr(writing, "WRITE_S_MAX", 0.2)
    rows = await keeper.store.orders_of(list(world.orders))
    world.read_model.later = 1_000_000
    names = list(world.read_model.stored)
    with pytest.raises(ReadModelUnavailable):
        await writing.OrderWriter(keeper.parts).put(rows, dict.fromkeys(world.orders, names), again=True)


async def test_nothing_is_retired_while_one_shard_still_reads_it(world: World, keeper: Keeper) -> None:
    await keeper.create(2)
    await world.shard.db.execute(
        "INSERT INTO projection_index (month, generation, index_name, cluster_uuid, index_uuid, state,"
        " catalog_version, created_at)"
        " SELECT month, 2, 'orders-v2', '', '', 'BUILDING', 1, created_at FROM projection_index LIMIT 1"
    )
    await keeper.upkeep.step()
    assert "RETIRED" not in (await keeper.states()).values()


async def test_a_cancelled_operation_is_not_carried_on(world: World, keeper: Keeper) -> None:
    await keeper.create(2)
    asked = await keeper.ask(Kind.REBUILD)
    await keeper.step()
    await keeper.store.cancel(asked.operation_id, "changed my mind")
    async with keeper.indexing():
        done = await keeper.work()
    assert [(each.state, each.note) for each in done if each.operation_id == asked.operation_id] == [
        (State.CANCELLED, "changed my mind")
    ]


async def test_a_generation_that_nobody_builds_any_more_is_not_written_either(
    world: World, keeper: Keeper
) -> None:
    """A new mapping that refuses everything must not hold the watermarks of the old one for ever."""
    await keeper.create(2)
    asked = await keeper.ask(Kind.REBUILD)
    await keeper.step()
    await keeper.upkeep.step()
    assert await keeper.states() == {1: "SERVING", 2: "BUILDING"}
    await keeper.store.cancel(asked.operation_id, "its mapping is wrong")
    await keeper.upkeep.step()
    assert await keeper.states() in ({1: "SERVING", 2: "RETIRED"}, {1: "SERVING"})
    version = (await keeper.projection.catalog()).version
    await keeper.upkeep.step()
    await keeper.upkeep.step()
    assert (await keeper.projection.catalog()).version <= version + 1, "what is done moves the catalog once"
    await keeper.create(1)
    await keeper.index()
    await world.pass_time(OLD)
    assert await served_by(world) is ServedBy.READ_MODEL


async def test_a_copy_that_is_refused_altogether_fills_no_quarantine(world: World, keeper: Keeper) -> None:
    await keeper.create(QUARANTINE_MAX + 2)
    world.read_model.refuses |= {str(order_id) for order_id in world.orders}
    rows = await keeper.store.orders_of(list(world.orders))
    names = list(world.read_model.stored)
    with pytest.raises(QuarantineFull):
        await writing.OrderWriter(keeper.parts).put(rows, dict.fromkeys(world.orders, names), again=True)
    assert await world.shard.rows("SELECT FROM quarantine") == []


async def test_a_stale_term_keeps_nothing(world: World, keeper: Keeper) -> None:
    await keeper.create(2)
    await keeper.ask(Kind.REBUILD)
    await world.shard.db.execute("UPDATE relay_lease SET term = term + 1")
    await keeper.step()
    assert (await keeper.all())[0].phase is Phase.PLAN
