"""Which step is due to a month, and which month comes first."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest

from archive_svc.lifecycle import (
    CHANGES_TABLES,
    PAUSE_MAX,
    REACHES,
    WAY,
    Course,
    Month,
    Refusal,
    State,
    Step,
    course,
    data_key,
    due_step,
    next_due,
    pause_after,
    ripe_until,
)

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)
AUGUST = Month(
    month=date(2023, 8, 1),
    archive_id=UUID(int=1),
    state=State.WANTED,
    reach=State.DROPPED,
    quarantined="",
    begins_at=datetime(2023, 8, 1, tzinfo=UTC),
    ends_at=datetime(2023, 9, 1, tzinfo=UTC),
    detach_from=NOW,
    drop_from=NOW,
)
SEPTEMBER = replace(AUGUST, month=date(2023, 9, 1), archive_id=UUID(int=2))


def due(at: datetime = NOW, *, is_halted: bool = False, **changes: object) -> Step | None:
    return due_step(replace(AUGUST, **changes), at, is_halted=is_halted)  # type: ignore[arg-type]


def test_a_month_passes_every_state_of_its_way_once_and_ends_where_it_is_to_be():
    steps = [due(state=state) for state in WAY]
    assert steps[-1] is None
    assert len(set(steps)) == len(WAY)
    for reach in (State.VERIFIED, State.COMMITTED, State.GRACE):
        assert due(state=reach, reach=reach) is None
        for state in WAY[WAY.index(reach) :]:
            ends = Step.DETACH if state is State.DETACHING and reach is not State.DETACHING else None
            assert due(state=state, reach=reach) is ends, "what was begun to detach is detached"


def test_nothing_is_done_to_a_month_that_waits_or_is_in_quarantine():
    for state in WAY:
        assert due(state=state, quarantined="it differs") is None
        assert due(state=state, not_before=LATER) is None


def test_tables_stay_until_their_times():
    assert due(state=State.COMMITTED, detach_from=LATER) is None
    assert due(state=State.COMMITTED, detach_from=None) is None
    assert due(state=State.GRACE, drop_from=LATER) is None
    assert due(state=State.GRACE, drop_from=None) is None


def test_the_kill_switch_stops_what_changes_tables_and_nothing_else():
    for state, reach in itertools.product(State, REACHES):
        step = due(state=state, reach=reach)
        halted = due(state=state, reach=reach, is_halted=True)
        assert halted is (None if step in CHANGES_TABLES else step)


def test_a_month_is_thawed_only_before_readers_turn_to_its_copy_and_comes_back_only_after():
    thawed = {state for state in State if due(state=state, reach=State.THAWED) is Step.THAW}
    assert thawed == set(WAY[: WAY.index(State.COMMITTED)])
    back = {state: due(state=state, reach=State.RESTORED) for state in State}
    assert {state for state, step in back.items() if step} == {
        *(State.COMMITTED, State.DETACHING, State.GRACE, State.DROPPED, State.RESTORING)
    }
    assert back[State.DETACHING] is Step.DETACH, "a detach that was begun is ended first"


AFTER = {
    Step.FREEZE: State.FROZEN,
    Step.PLAN: State.PLANNED,
    Step.EXPORT: State.EXPORTED,
    Step.VERIFY: State.VERIFIED,
    Step.COMMIT: State.COMMITTED,
    Step.LEAVE: State.DETACHING,
    Step.DETACH: State.GRACE,
    Step.DROP: State.DROPPED,
    Step.THAW: State.THAWED,
    Step.MAKE_TABLES: State.RESTORING,
    Step.RESTORE: State.RESTORED,
}


def asked(month: Month | None, reach: State) -> Month | Refusal:
    """A month after a wish, as the database does it."""
    said = course(None if month is None else month.state, reach)
    if isinstance(said, Refusal):
        return said
    if said is Course.STAY:
        assert month is not None, "what was never asked for does not stay somewhere"
        return month
    begun = month is None or said is Course.BEGIN
    return replace(month or AUGUST, state=State.WANTED if begun else (month or AUGUST).state, reach=reach)


STANDS = (
    None,
    *(replace(AUGUST, state=state, reach=reach) for state in WAY for reach in REACHES),
    replace(AUGUST, state=State.THAWED, reach=State.THAWED),
    replace(AUGUST, state=State.RESTORED, reach=State.RESTORED),
    replace(AUGUST, state=State.RESTORING, reach=State.RESTORED),
)


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize(
    "month", STANDS, ids=lambda month: f"{month.state}-to-{month.reach}" if month else "HOT"
)
def test_every_wish_that_is_accepted_leads_where_it_says(month: Month | None, reach: State):
    now = asked(month, reach)
    if isinstance(now, Refusal):
        return
    assert now.reach is reach, "it is noted where it is to be"
    for _ in State:
        if now.state is reach:
            break
        step = due_step(now, NOW, is_halted=False)
        assert step is not None, f"{now.state} is not {reach}, and nothing is due"
        now = replace(now, state=AFTER[step])
    assert now.state is reach
    assert due_step(now, NOW, is_halted=False) is None
    assert asked(now, reach) == now, "the same wish once more begins nothing"


def test_what_leads_nowhere_is_refused_and_says_why():
    back = {state: course(state, State.RESTORED) for state in (None, *State)}
    assert {state for state, said in back.items() if said is Refusal.IN_TABLES} == {
        *(None, State.THAWED),
        *WAY[: WAY.index(State.COMMITTED)],
    }
    assert back[State.RESTORED] is Course.STAY
    for reach in (State.VERIFIED, State.COMMITTED, State.GRACE, State.DROPPED):
        assert course(State.RESTORING, reach) is Refusal.COMES_BACK
        past = {state for state in State if course(state, reach) is Refusal.PAST}
        assert past == set(WAY[WAY.index(reach) + 1 :])


@pytest.mark.parametrize("state", WAY)
def test_a_younger_month_is_committed_when_readers_have_turned_from_the_older(state: State):
    older = replace(AUGUST, state=state, quarantined="it waits for a person")
    found = next_due([replace(SEPTEMBER, state=State.VERIFIED), older], NOW, is_halted=False)
    if WAY.index(state) < WAY.index(State.COMMITTED):
        assert found is None
    else:
        assert found is not None
        assert found[1] is Step.COMMIT
    for before in WAY[: WAY.index(State.VERIFIED)]:
        assert next_due([replace(SEPTEMBER, state=before), older], NOW, is_halted=False), (
            "it only waits there"
        )


def test_the_oldest_month_goes_first():
    assert next_due([SEPTEMBER, AUGUST], NOW, is_halted=False) == (AUGUST, Step.FREEZE)


@pytest.mark.parametrize(
    ("at", "until"),
    [
        (datetime(2026, 11, 29, tzinfo=UTC), datetime(2024, 11, 1, tzinfo=UTC)),
        (datetime(2026, 11, 7, 23, tzinfo=UTC), datetime(2024, 10, 1, tzinfo=UTC)),
        (datetime(2026, 11, 8, tzinfo=UTC), datetime(2024, 11, 1, tzinfo=UTC)),
        (datetime(2026, 1, 3, tzinfo=UTC), datetime(2023, 12, 1, tzinfo=UTC)),
        (datetime(2024, 3, 7, tzinfo=UTC), datetime(2022, 2, 1, tzinfo=UTC)),
    ],
)
def test_a_month_is_old_enough_two_years_and_a_week_after_its_end(at: datetime, until: datetime):
    assert ripe_until(at, 24, 7) == until


def test_pauses_grow_to_their_bound_and_are_never_nothing():
    pauses = [pause_after(failures, 1.0) for failures in range(40)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSE_MAX
    assert pause_after(0, 0.0) > timedelta(0)


def test_two_tries_of_one_part_never_share_a_key():
    keys = {data_key("s1", AUGUST.month, "orders", 3, attempt) for attempt in ("a", "b")}
    assert len(keys) == 2
    assert all(key.startswith("orders/v1/shard=s1/month=2023-08/part-00003-") for key in keys)
