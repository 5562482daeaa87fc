"""A source of changes that reads the shard's outbox itself, from the stored watermarks on.

What it gave out is not noted anywhere: until the watermark says that a change is searchable, it stands in the
outbox and is read again. So a source starts anew after every error, and nothing can be lost.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chassis import meters
from history_svc import metrics
from history_svc.channel import dead
from history_svc.channel.log import LogReplaced
from history_svc.channel.tail import BEAT_EVERY_S, Pace, Tail
from history_svc.errors import EventsUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chassis.clock import Clock
    from history_svc.channel.leadership import Leadership
    from history_svc.channel.log import ShardLog
    from history_svc.events import Record
    from history_svc.position import Position

ROWS_MAX = 2000


class OutboxSource:
    """The changes of one shard, for the one process that leads it. For one task."""

    def __init__(
        self,
        shard_log: ShardLog,
        leadership: Leadership,
        *,
        clock: Clock,
        jitter: Callable[[], float],
        beat_every_s: float = BEAT_EVERY_S,
    ) -> None:
        self._log = shard_log
        self._leadership = leadership
        self._clock = clock
        self._pace = Pace(jitter)
        self._beat_every_s = beat_every_s
        self._beat_at = 0.0
        self._tail: Tail | None = None
        self._term: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether everything below the fence was given out, as of the last look."""
        return self._tail is not None and self._tail.is_whole

    @property
    def is_ours(self) -> bool:
        """Whether this process leads the shard."""
        return self._leadership.term is not None

    async def take(self, *, bytes_max: int, wait_s: float) -> Sequence[Record]:
        """The next records; empty when none came for `wait_s`, or while another process leads.

        If cancelled here: nothing is lost, the outbox has it.
        Raises: EventsUnavailable, once, when this process leads again, as another may have gone on meanwhile,
        and when the log has another epoch; ShardUnavailable, DeadlineExceeded, Overloaded.
        """
        end = self._clock.monotonic() + wait_s
        while True:
            tail = await self._current_tail(end)
            if tail is None:
                return []
            records = await self._read(tail, bytes_max)
            if records:
                return records
            left_s = end - self._clock.monotonic()
            if left_s <= 0:
                return []
            await self._clock.sleep(min(left_s, self._pace.after(found=False)))

    async def kept(self, watermarks: Mapping[int, Position]) -> None:
        """Nothing to note: what keeps a change in the outbox is the stored watermark."""

    async def rewind(self, watermarks: Mapping[int, Position]) -> None:
        """Read again from there on with the next `take`."""
        metrics.REWINDS.labels(self._log.shard, "outbox").inc(len(watermarks))
        if self._tail is not None:
            self._tail.rewind(watermarks)

    async def _current_tail(self, end: float) -> Tail | None:
        """The tail of this term; None when this process does not lead by then."""
        if self._tail is not None and self._term == self._leadership.term is not None:
            return self._tail
        self._tail = None
        if not self.is_ours:
            meters.forget(metrics.FENCE_AGE, shard=self._log.shard)
        try:
            async with asyncio.timeout(max(0.0, end - self._clock.monotonic())):
                term = await self._leadership.until_leading()
        except TimeoutError:
            return None
        starts = await self._log.starts()
        self._tail = Tail(self._log, starts, starts.watermarks)
        before, self._term = self._term, term
        if before not in (None, term):
            raise EventsUnavailable("another process may have led meanwhile")
        return self._tail

    async def _read(self, tail: Tail, bytes_max: int) -> list[Record]:
        try:
            records = await tail.read(rows_max=ROWS_MAX, bytes_max=bytes_max)
        except LogReplaced as replaced:
            self._tail = None
            raise EventsUnavailable(str(replaced)) from replaced
        if tail is not self._tail:
            return []
        if self.is_ours:
            metrics.FENCE_AGE.labels(self._log.shard).set(tail.fence_age_s)
        if records:
            self._pace.after(found=True)
        now = self._clock.monotonic()
        if tail.is_whole and now - self._beat_at >= self._beat_every_s:
            self._beat_at = now
            records += tail.beats()
        return records


class LoggedDeadLetters:
    """Dead letters of a channel that has no place of its own for them: the change stands in the outbox for
    days, the order in the shard, and the quarantine names both.
    """

    async def put(self, record: Record, reason: str) -> None:
        """Say which change it was. Raises: nothing."""
        metrics.DEAD_EVENTS.labels("outbox").inc()
        dead.tell(record, reason)
