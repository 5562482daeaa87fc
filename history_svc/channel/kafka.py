"""Carries records over a topic of Kafka: what the relay publishes with, and where dead letters go."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from chassis import kafka
from history_svc import metrics
from history_svc.channel import dead
from history_svc.channel.wire import encode, encode_dead
from history_svc.errors import EventsUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from history_svc.events import Record, StreamRange

    OpenProducer = Callable[[], AbstractAsyncContextManager[kafka.Producer]]

TOPIC = "ordermesh.order-events.v1"
DEAD_PARTITIONS = 4
DEAD_S_MAX = 30.0
"""For one dead letter, and as long again to wait for its turn."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Where the topics are and how they are made when they are missing."""

    cluster: kafka.Cluster
    events: str
    partitions: int
    replicas: int

    @property
    def dead(self) -> str:
        """The topic of dead letters."""
        return f"{self.events}.dlq"

    async def ensure_events(self, partitions: int) -> None:
        """Make the topic of changes, with so many partitions at least.

        Raises: EventsUnavailable.
        """
        try:
            await kafka.ensure_topic(
                self.cluster,
                self.events,
                partitions=max(partitions, self.partitions),
                replicas=self.replicas,
            )
        except kafka.KafkaUnavailable as away:
            raise EventsUnavailable(str(away)) from away


class KafkaPublisher:
    """Publishes to the topic through one producer, which is thrown away with it."""

    def __init__(self, topics: Topics, producer: kafka.Producer) -> None:
        self._topics = topics
        self._producer = producer

    @classmethod
    @asynccontextmanager
    async def open(cls, topics: Topics, name: str) -> AsyncIterator[KafkaPublisher]:
        """A publisher as long as the context lives.

        Raises: EventsUnavailable.
        """
        async with AsyncExitStack() as stack:
            try:
                producer = await stack.enter_async_context(kafka.open_producer(topics.cluster, name=name))
            except kafka.KafkaUnavailable as away:
                raise EventsUnavailable(str(away)) from away
            yield cls(topics, producer)

    async def prepare(self, streams: StreamRange) -> None:
        """Make sure that the topic has the partitions of a shard.

        Raises: EventsUnavailable.
        """
        await self._topics.ensure_events(streams.base + streams.count)

    async def send(self, partition: int, records: Sequence[Record]) -> Awaitable[None]:
        """As Publisher says.

        Raises: EventTooLarge, EventsUnavailable.
        """
        entries = [encode(record) for record in records]
        try:
            stored = await self._producer.send(self._topics.events, partition, entries)
        except kafka.KafkaUnavailable as away:
            raise EventsUnavailable(str(away)) from away
        return _acknowledged(stored)


async def _acknowledged(stored: asyncio.Future[None]) -> None:
    try:
        await stored
    except kafka.KafkaUnavailable as away:
        raise EventsUnavailable(str(away)) from away


class KafkaDeadLetters:
    """Puts changes that cannot be indexed into a topic of their own, each with the reason, one at a time.

    The producer is its whose turn it is: nobody else opens it, and nobody else throws it away.
    """

    def __init__(self, topics: Topics, open_producer: OpenProducer, *, put_s: float = DEAD_S_MAX) -> None:
        self._topics = topics
        self._open_producer = open_producer
        self._put_s = put_s
        self._turn = asyncio.Lock()
        self._opened = AsyncExitStack()
        self._producer: kafka.Producer | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, topics: Topics, name: str) -> AsyncIterator[KafkaDeadLetters]:
        """Dead letters as long as the context lives; nothing connects before the first."""
        letters = cls(topics, partial(_open_dead, topics, name))
        try:
            yield letters
        finally:
            await letters.close()

    async def close(self) -> None:
        """Throw the producer away; the next letter opens another."""
        self._producer = None
        await self._opened.aclose()

    async def put(self, record: Record, reason: str) -> None:
        """Keep one, stored by every replica that has to.

        Raises: EventsUnavailable.
        """
        assert record.event is not None
        entry = encode_dead(record, reason)
        async with self._my_turn():
            try:
                async with asyncio.timeout(self._put_s):
                    producer = self._producer or await self._open()
                    partition = record.stream_partition % DEAD_PARTITIONS
                    await (await producer.send(self._topics.dead, partition, [entry]))
            except (kafka.KafkaUnavailable, TimeoutError) as away:
                await self.close()
                raise EventsUnavailable(str(away) or "a dead letter is not acknowledged") from away
        metrics.DEAD_EVENTS.labels("kafka").inc()
        dead.tell(record, reason)

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._put_s):
                await self._turn.acquire()
        except TimeoutError as late:
            raise EventsUnavailable("other dead letters take long") from late
        try:
            yield
        finally:
            self._turn.release()

    async def _open(self) -> kafka.Producer:
        self._producer = await self._opened.enter_async_context(self._open_producer())
        return self._producer


@asynccontextmanager
async def _open_dead(topics: Topics, name: str) -> AsyncIterator[kafka.Producer]:
    await kafka.ensure_topic(
        topics.cluster, topics.dead, partitions=DEAD_PARTITIONS, replicas=topics.replicas
    )
    async with kafka.open_producer(topics.cluster, name=name) as producer:
        yield producer
