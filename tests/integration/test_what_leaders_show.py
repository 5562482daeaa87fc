"""The gauges of a shard's leader, and of who indexes it, end with the term: who leads next shows its own."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from chassis import pg
from chassis.clock import SYSTEM_CLOCK
from chassis.testing import eventually
from history_svc import metrics
from history_svc.care.caretaker import Caretaker
from history_svc.channel.leadership import Leadership
from history_svc.channel.log import SESSION, ShardLog
from history_svc.channel.outbox import LoggedDeadLetters, OutboxSource
from history_svc.projector.indexer import Indexer
from history_svc.projector.relay import Batching, Parts, Relay
from history_svc.projector.retention import Keeping, Retention
from history_svc.settings import HistorySettings
from history_svc.store import Shards
from tests.care import Keeper
from tests.channels import running
from tests.databases import Database
from tests.model.history_world import World
from tests.shards import opened
from tests.topics import MemoryTopic

WITHIN_S = 30.0
OF_THE_LEADER = (
    "ordermesh_outbox_fence_age_seconds",
    "ordermesh_outbox_bytes",
    "ordermesh_projection_operations_open",
    "ordermesh_projection_months_unserved",
)
OF_THE_INDEXER = ("ordermesh_quarantine_orders", "ordermesh_index_held")


def shown(name: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"shard": "s1"})


async def until_all(names: tuple[str, ...], *, are_shown: bool) -> None:
    async def ask() -> bool:
        return all((shown(name) is not None) is are_shown for name in names)

    await eventually(ask, within_s=WITHIN_S)


@pytest.fixture
async def database(shard_database: Callable[[], Awaitable[Database]]) -> Database:
    for metric in (metrics.LEADS, metrics.PUBLISHED_UNTIL):
        metric.clear()
    return await shard_database()


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    wanted = HistorySettings(tls_dir=Path(), subject_dir=Path(), profile="local", shards={"s1": database.dsn})
    async with opened(database) as shard, Shards.open(wanted) as shards:
        made = World(shard, shards)
        yield made
        await made.close()


@pytest.fixture
def leadership(world: World, database: Database) -> Leadership:
    wanted = pg.PgSettings(dsn=database.dsn, pool_size=4, queue=16, session=SESSION)
    shard_log = ShardLog("s1", world.shard.db)
    return Leadership(shard_log, wanted, holder="test", clock=SYSTEM_CLOCK, jitter=random.random)


async def test_who_leads_shows_how_the_shard_stands_and_who_led_does_not(
    world: World, leadership: Leadership
) -> None:
    log, topic = ShardLog("s1", world.shard.db), MemoryTopic()
    parts = Parts(log, LoggedDeadLetters(), SYSTEM_CLOCK, random.random, Batching(beat_every_s=0.05))
    keeping = Keeping(timedelta(days=3), 1 << 30, True)
    loops = (
        Relay(parts, leadership, topic.open),
        Retention("s1", world.shard.db, leadership, keeping, SYSTEM_CLOCK),
        Caretaker(Keeper(world).parts, leadership),
    )
    async with running(*loops):
        for _ in range(2):
            async with running(leadership):
                await until_all(OF_THE_LEADER, are_shown=True)
                assert shown("ordermesh_projector_leads") == 1
            await until_all(OF_THE_LEADER, are_shown=False)
            assert shown("ordermesh_projector_leads") == 0


async def test_who_never_leads_shows_that_it_does_not_and_that_it_published_nothing(
    world: World, leadership: Leadership
) -> None:
    """An alert sees no series that is not there."""
    holder = Leadership(
        ShardLog("s1", world.shard.db),
        leadership._database,
        holder="another process",
        clock=SYSTEM_CLOCK,
        jitter=random.random,
    )

    async def leads() -> bool:
        return holder.term is not None

    parts = Parts(ShardLog("s1", world.shard.db), LoggedDeadLetters(), SYSTEM_CLOCK, random.random)
    async with running(holder):
        await eventually(leads, within_s=WITHIN_S)
        metrics.LEADS.clear()  # Of the other process.
        async with running(leadership, Relay(parts, leadership, MemoryTopic().open)):
            told = ("ordermesh_projector_leads", "ordermesh_outbox_published_until_seconds")
            await until_all(told, are_shown=True)
            assert [shown(name) for name in told] == [0, 0]
            assert leadership.term is None


async def test_who_reads_the_outbox_no_more_does_not_say_how_old_its_fence_is(
    world: World, leadership: Leadership
) -> None:
    source = OutboxSource(
        ShardLog("s1", world.shard.db), leadership, clock=SYSTEM_CLOCK, jitter=random.random
    )
    async with running(leadership):
        await source.take(bytes_max=1_000_000, wait_s=10.0)
        assert shown(OF_THE_LEADER[0]) is not None
    await source.take(bytes_max=1_000_000, wait_s=0.0)
    assert shown(OF_THE_LEADER[0]) is None


async def test_who_indexes_no_more_does_not_say_how_many_orders_are_refused(
    world: World, leadership: Leadership
) -> None:
    poison = await world.create("alice")
    world.read_model.refuses.add(str(poison.order_id))
    await world.index()
    assert world.indexing is not None
    source = OutboxSource(
        ShardLog("s1", world.shard.db), leadership, clock=SYSTEM_CLOCK, jitter=random.random
    )
    parts = replace(world.indexing._parts, source=source, clock=SYSTEM_CLOCK, tick_s=0.05)
    await world.end_indexing()
    async with running(Indexer(parts)):
        await until_all(OF_THE_INDEXER, are_shown=False)
        for _ in range(2):
            async with running(leadership):
                await world.create("alice")
                await until_all(OF_THE_INDEXER, are_shown=True)
                assert shown("ordermesh_quarantine_orders") == 1
            await until_all(OF_THE_INDEXER, are_shown=False)
