"""Made-up histories: drawn from the seed alone, lived by the rules, and varied enough to search in."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from uuid import uuid4

import pytest

from chassis.ids import id_bucket, user_bucket
from history_svc.document import month_of
from history_svc.text import words
from ops.seed import lives
from ops.seed.drafts import Drafts
from ops.seed.lives import LIVES, OPEN_MAX, Life, lived
from ops.seed.plan import AGE_MIN, Origin, Plan, PlanRefused, latest_end
from ops.seed.rows import COLUMNS, records
from ops.seed.run import KINDS
from order_svc.order import Stage, Status

NOW = datetime(2026, 3, 4, 12, 30, tzinfo=UTC)
UNTIL = latest_end(NOW)
PLAN = Plan(users=20, orders=3000, months=3, seed=7, heavy_share=0.3)
DRAFTS = Drafts(PLAN, UNTIL, KINDS)
LATER = timedelta(minutes=1)
"""A life that is over by the end of the plan's time may take so much longer."""


def everyone(count: int = PLAN.orders) -> list[Life]:
    return [lived(DRAFTS.draft(number), until=UNTIL, now=NOW) for number in range(count)]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"users": 0}, "--users"),
        ({"orders": 0}, "--orders"),
        ({"months": 49}, "--months"),
        ({"seed": -1}, "--seed"),
        ({"heavy_share": 1.0}, "--heavy-user"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused_by_the_name_of_its_option(wrong, named):
    with pytest.raises(PlanRefused, match=named):
        Plan(**wrong)


def test_the_same_seed_makes_the_same_lives_and_another_one_others():
    first, again = everyone(300), everyone(300)
    assert [records(life, 1, NOW) for life in first] == [records(life, 1, NOW) for life in again]
    others = Drafts(Plan(users=20, orders=3000, months=3, seed=8, heavy_share=0.3), UNTIL, KINDS)
    ids = {life.order.order_id for life in first}
    assert ids.isdisjoint(others.draft(number).wish.order_id for number in range(300))


def test_the_numbers_of_the_months_cover_the_plan_and_end_two_days_ago():
    assert DRAFTS.months == (date(2026, 1, 1), date(2026, 2, 1), date(2026, 3, 1))
    runs = [DRAFTS.numbers(month) for month in DRAFTS.months]
    assert [number for run in runs for number in run] == list(range(PLAN.orders))
    for month, run in zip(DRAFTS.months, runs, strict=True):
        assert {month_of(DRAFTS.draft(number).created_at) for number in run} == {month}
    assert NOW - AGE_MIN - timedelta(hours=1) < UNTIL <= NOW - AGE_MIN
    assert DRAFTS.draft(PLAN.orders - 1).created_at < UNTIL


def test_a_request_says_which_plan_made_it_and_when_that_was():
    origin = Origin.of(DRAFTS.draft(17).wish.request_id)
    assert origin == Origin(PLAN.mark, UNTIL, 17)
    assert Origin.of(uuid4()) is None
    assert Plan(seed=7).mark != PLAN.mark


def test_an_order_has_the_bucket_of_its_user_and_one_user_has_the_heavy_share():
    drafts = [DRAFTS.draft(number) for number in range(PLAN.orders)]
    for draft in drafts[:200]:
        assert id_bucket(draft.wish.order_id) == user_bucket(draft.wish.user_id)
    by_user = Counter(draft.wish.user_id for draft in drafts)
    assert by_user.keys() == set(PLAN.user_ids())
    assert 0.27 < by_user[PLAN.heavy_user] / PLAN.orders < 0.33
    assert len({draft.wish.order_id for draft in drafts}) == PLAN.orders


@pytest.mark.parametrize("live", [live for live, _, _ in LIVES], ids=lambda live: live.__name__)
def test_a_life_is_told_in_order_and_takes_no_longer_than_it_may(live):
    (longest,) = (longest for each, _, longest in LIVES if each is live)
    for number in range(40):
        life = Life.begun(DRAFTS.draft(number))
        live(life)
        assert [change.after.version for change, _ in life.journal] == list(range(1, len(life.journal) + 1))
        assert all(one[1] <= two[1] for one, two in pairwise(life.journal))
        assert life.at <= life.order.created_at + longest
        assert (life.timer is None) == (life.order.stage is Stage.DONE) == (life.settled_at is not None)


def test_nothing_is_told_of_the_last_two_days_and_no_timer_is_overdue():
    for life in everyone():
        assert life.journal[-1][1] < UNTIL + LATER < NOW - timedelta(days=2)
        if life.timer is not None:
            assert life.timer.due_at > NOW + LATER


def test_no_case_is_left_open_for_months():
    plan = Plan(users=5, orders=2000, months=6, seed=3)
    drafts = Drafts(plan, UNTIL, KINDS)
    found = [lived(drafts.draft(number), until=UNTIL, now=NOW) for number in range(plan.orders)]
    old = [life for life in found if life.order.created_at < UNTIL - OPEN_MAX]
    assert len(old) > 500
    assert {life.order.stage for life in old} == {Stage.DONE}
    assert {life.order.stage for life in found if life not in old} > {Stage.DONE}


def test_every_stage_kind_and_currency_can_be_found_and_so_can_words():
    found = everyone()
    assert {life.order.stage for life in found} == {Stage.DONE, Stage.PARKED, Stage.ACCEPTED}
    statuses = Counter(life.order.status for life in found)
    assert statuses[Status.SUCCESS] > statuses[Status.FAILED] > statuses[Status.PENDING] > 10
    assert {life.order.kind for life in found} == set(KINDS)
    assert {life.order.amount.currency_code for life in found} == {"EUR", "USD", "GBP", "JPY", "KWD"}
    by_word = Counter(word for life in found for word in words(life.order.description))
    assert by_word["teapot"] > 20
    assert by_word["fahrradol"] > 20, "accents do not count"
    assert {"succeeds", "is_parked", "hangs"} <= {live.__name__ for live, _, _ in LIVES}


def test_a_parked_order_has_its_case_and_a_closed_case_says_who_and_how():
    cases = [(life, case) for life in everyone() for case in life.cases]
    parked = [life for life, case in cases if case.closed is None]
    assert {life.order.stage for life in parked} == {Stage.PARKED}
    closed = [case.closed for _, case in cases if case.closed is not None]
    assert {each.actor for each in closed} == {lives.PERSON}
    assert {each.outcome for each in closed} == {"SUCCESS", "FAILED", "REDRIVEN"}


def test_a_row_has_a_value_for_each_column():
    for life in everyone(500):
        for table, rows in records(life, 1, NOW).items():
            assert all(len(row) == len(COLUMNS[table]) for row in rows), table
