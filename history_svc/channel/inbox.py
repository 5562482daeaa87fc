"""What came from one partition of the topic and is not searchable yet: what waits, what was given out, and
from which offset on a successor has to read. Pure.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from history_svc.events import Record
    from history_svc.position import Position

SPANS_MAX = 4096
"""Above it neighbours are taken together: the offset that is committed may then stay a little behind."""


class Span(NamedTuple):
    """Records that were given out, one or several neighbours, by offset and by what they are about."""

    first: int
    last: int
    prev: Position
    position: Position


class Inbox:
    """The records of one partition between the topic and the watermark."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.is_paused = False
        self.committed: int | None = None
        """The offset that was committed last, by us."""
        self.commit_to: int | None = None
        """The offset to commit: everything before it is searchable; None until something is."""
        self._waiting: deque[tuple[int, Record]] = deque()
        self._given: deque[Span] = deque()

    def ends_by(self, position: Position) -> bool:
        """Whether nothing came yet from beyond a position, so that what comes next is not known."""
        given = all(span.position <= position for span in self._given)
        return given and all(record.position <= position for _, record in self._waiting)

    def put(self, offset: int, record: Record) -> None:
        """A record came."""
        self._waiting.append((offset, record))
        self.size_bytes += record.size

    def give(self, bytes_max: int) -> list[Record]:
        """The next records, about as many bytes as asked for, one at least if there is any."""
        records: list[Record] = []
        left = bytes_max
        while self._waiting and (not records or left > 0):
            offset, record = self._waiting.popleft()
            self._given.append(Span(offset, offset, record.prev, record.position))
            self.size_bytes -= record.size
            left -= record.size
            records.append(record)
        if len(self._given) > SPANS_MAX:
            self._given = deque(_taken_together(self._given))
        return records

    def keep(self, watermark: Position) -> None:
        """Everything at or below a position is searchable: what was given out and is, is done with."""
        while self._given and self._given[0].position <= watermark:
            self.commit_to = self._given.popleft().last + 1

    def offset_after(self, watermark: Position) -> int | None:
        """Where to read again so that nothing after a position is missed; None when what is here has a gap
        there.

        A record is the next one when it begins at or below the position and ends above it.
        """
        for span in self._given:
            if span.prev <= watermark < span.position:
                return span.first
        for offset, record in self._waiting:
            if record.prev <= watermark < record.position:
                return offset
        return None

    def forget_from(self, offset: int) -> None:
        """These will come again."""
        self._given = deque(span for span in self._given if span.last < offset)
        self._waiting = deque(pair for pair in self._waiting if pair[0] < offset)
        self.size_bytes = sum(record.size for _, record in self._waiting)


def _taken_together(spans: deque[Span]) -> Iterator[Span]:
    every = iter(spans)
    for one in every:
        other = next(every, one)
        yield Span(one.first, other.last, min(one.prev, other.prev), max(one.position, other.position))
