"""Publishes one shard's outbox: reads its tail, hands records over by stream partition, and moves the cursors
over what was acknowledged.

One relay per shard at a time, the leader's. Whatever goes wrong, the publisher is thrown away and a new one
goes on at the stored cursors: records may be published twice, in any mixture, but none is left out. A cursor
only moves over the unbroken run of acknowledged batches, so what it stands at was published with all before
it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from opentelemetry.trace import SpanKind

from chassis import faults, traces
from chassis.errors import OrdermeshError
from history_svc import metrics
from history_svc.channel.log import LogReplaced, TermLost
from history_svc.channel.tail import BEAT_EVERY_S, LONG_AGO, Pace, Tail
from history_svc.errors import EventsUnavailable, EventTooLarge
from history_svc.events import stream_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from opentelemetry.trace import Span

    from chassis.clock import Clock
    from history_svc.channel.leadership import Leadership
    from history_svc.channel.log import ShardLog, Starts
    from history_svc.channel.port import DeadLetters, Publisher
    from history_svc.events import Record
    from history_svc.position import Position

log = structlog.get_logger("relay")
IN_FLIGHT_MAX = 4
"""Batches that were handed over and are not acknowledged: one is read while one travels and one is written.
"""
CURSOR_EVERY_S = 0.2
"""A cursor that is a little behind costs some repeats after a crash, and a commit each time it moves."""
LAST_S = 1.0
"""At stop: for what was handed over to be acknowledged, and as long again for the cursors."""
AGAIN_S_MAX = 10.0
BEFORE_SEND = faults.declare("relay.before_send", "changes were read, and nothing of them was published")
AFTER_ACK = faults.declare("relay.after_ack", "changes are published, the cursors stand before them")
AFTER_CURSOR = faults.declare("relay.after_cursor", "changes are published and the cursors stand behind them")
AFTER_REWIND = faults.declare(
    "relay.after_rewind", "cursors stand where they were asked back to, and nothing was published again"
)


class Batching(NamedTuple):
    """How much is read at once, how often partitions without changes get a beat, and how long anything may
    take.
    """

    rows_max: int = 1000
    bytes_max: int = 4 * 1024 * 1024
    beat_every_s: float = BEAT_EVERY_S
    hand_over_s: float = 10.0
    acknowledge_s: float = 30.0
    """An idempotent producer tries for ever; after this long it is replaced."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a relay works with."""

    log: ShardLog
    dead_letters: DeadLetters
    clock: Clock
    jitter: Callable[[], float]
    batching: Batching = field(default_factory=Batching)


class Relay:
    """A loop that publishes a shard's outbox while this process leads the shard."""

    def __init__(
        self,
        parts: Parts,
        leadership: Leadership,
        open_publisher: Callable[[], AbstractAsyncContextManager[Publisher]],
    ) -> None:
        self.name = f"relay.{parts.log.shard}"
        self._parts = parts
        self._leadership = leadership
        self._open_publisher = open_publisher
        self._failures = 0

    async def run(self) -> None:
        """Publish until cancelled. A shard or a channel that is away is tried again, ever more rarely."""
        shard = self._parts.log.shard
        # There from now on, as 0 until something is published: an alert sees no series that is not there, and
        # this process may never lead.
        metrics.PUBLISHED_UNTIL.labels(shard)
        while True:
            try:
                await self._leadership.while_leading(self._publish, shows=[metrics.FENCE_AGE])
            except (OrdermeshError, EventsUnavailable, TermLost, LogReplaced) as failed:
                self._failures += 1
                log.warning("relay_failed", shard=shard, error=type(failed).__name__, because=str(failed))
            ceiling = min(AGAIN_S_MAX, 0.1 * 2 ** min(self._failures, 8))
            await self._parts.clock.sleep(ceiling * (0.5 + 0.5 * self._parts.jitter()))

    async def _publish(self, term: int) -> None:
        starts = await self._parts.log.starts()
        async with self._open_publisher() as publisher:
            await publisher.prepare(starts.streams)
            publishing = Publishing(self._parts, term, starts, publisher)
            try:
                await publishing.run()
            except asyncio.CancelledError:
                await publishing.finish()
                raise
            finally:
                if publishing.has_moved:
                    self._failures = 0
                publishing.abandon()


@dataclass(slots=True)
class Flight:
    """A batch that was handed over: where it leaves each partition, and how many changes it holds.

    span: goes on until the batch is acknowledged or given up.
    whole_at: everything committed before it is in this batch or in one before; None when more was unread.
    """

    acknowledged: asyncio.Future[Any]
    positions: Mapping[int, Position]
    changes: int
    read_at_s: float
    whole_at: datetime | None
    span: Span

    def fails(self) -> BaseException:
        """Why it is given up: what the acknowledgement says, else that nobody waits for it any more."""
        if self.acknowledged.done() and not self.acknowledged.cancelled():
            return self.acknowledged.exception() or asyncio.CancelledError()
        return asyncio.CancelledError()


class Publishing:
    """One run over the tail with one publisher, in one term; it ends by an error only."""

    def __init__(self, parts: Parts, term: int, starts: Starts, publisher: Publisher) -> None:
        self.has_moved = False
        """Whether a cursor was moved, so that what went wrong later is another failure."""
        self._log = parts.log
        self._dead_letters = parts.dead_letters
        self._clock = parts.clock
        self._batching = parts.batching
        self._pace = Pace(parts.jitter)
        self._term = term
        self._publisher = publisher
        self._tail = Tail(parts.log, starts, starts.cursors)
        self._flights: deque[Flight] = deque()
        self._published: dict[int, Position] = {}
        self._cursor_at_s = self._beat_at_s = parts.clock.monotonic()
        self._told_at = LONG_AGO
        self._is_asked_back = True

    async def run(self) -> None:
        """Read, hand over, note.

        If cancelled here: some of what was handed over may be published without a cursor that says so.
        Raises: TermLost, LogReplaced, EventsUnavailable, ShardUnavailable, DeadlineExceeded, Overloaded,
        Contended.
        """
        while True:
            if self._is_asked_back:
                await self._go_back()
            found = await self._read_on()
            while self._flights and (
                self._flights[0].acknowledged.done() or len(self._flights) >= IN_FLIGHT_MAX
            ):
                await self._land()
            if self._published and self._clock.monotonic() - self._cursor_at_s >= CURSOR_EVERY_S:
                await self._move_cursors()
            if self._tail.is_whole and not self._flights:
                self._show(self._tail.whole_at)
            if self._tail.is_whole:
                await self._clock.sleep(self._pace.after(found=found))

    async def finish(self) -> None:
        """At stop, or when somebody else leads: wait a little for what is under way and note what is
        published, so that the next one repeats less. Raises: nothing; what is not noted is published again.
        """
        with suppress(TimeoutError, EventsUnavailable):
            async with asyncio.timeout(LAST_S):
                while self._flights:
                    await self._land()
        try:
            async with asyncio.timeout(LAST_S):
                if self._published:
                    await self._move_cursors()
        except (TimeoutError, TermLost, OrdermeshError) as failed:
            log.info("last_cursors_not_noted", shard=self._log.shard, error=type(failed).__name__)

    def abandon(self) -> None:
        """Wait for nothing more; what was handed over is read again."""
        for flight in self._flights:
            traces.end(flight.span, flight.fails())
            flight.acknowledged.cancel()
            metrics.RELAY_EVENTS.labels(self._log.shard, "failed").inc(flight.changes)
        self._flights.clear()

    async def _read_on(self) -> bool:
        """Hand over what is next; whether there were changes."""
        started_s = self._clock.monotonic()
        records = await self._tail.read(rows_max=self._batching.rows_max, bytes_max=self._batching.bytes_max)
        changes = len(records)
        if self._tail.is_whole and started_s - self._beat_at_s >= self._batching.beat_every_s:
            self._beat_at_s = started_s
            beats = self._tail.beats()
            self._told_at = beats[0].at if beats else self._told_at
            records += beats
        metrics.FENCE_AGE.labels(self._log.shard).set(self._tail.fence_age_s)
        if records:
            await self._hand_over(records, changes, started_s)
        return changes > 0

    async def _hand_over(self, records: Sequence[Record], changes: int, started_s: float) -> None:
        await faults.point(BEFORE_SEND)
        by_partition: dict[int, list[Record]] = {}
        for record in records:
            by_partition.setdefault(record.stream_partition, []).append(record)
        waiting = []
        links = [record.event.traceparent for record in records if record.event is not None]
        span = traces.begun_span(
            "send ordermesh.order-events.v1",
            links,
            kind=SpanKind.PRODUCER,
            attributes=stream_facts(self._log.shard, len(links)),
        )
        try:
            with traces.within(span):
                for partition, mine in by_partition.items():
                    waiting.append(await self._send(partition, mine))
        except BaseException as failed:
            traces.end(span, failed)
            for one in waiting:
                one.add_done_callback(_heard)
                one.cancel()
            raise
        acknowledged = asyncio.gather(*waiting)
        acknowledged.add_done_callback(_heard)
        self._flights.append(
            Flight(
                acknowledged,
                {partition: mine[-1].position for partition, mine in by_partition.items()},
                changes,
                started_s,
                self._tail.whole_at if self._tail.is_whole else None,
                span,
            )
        )

    async def _send(self, partition: int, records: list[Record]) -> asyncio.Future[Any]:
        """Hand over one partition's records; what does not fit is set aside, and a beat goes in its place."""
        while True:
            try:
                async with asyncio.timeout(self._batching.hand_over_s):
                    return asyncio.ensure_future(await self._publisher.send(partition, records))
            except TimeoutError:
                raise EventsUnavailable("nothing is taken") from None
            except EventTooLarge as large:
                await self._set_aside(large)
                beat = replace(large.record, event=None, at=self._told_at)
                records = [beat if record is large.record else record for record in records]

    async def _set_aside(self, large: EventTooLarge) -> None:
        """Lists take the order from the shard from now on, before anything after it can be searchable."""
        event, reason = large.record.event, f"too large to publish: {large}"
        assert event is not None
        await self._dead_letters.put(large.record, reason)
        await self._log.quarantine(large.record.stream_partition, event, reason)
        metrics.RELAY_EVENTS.labels(self._log.shard, "too_large").inc()

    async def _land(self) -> None:
        """Wait for the oldest batch's acknowledgement."""
        flight = self._flights[0]
        try:
            async with asyncio.timeout(self._batching.acknowledge_s):
                await asyncio.shield(flight.acknowledged)
        except TimeoutError:
            failed = EventsUnavailable("nothing is acknowledged")
            traces.end(flight.span, failed)
            raise failed from None
        traces.end(flight.span)
        self._flights.popleft()
        self._published.update(flight.positions)
        if flight.whole_at is not None:
            self._show(flight.whole_at)
        metrics.RELAY_EVENTS.labels(self._log.shard, "published").inc(flight.changes)
        metrics.RELAY_BATCH_SECONDS.labels(self._log.shard).observe(
            self._clock.monotonic() - flight.read_at_s
        )

    async def _move_cursors(self) -> None:
        await faults.point(AFTER_ACK)
        self._is_asked_back = await self._log.move_cursors(self._term, self._published)
        await faults.point(AFTER_CURSOR)
        self._published.clear()
        self._cursor_at_s = self._clock.monotonic()
        self.has_moved = True

    async def _go_back(self) -> None:
        """Read again from where somebody misses something, once nothing is under way any more."""
        while self._flights:
            await self._land()
        if self._published:
            await self._move_cursors()
        self._is_asked_back = False
        back = await self._log.take_rewinds(self._term)
        if not back:
            return
        await faults.point(AFTER_REWIND)
        metrics.REWINDS.labels(self._log.shard, "relay").inc(len(back))
        log.info("goes_back", shard=self._log.shard, partitions=sorted(back))
        self._tail.rewind(back)

    def _show(self, published_until: datetime) -> None:
        metrics.PUBLISHED_UNTIL.labels(self._log.shard).set(published_until.timestamp())


def _heard(ended: asyncio.Future[Any]) -> None:
    """Nobody waits for what was abandoned, and the loop would report what it ended with."""
    if not ended.cancelled():
        ended.exception()
