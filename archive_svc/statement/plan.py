"""Where the orders of a period are, month by month, on one shard. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a period within one month; `since` belongs to it, `until` does not.

    is_archived: it is read from segments, and from nowhere else; otherwise from the tables.
    """

    month: date
    since: datetime
    until: datetime
    is_archived: bool


def pieces(since: datetime, until: datetime, archived: Collection[date]) -> list[Piece]:
    """A period cut at the months of UTC, as the tables are, without a gap and without an overlap.

    archived: the months that readers read from their segments.
    """
    found = []
    begins = since.astimezone(UTC)
    while begins < until:
        month = date(begins.year, begins.month, 1)
        ends = min(month_after(month), until)
        found.append(Piece(month, begins, ends, month in archived))
        begins = ends
    return found


def month_after(month: date) -> datetime:
    """When the month after this one begins."""
    years, number = divmod(month.month, 12)
    return datetime(month.year + years, number + 1, 1, tzinfo=UTC)


def microseconds(at: datetime) -> int:
    """Since 1970, exactly."""
    return (at - EPOCH) // _MICROSECOND
