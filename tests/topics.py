"""A topic in memory for tests of the relay: what was stored, and acknowledgements that a test may hold back
or refuse.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager

from history_svc.errors import EventsUnavailable, EventTooLarge
from history_svc.events import Record, StreamRange
from tests.outboxes import Follower


class MemoryTopic:
    """Every record in the order of its arrival; opens publishers like a connection to Kafka."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.publishers = 0
        self.in_flight = 0
        self.in_flight_most = 0
        self.payload_bytes_max = 1_000_000
        self.fails_at: int | None = None
        self.is_away = False
        self.held: list[asyncio.Future[None]] | None = None
        self.arrived = asyncio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[MemoryPublisher]:
        self.publishers += 1
        if self.is_away:
            raise EventsUnavailable("told to be away")
        yield MemoryPublisher(self)

    def hold(self) -> None:
        """Store what comes and acknowledge nothing until `release`."""
        self.held = []

    def release(self) -> None:
        held, self.held = self.held or [], None
        for waiting in held:
            if not waiting.done():
                waiting.set_result(None)

    def follower(self) -> Follower:
        """Somebody who read all of it."""
        follower = Follower()
        follower.take_in(self.records)
        return follower


class MemoryPublisher:
    """Publishes to a MemoryTopic."""

    def __init__(self, topic: MemoryTopic) -> None:
        self._topic = topic

    async def prepare(self, streams: StreamRange) -> None:
        assert streams.count > 0

    async def send(self, partition: int, records: Sequence[Record]) -> Awaitable[None]:
        topic = self._topic
        for record in records:
            assert record.stream_partition == partition
            if record.event is not None and len(record.event.payload) > topic.payload_bytes_max:
                raise EventTooLarge(record, len(record.event.payload))
        if topic.fails_at is not None and len(topic.records) >= topic.fails_at:
            topic.fails_at = None
            raise EventsUnavailable("told to fail")
        topic.records += records
        topic.arrived.set()
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        topic.in_flight += 1
        topic.in_flight_most = max(topic.in_flight_most, topic.in_flight)
        stored.add_done_callback(lambda _: self._landed())
        if topic.held is None:
            stored.set_result(None)
        else:
            topic.held.append(stored)
        return stored

    def _landed(self) -> None:
        self._topic.in_flight -= 1
