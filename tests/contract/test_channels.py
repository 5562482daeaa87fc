"""What every channel of changes does, whichever it is: the outbox itself and Kafka, over real servers, and
the one in memory that other tests use.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from chassis.kafka import Cluster
from history_svc.channel.kafka import Topics
from history_svc.events import Record
from history_svc.position import BEGINNING, Position
from ops.kafka import KafkaServer
from tests.channels import ByKafka, ByOutbox, Channel, InMemory
from tests.outboxes import COUNT, Follower, Outbox

BYTES = 1_000_000
WITHIN_S = 30.0
pytestmark = pytest.mark.timeout(180)


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
            made = ByKafka(
                outbox, Topics(Cluster(addresses=kafka.address), f"events-{uuid4().hex}", COUNT, 1), stack
            )
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
    here = Position(last.log_epoch, last.xid, 0)
    await follow(channel, follower, lambda: all(mark >= here for mark in follower.watermarks.values()))
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
