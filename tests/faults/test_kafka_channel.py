"""What the channel over Kafka survives: a broker that dies or freezes, members that come and go, a consumer
that stands still, a topic that lost what was in it. Whatever happens, no change is missed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from chassis.kafka import Cluster, Entry, open_consumer, open_producer
from chassis.testing import eventually
from history_svc.channel.hub import Watching
from history_svc.channel.kafka import DEAD_PARTITIONS, KafkaDeadLetters, KafkaPublisher, Topics
from history_svc.channel.wire import decode
from history_svc.errors import EventsUnavailable, EventTooLarge
from history_svc.events import EVENT_BYTES_MAX
from history_svc.position import BEGINNING
from history_svc.projector.relay import Batching
from ops import places, ports
from ops.kafka import KafkaServer
from tests import awaits
from tests.channels import ByKafka, Nobody, until_consuming
from tests.outboxes import COUNT, Follower, Outbox, an_event
from tests.streams import MemoryLog

BYTES = 1_000_000
WITHIN_S = 90.0
HASTY = Batching(beat_every_s=0.1, hand_over_s=2.0, acknowledge_s=2.0)
WATCHING = Watching(every_s=0.5, stuck_s=20.0)
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
async def broker(server_dir: Path, clean_machine: None) -> AsyncIterator[KafkaServer]:
    """A broker of its own, since these tests kill it."""
    directory = places.data_directory(server_dir, "killed", kind="kafka")
    server = await KafkaServer.started(directory, ports.free_port(), ports.free_port())
    yield server
    await server.stop()


@pytest.fixture
async def outbox(shard_database) -> Outbox:
    return await Outbox(await shard_database()).prepare()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
def topics(broker: KafkaServer) -> Topics:
    return Topics(Cluster(addresses=broker.address), f"events-{uuid4().hex}", COUNT, 1)


@pytest.fixture
async def channel(outbox: Outbox, topics: Topics, stack: AsyncExitStack) -> ByKafka:
    made = ByKafka(outbox, topics, stack, HASTY, WATCHING)
    await made.restart()
    return made


async def follow(channel: ByKafka, follower: Follower, until: Callable[[], bool]) -> None:
    """Take as an indexer does until something holds: store what is whole, ask for what is missing."""
    try:
        async with asyncio.timeout(WITHIN_S):
            while not until():
                await _take(channel, follower)
    except TimeoutError as vain:
        vain.add_note(await whereabouts(channel, follower))
        raise


async def _take(channel: ByKafka, follower: Follower) -> None:
    with suppress(EventsUnavailable):
        gaps = len(follower.gaps)
        follower.take_in(await channel.source.take(bytes_max=BYTES, wait_s=0.2))
        await channel.store(follower.watermarks)
        missing = {r.stream_partition for r in follower.gaps[gaps:]}
        if missing:
            await channel.source.rewind({p: follower.watermarks.get(p, BEGINNING) for p in missing})


async def whereabouts(channel: ByKafka, follower: Follower) -> str:
    """Where the relay, the topic's consumer and the follower stand, and what every task waits for."""
    inboxes = {p: (box.size_bytes, box.commit_to, box.is_paused) for p, box in channel.hub._inboxes.items()}
    return "\n".join(
        (
            f"published (term, position): {await channel.outbox.cursors()}",
            f"searchable: {follower.watermarks}",
            f"written up to: {max((await channel.outbox.positions()).values())}",
            f"events {len(set(follower.events))}, gaps {len(follower.gaps)}",
            f"consumers {len(channel.consumers)}, inboxes (bytes, commit, paused): {inboxes}",
            awaits.of_tasks(),
        )
    )


async def until_searchable(channel: ByKafka, follower: Follower) -> None:
    """Until every watermark stands behind every change, over an unbroken chain."""
    last = max((await channel.outbox.positions()).values())
    marks = follower.watermarks
    await follow(channel, follower, lambda: len(marks) == COUNT and min(marks.values()) > last)


async def until_noted(outbox: Outbox) -> None:
    """Until the cursors of the relay stand behind every change, so that it repeats none after a restart."""

    async def ask() -> bool:
        positions, cursors = await outbox.positions(), await outbox.cursors()
        return len(cursors) == COUNT and min(at for _, at in cursors.values()) > max(positions.values())

    await eventually(ask, within_s=WITHIN_S)


async def test_a_broker_that_is_killed_in_the_middle_costs_repeats_only(
    channel: ByKafka, broker: KafkaServer
):
    follower = Follower()
    written = await channel.write(400)
    await follow(channel, follower, lambda: len(follower.events) >= 100)
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    written += await channel.write(400)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await follow(channel, follower, lambda: follower.has(written))
    await broker.start()
    written += await channel.write(100)
    await follow(channel, follower, lambda: follower.has(written))
    await until_searchable(channel, follower)


async def test_a_broker_that_is_away_for_longer_than_a_consumer_may_stand_still_is_found_again(
    outbox: Outbox, topics: Topics, broker: KafkaServer, stack: AsyncExitStack
):
    channel = ByKafka(outbox, topics, stack, HASTY, Watching(every_s=0.1, stuck_s=0.5))
    await channel.restart()
    follower = Follower()
    written = await channel.write(80)
    await follow(channel, follower, lambda: follower.has(written))
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)

    async def is_thrown_away() -> bool:
        return not channel.hub.is_consuming

    await eventually(is_thrown_away, within_s=WITHIN_S)
    await broker.start()
    written += await channel.write(80)
    await follow(channel, follower, lambda: follower.has(written))
    await until_searchable(channel, follower)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_broker_that_is_frozen_for_longer_than_anybody_waits_costs_repeats_only(
    channel: ByKafka, broker: KafkaServer
):
    follower = Follower()
    written = await channel.write(400)
    await follow(channel, follower, lambda: follower.has(written))
    assert broker.pid is not None
    with frozen(broker.pid):
        written += await channel.write(400)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3 * HASTY.acknowledge_s):
                await follow(channel, follower, lambda: follower.has(written))
    written += await channel.write(100)
    await follow(channel, follower, lambda: follower.has(written))
    await until_searchable(channel, follower)


async def test_members_that_come_and_go_leave_nothing_out(
    channel: ByKafka, stack: AsyncExitStack, outbox: Outbox
):
    written = await channel.write(200)
    follower = Follower()
    await follow(channel, follower, lambda: len(follower.events) >= 50)
    async with AsyncExitStack() as second:
        shard_log = await second.enter_async_context(outbox.opened())
        other = await channel.join("two", second)
        await until_consuming(other, channel.hub)
        source, seen = other.source(shard_log), Follower()
        seen.watermarks = dict(follower.watermarks)
        written += await channel.write(200)

        def is_shared() -> bool:
            return {*follower.events, *seen.events} >= set(written)

        async with asyncio.timeout(WITHIN_S):
            while not is_shared():
                follower.take_in(await channel.source.take(bytes_max=BYTES, wait_s=0.1))
                seen.take_in(await source.take(bytes_max=BYTES, wait_s=0.1))
        assert seen.events, "both have partitions"
        assert seen.gaps == []
    assert follower.gaps == []


async def test_a_member_that_is_restarted_goes_on_behind_what_was_kept(channel: ByKafka):
    written = await channel.write(80)
    first = Follower()
    await follow(channel, first, lambda: first.has(written))
    await until_noted(channel.outbox)
    kept = dict(first.watermarks)
    await channel.restart()
    late = await channel.write(16)
    again = Follower()
    again.watermarks = kept
    await follow(channel, again, lambda: again.has(late))
    assert not set(again.events) & set(written), "the last commit covers what was kept"
    assert again.gaps == []


class Still:
    """A consumer that stops taking after a while, as one did that came through a broker's restart."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    async def take(self, **_: Any) -> dict[int, Any]:
        await asyncio.Event().wait()
        return {}


async def test_a_consumer_that_stands_still_is_replaced(outbox, topics, stack):
    channel = ByKafka(outbox, topics, stack, HASTY, Watching(every_s=0.2, stuck_s=1.0))
    await channel.restart(wrap=lambda consumer: Still(consumer) if len(channel.consumers) == 1 else consumer)
    written = await channel.write(80)
    follower = Follower()
    await follow(channel, follower, lambda: follower.has(written))
    assert follower.gaps == []
    assert len(channel.consumers) == 2


async def test_what_is_not_taken_stays_in_the_topic_and_the_inboxes_bounded(channel: ByKafka, outbox: Outbox):
    async with outbox.connected() as connection:
        for _ in range(4):
            await channel.write(2000)
        await connection.execute(
            "UPDATE ordermesh.outbox"
            " SET payload = payload || jsonb_build_object('description', repeat('x', 3000))"
        )
    written = list(await outbox.positions())
    hub = channel.hub

    async def is_full() -> bool:
        return bool(hub._inboxes) and all(inbox.is_paused for inbox in hub._inboxes.values())

    await eventually(is_full, within_s=WITHIN_S)
    assert all(inbox.size_bytes < hub._share + 2 * 1024 * 1024 for inbox in hub._inboxes.values())
    follower = Follower()
    await follow(channel, follower, lambda: follower.has(written))
    assert follower.gaps == []
    assert len(follower.events) == len(written)


async def test_what_a_topic_lost_is_published_again(channel: ByKafka, outbox: Outbox):
    written = await channel.write(80)
    await until_noted(outbox)
    await channel.stop()
    channel.topics = replace(channel.topics, events=f"events-{uuid4().hex}")
    await channel.restart()
    late = await channel.write(8)
    fresh = Follower()
    await follow(channel, fresh, lambda: fresh.has(late) and fresh.has(written))
    assert fresh.gaps, "the topic began behind what is searchable"
    await until_searchable(channel, fresh)


async def test_who_had_a_partition_before_begins_where_the_others_went_on(channel: ByKafka, outbox: Outbox):
    written = await channel.write(80)
    follower = Follower()
    await follow(channel, follower, lambda: follower.has(written))
    await until_searchable(channel, follower)
    await until_noted(outbox)
    await channel.restart()
    late = await channel.write(8)
    stale = Follower()
    async with asyncio.timeout(WITHIN_S):
        while not stale.has(late):
            stale.take_in(await channel.source.take(bytes_max=BYTES, wait_s=0.2))
    assert stale.gaps, "it begins where it stood, and the group stands further on"
    with pytest.raises(EventsUnavailable):
        await channel.source.rewind({3: stale.watermarks.get(3, BEGINNING)})
    async with outbox.connected() as connection:
        wishes = "SELECT count(*) FROM ordermesh.relay_cursors WHERE rewind_xid IS NOT NULL"
        assert await connection.fetchval(wishes) == 0, "nothing is published again for somebody who is late"


async def test_a_message_of_somebody_else_is_passed_over(channel: ByKafka):
    follower = Follower()
    written = await channel.write(8)
    await follow(channel, follower, lambda: follower.has(written))
    async with open_producer(channel.topics.cluster, name="somebody") as producer:
        foreign = Entry(None, b"{}", [("x-pos", b"what")], 1)
        await (await producer.send(channel.topics.events, 3, [foreign]))
    written += await channel.write(8)
    await follow(channel, follower, lambda: follower.has(written))
    assert follower.gaps == []


async def test_dead_letters_keep_the_change_and_the_reason_and_never_a_value_too_large(topics: Topics):
    log = MemoryLog()
    record = log.put(log.event(5))
    large = an_event(record, payload=b"x" * EVENT_BYTES_MAX)
    async with KafkaDeadLetters.open(topics, "letters") as letters:
        await letters.put(record, "mapper_parsing: größe")
        await letters.put(large, "too large")
    found: list[Any] = []
    async with (
        open_consumer(
            topics.cluster, topics.dead, group=uuid4().hex, instance="reader", rebalanced=Nobody()
        ) as consumer,
        asyncio.timeout(WITHIN_S),
    ):
        while len(found) < 2:
            for messages in (await consumer.take(wait_s=0.2, messages_max=10)).values():
                found += messages
    assert {message.partition for message in found} == {record.stream_partition % DEAD_PARTITIONS}
    first, second = (dict(message.headers) for message in found)
    assert first["x-reason"] == rb"mapper_parsing: gr\xf6\xdfe"
    again = decode(found[0], record.stream_partition)
    assert again.event is not None
    assert again.event == record.event
    assert (found[1].value, second["x-reason"]) == (b"", b"too large")
    assert int(second["x-size"]) == EVENT_BYTES_MAX


async def test_what_is_too_large_never_reaches_the_producer_and_ruins_nothing(topics: Topics):
    log = MemoryLog()
    record, large = log.put(log.event(5)), log.put(log.event(5))
    large = an_event(large, payload=b"x" * EVENT_BYTES_MAX)
    async with KafkaPublisher.open(topics, "publisher") as publisher:
        await publisher.prepare(log.streams)
        with pytest.raises(EventTooLarge) as refused:
            await publisher.send(5, [record, large])
        assert refused.value.record is large
        await (await publisher.send(5, [record]))
        with pytest.raises(EventsUnavailable):
            await publisher.send(500, [record])
        await (await publisher.send(5, [record] * 2000))


async def test_without_a_broker_every_wait_ends(outbox: Outbox):
    gone = Topics(Cluster(addresses=f"127.0.0.1:{ports.free_port()}"), "events", COUNT, 1)
    log = MemoryLog()
    async with asyncio.timeout(WITHIN_S), outbox.opened() as shard_log:
        with pytest.raises(EventsUnavailable):
            async with KafkaPublisher.open(gone, "publisher"):
                pass
        with pytest.raises(EventsUnavailable):
            await gone.ensure_events(8)
        async with KafkaDeadLetters.open(gone, "letters") as letters:
            with pytest.raises(EventsUnavailable):
                await letters.put(log.put(log.event(1)), "because")
        async with AsyncExitStack() as process:
            hub = await ByKafka(outbox, gone, process).join("alone", process)
            with pytest.raises(EventsUnavailable):
                await hub.source(shard_log).take(bytes_max=1, wait_s=0.1)
