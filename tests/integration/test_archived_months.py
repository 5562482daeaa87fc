"""Months that are archived lose their index once nobody's list needs it, and get another one when they come
back; over both read models.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from chassis import es, pg
from history_svc.care import operating
from history_svc.care.operation import Kind, State
from history_svc.care.store import CareStore
from history_svc.care.upkeep import Upkeep
from history_svc.document import index_name, month_of
from history_svc.page import Filter
from history_svc.projector.store import ProjectionStore
from history_svc.reader import ServedBy
from history_svc.readmodel.elastic import ElasticReadModel, Layout
from history_svc.readmodel.port import ReadModel
from history_svc.readmodel.table import SESSION, TableReadModel
from history_svc.settings import HistorySettings
from history_svc.store import Shards
from ops.elasticsearch import ElasticsearchServer
from tests.care import FAST, Keeper
from tests.conftest import DatabaseFactory
from tests.databases import Database
from tests.leaving import Leaving
from tests.model.history_world import DEDICATED_BASE, World
from tests.shards import opened

EVERYTHING = Filter()
A_MONTH = timedelta(days=32)


@dataclass
class Two:
    """Two shards, the care for the first one, and who looks after both."""

    world: World
    keeper: Keeper
    upkeep: Upkeep
    read_model: ReadModel
    month: date

    def shards(self) -> list[Leaving]:
        return [Leaving(home) for home in self.world.homes.values()]

    async def states(self, name: str) -> list[str]:
        rows = await self.world.homes[name].rows(
            "SELECT state FROM projection_index WHERE month = $1 ORDER BY generation", self.month
        )
        return [row["state"] for row in rows]

    async def has_index(self, generation: int = 1) -> bool:
        name = index_name(self.month, generation)
        return name in await self.read_model.identities([name])


@pytest.fixture(params=["elasticsearch", "postgres"])
async def two(
    request: pytest.FixtureRequest,
    shard_database: Callable[[], Awaitable[Database]],
    readmodel_database: DatabaseFactory,
    elasticsearch: ElasticsearchServer,
) -> AsyncIterator[Two]:
    """Both shards have an order of the month that is over, and one of this month; all are indexed."""
    async with AsyncExitStack() as stack:
        read_model: ReadModel
        if request.param == "elasticsearch":
            settings = es.EsSettings(addresses=(elasticsearch.url,))
            read_model = ElasticReadModel(
                await stack.enter_async_context(es.open_elastic(settings)), Layout()
            )
        else:
            wanted = pg.PgSettings(
                dsn=(await readmodel_database()).dsn, pool_size=4, queue=12, session=SESSION
            )
            read_model = TableReadModel(
                await stack.enter_async_context(pg.open_database(wanted, name="read-model"))
            )
        databases = {"s1": await shard_database(), "v1": await shard_database()}
        dsns = {name: each.dsn for name, each in databases.items()}
        reading = HistorySettings(tls_dir=Path(), subject_dir=Path(), profile="local", shards=dsns)
        s1 = await stack.enter_async_context(opened(databases["s1"]))
        v1 = await stack.enter_async_context(opened(databases["v1"], partition_base=DEDICATED_BASE))
        shards = await stack.enter_async_context(Shards.open(reading))
        world = World(s1, shards, v1)
        stack.push_async_callback(world.close)
        world.read_model = Watched(read_model)  # type: ignore[assignment]
        made = await _lived(world, read_model)
        yield made
        catalogs = [await ProjectionStore(name, home.db).catalog() for name, home in world.homes.items()]
        for name in {index.identity.name for each in catalogs for index in each.indices}:
            await read_model.drop(name)


class Watched:
    """A real read model in the place of the world's."""

    searches = 0
    at: object = None
    down = False

    def __init__(self, real: ReadModel) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


async def _lived(world: World, read_model: ReadModel) -> Two:
    keeper = Keeper(world)
    await keeper.lead()
    for user, bucket in (("alice", None), ("bob", 4096)):
        if bucket is not None:
            world.buckets[user].append(bucket)
        await world.create(user)
    month = month_of(await world.shard.value("SELECT ordermesh.clock()"))
    await world.pass_time(A_MONTH)
    for user in ("alice", "bob"):
        await world.create(user)
    await world.index()
    parts = {
        name: replace(keeper.parts, care=CareStore(name, home.db), projection=ProjectionStore(name, home.db))
        for name, home in world.homes.items()
    }
    return Two(world, keeper, Upkeep(parts), read_model, month)


async def test_an_index_goes_when_every_shard_has_archived_its_month_and_not_before(two: Two) -> None:
    assert len((await two.world.checked_page("alice", EVERYTHING, 10)).page.rows) == 2
    await two.world.archive("s1")
    await two.upkeep.step()
    assert await two.has_index()
    assert await two.states("s1") == await two.states("v1") == ["SERVING"]
    assert len((await two.world.checked_page("alice", EVERYTHING, 10)).page.rows) == 1
    assert len((await two.world.checked_page("bob", EVERYTHING, 10)).page.rows) == 1

    await two.world.archive("v1")
    await two.upkeep.step()
    assert not await two.has_index()
    assert await two.states("s1") == await two.states("v1") == ["RETIRED"]
    for _ in range(2):
        await two.upkeep.step()
    for shard in two.shards():
        await shard.detach(two.month)
    assert not await two.keeper.step(), "nobody builds it again"
    for store in two.keeper.store, CareStore("v1", two.world.homes["v1"].db):
        needs = await store.needs(again_after=timedelta(), verify_every=timedelta(microseconds=1))
        assert (needs.months_unserved, list(needs.unserved)) == (0, [])
        assert two.month not in needs.unverified
    for user in ("alice", "bob"):
        served = await two.world.checked_page(user, EVERYTHING, 10)
        assert (len(served.page.rows), served.unreachable) == (1, ())


async def test_a_month_that_comes_back_is_read_from_its_shard_until_it_is_built_again_by_itself(
    two: Two,
) -> None:
    for name in ("s1", "v1"):
        await two.world.archive(name)
    await two.upkeep.step()
    for name in ("s1", "v1"):
        for _ in range(2):
            await two.world.clear_out(name)
        await two.world.restore(name)
    served = await two.world.checked_page("alice", EVERYTHING, 10)
    assert (len(served.page.rows), served.served_by) == (2, ServedBy.SQL_FALLBACK)

    async with two.keeper.indexing():
        done = await two.keeper.work()
    assert {(each.kind, each.month, each.state) for each in done} == {
        (Kind.REBUILD, two.month, State.SUCCEEDED)
    }
    assert await two.states("s1") == ["RETIRED", "SERVING"]
    served = await two.world.checked_page("alice", EVERYTHING, 10)
    assert (len(served.page.rows), served.unreachable) == (2, ())
    await two.world.archive("s1")
    await two.world.archive("v1")
    await two.upkeep.step()
    assert not await two.has_index(2)


async def test_what_comes_late_of_a_month_without_an_index_is_left_out_and_holds_nothing(two: Two) -> None:
    for name in ("s1", "v1"):
        await two.world.archive(name)
    await two.world.index()
    await two.upkeep.step()
    # As after a watermark that was set back: every change is read once more.
    await two.world.end_indexing()
    await two.world.shard.db.execute(
        "UPDATE watermarks SET xid = '3', catalog_version = 0, log_epoch = log_epoch"
    )
    await two.world.index()
    assert not await two.has_index()
    assert await two.states("s1") == ["RETIRED"]
    served = await two.world.checked_page("alice", EVERYTHING, 10)
    assert (len(served.page.rows), served.unreachable) == (1, ())


@pytest.mark.parametrize("kind", [Kind.REBUILD, Kind.VERIFY, Kind.RESET])
async def test_the_care_leaves_an_archived_month_alone(two: Two, kind: Kind) -> None:
    await two.world.archive("s1")
    await Leaving(two.world.shard).detach(two.month)
    month = None if kind is Kind.RESET else two.month
    operation = await two.keeper.store.open(
        two.world.shard.ids.new(1), kind, month, repairs=True, actor="a test", reason="a test asks for it"
    )
    async with two.keeper.indexing():
        done = {each.operation_id: each for each in await two.keeper.work()}
    assert done[operation.operation_id].state is State.SUCCEEDED
    if kind is not Kind.RESET:
        assert done[operation.operation_id].note == operating.ARCHIVED
    assert two.month not in {
        each.month for each in done.values() if each.operation_id != operation.operation_id
    }
    assert await two.states("s1") == ["RETIRED" if kind is Kind.RESET else "SERVING"]
    await two.world.restore("s1")
    async with two.keeper.indexing():
        await two.keeper.work()
    assert len((await two.world.checked_page("alice", EVERYTHING, 10)).page.rows) == 2


async def test_a_shard_that_never_had_the_month_keeps_no_index_of_it(two: Two) -> None:
    await two.world.archive("s1")
    other = two.world.homes["v1"]
    for parent in ("orders", "order_journal"):
        await other.db.execute(f"ALTER TABLE {parent} DETACH PARTITION {parent}_{two.month:%Y_%m}")
    await two.upkeep.step()
    assert (await two.states("s1"), await two.states("v1")) == (["RETIRED"], [])
    assert not await two.has_index()
    assert FAST.grace == timedelta(), "and it was dropped at once"
