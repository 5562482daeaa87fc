"""The checker of a run: each promise is broken once, on purpose, and must be reported."""

from dataclasses import replace

import pytest

from ops.load.checks import CHECKS, Found, compare, prove
from ops.load.faults import Struck
from ops.load.freezes import Frozen
from ops.load.kills import Killed
from ops.load.log import Entry, Kind
from ops.load.plan import Freeze, Kill, Plan, UpstreamFault
from ops.load.tallies import Tally

OK = Entry(Kind.OK, "anna", "r-ok", 700, "EUR", order_id="o-ok", transport="grpc")
INFO = Entry(Kind.INFO, "ben", "r-info", 800, "EUR", why="UNAVAILABLE")
FAIL = Entry(Kind.FAIL, "cleo", "r-fail", 900, "EUR", why="INVALID_FIELD")
REPLAY = replace(OK, kind=Kind.REPLAY, transport="rest")
LOG = [OK, INFO, FAIL, REPLAY]
KEPT = Found("s1", "o-ok", "anna", "r-ok", 700, "EUR", "SUCCESS", "DONE")
UNHEARD = Found("s2", "o-info", "ben", "r-info", 800, "EUR", "PENDING", "PARKED")


def broken(entries: list[Entry], found: list[Found]) -> dict[str, str]:
    return {each.check: each.first[0].id for each in compare(entries, found) if each.count}


@pytest.mark.parametrize("found", [[KEPT], [KEPT, UNHEARD]])
def test_what_nobody_heard_of_may_exist_or_not(found):
    assert broken(LOG, found) == {}


BREAKS: dict[str, tuple[list[Entry], list[Found], str]] = {
    "l1_acknowledged lost": (LOG, [UNHEARD], "o-ok"),
    "l1_acknowledged twice": (LOG, [KEPT, replace(KEPT, shard="s2")], "o-ok"),
    "l1_acknowledged second order": (LOG, [KEPT, replace(KEPT, order_id="o-2")], "o-2"),
    "l2_content amount": (LOG, [replace(KEPT, amount_minor=701)], "o-ok"),
    "l2_content user": (LOG, [replace(KEPT, user_id="ben")], "o-ok"),
    "l2_content acknowledged otherwise": ([replace(OK, said="anna r-ok 701 EUR")], [KEPT], "o-ok"),
    "l3_unknown twice": (LOG, [KEPT, UNHEARD, replace(UNHEARD, order_id="o-2")], "r-info"),
    "l3_unknown refused": (LOG, [KEPT, replace(UNHEARD, request_id="r-fail", order_id="o-3")], "o-3"),
    "l4_asked": (LOG, [KEPT, replace(UNHEARD, request_id="r-else")], "o-info"),
    "l5_settled": (LOG, [replace(KEPT, stage="UNKNOWN", status="PENDING")], "o-ok"),
    "l6_same other order": ([OK, replace(REPLAY, order_id="o-2")], [KEPT], "o-ok"),
    "l6_same refused": ([OK, replace(REPLAY, order_id="", why="REQUEST_ID_REUSED")], [KEPT], "o-ok"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_promise_is_reported(name):
    entries, found, wrong = BREAKS[name]
    assert broken(entries, found)[name.split()[0]] == wrong


PLAN = Plan(rate=1, seconds=10, kills=(Kill("order_svc", 5),), faults=(UpstreamFault("DOWN", 0.5),))
KILLED = [Killed(5.0, "order_svc", "s1", 4711)]
STRUCK = [Struck("down:0.5", "payments", "1", strikes=0), Struck("down:0.5", "fulfilment", "1", strikes=3)]


@pytest.mark.parametrize(
    ("tally", "kills", "struck", "facts"),
    [
        (Tally(arrived=3, acknowledged=1, refused=1, shed=1), KILLED, STRUCK, []),
        (Tally(arrived=1, unknown=1), KILLED, STRUCK, ["nothing was acknowledged"]),
        (Tally(arrived=3, acknowledged=1), KILLED, STRUCK, ["3 arrived, 1 are accounted for"]),
        (Tally(arrived=1, acknowledged=1), [], STRUCK, ["killed nothing"]),
        (Tally(arrived=1, acknowledged=1), KILLED, STRUCK[:1], ["never struck"]),
    ],
)
def test_a_run_that_proves_nothing_fails(tally, kills, struck, facts):
    (finding,) = prove(PLAN, tally, kills, struck)
    assert [each.fact for each in finding.first] == facts
    assert finding.count == len(facts)


@pytest.mark.parametrize(
    ("name", "service", "shard", "happened"),
    [
        ("order_svc", "order_svc", "s1", True),
        ("order_svc.s1", "order_svc", "s1", True),
        ("order_svc.s2", "order_svc", "s1", False),
        ("postgres.s1", "postgres.s1", None, True),
        ("kafka", "elasticsearch", None, False),
    ],
)
def test_a_kill_or_freeze_that_never_happened_fails_the_run(name, service, shard, happened):
    plan = Plan(rate=1, seconds=10, kills=(Kill(name, 5),), freezes=(Freeze(name, 5, 1),))
    (finding,) = prove(
        plan,
        Tally(arrived=1, acknowledged=1),
        [Killed(5.0, service, shard, 4711)],
        [],
        (),
        [Frozen(5.0, service, shard, 4711, 1.0)],
    )
    assert [each.fact for each in finding.first] == ([] if happened else ["killed nothing", "froze nothing"])


def test_every_check_of_a_run_is_broken_once():
    assert {name.split()[0] for name in BREAKS} | {"l7_proof"} == set(CHECKS)
