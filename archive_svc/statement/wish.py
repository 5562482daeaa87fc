"""What is wanted of a statement, how far it got, and what came of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from uuid import UUID
    from zoneinfo import ZoneInfo

    from archive_svc.statement.places import Places

CSV, PDF = "CSV", "PDF"
FORMATS = (CSV, PDF)
"""In the order in which they are kept."""
LOCALES = ("en", "hi")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A statement to make.

    placements:   every bucket the user ever had, by the shard that has it now, at the epochs of one map.
    since, until: aware UTC, half-open, not empty; made of days in `time_zone`, and never after `as_of`.
    time_zone:    of the IANA list; locale: of LOCALES; formats: of FORMATS, CSV always among them.
    as_of:        aware UTC; what is written is the same for the same one.
    """

    statement_id: UUID
    user_id: str
    placements: Places
    since: datetime
    until: datetime
    time_zone: str
    locale: str
    formats: tuple[str, ...]
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a statement got.

    months:        read to their end, of `months_in_all` that it has to read.
    rows:          orders read so far.
    archive_bytes: fetched from the archive so far.
    """

    months: int = 0
    months_in_all: int = 0
    rows: int = 0
    archive_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Total:
    """The orders of one currency and status, and their amounts together in the currency's smallest unit."""

    currency: str
    status: str
    orders: int
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """A statement's file, as it lies on this machine.

    path:     a zip file; who made it leaves it, and who asked for it takes it away.
    sha256:   of the file, in hex.
    totals:   by currency and status, sorted.
    pdf_note: why the PDF has no lines of orders; empty when it has, or none was wanted.
    """

    path: Path
    size_bytes: int
    sha256: str
    orders: int
    totals: tuple[Total, ...]
    pdf_note: str = ""


class Maker(Protocol):
    """Reads a user's orders and writes them down."""

    async def make(self, wanted: Wanted, tell: Callable[[Progress], Awaitable[None]]) -> Bundle:
        """Make a statement's file. Cancelled, it leaves none.

        tell: hears of the progress, at the end of each month at least; what it raises ends the making.

        Raises: an OrdermeshError. One of code DATA_LOSS, FAILED_PRECONDITION, INVALID_ARGUMENT or
        UNIMPLEMENTED stays as it is however often it is tried; any other may pass.
        """
        ...


def period(first: date, last: date, zone: ZoneInfo, as_of: datetime) -> tuple[datetime, datetime]:
    """When the first of these days begins and the last one ends, in UTC; not after `as_of`.

    Empty when nothing of it has been yet, or when the zone's clocks skipped it.
    """
    until = min(_begin(last + timedelta(days=1), zone), as_of)
    return min(_begin(first, zone), until), until


def _begin(day: date, zone: ZoneInfo) -> datetime:
    """The first instant of a local day, also where midnight is skipped or comes twice."""
    return datetime.combine(day, time(), zone).astimezone(UTC)
