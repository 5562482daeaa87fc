"""Protos to order_svc's own words and back. Pure; every refusal names its field.

Text from outside is checked here once: lengths, and no NUL, which Postgres cannot store. What an upstream
says is cut rather than refused, so that no answer can keep an order from being settled.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID, uuid4

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import consistency, ids, money
from chassis.errors import InvalidField, PageTokenInvalid, Violation
from order_svc import labels
from order_svc.domain import Wish
from order_svc.errors import RoutingKeyMismatch, RoutingKeyMissing
from order_svc.events import Answer, Fault, ProbeFailed, Redriven, Relabelled, Resolved, Source, Told, Verdict
from order_svc.order import Order, Status
from ordermesh.money.v1 import money_pb2
from ordermesh.order.v1 import order_pb2
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.upstream.v1 import upstream_service_pb2 as upstream_pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from chassis.rpc import Call
    from order_svc.rows import Claim, DeadLetter, DueOrder, Hold, OrderEvent, Position, Waiting

T = TypeVar("T")
BUCKET_HEADER, EPOCH_HEADER, REPLAY_HEADER = (f"x-ordermesh-{name}" for name in ("bucket", "epoch", "replay"))
DESCRIPTION_CHARS_MAX = 512
REASON_CHARS_MAX = 512
EVIDENCE_CHARS_MAX = 2048
EVIDENCE_BYTES_MAX = 3600
"""Evidence, reason and reference as JSON; the journal's 4 KiB hold them with the facts around them."""
ANSWER_REASON_CHARS_MAX = 256
REF_CHARS_MAX = 256
DETAIL_CHARS_MAX = 512
BATCH_MAX = 100
CLAIM_MAX = 200
PAGE_SIZE, PAGE_SIZE_MAX = 50, 100
WAIT_S_MAX = 30.0
WAIT_RESERVE_S = 0.1
"""Time to write the answer before the caller's deadline."""
LEASE_S = 30.0
_VERDICTS = {
    upstream_pb.VERDICT_UNSPECIFIED: Verdict.UNKNOWN,
    upstream_pb.VERDICT_SUCCEEDED: Verdict.SUCCEEDED,
    upstream_pb.VERDICT_FAILED: Verdict.FAILED,
    upstream_pb.VERDICT_IN_PROGRESS: Verdict.IN_PROGRESS,
    upstream_pb.VERDICT_NOT_FOUND: Verdict.NOT_FOUND,
    upstream_pb.VERDICT_UNKNOWN: Verdict.UNKNOWN,
}
_FAULTS = {
    order_pb2.PROBE_CLASS_NO_ANSWER: Fault.SILENT,
    order_pb2.PROBE_CLASS_OUR_FAULT: Fault.OURS,
    order_pb2.PROBE_CLASS_MALFORMED: Fault.MALFORMED,
    order_pb2.PROBE_CLASS_NOT_MADE: Fault.NOT_MADE,
}


@dataclass(frozen=True, slots=True)
class Route:
    """Where the proxy sent a call and by which epoch of the map."""

    bucket: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A checked CreateOrder; the id is made when there is a slot to submit it."""

    user_id: str
    request_id: UUID
    kind: str
    amount: money.Money
    description: str
    labels: Mapping[str, str]
    wait_s: float

    def wish(self, legs: tuple[str, ...], order_id: UUID, call: Call) -> Wish:
        """The wish for one id."""
        return Wish(
            order_id=order_id,
            user_id=self.user_id,
            request_id=self.request_id,
            kind=self.kind,
            legs=legs,
            amount=self.amount,
            description=self.description,
            labels=self.labels,
            event_id=uuid4(),
            actor=call.subject.name,
            traceparent=call.traceparent,
            tracestate=call.tracestate,
        )

    def fingerprint(self) -> bytes:
        """What makes a repeat the same request: the caller's fields by name, and not how they were
        encoded.
        """
        named = {
            "v": 1,
            "kind": self.kind,
            "amount_minor": self.amount.amount_minor,
            "currency_code": self.amount.currency_code,
            "description": self.description,
            "labels": dict(sorted(self.labels.items())),
        }
        return hashlib.sha256(json.dumps(named, separators=(",", ":"), ensure_ascii=True).encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimAsked:
    """A checked ClaimDueOrders."""

    limit: int
    order_id: UUID | None
    claimed_by: str
    lease: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldAsked:
    """A checked PutHold or LiftHold."""

    request_id: UUID
    scope: str
    reason: str
    until: datetime | None = None


def route(metadata: Mapping[str, str], user_id: str) -> Route:
    """The bucket and epoch that the proxy gave a create.

    Raises: RoutingKeyMissing; RoutingKeyMismatch when the bucket cannot be one of this user.
    """
    bucket, epoch = metadata.get(BUCKET_HEADER, ""), metadata.get(EPOCH_HEADER, "")
    if not (bucket.isascii() and bucket.isdecimal() and epoch.isascii() and epoch.isdecimal()):
        raise RoutingKeyMissing
    found = Route(int(bucket), int(epoch))
    hashed = found.bucket < ids.HASHED_BUCKETS
    if found.bucket >= ids.BUCKETS or (hashed and found.bucket != ids.user_bucket(user_id)):
        raise RoutingKeyMismatch(bucket=found.bucket)
    return found


def replayed_order(metadata: Mapping[str, str]) -> UUID | None:
    """The order that a create is known to have made, if its user was moved since; the proxy was told so."""
    named = metadata.get(REPLAY_HEADER)
    return None if named is None else ids.parse_order_id(named)


def asked(request: pb.CreateOrderRequest) -> Asked:
    """Read a CreateOrder.

    Raises: InvalidField with every wrong field.
    """
    wrong: list[Violation] = []
    user_id = _collect(wrong, lambda: ids.parse_user_id(request.user_id), "")
    request_id = _collect(
        wrong, lambda: ids.parse_uuid(request.request_id, field_name="request_id"), UUID(int=0)
    )
    kind = _collect(wrong, lambda: _text("kind", request.kind, 1, 32), "")
    amount = _collect(wrong, lambda: _amount(request), money.Money("", 0))
    description = _collect(
        wrong, lambda: _text("description", request.description, 0, DESCRIPTION_CHARS_MAX), ""
    )
    kept: dict[str, str] = _collect(wrong, lambda: labels.read(request.labels), dict[str, str]())
    wait_s = _collect(wrong, lambda: _seconds("wait", request.wait), 0.0)
    if wrong:
        raise InvalidField(*wrong)
    return Asked(
        user_id=user_id,
        request_id=request_id,
        kind=kind,
        amount=amount,
        description=description,
        labels=kept,
        wait_s=wait_s,
    )


def wait_s(asked_s: float, call: Call) -> float:
    """How long a create may wait: never to the caller's deadline, and at most 30 s."""
    return max(0.0, min(asked_s, call.time_remaining() - WAIT_RESERVE_S, WAIT_S_MAX))


def _collect(wrong: list[Violation], read: Callable[[], T], otherwise: T) -> T:
    try:
        return read()
    except InvalidField as invalid:
        wrong.extend(invalid.violations)
        return otherwise


def _amount(request: pb.CreateOrderRequest) -> money.Money:
    if not request.HasField("amount"):
        raise InvalidField.of("amount", "is required")
    return money.asked_for(request.amount.currency_code, request.amount.amount_minor)


def _text(field: str, text: str, least: int, most: int) -> str:
    if not least <= len(text) <= most:
        raise InvalidField.of(field, f"must have {least} to {most} characters")
    if "\0" in text:
        raise InvalidField.of(field, "must not hold NUL")
    return text


def _printable(text: str) -> str:
    """The text with a space for each control character: JSON makes six of them, and NUL cannot be stored."""
    return "".join(" " if ord(char) < 32 or ord(char) == 127 else char for char in text)


def _seconds(field: str, duration: Duration) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    if seconds < 0:
        raise InvalidField.of(field, "must not be negative")
    return float(seconds)


def order_id(text: str) -> UUID:
    """Read an order id.

    Raises: OrderIdInvalid.
    """
    return ids.parse_order_id(text)


def order_ids(request: pb.BatchGetOrdersRequest) -> list[UUID]:
    """Read 1 to 100 order ids; each is looked for once.

    Raises: InvalidField, OrderIdInvalid.
    """
    if not 1 <= len(request.order_ids) <= BATCH_MAX:
        raise InvalidField.of("order_ids", f"must have 1 to {BATCH_MAX} ids")
    return list(dict.fromkeys(ids.parse_order_id(text) for text in request.order_ids))


def claim_asked(request: pb.ClaimDueOrdersRequest) -> ClaimAsked:
    """Read a ClaimDueOrders.

    Raises: InvalidField, OrderIdInvalid.
    """
    if not 1 <= request.limit <= CLAIM_MAX:
        raise InvalidField.of("limit", f"must be 1 to {CLAIM_MAX}")
    lease_s = _seconds("lease", request.lease) or LEASE_S
    if not 1 <= lease_s <= 300:
        raise InvalidField.of("lease", "must be 1 s to 5 min")
    return ClaimAsked(
        limit=request.limit,
        order_id=ids.parse_order_id(request.order_id) if request.order_id else None,
        claimed_by=_text("claimed_by", request.claimed_by, 1, 128),
        lease=timedelta(seconds=lease_s),
    )


def reported(request: pb.ReportVerdictRequest, call: Call) -> Told | ProbeFailed:
    """Read what a probe found out.

    Raises: InvalidField.
    """
    report = request.report
    about: dict[str, Any] = {
        "event_id": ids.parse_uuid(request.event_id, field_name="event_id"),
        "actor": call.subject.name,
        "traceparent": call.traceparent,
        "tracestate": call.tracestate,
        "leg": request.leg,
        "attempt": request.attempt,
    }
    if request.leg < 0 or request.attempt < 0:
        raise InvalidField.of("leg", "leg and attempt must not be negative")
    detail = _printable(report.detail[:DETAIL_CHARS_MAX])
    if report.probe_class in _FAULTS:
        fault, pushback_s = _FAULTS[report.probe_class], _seconds("report.pushback", report.pushback)
        return ProbeFailed(fault=fault, detail=detail, pushback_s=pushback_s, **about)
    if report.probe_class != order_pb2.PROBE_CLASS_ANSWERED:
        raise InvalidField.of("report.probe_class", "must say what the probe was worth")
    found = answer(report.answer) if report.HasField("answer") else None
    if found is None:
        return ProbeFailed(fault=Fault.MALFORMED, detail=detail or "no such answer", **about)
    return Told(answer=found, source=Source.PROBE, **about)


def lease_token(request: pb.ReportVerdictRequest) -> UUID:
    """The lease of the claim a report belongs to.

    Raises: InvalidField.
    """
    return ids.parse_uuid(request.lease_token, field_name="lease_token")


def answer(said: upstream_pb.Answer) -> Answer | None:
    """An upstream's answer, its texts cut; None when it makes no sense."""
    verdict = _VERDICTS.get(said.verdict)
    ref = said.upstream_ref
    if verdict is None or len(ref) > REF_CHARS_MAX or _printable(ref) != ref:
        return None
    executed = None
    if said.HasField("amount"):
        executed = money.Money(_printable(said.amount.currency_code[:8]), said.amount.amount_minor)
    return Answer(
        verdict=verdict,
        upstream_ref=ref,
        amount=executed,
        reason=_printable(said.reason[:ANSWER_REASON_CHARS_MAX]),
        pushback_s=max(0.0, said.pushback.seconds + said.pushback.nanos / 1e9),
    )


def redriven(request: pb.RedriveDeadLetterRequest, call: Call) -> Redriven:
    """Read a redrive; its request_id names the event.

    Raises: InvalidField.
    """
    return Redriven(
        event_id=ids.parse_uuid(request.request_id, field_name="request_id"),
        actor=call.subject.name,
        traceparent=call.traceparent,
        tracestate=call.tracestate,
        reason=_text("reason", request.reason, 1, REASON_CHARS_MAX),
    )


def resolved(request: pb.ResolveDeadLetterRequest, call: Call) -> Resolved:
    """Read a resolution; its request_id names the event. Whether the evidence is enough is a rule's to say.

    Raises: InvalidField.
    """
    outcomes = {order_pb2.Order.SUCCESS: Status.SUCCESS, order_pb2.Order.FAILED: Status.FAILED}
    if request.outcome not in outcomes:
        raise InvalidField.of("outcome", "must be SUCCESS or FAILED")
    evidence = _text("evidence", request.evidence, 0, EVIDENCE_CHARS_MAX)
    reason = _text("reason", request.reason, 1, REASON_CHARS_MAX)
    upstream_ref = _text("upstream_ref", request.upstream_ref, 0, REF_CHARS_MAX)
    written = json.dumps([evidence, reason, upstream_ref], ensure_ascii=False)
    if len(written.encode()) > EVIDENCE_BYTES_MAX:
        wanted = f"must have at most {EVIDENCE_BYTES_MAX} bytes together with reason and upstream_ref"
        raise InvalidField.of("evidence", wanted)
    return Resolved(
        event_id=ids.parse_uuid(request.request_id, field_name="request_id"),
        actor=call.subject.name,
        traceparent=call.traceparent,
        tracestate=call.tracestate,
        outcome=outcomes[request.outcome],
        evidence=evidence,
        reason=reason,
        upstream_ref=upstream_ref,
    )


def relabelled(request: pb.UpdateOrderRequest, call: Call) -> Relabelled:
    """Read new labels; the request_id names the event.

    Raises: InvalidField.
    """
    if request.expected_version < 0:
        raise InvalidField.of("expected_version", "must not be negative")
    return Relabelled(
        event_id=ids.parse_uuid(request.request_id, field_name="request_id"),
        actor=call.subject.name,
        traceparent=call.traceparent,
        tracestate=call.tracestate,
        labels=labels.read(request.labels),
        expected_version=request.expected_version,
    )


def hold_asked(request: pb.PutHoldRequest | pb.LiftHoldRequest) -> HoldAsked:
    """Read a hold to put or to lift.

    Raises: InvalidField.
    """
    scope = request.scope
    name = scope.removeprefix("upstream:")
    if scope != "all" and (name == scope or not _is_name(name)):
        raise InvalidField.of("scope", "must be `all` or `upstream:<name>`")
    until = None
    if isinstance(request, pb.PutHoldRequest) and request.HasField("until_time"):
        until = _instant("until_time", request.until_time)
    return HoldAsked(
        request_id=ids.parse_uuid(request.request_id, field_name="request_id"),
        scope=scope,
        reason=_text("reason", request.reason, 1, REASON_CHARS_MAX),
        until=until,
    )


def _instant(field: str, at: Timestamp) -> datetime:
    try:
        return at.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidField.of(field, "must be a time between the years 1 and 9999") from None


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", name) is not None


def page_size(asked_size: int) -> int:
    """How many rows a caller gets.

    Raises: InvalidField.
    """
    if not 0 <= asked_size <= PAGE_SIZE_MAX:
        raise InvalidField.of("page_size", f"must be 0 to {PAGE_SIZE_MAX}")
    return asked_size or PAGE_SIZE


def packed_position(at: datetime, row_id: UUID) -> bytes:
    """A position in a list by time and id."""
    return f"{at.isoformat()} {row_id}".encode()


def position(token_bytes: bytes | None) -> tuple[datetime, UUID]:
    """The position to go on after; without one, before everything.

    Raises: PageTokenInvalid.
    """
    if token_bytes is None:
        return datetime(1, 1, 2, tzinfo=UTC), UUID(int=0)
    try:
        at, row_id = token_bytes.decode().split(" ")
        return datetime.fromisoformat(at), UUID(row_id)
    except ValueError:
        raise PageTokenInvalid from None


def consistency_token(*positions: Position) -> str:
    """An opaque set of positions: whoever has read up to them has seen the change."""
    return consistency.sealed({each.shard: (each.log_epoch, each.xid) for each in positions})


def execute_request(order: Order) -> upstream_pb.ExecuteRequest:
    """What the upstream of the current leg is asked."""
    return upstream_pb.ExecuteRequest(
        idempotency_key=order.upstream_key,
        order_id=str(order.order_id),
        leg=order.leg,
        attempt=order.attempt,
        user_id=order.user_id,
        amount=_money(order.amount),
        description=order.description,
    )


def order(found: Order) -> order_pb2.Order:
    """Write an order."""
    return order_pb2.Order(
        order_id=str(found.order_id),
        user_id=found.user_id,
        status=order_pb2.Order.Status.Value(found.status),
        stage=order_pb2.Order.Stage.Value(found.stage),
        kind=found.kind,
        legs=found.legs,
        leg=found.leg,
        attempt=found.attempt,
        amount=_money(found.amount),
        description=found.description,
        labels=found.labels,
        version=found.version,
        create_time=_time(found.created_at),
        update_time=_time(found.updated_at),
        settle_time=_time(found.settled_at),
        failure_reason=found.failure_reason,
        basis=order_pb2.Order.Basis.Value(found.basis) if found.basis else order_pb2.Order.BASIS_UNSPECIFIED,
        upstream_ref=found.upstream_ref,
        request_id=str(found.request_id),
        traceparent=found.traceparent,
    )


def event(entry: OrderEvent) -> order_pb2.OrderEvent:
    """Write a journal entry."""
    written = order_pb2.OrderEvent(
        version=entry.version,
        event_id=str(entry.event_id),
        kind=entry.kind,
        to_status=order_pb2.Order.Status.Value(entry.to_status),
        to_stage=order_pb2.Order.Stage.Value(entry.to_stage),
        leg=entry.leg,
        attempt=entry.attempt,
        actor=entry.actor,
        proof=entry.proof,
        evidence_json=_json(entry.evidence),
        event_time=_time(entry.at),
        traceparent=entry.traceparent,
    )
    if entry.from_status is not None and entry.from_stage is not None:
        written.from_status = order_pb2.Order.Status.Value(entry.from_status)
        written.from_stage = order_pb2.Order.Stage.Value(entry.from_stage)
    return written


def dead_letter(case: DeadLetter) -> order_pb2.DeadLetter:
    """Write a case."""
    return order_pb2.DeadLetter(
        dead_letter_id=str(case.dead_letter_id),
        order_id=str(case.order_id),
        user_id=case.user_id,
        reason=case.reason,
        severity=case.severity,
        evidence_json=_json(case.evidence),
        open_time=_time(case.opened_at),
        opened_version=case.opened_version,
        close_time=_time(case.closed_at),
        actor=case.actor,
        outcome=case.outcome,
        close_reason=case.close_reason,
        redrive_count=case.redrive_count,
    )


def due_order(due: DueOrder) -> order_pb2.DueOrder:
    """Write an order that waits."""
    return order_pb2.DueOrder(
        order=order(due.order),
        due_time=_time(due.due_at),
        timer_class=due.timer_class,
        probe_count=due.probe_count,
        silent_count=due.silent_count,
        claim_count=due.claim_count,
        hold_reason=due.hold_reason,
    )


def claim(handed_out: Claim) -> order_pb2.Claim:
    """Write a claim, with the event id its report is to carry."""
    return order_pb2.Claim(
        order=order(handed_out.order),
        lease_token=str(handed_out.lease_token),
        lease_expire_time=_time(handed_out.lease_until),
        upstream=handed_out.order.upstream,
        idempotency_key=handed_out.order.upstream_key,
        event_id=str(uuid4()),
        unfinished_count=handed_out.unfinished_count,
    )


def hold(rule: Hold) -> order_pb2.Hold:
    """Write a hold."""
    return order_pb2.Hold(
        scope=rule.scope,
        reason=rule.reason,
        actor=rule.actor,
        until_time=_time(rule.until_at),
        create_time=_time(rule.created_at),
    )


def shard_status(
    shard: str, waiting: Iterable[Waiting], cases: int, holds: Iterable[Hold]
) -> pb.GetShardStatusResponse:
    """Write how a shard does."""
    lines = list(waiting)
    status = pb.GetShardStatusResponse(
        shard=shard,
        waiting_counts={line.stage: line.count for line in lines},
        overdue_count=sum(line.overdue for line in lines),
        open_dead_letter_count=cases,
        holds=[hold(rule) for rule in holds],
    )
    oldest = max((line.oldest for line in lines if line.oldest is not None), default=None)
    if oldest is not None:
        status.oldest_overdue_age.FromTimedelta(oldest)
    return status


def _money(amount: money.Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=amount.currency_code, amount_minor=amount.amount_minor)


def _time(at: datetime | None) -> Timestamp | None:
    if at is None:
        return None
    written = Timestamp()
    written.FromDatetime(at)
    return written


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, ensure_ascii=False, sort_keys=True)
