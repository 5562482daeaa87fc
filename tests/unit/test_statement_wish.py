"""A statement's days: local days of a zone, as instants."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from archive_svc.statement.asking import Limits, Wish, after_months, ask
from archive_svc.statement.wish import period
from chassis.errors import InvalidField

LATER = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "first", "last", "since", "until"),
    [
        ("UTC", "2024-04-01", "2024-04-30", "2024-04-01T00:00", "2024-05-01T00:00"),
        ("Asia/Kolkata", "2024-04-01", "2025-03-31", "2024-03-31T18:30", "2025-03-31T18:30"),
        ("Asia/Kathmandu", "2024-02-29", "2024-02-29", "2024-02-28T18:15", "2024-02-29T18:15"),
        # Clocks go forward and back: 23 and 25 hours.
        ("America/New_York", "2024-03-10", "2024-03-10", "2024-03-10T05:00", "2024-03-11T04:00"),
        ("America/New_York", "2024-11-03", "2024-11-03", "2024-11-03T04:00", "2024-11-04T05:00"),
        # There is no midnight on this day, and two on that one.
        ("America/Sao_Paulo", "2018-11-04", "2018-11-04", "2018-11-04T03:00", "2018-11-05T02:00"),
        ("America/Havana", "2023-11-05", "2023-11-05", "2023-11-05T04:00", "2023-11-06T05:00"),
    ],
)
def test_days_are_those_of_the_zone(zone: str, first: str, last: str, since: str, until: str) -> None:
    expected = tuple(datetime.fromisoformat(at).replace(tzinfo=UTC) for at in (since, until))
    assert period(date.fromisoformat(first), date.fromisoformat(last), ZoneInfo(zone), LATER) == expected


@pytest.mark.parametrize(
    ("first", "months", "after"),
    [
        ("2024-02-29", 12, "2025-03-01"),
        ("2024-02-29", 36, "2027-03-01"),
        ("2024-02-29", 48, "2028-02-29"),
        ("2024-02-28", 12, "2025-02-28"),
        ("2023-12-31", 2, "2024-03-01"),
        ("2024-04-01", 12, "2025-04-01"),
        ("2024-12-31", 12, "2025-12-31"),
    ],
)
def test_months_are_over_on_the_day_of_their_number_or_with_their_last(
    first: str, months: int, after: str
) -> None:
    assert after_months(date.fromisoformat(first), months) == date.fromisoformat(after)


def test_twelve_months_from_a_leap_day_on_may_have_a_pdf() -> None:
    for last, is_taken in (("2025-02-28", True), ("2025-03-01", False)):
        wish = Wish("2024-02-29", last, "UTC", "en", ("PDF",))
        if is_taken:
            assert ask("alice", uuid4(), wish, Limits()).last_day == date.fromisoformat(last)
        else:
            with pytest.raises(InvalidField):
                ask("alice", uuid4(), wish, Limits())


def test_what_has_not_been_yet_is_cut_off() -> None:
    as_of = datetime(2024, 4, 10, 12, 30, tzinfo=UTC)
    begin = datetime(2024, 4, 1, tzinfo=UTC)
    assert period(date(2024, 4, 1), date(2024, 4, 30), ZoneInfo("UTC"), as_of) == (begin, as_of)

    since, until = period(date(2024, 5, 1), date(2024, 5, 2), ZoneInfo("UTC"), as_of)
    assert until - since == timedelta(0)
