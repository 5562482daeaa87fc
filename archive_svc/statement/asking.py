"""Which wishes for a statement are taken. Pure but for the time zones that the system knows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, available_timezones

from archive_svc.statement.wish import CSV, FORMATS, LOCALES, PDF, period
from chassis.errors import InvalidField, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

_FIRST_YEAR, _LAST_YEAR = 2000, 9990
_END_OF_TIME = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a user may ask for.

    day_max, month_max:         statements begun within a day, and within 30 days.
    months_max, pdf_months_max: calendar months of a period; of one with a PDF.
    bytes_max:                  that have to be read from the archive, as estimated.
    large_bytes:                so many of them make a statement a large one.
    """

    day_max: int = 5
    month_max: int = 20
    months_max: int = 36
    pdf_months_max: int = 12
    bytes_max: int = 4 * 1024**3
    large_bytes: int = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Wish:
    """A wish as it came, not checked. Days as `2024-04-01`; formats in any order, repeated or not at all."""

    first_day: str
    last_day: str
    time_zone: str
    locale: str
    formats: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked wish. since, until: when its days begin and end, UTC; some of it may be in the future."""

    user_id: str
    request_id: UUID
    first_day: date
    last_day: date
    time_zone: str
    locale: str
    formats: tuple[str, ...]
    since: datetime
    until: datetime


def ask(user_id: str, request_id: UUID, wish: Wish, limits: Limits) -> Ask:
    """Check a wish. What it leaves open is UTC, `en`, and CSV, which is always there.

    Raises: InvalidField with every wrong field.
    """
    formats = tuple(each for each in FORMATS if each == CSV or each in wish.formats)
    first, last, zone = _day(wish.first_day), _day(wish.last_day), _zone(wish.time_zone)
    locale = wish.locale or LOCALES[0]
    wrong = [*_unreadable(first, last, zone, locale)]
    if first is not None and last is not None:
        wrong += _unfit(first, last, limits, with_pdf=PDF in formats)
    if wrong or first is None or last is None or zone is None:
        raise InvalidField(*wrong)
    since, until = period(first, last, zone, _END_OF_TIME)
    if since >= until:
        raise InvalidField.of("wish.last_day", "these days were skipped in this time zone")
    return Ask(user_id, request_id, first, last, zone.key, locale, formats, since, until)


def _unreadable(
    first: date | None, last: date | None, zone: ZoneInfo | None, locale: str
) -> Iterator[Violation]:
    for name, day in (("first_day", first), ("last_day", last)):
        if day is None:
            yield Violation(f"wish.{name}", "must be a day such as 2024-04-01")
    if zone is None:
        yield Violation("wish.time_zone", "must be a time zone such as Asia/Kolkata")
    if locale not in LOCALES:
        yield Violation("wish.locale", f"must be one of {', '.join(LOCALES)}")


def _unfit(first: date, last: date, limits: Limits, *, with_pdf: bool) -> Iterator[Violation]:
    if last < first:
        yield Violation("wish.last_day", "must not be before the first day")
    elif last >= after_months(first, limits.months_max):
        yield Violation("wish.last_day", f"a statement has {limits.months_max} months at most")
    elif with_pdf and last >= after_months(first, limits.pdf_months_max):
        yield Violation(
            "wish.last_day", f"a PDF has {limits.pdf_months_max} months at most; CSV may have more"
        )


def after_months(day: date, months: int) -> date:
    """The first day that is no more of so many months from a day on: the same one of a later month, or the
    first one of the month after that where it has no such day.
    """
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    next_year, next_month = divmod(year * 12 + month + 1, 12)
    end = date(next_year, next_month + 1, 1)
    return min(date(year, month + 1, 1) + timedelta(days=day.day - 1), end)


def _day(text: str) -> date | None:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return day if day.isoformat() == text and _FIRST_YEAR <= day.year <= _LAST_YEAR else None


def _zone(text: str) -> ZoneInfo | None:
    """A time zone of the IANA list."""
    return ZoneInfo(text or "UTC") if (text or "UTC") in _zones() else None


@cache
def _zones() -> frozenset[str]:
    """Their names; not those that mean another zone on another machine, or none."""
    return frozenset(available_timezones() - {"localtime", "Factory"})
