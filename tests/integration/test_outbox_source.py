"""Two processes that read one outbox: one at a time, and who reads again begins where the other stopped."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from prometheus_client import REGISTRY

from chassis.clock import SYSTEM_CLOCK
from chassis.testing import eventually
from history_svc.channel.leadership import Leadership
from history_svc.channel.outbox import OutboxSource
from history_svc.errors import EventsUnavailable
from tests.channels import running
from tests.outboxes import Follower, Outbox

BYTES = 1_000_000


class Process:
    """One process's source, and whether it may lead."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._opened = AsyncExitStack()
        self._leads = AsyncExitStack()
        self.leadership: Leadership
        self.source: OutboxSource

    async def open(self) -> None:
        shard_log = await self._opened.enter_async_context(self._outbox.opened())
        self.leadership = self._outbox.leadership(shard_log)
        self.source = OutboxSource(shard_log, self.leadership, clock=SYSTEM_CLOCK, jitter=random.random)

    async def campaign(self) -> None:
        """Lead as soon as nobody else does."""
        self._leads = AsyncExitStack()
        await self._leads.enter_async_context(running(self.leadership))

    async def resign(self) -> None:
        await self._leads.aclose()

    async def until_leading(self) -> None:
        async def ask() -> bool:
            return self.leadership.term is not None

        await eventually(ask, within_s=20)

    async def close(self) -> None:
        await self._leads.aclose()
        await self._opened.aclose()


@pytest.fixture
async def outbox(shard_database) -> Outbox:
    return await Outbox(await shard_database()).prepare()


@pytest.fixture
async def processes(outbox: Outbox) -> AsyncIterator[tuple[Process, Process]]:
    both = (Process(outbox), Process(outbox))
    for process in both:
        await process.open()
    yield both
    for process in both:
        await process.close()


async def test_one_reads_at_a_time_and_who_leads_again_begins_at_the_stored_watermarks(outbox, processes):
    one, two = processes
    await one.campaign()
    await one.until_leading()
    await two.campaign()
    first = await outbox.write(16)
    follower = Follower()
    while not follower.has(first):
        follower.take_in(await one.source.take(bytes_max=BYTES, wait_s=0.1))
    assert await two.source.take(bytes_max=BYTES, wait_s=0.1) == []

    await one.source.take(bytes_max=BYTES, wait_s=0.1)
    assert fence_age() is not None
    await one.resign()
    await two.until_leading()
    assert await one.source.take(bytes_max=BYTES, wait_s=0.1) == []
    assert fence_age() is None, "whoever leads now tells it"
    second = await outbox.write(16)
    other = Follower()
    while not other.has(first + second):
        other.take_in(await two.source.take(bytes_max=BYTES, wait_s=0.1))
    assert other.gaps == []
    await outbox.set_watermarks(other.watermarks)

    await two.resign()
    await one.campaign()
    await one.until_leading()
    with pytest.raises(EventsUnavailable):
        await one.source.take(bytes_max=BYTES, wait_s=0.1)
    third = await outbox.write(16)
    again = Follower()
    again.watermarks = dict(other.watermarks)
    while not again.has(third):
        again.take_in(await one.source.take(bytes_max=BYTES, wait_s=0.1))
    assert not set(again.events) & set(first + second)
    assert again.gaps == []


def fence_age() -> float | None:
    """As this process tells it."""
    return REGISTRY.get_sample_value("ordermesh_outbox_fence_age_seconds", {"shard": "s1"})


async def test_a_log_of_another_epoch_makes_the_reader_begin_anew(outbox, processes):
    one, _ = processes
    await one.campaign()
    await one.until_leading()
    written = await outbox.write(8)
    follower = Follower()
    while not follower.has(written):
        follower.take_in(await one.source.take(bytes_max=BYTES, wait_s=0.1))
    async with outbox.connected() as connection:
        await connection.execute("UPDATE ordermesh.shard_identity SET log_epoch = 2")
    with pytest.raises(EventsUnavailable):
        await one.source.take(bytes_max=BYTES, wait_s=1.0)
    again = Follower()
    while not again.has(written):
        again.take_in(await one.source.take(bytes_max=BYTES, wait_s=0.1))
    assert {mark.log_epoch for mark in again.watermarks.values()} == {2}
