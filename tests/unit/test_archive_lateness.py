"""Since when a month waits to be archived: never from before it was due, and never while others go first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive_svc.lateness import Stay, archived_until, ripe_at
from archive_svc.lifecycle import State, ripe_until

AUGUST = datetime(2023, 8, 1, tzinfo=UTC)
SEPTEMBER = datetime(2023, 9, 1, tzinfo=UTC)
RIPE = datetime(2025, 9, 8, tzinfo=UTC)
"""When August 2023 is 24 months and 7 days past."""
NOW = datetime(2026, 3, 1, tzinfo=UTC)
LATER = datetime(2026, 2, 1, tzinfo=UTC)


def until(
    *stays: Stay, last_commit: datetime | None = None, at: datetime = NOW, reach: State | None = None
) -> datetime:
    return archived_until(stays, last_commit, at, months_min=24, days_min=7, reach=reach)


@given(
    month=st.integers(0, 600),
    months_min=st.integers(1, 600),
    days_min=st.integers(0, 31),
)
def test_a_month_is_ripe_from_the_instant_on_at_which_it_may_go(
    month: int, months_min: int, days_min: int
) -> None:
    begins_at = datetime(2000 + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    ends_at = datetime(2000 + (month + 1) // 12, (month + 1) % 12 + 1, 1, tzinfo=UTC)
    at = ripe_at(begins_at, months_min, days_min)
    assert ripe_until(at, months_min, days_min) >= ends_at
    assert ripe_until(at - timedelta(microseconds=1), months_min, days_min) < ends_at


def test_nothing_waits_where_nobody_asked() -> None:
    assert until(Stay(AUGUST, None, None, None)) == NOW
    assert until(Stay(AUGUST, State.RESTORED, State.RESTORED, LATER)) == NOW
    assert until(Stay(AUGUST, State.VERIFIED, State.VERIFIED, LATER)) == NOW
    assert until() == NOW


def test_where_months_go_by_themselves_one_waits_from_when_it_is_old_enough() -> None:
    stays = [Stay(AUGUST, None, None, None), Stay(SEPTEMBER, None, None, None)]
    assert until(*stays, reach=State.DROPPED) == RIPE
    assert until(*stays, reach=State.DROPPED, at=RIPE - timedelta(days=1)) == RIPE - timedelta(days=1)
    assert until(*stays, reach=State.VERIFIED) == NOW, "they are not to go"


@pytest.mark.parametrize("state", [State.WANTED, State.FROZEN, State.PLANNED, State.EXPORTED, State.VERIFIED])
def test_one_that_was_asked_for_waits_from_then_on_wherever_it_stands(state: State) -> None:
    assert until(Stay(AUGUST, state, State.DROPPED, LATER)) == LATER
    early = datetime(2025, 9, 1, tzinfo=UTC)
    assert until(Stay(AUGUST, state, State.COMMITTED, early)) == RIPE, "it was asked for too early"


@pytest.mark.parametrize("state", [State.THAWED, State.RESTORED])
def test_one_that_was_given_back_holds_up_the_others_from_then_on(state: State) -> None:
    stays = [Stay(AUGUST, state, state, LATER), Stay(SEPTEMBER, State.WANTED, State.DROPPED, NOW)]
    assert until(*stays, reach=State.DROPPED) == LATER
    assert until(*stays) == NOW, "nobody wants it to go; the one behind it waits since just now"


def test_while_months_are_committed_one_after_the_other_none_is_late() -> None:
    stays = [Stay(AUGUST, None, None, None), Stay(SEPTEMBER, State.EXPORTED, State.DROPPED, RIPE)]
    assert until(*stays, reach=State.DROPPED, last_commit=LATER) == LATER
