"""Claims, reports, holds and lists: what recovery and operators ask of order_svc."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY

from chassis import faults
from chassis.errors import Reason
from chassis.testing import eventually
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_pb2
from ordermesh.order.v1 import order_service_pb2 as pb
from tests import lanes
from tests.conftest import DatabaseFactory
from tests.lanes import (
    ACCEPTED,
    DONE,
    MIRA,
    PARKED,
    READY,
    RECOVERY,
    UNKNOWN,
    Lane,
    Order,
    armed,
    as_user,
    refuses,
    said,
)
from tests.listeners import Trust


@pytest.fixture(scope="session")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


@pytest.fixture
async def lane(trust: Trust, shard_database: DatabaseFactory, tmp_path: Path) -> AsyncIterator[Lane]:
    async with lanes.serving(trust, await shard_database(), tmp_path) as serving:
        yield serving


async def lost(lane: Lane, **fields: object) -> Order:
    """An order whose call was executed and whose reply was lost."""
    await lane.payments.misbehave("LOST_REPLY", method=1, limit=1)
    return await lane.at((await lane.create(**fields)).order, UNKNOWN)  # type: ignore[arg-type]


def claims_counted() -> float:
    return REGISTRY.get_sample_value("ordermesh_order_claims_total", {"timer_class": "PROBE"}) or 0.0


async def test_a_claim_says_whom_to_ask_and_with_which_key_and_a_report_settles(lane: Lane) -> None:
    order, counted = await lost(lane), claims_counted()
    (claim,) = await lane.claim(order)
    assert claims_counted() == counted + 1
    assert (claim.upstream, claim.idempotency_key) == ("payments", f"{order.order_id}/0")
    assert claim.order == order
    done = await lane.report(claim, lanes.answered(await lane.payments.probe(claim.idempotency_key)))
    assert done.status == Order.SUCCESS
    assert await lane.journal(order) == ["OPENED", "UNSURE", "SETTLED"]


async def test_a_repeated_report_changes_nothing_and_a_lost_lease_is_no_error(lane: Lane) -> None:
    order = await lost(lane)
    (claim,) = await lane.claim(order)
    first = await lane.report(claim, said("UNKNOWN"))
    assert await lane.report(claim, said("UNKNOWN")) == first
    assert await lane.journal(order) == ["OPENED", "UNSURE", "PROBED"]
    stale = await lane.report(claim, said("SUCCEEDED", upstream_ref="r"), event_id=str(uuid4()))
    assert stale.status == Order.SUCCESS, "the truth is welcome from whoever brings it"


async def test_due_orders_are_claimed_once_and_never_more_than_asked(lane: Lane) -> None:
    for n in range(6):
        await lost(lane, user_id=f"u{n}")
    await lane.let_pass(timedelta(minutes=1))
    batches = await asyncio.gather(*(lane.claim(limit=2) for _ in range(3)))
    claimed = [claim.order.order_id for batch in batches for claim in batch]
    assert len(claimed) == len(set(claimed))
    assert all(len(batch) <= 2 for batch in batches)
    assert len(claimed) + len(await lane.claim()) == 6


@pytest.mark.parametrize("probe_class", [order_pb2.PROBE_CLASS_NO_ANSWER, order_pb2.PROBE_CLASS_OUR_FAULT])
async def test_no_outage_parks_an_order(lane: Lane, probe_class: order_pb2.ProbeClass.ValueType) -> None:
    order = await lost(lane)
    for _ in range(20):
        await lane.let_pass(timedelta(minutes=3))
        (claim,) = await lane.claim()
        order = await lane.report(claim, order_pb2.ProbeReport(probe_class=probe_class, detail="UNAVAILABLE"))
    assert (order.stage, order.version) == (UNKNOWN, 2)
    assert (await lane.probe(order)).status == Order.SUCCESS


async def test_a_probe_that_was_not_made_counts_nothing_and_the_order_is_due_again_soon(lane: Lane) -> None:
    order = await lane.parked()
    for _ in range(10):
        await lane.let_pass(timedelta(hours=30))
        (claim,) = await lane.claim()
        full = order_pb2.ProbeReport(probe_class=order_pb2.PROBE_CLASS_NOT_MADE, detail="no free slot")
        await lane.report(claim, full)
        await lane.let_pass(timedelta(seconds=1))
        (again,) = await lane.claim()
        await lane.report(again, full)
    (timer,) = await lane.sql("SELECT fault_count, silent_count, due_at - clock() AS wait FROM order_timers")
    assert (timer["fault_count"], timer["silent_count"]) == (0, 0)
    assert timer["wait"] < timedelta(seconds=1)
    assert (await lane.get(order)).version == order.version


async def test_an_upstream_that_wants_to_be_left_alone_is(lane: Lane) -> None:
    order = await lost(lane)
    (claim,) = await lane.claim(order)
    alone = order_pb2.ProbeReport(probe_class=order_pb2.PROBE_CLASS_NO_ANSWER, pushback=Duration(seconds=300))
    await lane.report(claim, alone)
    await lane.let_pass(timedelta(seconds=240))
    assert await lane.claim() == []
    await lane.let_pass(timedelta(seconds=90))
    assert len(await lane.claim()) == 1


async def test_answers_that_settle_nothing_park_the_order_with_the_evidence(lane: Lane) -> None:
    order = await lane.parked()
    assert (await lane.journal(order))[-2:] == ["PROBED", "PARKED"]
    case = (
        await lane.by(MIRA).call("GetDeadLetter", pb.GetDeadLetterRequest(order_id=order.order_id))
    ).dead_letter
    assert (case.reason, case.severity, case.opened_version) == ("PROBES_EXHAUSTED", 2, order.version)
    assert '"verdict": "UNKNOWN"' in case.evidence_json
    await lane.let_pass(timedelta(hours=30))
    (claim,) = await lane.claim()
    assert claim.order.stage == PARKED


async def test_malformed_reports_park_and_senseless_ones_are_refused(lane: Lane) -> None:
    order = await lost(lane)
    (claim,) = await lane.claim(order)
    with refuses(Reason.INVALID_FIELD):
        await lane.report(claim, order_pb2.ProbeReport())
    with refuses(Reason.INVALID_FIELD):
        await lane.report(claim, said("UNKNOWN"), event_id="7")
    order = await lane.report(claim, order_pb2.ProbeReport(probe_class=order_pb2.PROBE_CLASS_MALFORMED))
    assert order.stage == UNKNOWN
    (claim,) = await lane.claim(order)
    order = await lane.report(claim, said("SUCCEEDED"))
    assert order.stage == PARKED


async def test_another_amount_than_asked_parks_with_severity_one(lane: Lane) -> None:
    await lane.payments.misbehave("WRONG_AMOUNT")
    order = await lane.at((await lane.create()).order, PARKED)
    case = (
        await lane.by(MIRA).call("GetDeadLetter", pb.GetDeadLetterRequest(order_id=order.order_id))
    ).dead_letter
    assert (case.reason, case.severity) == ("VERDICT_MISMATCH", 1)
    (claim,) = await lane.claim(order)
    right = Money(currency_code="EUR", amount_minor=1250)
    assert (await lane.report(claim, said("SUCCEEDED", upstream_ref="r", amount=right))).stage == PARKED


async def test_an_order_in_progress_is_accepted_and_settles_when_the_upstream_has_decided(lane: Lane) -> None:
    await lane.payments.misbehave("IN_PROGRESS", duration_s=0.3)
    order = await lane.at((await lane.create()).order, ACCEPTED)
    while order.stage == ACCEPTED:
        order = await lane.probe(order)
    assert order.status == Order.SUCCESS
    assert len(lane.payments.executions()) == 1


async def test_proven_absence_sends_the_leg_again_with_the_same_key(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    async with lanes.serving(trust, await shard_database(), tmp_path) as lane:
        await lane.payments.misbehave("DOWN", limit=1)
        order = await lane.at((await lane.create()).order, UNKNOWN)
        assert (await lane.probe(order)).stage == UNKNOWN, "one NOT_FOUND is no proof"
        await lane.let_pass(timedelta(seconds=5))
        await lane.probe(order)
        done = await lane.at(order, DONE)
        assert (done.status, done.attempt) == (Order.SUCCESS, 2)
        (execution,) = lane.payments.executions(f"{order.order_id}/0")
        assert execution.attempt == 2
        kinds = await lane.journal(order)
        assert kinds == ["OPENED", "UNSURE", "PROBED", "RESEND_DUE", "SUBMITTED", "SETTLED"]


async def test_a_claim_that_is_lost_again_and_again_parks_the_order_as_poison(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    async with lanes.serving(
        trust, await shard_database(), tmp_path, policy={**lanes.POLICY, "unfinished_max": 2}
    ) as lane:
        order = await lost(lane)
        counts = []
        for _ in range(5):
            await lane.let_pass(timedelta(minutes=1))
            counts += [claim.unfinished_count for claim in await lane.claim()]
        assert counts == [0, 1, 2]
        await lane.at(order, PARKED)
        case = (
            await lane.by(MIRA).call("GetDeadLetter", pb.GetDeadLetterRequest(order_id=order.order_id))
        ).dead_letter
        assert case.reason == "POISON"


async def test_a_ready_order_of_an_upstream_nobody_knows_is_parked_and_redriven_once_it_is_known(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    database = await shard_database()
    async with lanes.serving(trust, database, tmp_path) as lane:
        await lane.payments.misbehave("SLOW", duration_s=0.3)
        order = (await lane.create(kind="purchase")).order
        await lane.sql("UPDATE orders SET legs = '{payments,removed}', route_epoch = NULL")
        order = await lane.at(order, READY)
        assert order.leg == 1
    async with lanes.serving(trust, database, tmp_path, unserved_s=0.1) as lane:
        order = await lane.at(order, PARKED)
        asked = pb.GetDeadLetterRequest(order_id=order.order_id)
        case = (await lane.by(MIRA).call("GetDeadLetter", asked)).dead_letter
        assert (case.reason, case.severity) == ("UPSTREAM_UNKNOWN", 2)
        assert '"upstream": "removed"' in case.evidence_json
        assert await lane.journal(order) == ["OPENED", "LEG_DONE", "PARKED"]
        await lane.sql("UPDATE orders SET legs = '{payments,payments}', route_epoch = NULL")
        redrive = pb.RedriveDeadLetterRequest(
            order_id=order.order_id, request_id=str(uuid4()), reason="configured again"
        )
        await lane.by(MIRA).call("RedriveDeadLetter", redrive)
        assert (await lane.probe(order)).stage == READY, (
            "it was never sent: not knowing it proves nothing else"
        )
        assert (await lane.at(order, DONE)).status == Order.SUCCESS
        assert len(lane.payments.executions(f"{order.order_id}/1")) == 1


async def test_a_poisonous_order_that_cannot_be_parked_keeps_no_innocent_claim_back(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    async with lanes.serving(
        trust, await shard_database(), tmp_path, policy={**lanes.POLICY, "unfinished_max": 1}
    ) as lane:
        order = await lost(lane)
        for _ in range(2):
            await lane.let_pass(timedelta(minutes=1))
            assert len(await lane.claim()) == 1
        innocent = await lost(lane, user_id="bob")
        await lane.let_pass(timedelta(minutes=1))
        with armed("report.before_commit=raise"):
            claimed = await lane.claim()
            await eventually(lambda: _nothing_armed())
        assert [claim.order.order_id for claim in claimed] == [innocent.order_id]
        assert (await lane.get(order)).stage == UNKNOWN
        await lane.let_pass(timedelta(minutes=1))
        await lane.claim()
        await lane.at(order, PARKED)


async def _nothing_armed() -> bool:
    return not faults.armed()


async def test_holds_stop_claims_and_say_why_until_they_are_lifted(lane: Lane) -> None:
    order = await lost(lane)
    await lane.let_pass(timedelta(minutes=1))
    put = pb.PutHoldRequest(shard="s1", request_id=str(uuid4()), scope="all", reason="incident 7")
    hold = (await lane.by(MIRA).call("PutHold", put)).hold
    assert (hold.actor, hold.reason, hold.HasField("until_time")) == ("mira", "incident 7", False)
    assert (await lane.by(MIRA).call("PutHold", put)).hold == hold
    claim = pb.ClaimDueOrdersRequest(shard="s1", limit=5, claimed_by="r1")
    nothing = await lane.by(RECOVERY).call("ClaimDueOrders", claim)
    assert (list(nothing.claims), nothing.hold_reason) == ([], "incident 7")
    due = await lane.by(RECOVERY).call(
        "ListDueOrders", pb.ListDueOrdersRequest(shard="s1", overdue_only=True)
    )
    assert [(each.order.order_id, each.hold_reason) for each in due.due_orders] == [
        (order.order_id, "incident 7")
    ]
    status = await lane.by(RECOVERY).call("GetShardStatus", pb.GetShardStatusRequest(shard="s1"))
    assert (dict(status.waiting_counts), status.overdue_count) == ({"UNKNOWN": 1}, 1)
    assert status.oldest_overdue_age.seconds > 30
    assert [each.scope for each in status.holds] == ["all"]

    lift = pb.LiftHoldRequest(shard="s1", request_id=str(uuid4()), scope="all", reason="over")
    assert (await lane.by(MIRA).call("LiftHold", lift)).hold == hold
    assert (await lane.by(MIRA).call("LiftHold", lift)).hold == hold
    assert not (
        await lane.by(MIRA).call(
            "LiftHold", pb.LiftHoldRequest(shard="s1", request_id=str(uuid4()), scope="all", reason="over")
        )
    ).HasField("hold")
    assert len(await lane.claim()) == 1


async def test_a_hold_of_one_upstream_ends_by_itself(lane: Lane) -> None:
    order = await lost(lane)
    until = Timestamp()
    until.FromDatetime(order.update_time.ToDatetime() + timedelta(minutes=10))
    await lane.by(RECOVERY).call(
        "PutHold",
        pb.PutHoldRequest(
            shard="s1", request_id=str(uuid4()), scope="upstream:payments", reason="brake", until_time=until
        ),
    )
    await lane.let_pass(timedelta(minutes=5))
    assert await lane.claim() == []
    await lane.let_pass(timedelta(minutes=6))
    assert len(await lane.claim()) == 1


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("PutHold", pb.PutHoldRequest(shard="s1", request_id=str(uuid4()), scope="upstream:", reason="x")),
        ("PutHold", pb.PutHoldRequest(shard="s1", request_id=str(uuid4()), scope="all", reason="")),
        ("PutHold", pb.PutHoldRequest(shard="s1", request_id="1", scope="all", reason="x")),
        ("LiftHold", pb.LiftHoldRequest(shard="s1", request_id=str(uuid4()), scope="payments", reason="x")),
        ("ClaimDueOrders", pb.ClaimDueOrdersRequest(shard="s1", limit=0, claimed_by="r")),
        ("ClaimDueOrders", pb.ClaimDueOrdersRequest(shard="s1", limit=201, claimed_by="r")),
        ("ClaimDueOrders", pb.ClaimDueOrdersRequest(shard="s1", limit=1)),
        (
            "ClaimDueOrders",
            pb.ClaimDueOrdersRequest(shard="s1", limit=1, claimed_by="r", lease=Duration(seconds=301)),
        ),
        ("ListDueOrders", pb.ListDueOrdersRequest(shard="s1", page_size=101)),
    ],
)
async def test_senseless_requests_name_their_field(lane: Lane, method: str, request_: object) -> None:
    with refuses(Reason.INVALID_FIELD):
        await lane.by(RECOVERY if "Hold" not in method else MIRA).call(method, request_)


async def test_only_its_own_shard_is_served_and_only_to_those_who_may(lane: Lane) -> None:
    order = (await lane.create(wait_s=5)).order
    with refuses(Reason.UNKNOWN_SHARD):
        await lane.by(MIRA).call("GetShardStatus", pb.GetShardStatusRequest(shard="s2"))
    claim = pb.ClaimDueOrdersRequest(shard="s1", limit=1, claimed_by="r")
    for subject in (as_user("alice"), MIRA, lanes.SERVICE):
        with refuses(Reason.ROLE_REQUIRED):
            await lane.by(subject).call("ClaimDueOrders", claim)
    with refuses(Reason.ROLE_REQUIRED):
        await lane.by(as_user("alice")).call(
            "GetDeadLetter", pb.GetDeadLetterRequest(order_id=order.order_id)
        )


async def test_lists_are_paged_to_their_end(lane: Lane) -> None:
    for n in range(5):
        await lost(lane, user_id=f"u{n}")
    seen, token = [], ""
    while True:
        page = await lane.by(RECOVERY).call(
            "ListDueOrders", pb.ListDueOrdersRequest(shard="s1", page_size=2, page_token=token)
        )
        seen += [due.due_time.ToDatetime() for due in page.due_orders]
        token = page.next_page_token
        if not token:
            break
        with refuses(Reason.PAGE_TOKEN_INVALID):
            await lane.by(RECOVERY).call(
                "ListDueOrders", pb.ListDueOrdersRequest(shard="s1", overdue_only=True, page_token=token)
            )
    assert (len(seen), seen) == (5, sorted(seen))


@pytest.mark.parametrize("point", ["report.before_commit", "report.after_commit"])
async def test_a_report_whose_answer_is_lost_is_sent_again_and_counts_once(lane: Lane, point: str) -> None:
    order = await lost(lane)
    (claim,) = await lane.claim(order)
    with armed(f"{point}=raise"), refuses(Reason.INTERNAL_ERROR):
        await lane.report(claim, said("UNKNOWN"))
    again = await lane.report(claim, said("UNKNOWN"))
    assert await lane.journal(again) == ["OPENED", "UNSURE", "PROBED"]
    (timer,) = await lane.sql("SELECT probe_count, lease_token FROM order_timers")
    assert (timer["probe_count"], timer["lease_token"]) == (1, None)
