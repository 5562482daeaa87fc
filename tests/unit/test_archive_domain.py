"""Which partitions there should be: by bounds, without holes, with the one before for an hour."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive_svc.domain import (
    TABLES,
    Ahead,
    Making,
    Partitions,
    Period,
    Span,
    missing,
    period_of,
    reach,
    strange,
    wanted,
)

ORDERS, JOURNAL, OUTBOX = TABLES
AHEAD = Ahead(months=3, days=7)
MOMENTS = st.integers(1_704_067_200, 2_208_988_800).map(lambda epoch_s: datetime.fromtimestamp(epoch_s, UTC))
"""Any second of fifteen years."""
NOW = datetime(2026, 11, 29, 12, 30, tzinfo=UTC)


def months(*names: str) -> tuple[Span, ...]:
    return tuple(period_of(Period.MONTH, datetime.strptime(n, "%Y-%m").replace(tzinfo=UTC)) for n in names)


def of(**spans: tuple[Span, ...]) -> dict[str, Partitions]:
    return {table.name: Partitions(spans.get(table.name, ())) for table in TABLES}


@given(MOMENTS)
def test_wanted_periods_have_no_hole_and_reach_as_far_as_they_should(at: datetime) -> None:
    for table in TABLES:
        spans = wanted(table, AHEAD, at)
        assert all(one.ends == next_.begins for one, next_ in pairwise(spans))
        assert at in spans[0] or at in spans[1]
        slow = at - timedelta(minutes=59)
        assert slow in spans[0] or slow in spans[1], "the row of a slow clock finds its partition"
        assert reach(spans, at) == spans[-1].ends


@given(MOMENTS, st.sets(st.integers(0, 4)))
def test_what_is_made_is_what_was_missing_and_then_nothing_is(at: datetime, gone: set[int]) -> None:
    full = {table.name: wanted(table, AHEAD, at) for table in TABLES}
    there = {
        name: tuple(span for number, span in enumerate(spans) if number not in gone)
        for name, spans in full.items()
    }
    makings = missing(of(**there), AHEAD, at)
    for making in makings:
        there[making.table.name] = (*there[making.table.name], making.span)
    assert {name: sorted(spans) for name, spans in there.items()} == full
    assert missing(of(**there), AHEAD, at) == []
    assert makings == sorted(makings, key=lambda making: making.span), "what is needed first comes first"


@pytest.mark.parametrize(
    ("at", "first", "count"),
    [
        (datetime(2026, 12, 31, 23, 59, tzinfo=UTC), "2026-12", 4),
        (datetime(2027, 1, 1, 0, 59, tzinfo=UTC), "2026-12", 5),
        (datetime(2027, 1, 1, 1, 0, tzinfo=UTC), "2027-01", 4),
        (datetime(2028, 2, 29, 12, 0, tzinfo=UTC), "2028-02", 4),
    ],
)
def test_the_first_hour_of_a_month_keeps_the_one_before(at: datetime, first: str, count: int) -> None:
    spans = wanted(ORDERS, AHEAD, at)
    assert (spans[0], len(spans)) == (months(first)[0], count)


def test_names_say_the_month_and_the_day() -> None:
    assert Making(ORDERS, period_of(Period.MONTH, NOW)).suffix == "2026_11"
    assert Making(OUTBOX, period_of(Period.DAY, NOW)).suffix == "2026_11_29"


def test_partitions_reach_up_to_the_first_hole() -> None:
    def until(*names: str) -> str | None:
        end = reach(months(*names), NOW)
        return f"{end:%Y-%m-%d}" if end else None

    assert until() is None
    assert until("2026-09", "2026-10") is None
    assert until("2026-12", "2027-01") is None, "without the current one nothing counts"
    assert until("2026-11") == "2026-12-01"
    assert until("2027-01", "2026-11", "2026-09", "2026-12") == "2027-02-01"
    assert until("2026-11", "2026-12", "2027-02", "2027-03") == "2027-01-01"


def test_a_month_under_another_name_is_a_month() -> None:
    """Bounds decide: one partition may hold what should have been two."""
    spans = (Span(months("2026-11")[0].begins, months("2026-12")[0].ends), *months("2027-01", "2027-02"))
    assert [m for m in missing(of(orders=spans), AHEAD, NOW) if m.table == ORDERS] == []


def test_beside_a_default_partition_nothing_is_made_and_a_person_is_told() -> None:
    there = of() | {"orders": Partitions((), has_default=True), "refunds": Partitions(())}
    del there["outbox"]
    assert {making.table for making in missing(there, AHEAD, NOW)} == {JOURNAL}
    assert strange(there) == [
        ("refunds", "NOT_KEPT"),
        ("outbox", "NOT_THERE"),
        ("orders", "DEFAULT_PARTITION"),
    ]
