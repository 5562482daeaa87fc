"""What a load run may be told, and what it draws from its seed."""

from collections import Counter
from itertools import pairwise

import pytest

from ops.load.asks import asks
from ops.load.plan import Freeze, Kill, Plan, PlanRefused, Transport, UpstreamFault
from ops.load.tallies import Latencies, percentile


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"rate": 0}, "--rate"),
        ({"rate": float("nan")}, "--rate"),
        ({"seconds": 0}, "--seconds"),
        ({"rate": 2000, "seconds": 3600}, "--rate times --seconds"),
        ({"users": 0}, "--users"),
        ({"settle_timeout_s": 0}, "--settle-timeout"),
        ({"kills": (Kill("order_svc", 0.1),)}, "--kill order_svc"),
        ({"kills": (Kill("order_svc", 61),)}, "--kill order_svc"),
        ({"freezes": (Freeze("kafka", 61, 5),)}, "--freeze kafka"),
        ({"freezes": (Freeze("kafka", 20, 11),)}, "--freeze kafka, how long"),
        ({"walkers": 65}, "--walkers"),
        ({"walkers": 1, "users": 240}, "--users with --walk"),
        ({"faults": (UpstreamFault("SLEEPY", 0.1),)}, "sleepy is unknown; there are slow"),
        ({"faults": (UpstreamFault("DOWN", 1.1),)}, "--upstream-fault down"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_the_name_of_its_option(wrong, named):
    with pytest.raises(PlanRefused, match=named):
        Plan(**{"rate": 60, "seconds": 60, **wrong})


def test_a_run_can_be_asked_for_again_by_its_seed():
    plan = Plan(rate=50, seconds=10, seed=7)
    first, again = list(asks(plan, "r1", ["vip.1"])), list(asks(plan, "r1", ["vip.1"]))
    assert first == again
    assert first != list(asks(Plan(rate=50, seconds=10, seed=8), "r1", ["vip.1"]))
    assert {ask.request_id for ask in first}.isdisjoint(ask.request_id for ask in asks(plan, "r2", ["vip.1"]))


def test_arrivals_keep_the_rate_and_reach_all_users_and_the_vip():
    drawn = list(asks(Plan(rate=100, seconds=100), "r1", ["vip.1"]))

    assert 9_500 < len(drawn) < 10_500
    assert all(0 < one.due_s < two.due_s < 100 for one, two in pairwise(drawn))
    by_user = Counter(ask.user_id for ask in drawn)
    assert len(by_user) == 241
    assert 0.17 < by_user["vip.1"] / len(drawn) < 0.23
    assert len({ask.request_id for ask in drawn}) == len(drawn)
    assert 0.4 < sum(ask.over_rest for ask in drawn) / len(drawn) < 0.6


def test_users_with_a_history_order_in_the_runs_own_users_place():
    plan = Plan(rate=50, seconds=5, walkers=2, users=2)
    assert {ask.user_id for ask in asks(plan, "r1", ["vip.1"], ["seed.1.0", "seed.1.1"])} == {
        "seed.1.0",
        "seed.1.1",
        "vip.1",
    }


@pytest.mark.parametrize(("transport", "over_rest"), [(Transport.REST, {True}), (Transport.GRPC, {False})])
def test_one_transport_means_only_that_one(transport, over_rest):
    plan = Plan(rate=50, seconds=5, transport=transport)
    assert {ask.over_rest for ask in asks(plan, "r1", [])} == over_rest


def test_percentiles_are_values_of_the_sample():
    sample = [float(n) for n in range(1, 101)]
    assert [percentile(sample, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([3.0], 0.5) == 3.0
    assert Latencies.of([]) == Latencies(0, 0, 0, 0, 0)
    assert Latencies.of([0.2, 0.1]) == Latencies(2, 100.0, 200.0, 200.0, 200.0)
