"""The tail of one shard's log: its changes in order, each with the position before it, and beats that say how
far a partition is complete when nothing changes in it.

Owns the places that were read and the chain of positions that were given out. Whoever holds a Tail is its
only user; after an error or a new term a new one starts from what is stored.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from history_svc.channel.log import START, LogReplaced, Place
from history_svc.events import Record
from history_svc.position import BEGINNING, Position, before_xid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from history_svc.channel.log import Change, Page, ShardLog, Starts

log = structlog.get_logger("tail")
BUSY_S = 0.02
IDLE_S = 0.25
"""From 20 ms after a change up to 250 ms: four statements a second for an idle shard."""
BEAT_EVERY_S = 1.0
ROWS_MIN = 16
DAYS_BACK = timedelta(days=1)
"""A change occurred a moment before its transaction wrote it, at most a transaction's longest life, which is
seconds; a day costs one more partition and forgives a clock that was set.
"""
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class Pace:
    """How long to wait between two looks."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._wait_s = BUSY_S

    def after(self, *, found: bool) -> float:
        """Seconds until the next look, after one that found something or nothing."""
        self._wait_s = BUSY_S if found else min(IDLE_S, self._wait_s * 1.5)
        return self._wait_s * (0.75 + 0.5 * self._jitter())


class FenceClock:
    """Tells since when everything that was committed is below the fence.

    A change that was committed may stand above the fence, while an older transaction still runs; so the time
    of a look is not the time of its fence. But what was committed before a look is below that look's ceiling:
    once the fence has passed a ceiling, the instant of its look is a true one. One earlier look is
    remembered.
    """

    def __init__(self) -> None:
        self.at: datetime | None = None
        """Everything committed before it is below the fence; None until known."""
        self._ceiling: int | None = None
        self._looked_at = LONG_AGO

    def look(self, fence: int, ceiling: int, at: datetime) -> None:
        """Take in one look."""
        if fence >= ceiling:
            self._pass(at)
            self._ceiling = None
        elif self._ceiling is None:
            self._ceiling, self._looked_at = ceiling, at
        elif fence >= self._ceiling:
            self._pass(self._looked_at)
            self._ceiling, self._looked_at = ceiling, at

    def _pass(self, at: datetime) -> None:
        self.at = at if self.at is None else max(self.at, at)


class Tail:
    """Reads on from where each partition of a shard stands.

    ends: the last position of each partition that was given out, by somebody, some time. A partition that
    stands below the floor goes on at the floor, and its next record says so: `prev` is beyond what was given
    out.
    """

    def __init__(self, shard_log: ShardLog, starts: Starts, ends: Mapping[int, Position]) -> None:
        self.streams = starts.streams
        self._log = shard_log
        self._epoch = starts.log_epoch
        self._floor = starts.floor
        self._ends: dict[int, Position] = {}
        self._had: dict[int, Place] = {}
        self._clock = FenceClock()
        self._looked_at = self._whole_at = LONG_AGO
        self._complete_to = 0
        self._since = LONG_AGO
        self._rows = ROWS_MIN
        self._turn = 0
        self.is_whole = False
        """Whether everything below the last fence was read."""
        self.rewind({partition: ends.get(partition, BEGINNING) for partition in starts.streams.partitions})

    @property
    def fence_age_s(self) -> float:
        """By how much the fence is behind the time of the last look: how long the oldest writer writes."""
        at = self._clock.at
        return 0.0 if at is None else max(0.0, (self._looked_at - at).total_seconds())

    @property
    def whole_at(self) -> datetime:
        """Everything committed before it was read, by the last look that left nothing unread."""
        return self._whole_at

    def rewind(self, to: Mapping[int, Position]) -> None:
        """Read some partitions again from these positions on."""
        for partition, end in to.items():
            self._ends[partition] = end
            self._had[partition] = Place(end.xid, end.seq) if end.log_epoch == self._epoch else START
        self._admit_gaps()
        self._since = LONG_AGO
        self._turn += 1
        self.is_whole = False

    async def read(self, *, rows_max: int, bytes_max: int) -> list[Record]:
        """The next changes, about as many as asked for at most; none when there are none below the fence, or
        when `rewind` was called meanwhile.

        If cancelled here: nothing was given out, the next call reads the same.
        Raises: LogReplaced, ShardUnavailable, DeadlineExceeded, Overloaded.
        """
        rows, turn = min(rows_max, self._rows), self._turn
        page = await self._log.tail(
            min(self._had.values()), since=self._since, rows_max=rows, bytes_max=bytes_max, had=self._had
        )
        if page.log_epoch != self._epoch:
            raise LogReplaced(f"{self._log.shard}: log epoch {page.log_epoch}, was {self._epoch}")
        if turn != self._turn:
            return []
        return self._take(page, rows, rows_max, bytes_max)

    def beats(self) -> list[Record]:
        """A beat for each partition that stands below the fence; none while changes below it are unread."""
        at = self._clock.at
        if not self.is_whole or at is None:
            return []
        here = before_xid(self._epoch, self._complete_to)
        made = []
        for partition, end in self._ends.items():
            if end < here:
                made.append(Record(partition, here, end, at))
                self._ends[partition] = here
        return made

    def _admit_gaps(self) -> None:
        """Say of partitions that did not read up to the floor that they miss something."""
        floor = Place(self._floor.xid, self._floor.seq)
        for partition, end in self._ends.items():
            if end < self._floor and self._had[partition] < floor:
                self._ends[partition] = self._floor
                log.warning(
                    "changes_are_gone", shard=self._log.shard, partition=partition, below=str(self._floor)
                )

    def _take(self, page: Page, rows: int, rows_max: int, bytes_max: int) -> list[Record]:
        if page.floor > self._floor:
            self._floor = page.floor
            self._admit_gaps()
        self._looked_at = page.at
        self._clock.look(page.fence, page.ceiling, page.at)
        records = [self._record(change) for change in page.changes if change.event is not None]
        size = sum(record.size for record in records)
        self._rows = _fitting(records, size, rows_max, bytes_max)
        self.is_whole = len(page.changes) < rows and size < bytes_max
        if page.changes:
            self._pass(page.changes[-1].place)
        if self.is_whole:
            self._complete_to = page.fence
            self._pass(Place(page.fence, 0))
            if self._clock.at is not None:
                self._whole_at = self._clock.at
                self._since = self._clock.at - DAYS_BACK
        return records

    def _pass(self, place: Place) -> None:
        """Nothing up to a place is new to any partition."""
        for partition, had in self._had.items():
            if had < place:
                self._had[partition] = place

    def _record(self, change: Change) -> Record:
        partition = change.stream_partition
        position = Position(self._epoch, *change.place)
        prev = self._ends.get(partition, BEGINNING)
        self._ends[partition] = position
        return Record(partition, position, prev, change.occurred_at, change.event)


def _fitting(records: list[Record], size: int, rows_max: int, bytes_max: int) -> int:
    """How many rows to ask for next, so that the shard does not read much more than fits."""
    if not records:
        return rows_max
    return max(ROWS_MIN, min(rows_max, bytes_max * len(records) // max(1, size)))
