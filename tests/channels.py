"""The channels of changes as tests use them: who writes into one end, and the source at the other.

All of them pass tests/contract/test_channels.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol
from uuid import UUID

from chassis.clock import SYSTEM_CLOCK
from chassis.kafka import Consumer, Rebalanced, open_consumer
from chassis.supervise import Loop
from chassis.testing import eventually
from history_svc.channel.hub import INBOX_BYTES_MIN, Hub, Watching
from history_svc.channel.kafka import KafkaPublisher, Topics
from history_svc.channel.leadership import Leadership
from history_svc.channel.outbox import LoggedDeadLetters, OutboxSource
from history_svc.channel.port import EventSource
from history_svc.position import Position
from history_svc.projector.relay import Batching, Parts, Relay
from tests.outboxes import COUNT, Outbox
from tests.streams import MemoryLog, MemorySource

WITHIN_S = 60.0
BATCHING = Batching(beat_every_s=0.05)
Wrap = Callable[[Any], Any]


class Channel(Protocol):
    """A channel of one shard, and who writes into its one end."""

    source: EventSource

    async def write(self, count: int, buckets: Sequence[int] = range(COUNT)) -> list[UUID]:
        """Commit changes, in order; their event ids."""
        ...

    def open_writer(self) -> AbstractAsyncContextManager[Callable[[int], object]]:
        """A transaction that may write and is open until the context ends."""
        ...

    async def store(self, watermarks: dict[int, Position]) -> None:
        """Store watermarks, as an indexer does after its documents are searchable."""
        ...

    async def restart(self) -> None:
        """Make a source anew, as after the death of the process."""
        ...


class InMemory:
    def __init__(self) -> None:
        self.log = MemoryLog()
        self.source: EventSource = MemorySource(self.log)

    async def write(self, count: int, buckets: Sequence[int] = range(COUNT)) -> list[UUID]:
        events = [self.log.event(buckets[n % len(buckets)]) for n in range(count)]
        for event in events:
            self.log.put(event)
        return [event.event_id for event in events]

    @asynccontextmanager
    async def open_writer(self) -> AsyncIterator[Callable[[int], object]]:
        xid = self.log.begin()

        async def write(count: int) -> list[UUID]:
            return [self.log.put(self.log.event(n), xid).event.event_id for n in range(count)]  # type: ignore[union-attr]

        yield write
        self.log.commit(xid)

    async def store(self, watermarks: dict[int, Position]) -> None:
        self.log.watermarks.update(watermarks)
        await self.source.kept(watermarks)

    async def restart(self) -> None:
        self.source = MemorySource(self.log)


class OverPostgres:
    """What both real channels share: the shard they start from."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.source: EventSource

    async def write(self, count: int, buckets: Sequence[int] = range(COUNT)) -> list[UUID]:
        return await self.outbox.write(count, buckets=buckets)

    @asynccontextmanager
    async def open_writer(self) -> AsyncIterator[Callable[[int], object]]:
        async with self.outbox.connected() as connection, connection.transaction():
            await connection.fetchval("SELECT pg_current_xact_id()")
            yield lambda count: self.outbox.write(count, connection=connection)

    async def store(self, watermarks: dict[int, Position]) -> None:
        await self.outbox.set_watermarks(watermarks)
        await self.source.kept(watermarks)


class ByOutbox(OverPostgres):
    """The outbox, read by the one who leads."""

    def __init__(self, outbox: Outbox, stack: AsyncExitStack) -> None:
        super().__init__(outbox)
        self._stack = stack
        self._leading = AsyncExitStack()

    async def restart(self) -> None:
        await self._leading.aclose()
        self._leading = await self._stack.enter_async_context(AsyncExitStack())
        shard_log = await self._leading.enter_async_context(self.outbox.opened())
        leadership = self.outbox.leadership(shard_log)
        await self._leading.enter_async_context(led(leadership))
        self.source = OutboxSource(
            shard_log, leadership, clock=SYSTEM_CLOCK, jitter=random.random, beat_every_s=0.05
        )


class ByKafka(OverPostgres):
    """The outbox, published by a relay to a topic of its own, and taken from there by a hub."""

    def __init__(
        self,
        outbox: Outbox,
        topics: Topics,
        stack: AsyncExitStack,
        batching: Batching = BATCHING,
        watching: Watching | None = None,
    ) -> None:
        super().__init__(outbox)
        self.topics = topics
        self.hub: Hub
        self.consumers: list[Consumer] = []
        """Every consumer that was opened, the newest last."""
        self._stack = stack
        self._batching = batching
        self._watching = watching
        self._process = AsyncExitStack()

    async def restart(self, instance: str = "one", wrap: Wrap = lambda consumer: consumer) -> None:
        await self.stop()
        self._process = await self._stack.enter_async_context(AsyncExitStack())
        shard_log = await self._process.enter_async_context(self.outbox.opened())
        leadership = self.outbox.leadership(shard_log)
        parts = Parts(shard_log, LoggedDeadLetters(), SYSTEM_CLOCK, random.random, self._batching)
        relay = Relay(parts, leadership, lambda: KafkaPublisher.open(self.topics, "relay"))
        self.hub = await self.join(instance, self._process, wrap)
        await self._process.enter_async_context(led(leadership, relay))
        self.source = self.hub.source(shard_log)
        await until_consuming(self.hub)

    async def stop(self) -> None:
        """End the process that relays and consumes."""
        await self._process.aclose()

    async def join(self, instance: str, stack: AsyncExitStack, wrap: Wrap = lambda consumer: consumer) -> Hub:
        """Another consumer of the group, which runs as long as the stack."""
        topics = self.topics

        @asynccontextmanager
        async def consumer_of(rebalanced: Rebalanced) -> AsyncIterator[Consumer]:
            async with open_consumer(
                topics.cluster, topics.events, group=topics.events, instance=instance, rebalanced=rebalanced
            ) as consumer:
                self.consumers.append(consumer)
                yield wrap(consumer)

        hub = Hub(
            lambda: topics.ensure_events(COUNT),
            consumer_of,
            bytes_max=8 * INBOX_BYTES_MIN,
            clock=SYSTEM_CLOCK,
            jitter=random.random,
            watching=self._watching,
        )
        await stack.enter_async_context(running(hub))
        return hub


class Nobody:
    """Does not care which partitions it has."""

    def on_revoked(self, partitions: object) -> None:
        """As Rebalanced says."""

    def on_assigned(self, partitions: object) -> None:
        """As Rebalanced says."""


async def until_consuming(*hubs: Hub) -> None:
    """Wait until each has partitions."""

    async def ask() -> bool:
        return all(hub.is_consuming for hub in hubs)

    await eventually(ask, within_s=WITHIN_S)


@asynccontextmanager
async def running(*loops: Loop) -> AsyncIterator[None]:
    """Run loops while the context lives; they end by being cancelled only."""
    tasks = [asyncio.create_task(loop.run(), name=loop.name) for loop in loops]
    try:
        yield
    finally:
        dead = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert not dead, f"ended by themselves: {dead}"
        for task in tasks:
            assert task.cancelled(), task


@asynccontextmanager
async def led(leadership: Leadership, *others: Loop) -> AsyncIterator[None]:
    """Lead, and run what needs that, while the context lives."""
    async with running(leadership, *others):
        async with asyncio.timeout(WITHIN_S):
            await leadership.until_leading()
        yield
