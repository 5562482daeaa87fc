"""Parked orders and the people who settle them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from chassis.errors import Reason
from ordermesh.order.v1 import order_pb2
from ordermesh.order.v1 import order_service_pb2 as pb
from tests import lanes
from tests.conftest import DatabaseFactory
from tests.lanes import DONE, MIRA, PARKED, UNKNOWN, Lane, Order, armed, as_user, refuses, said
from tests.listeners import Trust


@pytest.fixture(scope="session")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


@pytest.fixture
async def lane(trust: Trust, shard_database: DatabaseFactory, tmp_path: Path) -> AsyncIterator[Lane]:
    async with lanes.serving(trust, await shard_database(), tmp_path) as serving:
        yield serving


def resolution(order: Order, outcome: str = "SUCCESS", **fields: Any) -> pb.ResolveDeadLetterRequest:
    return pb.ResolveDeadLetterRequest(
        **{
            "order_id": order.order_id,
            "request_id": str(uuid4()),
            "outcome": Order.Status.Value(outcome),
            "evidence": "bank file 42, line 7",
            "reason": "asked them",
            "upstream_ref": "ref-9" if outcome == "SUCCESS" else "",
            **fields,
        }
    )


def redrive(order: Order) -> pb.RedriveDeadLetterRequest:
    return pb.RedriveDeadLetterRequest(
        order_id=order.order_id, request_id=str(uuid4()), reason="they are well again"
    )


async def test_resolving_a_case_settles_its_order_exactly_once(lane: Lane) -> None:
    parked = await lane.parked()
    ask = resolution(parked)

    with refuses(Reason.ROLE_REQUIRED):
        await lane.by(as_user(parked.user_id)).call("ResolveDeadLetter", ask)
    first = await lane.by(MIRA).call("ResolveDeadLetter", ask)
    again = await lane.by(MIRA).call("ResolveDeadLetter", ask)

    assert (again.order, again.dead_letter) == (first.order, first.dead_letter)
    assert (first.order.status, first.order.basis) == (Order.SUCCESS, Order.OPERATOR)
    assert first.order.upstream_ref == "ref-9"
    assert (first.dead_letter.outcome, first.dead_letter.actor) == ("SUCCESS", "mira")
    kinds = await lane.journal(parked)
    assert kinds == ["OPENED", "UNSURE", "PROBED", "PROBED", "PARKED", "CASE_RESOLVED"]
    assert await lane.sql("SELECT FROM order_timers") == []


async def test_a_request_id_that_closed_a_case_otherwise_is_refused(lane: Lane) -> None:
    parked = await lane.parked()
    again = redrive(parked)
    await lane.by(MIRA).call("RedriveDeadLetter", again)
    with refuses(Reason.REQUEST_ID_REUSED):
        await lane.by(MIRA).call("ResolveDeadLetter", resolution(parked, request_id=again.request_id))
    assert (await lane.get(parked)).stage == UNKNOWN


async def test_a_resolution_needs_evidence_a_reference_and_a_parked_order(lane: Lane) -> None:
    parked = await lane.parked()
    for wrong in (resolution(parked, evidence=" "), resolution(parked, upstream_ref="")):
        with refuses(Reason.EVIDENCE_REQUIRED):
            await lane.by(MIRA).call("ResolveDeadLetter", wrong)
    for invalid in (
        resolution(parked, "PENDING"),
        resolution(parked, reason=""),
        resolution(parked, evidence="x" * 2049),
        resolution(parked, evidence="\u00e4" * 2000),
        resolution(parked, request_id="7"),
    ):
        with refuses(Reason.INVALID_FIELD):
            await lane.by(MIRA).call("ResolveDeadLetter", invalid)
    done = (await lane.create(wait_s=5)).order
    for method, request in (("ResolveDeadLetter", resolution(done)), ("RedriveDeadLetter", redrive(done))):
        with refuses(Reason.ORDER_NOT_PARKED):
            await lane.by(MIRA).call(method, request)
    with refuses(Reason.DEAD_LETTER_NOT_FOUND):
        await lane.by(MIRA).call("GetDeadLetter", pb.GetDeadLetterRequest(order_id=done.order_id))


async def test_the_longest_evidence_fits_into_the_journal(lane: Lane) -> None:
    parked = await lane.parked()
    ask = resolution(parked, evidence='"' * 1200, reason="\u00e4" * 256, upstream_ref="r" * 256)
    assert (await lane.by(MIRA).call("ResolveDeadLetter", ask)).order.status == Order.SUCCESS


async def test_redriving_probes_first_and_the_truth_settles_the_order(lane: Lane) -> None:
    parked = await lane.parked()
    await lane.payments.behave()
    ask = redrive(parked)
    first = await lane.by(MIRA).call("RedriveDeadLetter", ask)
    again = await lane.by(MIRA).call("RedriveDeadLetter", ask)
    assert (again.order, again.dead_letter) == (first.order, first.dead_letter)
    assert (first.order.stage, first.dead_letter.outcome, first.dead_letter.redrive_count) == (
        UNKNOWN,
        "REDRIVEN",
        1,
    )
    (claim,) = await lane.claim()
    assert claim.order.order_id == parked.order_id
    done = await lane.report(claim, lanes.answered(await lane.payments.probe(claim.idempotency_key)))
    assert done.status == Order.SUCCESS
    assert len(lane.payments.executions(f"{parked.order_id}/0")) == 1
    assert (await lane.journal(parked))[-2:] == ["REDRIVEN", "SETTLED"]


async def test_late_evidence_settles_a_parked_order_without_anybody(lane: Lane) -> None:
    parked = await lane.parked()
    await lane.payments.behave()
    assert (await lane.probe(parked)).status == Order.SUCCESS
    case = (
        await lane.by(MIRA).call("GetDeadLetter", pb.GetDeadLetterRequest(order_id=parked.order_id))
    ).dead_letter
    assert (case.outcome, case.actor) == ("EVIDENCE", "recovery_svc")


async def test_a_failure_of_a_later_leg_is_parked_for_undoing_and_settled_by_a_person(lane: Lane) -> None:
    await lane.fulfilment.misbehave("REJECT")
    order = await lane.at((await lane.create(kind="purchase")).order, PARKED)
    case = (
        await lane.by(MIRA).call("GetDeadLetter", pb.GetDeadLetterRequest(order_id=order.order_id))
    ).dead_letter
    assert case.reason == "UNDO_REQUIRED"
    done = (await lane.by(MIRA).call("ResolveDeadLetter", resolution(order, "FAILED"))).order
    assert (done.status, done.failure_reason) == (Order.FAILED, "asked them")


async def test_evidence_against_a_success_opens_a_case_that_a_person_closes(lane: Lane) -> None:
    order = (await lane.create(wait_s=5)).order
    (probe,) = [order_pb2.Claim(order=order, event_id=str(uuid4()), lease_token=str(uuid4()))]
    after = await lane.report(probe, said("FAILED", reason="charge back"))
    assert (after.status, after.version) == (Order.SUCCESS, 3)
    listed = (await lane.by(MIRA).call("ListDeadLetters", pb.ListDeadLettersRequest(shard="s1"))).dead_letters
    assert [(case.order_id, case.severity, case.reason) for case in listed] == [
        (order.order_id, 1, "CONTRADICTED")
    ]
    with refuses(Reason.ILLEGAL_TRANSITION):
        await lane.by(MIRA).call("ResolveDeadLetter", resolution(order, "FAILED"))
    closed = await lane.by(MIRA).call("ResolveDeadLetter", resolution(order))
    assert (closed.order.status, closed.order.upstream_ref) == (Order.SUCCESS, order.upstream_ref)
    assert closed.dead_letter.outcome == "SUCCESS"


async def test_cases_are_listed_oldest_first_open_ones_only_unless_asked(lane: Lane) -> None:
    orders = [await lane.parked() for _ in range(3)]
    await lane.by(MIRA).call("ResolveDeadLetter", resolution(orders[0]))
    first = await lane.by(MIRA).call("ListDeadLetters", pb.ListDeadLettersRequest(shard="s1", page_size=1))
    rest = await lane.by(MIRA).call(
        "ListDeadLetters",
        pb.ListDeadLettersRequest(shard="s1", page_size=1, page_token=first.next_page_token),
    )
    assert [first.dead_letters[0].order_id, rest.dead_letters[0].order_id] == [o.order_id for o in orders[1:]]
    assert not rest.next_page_token
    everything = await lane.by(MIRA).call(
        "ListDeadLetters", pb.ListDeadLettersRequest(shard="s1", include_closed=True)
    )
    assert [case.order_id for case in everything.dead_letters] == [order.order_id for order in orders]


@pytest.mark.parametrize("point", ["redrive.before_commit", "redrive.after_commit"])
async def test_a_redrive_whose_answer_is_lost_is_sent_again_and_happens_once(lane: Lane, point: str) -> None:
    parked = await lane.parked()
    ask = redrive(parked)
    with armed(f"{point}=raise"), refuses(Reason.INTERNAL_ERROR):
        await lane.by(MIRA).call("RedriveDeadLetter", ask)
    assert (await lane.by(MIRA).call("RedriveDeadLetter", ask)).dead_letter.redrive_count == 1
    assert (await lane.journal(parked)).count("REDRIVEN") == 1


@pytest.mark.parametrize("point", ["resolve.before_commit", "resolve.after_commit"])
async def test_a_resolution_whose_answer_is_lost_is_sent_again_and_happens_once(
    lane: Lane, point: str
) -> None:
    parked = await lane.parked()
    ask = resolution(parked, "FAILED")
    with armed(f"{point}=raise"), refuses(Reason.INTERNAL_ERROR):
        await lane.by(MIRA).call("ResolveDeadLetter", ask)
    assert (await lane.by(MIRA).call("ResolveDeadLetter", ask)).order.status == Order.FAILED
    assert (await lane.journal(parked)).count("CASE_RESOLVED") == 1


async def test_a_key_outlives_its_order_by_three_days_and_then_makes_a_new_one(lane: Lane) -> None:
    request_id = str(uuid4())
    first = await lane.create(request_id=request_id, wait_s=5)
    assert first.order.stage == DONE
    await lane.let_pass(timedelta(hours=71))
    assert (await lane.create(request_id=request_id)).order.order_id == first.order.order_id
    await lane.let_pass(timedelta(hours=2))
    assert (await lane.create(request_id=request_id)).order.order_id != first.order.order_id
