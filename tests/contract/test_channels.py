"""What every channel of changes does, whichever it is: the outbox itself and Kafka, over real servers, and
the one in memory that other tests use.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Protocol
from uuid import UUID, uuid4

import pytest

from chassis.clock import SYSTEM_CLOCK
from chassis.kafka import open_consumer
from chassis.supervise import Loop
from chassis.testing import eventually
from history_svc.channel.hub import Hub
from history_svc.channel.kafka import KafkaPublisher, Topics
from history_svc.channel.leadership import Leadership
from history_svc.channel.outbox import LoggedDeadLetters, OutboxSource
from history_svc.channel.port import EventSource
from history_svc.events import Record
from history_svc.position import BEGINNING, Position
from history_svc.projector.relay import Batching, Parts, Relay
from ops.kafka import KafkaServer
from tests.outboxes import COUNT, Follower, Outbox
from tests.streams import MemoryLog, MemorySource

BYTES = 1_000_000
WITHIN_S = 30.0
pytestmark = pytest.mark.timeout(180)


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
    """The outbox, published by a relay to a topic of its own, and taken from there."""

    def __init__(self, outbox: Outbox, topics: Topics, stack: AsyncExitStack) -> None:
        super().__init__(outbox)
        self._topics = topics
        self._stack = stack
        self._process = AsyncExitStack()

    async def restart(self) -> None:
        await self._process.aclose()
        self._process = await self._stack.enter_async_context(AsyncExitStack())
        shard_log = await self._process.enter_async_context(self.outbox.opened())
        leadership = self.outbox.leadership(shard_log)
        letters = LoggedDeadLetters()
        parts = Parts(shard_log, letters, SYSTEM_CLOCK, random.random, Batching(beat_every_s=0.05))
        topics = self._topics
        hub = Hub(
            lambda: topics.ensure_events(1),
            lambda rebalanced: open_consumer(
                topics.address, topics.events, group=topics.events, instance="one", rebalanced=rebalanced
            ),
            bytes_max=10 * BYTES,
            clock=SYSTEM_CLOCK,
            jitter=random.random,
        )
        relay = Relay(parts, leadership, lambda: KafkaPublisher.open(topics, "relay"))
        await self._process.enter_async_context(led(leadership, relay, hub))
        self.source = hub.source(shard_log)

        async def is_consuming() -> bool:
            return hub.is_consuming

        await eventually(is_consuming, within_s=WITHIN_S)


@asynccontextmanager
async def led(leadership: Leadership, *others: Loop) -> AsyncIterator[None]:
    """Lead, and run what needs that, while the context lives."""
    tasks = [asyncio.create_task(loop.run(), name=loop.name) for loop in (leadership, *others)]
    try:
        async with asyncio.timeout(WITHIN_S):
            await leadership.until_leading()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            assert task.cancelled(), task


@pytest.fixture(params=["memory", "outbox", "kafka"])
async def channel(
    request: pytest.FixtureRequest, shard_database, kafka: KafkaServer
) -> AsyncIterator[Channel]:
    if request.param == "memory":
        yield InMemory()
        return
    outbox = await Outbox(await shard_database()).prepare()
    async with AsyncExitStack() as stack:
        made: ByOutbox | ByKafka = ByOutbox(outbox, stack)
        if request.param == "kafka":
            made = ByKafka(outbox, Topics(kafka.address, f"events-{uuid4().hex}", COUNT, 1), stack)
        await made.restart()
        yield made


async def follow(
    channel: Channel, follower: Follower, until: Callable[[], bool], *, bytes_max: int = BYTES
) -> None:
    """Take until something holds."""
    async with asyncio.timeout(WITHIN_S):
        while not until():
            follower.take_in(await channel.source.take(bytes_max=bytes_max, wait_s=0.2))


async def test_every_change_comes_in_order_within_its_partition_and_the_chain_has_no_hole(channel: Channel):
    follower = Follower()
    written = await channel.write(40)
    await follow(channel, follower, lambda: len(follower.events) >= 20)
    written += await channel.write(40)
    await follow(channel, follower, lambda: follower.has(written))
    assert follower.gaps == []
    for bucket in range(COUNT):
        mine = [event for event in follower.events if event in written[bucket::COUNT]]
        assert list(dict.fromkeys(mine)) == written[bucket::COUNT]


async def test_a_take_holds_about_the_bytes_that_were_asked_for_and_one_record_at_least(channel: Channel):
    follower = Follower()
    written = await channel.write(30)
    async with asyncio.timeout(WITHIN_S):
        while not follower.has(written):
            records = await channel.source.take(bytes_max=1, wait_s=0.2)
            follower.take_in(records)
            assert len([record for record in records if record.event is not None]) <= 1
    assert follower.gaps == []


async def changes(channel: Channel) -> list[Record]:
    """What comes at once, without beats."""
    return [r for r in await channel.source.take(bytes_max=BYTES, wait_s=0.01) if r.event is not None]


async def test_a_take_ends_without_records_when_there_are_none(channel: Channel):
    async with asyncio.timeout(WITHIN_S):
        while await changes(channel):
            pass
        assert await channel.source.take(bytes_max=0, wait_s=0.0) is not None


async def test_beats_move_partitions_in_which_nothing_changes(channel: Channel):
    follower = Follower()
    written = await channel.write(5, buckets=[2])
    await follow(channel, follower, lambda: follower.has(written) and len(follower.beats) == COUNT)
    last = follower.watermarks[2]
    assert all(mark >= Position(last.log_epoch, last.xid, 0) for mark in follower.watermarks.values())
    seen = dict(follower.beats)
    await channel.write(1, buckets=[2])
    await follow(channel, follower, lambda: all(follower.beats[p] > at for p, at in seen.items()))
    assert follower.gaps == []


async def test_nothing_beyond_the_fence_comes_before_what_is_below_it(channel: Channel):
    follower = Follower()
    before = await channel.write(8)
    await follow(channel, follower, lambda: follower.has(before))
    async with channel.open_writer() as write:
        after = await channel.write(8)
        for _ in range(5):
            follower.take_in(await channel.source.take(bytes_max=BYTES, wait_s=0.05))
        assert not set(follower.events) & set(after)
        late = await write(8)  # type: ignore[misc]
    await follow(channel, follower, lambda: follower.has(after) and follower.has(late))
    assert follower.gaps == []


async def test_after_a_restart_nothing_is_missing_and_what_repeats_is_the_same(channel: Channel):
    written = await channel.write(40)
    first = Follower()
    await follow(channel, first, lambda: len(first.events) >= 10, bytes_max=2000)
    await channel.restart()
    second = Follower()
    await follow(channel, second, lambda: second.has(written))
    assert second.gaps == [], "nothing was stored, so everything comes again"
    some = {partition: mark for partition, mark in second.watermarks.items() if partition % 2}
    await channel.store(some)
    await channel.restart()
    written += await channel.write(8)
    third = Follower()
    third.watermarks = dict(some)
    await follow(channel, third, lambda: third.has(written[40:]) and third.has(written[0:40:2]))
    assert third.gaps == []


async def test_a_rewind_gives_everything_after_it_again(channel: Channel):
    written = await channel.write(40)
    follower = Follower()
    await follow(channel, follower, lambda: follower.has(written))
    records = {event: number for number, event in enumerate(written)}
    assert len(records) == 40
    await channel.store(
        {partition: mark for partition, mark in follower.watermarks.items() if partition != 3}
    )
    again = Follower()
    again.watermarks = {**follower.watermarks, 3: BEGINNING}
    await channel.source.rewind({3: BEGINNING})
    await follow(channel, again, lambda: again.has(written[3::COUNT]))
    assert list(dict.fromkeys(e for e in again.events if e in written[3::COUNT])) == written[3::COUNT]
    late = await channel.write(8)
    await follow(channel, again, lambda: again.has(late))
    assert again.watermarks[3] > BEGINNING


async def test_a_take_that_is_cancelled_loses_nothing(channel: Channel):
    written = await channel.write(60)
    follower = Follower()
    async with asyncio.timeout(WITHIN_S):
        for turns in [*range(12), 1000]:
            taking = asyncio.create_task(
                channel.source.take(bytes_max=3000 if turns < 1000 else BYTES, wait_s=0.2), name="take"
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            taking.cancel()
            await asyncio.wait((taking,))
            if not taking.cancelled():
                follower.take_in(taking.result())
    await follow(channel, follower, lambda: follower.has(written))
    assert follower.gaps == []
