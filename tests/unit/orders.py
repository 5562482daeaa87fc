"""Orders in any situation, and events, for tests of the rules."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from chassis.ids import OrderIds
from chassis.money import Money
from order_svc.contract import RecoveryPolicy, Rules, UpstreamContract
from order_svc.domain import Wish, open_order, transition
from order_svc.events import (
    Answer,
    AnyEvent,
    Fault,
    NotSent,
    Poisoned,
    ProbeFailed,
    Redriven,
    Relabelled,
    Resolved,
    Source,
    SubmitBegun,
    Told,
    Unserved,
    Unsure,
    Verdict,
)
from order_svc.order import Basis, Case, CaseReason, Change, Decision, Seen, Stage, Status, Tally
from order_svc.states import Where

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
EUR_12_50 = Money("EUR", 1250)
SETTLE_S = 100.0
CAREFUL = UpstreamContract(not_found_final_after_s=SETTLE_S, settle_window_s=SETTLE_S, submit_timeout_s=5.0)
"""Not idempotent; NOT_FOUND is proof after 100 s."""
IDEMPOTENT = UpstreamContract(idempotent_submit=True, settle_window_s=SETTLE_S)
SILENT = UpstreamContract(settle_window_s=SETTLE_S)
"""NOT_FOUND never means anything."""
FINAL = replace(CAREFUL, resubmit_on_not_found=False)
POLICY = RecoveryPolicy(probes_max=5)


def new_id(bucket: int) -> UUID:
    """An id of the instant AT; a maker that all tests share would borrow later milliseconds at some time."""
    return OrderIds(now_ms=lambda: int(AT.timestamp() * 1000)).new(bucket)


def rules(contract: UpstreamContract = CAREFUL, policy: RecoveryPolicy = POLICY) -> Rules:
    return Rules({"payments": contract, "fulfilment": contract}, policy)


def wish(*legs: str, user_id: str = "alice", bucket: int = 701) -> Wish:
    return Wish(
        order_id=new_id(bucket),
        user_id=user_id,
        request_id=uuid4(),
        kind="payment",
        legs=legs or ("payments",),
        amount=EUR_12_50,
        description="a book",
        labels={"cart": "7"},
        event_id=uuid4(),
        actor="order_svc",
    )


def opened(*legs: str, contract: UpstreamContract = CAREFUL) -> Seen:
    """An order as it was just created, with its call in flight."""
    change = open_order(wish(*legs), rules(contract))
    assert change.wake is not None
    return Seen(change.after, change.wake.tally, None, AT)


def standing(at: Where, *, leg: int = 0, legs: tuple[str, ...] = ("payments",), attempt: int = 1) -> Seen:
    """An order that stands somewhere, its call over for an hour."""
    seen = opened(*legs)
    order = replace(seen.order, status=at.status, stage=at.stage, leg=leg, attempt=attempt)
    if at.is_settled:
        order = replace(order, settled_at=AT, basis=Basis.UPSTREAM)
    if at is Where.SUCCESS:
        order = replace(order, upstream_ref="ref-1")
    if at is Where.FAILED:
        order = replace(order, failure_reason="card expired")
    case = a_case() if at is Where.PARKED else None
    tally = replace(seen.tally, accepted_at=AT) if at is Where.ACCEPTED else seen.tally
    return Seen(order, tally, case, AT + timedelta(hours=1))


def a_case(severity: int = 2) -> Case:
    return Case(dead_letter_id=uuid4(), reason=CaseReason.PROBES_EXHAUSTED, severity=severity)


def told(
    seen: Seen,
    verdict: Verdict,
    *,
    source: Source = Source.PROBE,
    leg: int | None = None,
    attempt: int | None = None,
    event_id: UUID | None = None,
    **answer: object,
) -> Told:
    if verdict is Verdict.SUCCEEDED:
        answer.setdefault("upstream_ref", "ref-1")
    return Told(
        event_id=event_id or uuid4(),
        actor="recovery_svc",
        leg=seen.order.leg if leg is None else leg,
        attempt=seen.order.attempt if attempt is None else attempt,
        answer=Answer(verdict=verdict, **answer),  # type: ignore[arg-type]
        source=source,
    )


def unsure(seen: Seen) -> Unsure:
    order = seen.order
    return Unsure(
        event_id=uuid4(), actor="order_svc", leg=order.leg, attempt=order.attempt, detail="UNAVAILABLE"
    )


def not_sent(seen: Seen) -> NotSent:
    order = seen.order
    return NotSent(
        event_id=uuid4(), actor="order_svc", leg=order.leg, attempt=order.attempt, detail="stopping"
    )


def failed_probe(seen: Seen, fault: Fault) -> ProbeFailed:
    order = seen.order
    return ProbeFailed(
        event_id=uuid4(), actor="recovery_svc", leg=order.leg, attempt=order.attempt, fault=fault, detail="-"
    )


def begun() -> SubmitBegun:
    return SubmitBegun(event_id=uuid4(), actor="order_svc")


def poisoned() -> Poisoned:
    return Poisoned(event_id=uuid4(), actor="order_svc", unfinished_count=4)


def unserved() -> Unserved:
    return Unserved(event_id=uuid4(), actor="order_svc")


def redriven() -> Redriven:
    return Redriven(event_id=uuid4(), actor="mira", reason="the upstream is well again")


def relabelled(labels: dict[str, str] | None = None, *, expected_version: int = 0) -> Relabelled:
    wanted = {"shop": "3"} if labels is None else labels
    return Relabelled(event_id=uuid4(), actor="alice", labels=wanted, expected_version=expected_version)


def resolved(
    outcome: Status, *, evidence: str = "bank file 42, line 7", upstream_ref: str = "ref-9"
) -> Resolved:
    return Resolved(
        event_id=uuid4(),
        actor="mira",
        outcome=outcome,
        evidence=evidence,
        reason="asked them",
        upstream_ref=upstream_ref,
    )


def decide(
    seen: Seen, event: AnyEvent, contract: UpstreamContract = CAREFUL, *, jitter: float = 0.5
) -> Decision:
    return transition(seen, event, rules(contract), jitter=jitter)


def change_of(
    seen: Seen, event: AnyEvent, contract: UpstreamContract = CAREFUL, *, jitter: float = 0.5
) -> Change:
    decision = decide(seen, event, contract, jitter=jitter)
    assert isinstance(decision, Change), decision
    return decision


def after(seen: Seen, change: Change, *, passed: timedelta = timedelta(0)) -> Seen:
    """The situation once a change is written and some time has passed: what the next read sees."""
    case = seen.case
    if change.closes is not None:
        case = None
    if change.opens is not None:
        opens = change.opens
        case = Case(dead_letter_id=opens.dead_letter_id, reason=opens.reason, severity=opens.severity)
    tally = change.wake.tally if change.wake is not None else Tally()
    if change.wake is None and change.after.stage is not Stage.DONE:
        tally = seen.tally
    return Seen(change.after, tally, case, seen.at + passed)
