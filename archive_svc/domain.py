"""Which partitions there should be, and what is wrong with those that there are. Pure.

Rows are placed by the shard's clock, which another process may see a moment later: so for the first hour of a
period the one before has to be there too. All instants are aware; periods begin at midnight UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

GRACE = timedelta(hours=1)


class Period(Enum):
    """How long a partition is; the value makes its name."""

    MONTH = "%Y_%m"
    DAY = "%Y_%m_%d"


SHORT = {Period.MONTH: timedelta(days=59), Period.DAY: timedelta(days=2)}
"""A table whose partitions end sooner needs a person: fewer than two periods follow the current one."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """How many periods exist after the current one."""

    months: int
    days: int

    def of(self, period: Period) -> int:
        """How many of this kind."""
        return self.months if period is Period.MONTH else self.days


@dataclass(frozen=True, slots=True)
class Table:
    """A partitioned table. column: by which it is."""

    name: str
    column: str
    period: Period


TABLES = (
    Table("orders", "created_at", Period.MONTH),
    Table("order_journal", "created_at", Period.MONTH),
    Table("outbox", "occurred_at", Period.DAY),
)
"""Every partitioned table of a shard; those of one order have the same months, so that they go together."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The rows of one partition: from `begins` on, before `ends`."""

    begins: datetime
    ends: datetime

    def __contains__(self, at: datetime) -> bool:
        return self.begins <= at < self.ends


@dataclass(frozen=True, slots=True)
class Partitions:
    """What a shard has of one table. has_default: one that takes whatever no other does."""

    spans: tuple[Span, ...]
    has_default: bool = False


@dataclass(frozen=True, slots=True)
class Making:
    """One partition to be made."""

    table: Table
    span: Span

    @property
    def suffix(self) -> str:
        """What is appended to the table's name, such as `2026_11`."""
        return self.span.begins.strftime(self.table.period.value)


def period_of(period: Period, at: datetime) -> Span:
    """The month or the day of an instant."""
    begins = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if period is Period.DAY:
        return Span(begins, begins + timedelta(days=1))
    begins = begins.replace(day=1)
    return Span(begins, (begins + timedelta(days=32)).replace(day=1))


def wanted(table: Table, ahead: Ahead, at: datetime) -> list[Span]:
    """The periods that have to exist now, the oldest first."""
    spans = [period_of(table.period, at - GRACE)]
    last = period_of(table.period, at)
    if last != spans[0]:
        spans.append(last)
    for _ in range(ahead.of(table.period)):
        last = period_of(table.period, last.ends)
        spans.append(last)
    return spans


def missing(there: Mapping[str, Partitions], ahead: Ahead, at: datetime) -> list[Making]:
    """What has to be made, what is needed first coming first.

    Nothing of a table that has a default partition: attaching beside one reads all of its rows under a lock.
    """
    makings = [
        Making(table, span)
        for table in TABLES
        if table.name in there and not there[table.name].has_default
        for span in wanted(table, ahead, at)
        if not any(span.begins in other for other in there[table.name].spans)
    ]
    return sorted(makings, key=lambda making: making.span)


def reach(spans: Iterable[Span], at: datetime) -> datetime | None:
    """Until when partitions follow the current one without a hole; None without a current one."""
    end = None
    for span in sorted(spans):
        if span.ends > at and span.begins <= (end or at):
            end = span.ends
    return end


def strange(there: Mapping[str, Partitions]) -> Sequence[tuple[str, str]]:
    """Tables that a person has to look at, and why."""
    known = {table.name for table in TABLES}
    found = [(name, "NOT_KEPT") for name in sorted(there.keys() - known)]
    found += [(name, "NOT_THERE") for name in sorted(known - there.keys())]
    found += [(name, "DEFAULT_PARTITION") for name, parts in sorted(there.items()) if parts.has_default]
    return found
