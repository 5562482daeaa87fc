"""The one consumer of a process: it feeds an inbox per stream partition, from which each shard's source
takes.

Offsets are committed behind the watermarks, so whatever happens to the consumer, its successor begins at or
before what is not searchable: a rebalance, which takes every partition from every member, costs repeats and
no change. The consumer is watched, since one that came through a broker's restart may stand still in silence;
then, and after any error, it is thrown away for a new one of the same name.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

from chassis import kafka
from history_svc import metrics
from history_svc.channel.inbox import Inbox
from history_svc.channel.wire import decode
from history_svc.errors import EventsUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from chassis.clock import Clock
    from history_svc.channel.log import ShardLog
    from history_svc.events import Record, StreamRange
    from history_svc.position import Position

log = structlog.get_logger("hub")
TAKE_S = 0.2
MESSAGES_MAX = 2000
COMMIT_EVERY_S = 1.0
LAST_COMMIT_S = 2.0
INBOX_BYTES_MIN = 512 * 1024
"""Several of the largest records, so that a partition never waits for itself."""
AGAIN_S_MAX = 10.0
ASK_AGAIN_S = 5.0
"""The relay looks for wishes every second, and then has to publish."""


class ConsumerStuck(Exception):
    """The consumer does not move although there is something to take."""


class Watching(NamedTuple):
    """How the consumer is watched: how often, and how long it may stand still."""

    every_s: float = 5.0
    stuck_s: float = 60.0


class OpenConsumer(Protocol):
    """Opens the consumer with somebody who is told of its partitions."""

    def __call__(self, rebalanced: kafka.Rebalanced) -> AbstractAsyncContextManager[kafka.Consumer]:
        """As chassis.kafka.open_consumer."""
        ...


class Hub:
    """A loop that keeps a consumer going and its inboxes filled.

    bytes_max: of all inboxes; each partition's share is its own, so a shard that is slow fills no other's.
    """

    name = "kafka-hub"

    def __init__(
        self,
        prepare: Callable[[], Awaitable[None]],
        open_consumer: OpenConsumer,
        *,
        bytes_max: int,
        clock: Clock,
        jitter: Callable[[], float],
        watching: Watching | None = None,
    ) -> None:
        self._prepare = prepare
        self._open_consumer = open_consumer
        self._bytes_max = bytes_max
        self._clock = clock
        self._jitter = jitter
        self._watching = watching or Watching()
        self._consumer: kafka.Consumer | None = None
        self._inboxes: dict[int, Inbox] = {}
        self._bells: dict[int, asyncio.Event] = {}
        self._turn = 0

    @property
    def is_consuming(self) -> bool:
        """Whether there is a consumer that has partitions."""
        return self._consumer is not None and bool(self._inboxes)

    async def ping(self) -> None:
        """Say whether it consumes.

        Raises: EventsUnavailable.
        """
        if not self.is_consuming:
            raise EventsUnavailable("no partition is consumed")

    def source(self, shard_log: ShardLog) -> KafkaSource:
        """The changes of one shard."""
        return KafkaSource(self, shard_log, self._clock)

    async def run(self) -> None:
        """Consume until cancelled; whatever goes wrong is logged, and a new consumer goes on."""
        failures = 0
        while True:
            began_s = self._clock.monotonic()
            try:
                await self._consume()
            except (kafka.KafkaUnavailable, EventsUnavailable, ConsumerStuck) as failed:
                metrics.CONSUMERS_REPLACED.labels(type(failed).__name__).inc()
                log.warning("consumer_replaced", error=type(failed).__name__, because=str(failed))
            if self._clock.monotonic() - began_s > 2 * AGAIN_S_MAX:
                failures = 0
            failures += 1
            ceiling = min(AGAIN_S_MAX, 0.25 * 2 ** min(failures, 8))
            await self._clock.sleep(ceiling * (0.5 + 0.5 * self._jitter()))

    # What the consumer tells; nothing here waits or raises.

    def on_revoked(self, partitions: Collection[int]) -> None:
        """What is not searchable comes again, to whoever has the partition next."""
        for partition in partitions:
            self._inboxes.pop(partition, None)
        if not self._inboxes:
            metrics.KAFKA_LAG.set(0)

    def on_assigned(self, partitions: Collection[int]) -> None:
        """Begin with empty inboxes."""
        self._inboxes = {partition: Inbox() for partition in partitions}
        log.info("partitions_assigned", count=len(self._inboxes))

    # What the sources ask.

    def has_any(self, partitions: Iterable[int]) -> bool:
        """Whether one of these partitions is assigned to this process."""
        return any(partition in self._inboxes for partition in partitions)

    def listen(self, partitions: Iterable[int]) -> asyncio.Event:
        """A bell that rings when something came for one of these partitions."""
        bell = asyncio.Event()
        for partition in partitions:
            self._bells[partition] = bell
        return bell

    def give(self, partitions: Sequence[int], bytes_max: int) -> list[Record]:
        """What waits in some inboxes, each in turn the first, about as many bytes as asked for."""
        self._turn += 1
        found: list[Record] = []
        for number in range(len(partitions)):
            partition = partitions[(number + self._turn) % len(partitions)]
            inbox = self._inboxes.get(partition)
            if inbox is None:
                continue
            if found and bytes_max <= 0:
                break
            records = inbox.give(bytes_max)
            bytes_max -= sum(record.size for record in records)
            found += records
            self._resume(partition, inbox)
        return found

    def keep(self, watermarks: Mapping[int, Position]) -> None:
        """Note what need not come again."""
        for partition, watermark in watermarks.items():
            if (inbox := self._inboxes.get(partition)) is not None:
                inbox.keep(watermark)

    def go_back(self, partition: int, end: Position) -> bool:
        """Take a partition again from a position on; whether the topic has what comes next.

        What is below the position need not be searchable yet: only `keep` says what is.
        """
        inbox = self._inboxes.get(partition)
        if inbox is None or self._consumer is None:
            return True
        offset = inbox.offset_after(end)
        if offset is None:
            return inbox.ends_by(end)
        inbox.forget_from(offset)
        self._consumer.seek(partition, offset)
        self._resume(partition, inbox)
        return True

    # The consumer.

    async def _consume(self) -> None:
        await self._prepare()
        async with self._open_consumer(self) as consumer:
            self._consumer = consumer
            loops = [
                asyncio.create_task(work(consumer), name=f"{self.name}.{work.__name__.strip('_')}")
                for work in (self._take_in, self._commit, self._watch)
            ]
            try:
                done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in loops:
                    task.cancel()
                await asyncio.gather(*loops, return_exceptions=True)
                with suppress(kafka.KafkaUnavailable, TimeoutError):
                    async with asyncio.timeout(LAST_COMMIT_S):
                        await self._commit_now(consumer)
                self._consumer = None
                self._inboxes = {}

    async def _take_in(self, consumer: kafka.Consumer) -> None:
        while True:
            found = await consumer.take(wait_s=TAKE_S, messages_max=MESSAGES_MAX)
            for partition, messages in found.items():
                self._store(consumer, partition, messages)
            # What is fetched already comes without waiting; others have work, too.
            await asyncio.sleep(0)

    def _store(self, consumer: kafka.Consumer, partition: int, messages: Sequence[kafka.Message]) -> None:
        inbox = self._inboxes.get(partition)
        if inbox is None:
            return
        for message in messages:
            try:
                record = decode(message, partition)
            except ValueError as wrong:
                # The chain of positions shows whether it stood for one of ours.
                metrics.FOREIGN_MESSAGES.inc()
                log.error("foreign_message", partition=partition, offset=message.offset, because=repr(wrong))
                continue
            inbox.put(message.offset, record)
        if not inbox.is_paused and inbox.size_bytes >= self._share:
            inbox.is_paused = True
            consumer.pause(partition)
        if (bell := self._bells.get(partition)) is not None:
            bell.set()

    def _resume(self, partition: int, inbox: Inbox) -> None:
        if inbox.is_paused and inbox.size_bytes <= self._share // 2 and self._consumer is not None:
            inbox.is_paused = False
            self._consumer.resume(partition)

    @property
    def _share(self) -> int:
        return max(INBOX_BYTES_MIN, self._bytes_max // max(1, len(self._inboxes)))

    async def _commit(self, consumer: kafka.Consumer) -> None:
        while True:
            await self._clock.sleep(COMMIT_EVERY_S)
            try:
                await self._commit_now(consumer)
            except kafka.KafkaUnavailable as away:
                log.info("not_committed", because=str(away))

    async def _commit_now(self, consumer: kafka.Consumer) -> None:
        ours = consumer.assignment()
        behind = {
            partition: (inbox, inbox.commit_to)
            for partition, inbox in self._inboxes.items()
            if partition in ours and inbox.commit_to is not None and inbox.commit_to != inbox.committed
        }
        if behind:
            await consumer.commit({partition: offset for partition, (_, offset) in behind.items()})
        for inbox, offset in behind.values():
            inbox.committed = offset

    async def _watch(self, consumer: kafka.Consumer) -> None:
        """End when the consumer stands still: silent, without partitions, or at one position."""
        stuck_s = self._watching.stuck_s
        answered_s = self._clock.monotonic()
        moved: dict[int, tuple[int, float]] = {}
        while True:
            await self._clock.sleep(self._watching.every_s)
            try:
                lags = await consumer.lags()
            except kafka.KafkaUnavailable:
                lags = {}
            now = self._clock.monotonic()
            if lags:
                answered_s = now
                metrics.KAFKA_LAG.set(sum(end - position for position, end in lags.values()))
            elif now - answered_s > stuck_s:
                raise ConsumerStuck("it has no partition, or does not know where it stands")
            for partition, (position, end) in lags.items():
                before, since = moved.get(partition, (-1, now))
                inbox = self._inboxes.get(partition)
                may_stand = position >= end or inbox is None or inbox.is_paused
                if may_stand or position != before:
                    moved[partition] = (position, now)
                elif now - since > stuck_s:
                    raise ConsumerStuck(f"partition {partition} stands at {position}, the topic at {end}")


class KafkaSource:
    """The changes of one shard, out of its partitions' inboxes. For one task."""

    def __init__(self, hub: Hub, shard_log: ShardLog, clock: Clock) -> None:
        self._hub = hub
        self._log = shard_log
        self._clock = clock
        self._streams: StreamRange | None = None
        self._bell = asyncio.Event()
        self._asked: dict[int, tuple[Position, float]] = {}

    @property
    def is_ours(self) -> bool:
        """Whether the consumer has a partition of the shard."""
        return self._streams is not None and self._hub.has_any(self._streams.partitions)

    async def take(self, *, bytes_max: int, wait_s: float) -> Sequence[Record]:
        """The next records of the partitions that this process has; empty when none came for `wait_s`.

        If cancelled here: nothing is lost. Raises: EventsUnavailable when nothing is consumed now;
        ShardUnavailable, DeadlineExceeded, Overloaded while it is not known which partitions the shard has.
        """
        if self._streams is None:
            self._streams = (await self._log.starts()).streams
            self._bell = self._hub.listen(self._streams.partitions)
        end = self._clock.monotonic() + wait_s
        while True:
            self._bell.clear()
            if records := self._hub.give(self._streams.partitions, bytes_max):
                return records
            try:
                async with asyncio.timeout(max(0.0, end - self._clock.monotonic())):
                    await self._bell.wait()
            except TimeoutError:
                await self._hub.ping()
                return []

    async def kept(self, watermarks: Mapping[int, Position]) -> None:
        """Commit what these positions cover, with the next commit."""
        self._hub.keep(watermarks)

    async def rewind(self, watermarks: Mapping[int, Position]) -> None:
        """Take again from these positions on: from the topic where it has what comes next, else the relay
        publishes it again.

        Raises: EventsUnavailable when more is searchable than these positions say, since another process had
        the partition meanwhile; ShardUnavailable, DeadlineExceeded, Overloaded, Contended.
        """
        metrics.REWINDS.labels(self._log.shard, "kafka").inc(len(watermarks))
        missing = {
            partition: position
            for partition, position in watermarks.items()
            if not self._hub.go_back(partition, position)
        }
        now = self._clock.monotonic()
        due = {
            partition: position
            for partition, position in missing.items()
            if self._may_ask(partition, position)
        }
        if due:
            stored = (await self._log.starts()).watermarks
            if any(stored[partition] > position for partition, position in due.items()):
                raise EventsUnavailable("another process went on meanwhile")
            log.warning("topic_has_a_gap", shard=self._log.shard, partitions=sorted(due))
            await self._log.ask_rewind(due)
            self._asked.update({partition: (position, now) for partition, position in due.items()})

    def _may_ask(self, partition: int, position: Position) -> bool:
        asked, at_s = self._asked.get(partition, (None, 0.0))
        return asked != position or self._clock.monotonic() - at_s >= ASK_AGAIN_S
