"""Rows to nouns and changes to parameters: the shapes of queries.sql on the Python side. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from chassis.money import Money
from order_svc.order import (
    Basis,
    Case,
    CaseReason,
    Change,
    Evidence,
    Order,
    Seen,
    Stage,
    Status,
    Tally,
    TimerClass,
)

if TYPE_CHECKING:
    from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Position:
    """A transaction in a shard's log: whoever has read up to it has seen its change."""

    shard: str
    log_epoch: int
    xid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An order handed out for the time of a lease."""

    order: Order
    lease_token: UUID
    lease_until: datetime
    unfinished_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DueOrder:
    """An order that waits, and for what."""

    order: Order
    due_at: datetime
    timer_class: TimerClass
    probe_count: int
    silent_count: int
    claim_count: int
    hold_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderEvent:
    """One journal entry as it was written."""

    version: int
    event_id: UUID
    user_id: str
    kind: str
    from_status: Status | None
    to_status: Status
    from_stage: Stage | None
    to_stage: Stage
    leg: int
    attempt: int
    actor: str
    proof: str
    evidence: Evidence
    at: datetime
    traceparent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One case, open or closed."""

    dead_letter_id: UUID
    order_id: UUID
    user_id: str
    reason: str
    severity: int
    evidence: Evidence
    opened_at: datetime
    opened_version: int
    closed_at: datetime | None
    actor: str
    outcome: str
    close_reason: str
    redrive_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A rule that keeps claims away from some orders."""

    scope: str
    reason: str
    actor: str
    until_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How many orders wait at one stage."""

    stage: str
    count: int
    overdue: int
    oldest: timedelta | None


@dataclass(frozen=True, slots=True)
class Clocks:
    """The database's machine and its shard's time; they differ only in tests."""

    machine: datetime
    shard: datetime


@dataclass(frozen=True, slots=True)
class Identity:
    """Which shard a database is."""

    shard: str
    log_epoch: int


def order(row: Any) -> Order:
    """An order from the columns of `orders`."""
    return Order(
        order_id=_uuid(row["order_id"]),
        created_at=row["created_at"],
        user_id=row["user_id"],
        bucket=row["bucket"],
        kind=row["kind"],
        legs=tuple(row["legs"]),
        amount=Money(row["currency_code"], row["amount_minor"]),
        request_id=_uuid(row["request_id"]),
        read_routing=row["read_routing"],
        version=row["version"],
        status=Status(row["status"]),
        stage=Stage(row["stage"]),
        leg=row["leg"],
        attempt=row["attempt"],
        description=row["description"],
        labels=row["labels"],
        upstream_ref=row["upstream_ref"],
        failure_reason=row["failure_reason"],
        basis=Basis(row["basis"]) if row["basis"] is not None else None,
        updated_at=row["updated_at"],
        settled_at=row["settled_at"],
        traceparent=row["traceparent"],
    )


def seen(row: Any) -> Seen:
    """What a rule decides on, from `see_order`."""
    tally = Tally()
    if row["probe_count"] is not None:
        tally = Tally(
            probe_count=row["probe_count"],
            silent_count=row["silent_count"],
            fault_count=row["fault_count"],
            malformed_count=row["malformed_count"],
            not_found_count=row["not_found_count"],
            first_not_found_at=row["first_not_found_at"],
            first_answer_at=row["first_answer_at"],
            accepted_at=row["accepted_at"],
            first_sent_at=row["first_sent_at"],
            last_sent_at=row["last_sent_at"],
        )
    case = None
    if row["dead_letter_id"] is not None:
        case = Case(
            dead_letter_id=_uuid(row["dead_letter_id"]),
            reason=CaseReason(row["case_reason"]),
            severity=row["severity"],
            redrive_count=row["redrive_count"],
        )
    return Seen(order(row), tally, case, row["seen_at"])


def opened(row: Any) -> Tally:
    """What is known about the first leg of a new order, from `create_order`."""
    return Tally(first_sent_at=row["first_sent_at"], last_sent_at=row["last_sent_at"])


def position(row: Any) -> Position:
    """Where a change stands in the log. Of a read it is the end of what the read saw."""
    return Position(row["shard"], row["log_epoch"], row["xid"])


def claim(row: Any) -> Claim:
    """A claim from a leased timer and its order."""
    return Claim(
        order=order(row),
        lease_token=_uuid(row["lease_token"]),
        lease_until=row["lease_until"],
        unfinished_count=row["unfinished_count"],
    )


def due_order(row: Any) -> DueOrder:
    """An order that waits, from a timer and its order."""
    return DueOrder(
        order=order(row),
        due_at=row["due_at"],
        timer_class=TimerClass(row["class"]),
        probe_count=row["probe_count"],
        silent_count=row["silent_count"],
        claim_count=row["claim_count"],
        hold_reason=row["hold_reason"] or "",
    )


def event(row: Any) -> OrderEvent:
    """A journal entry from the columns of `order_journal`."""
    return OrderEvent(
        version=row["version"],
        event_id=_uuid(row["event_id"]),
        user_id=row["user_id"],
        kind=row["kind"],
        from_status=Status(row["from_status"]) if row["from_status"] else None,
        to_status=Status(row["to_status"]),
        from_stage=Stage(row["from_stage"]) if row["from_stage"] else None,
        to_stage=Stage(row["to_stage"]),
        leg=row["leg"],
        attempt=row["attempt"],
        actor=row["actor"],
        proof=row["proof"] or "",
        evidence=row["evidence"],
        at=row["at"],
        traceparent=row["traceparent"],
    )


def dead_letter(row: Any) -> DeadLetter:
    """A case from the columns of `dead_letters`."""
    return DeadLetter(
        dead_letter_id=_uuid(row["dead_letter_id"]),
        order_id=_uuid(row["order_id"]),
        user_id=row["user_id"],
        reason=row["reason"],
        severity=row["severity"],
        evidence=row["evidence"],
        opened_at=row["opened_at"],
        opened_version=row["opened_version"],
        closed_at=row["closed_at"],
        actor=row["actor"] or "",
        outcome=row["outcome"] or "",
        close_reason=row["close_reason"] or "",
        redrive_count=row["redrive_count"],
    )


def hold(row: Any) -> Hold:
    """A hold from the columns of `holds`."""
    return Hold(
        scope=row["scope"],
        reason=row["reason"],
        actor=row["actor"],
        until_at=row["until_at"],
        created_at=row["created_at"],
    )


def waiting(row: Any) -> Waiting:
    """One line of `count_waiting`."""
    return Waiting(stage=row["stage"], count=row["waiting"], overdue=row["overdue"], oldest=row["oldest"])


def clocks(row: Any) -> Clocks:
    """The line of `read_clocks`."""
    return Clocks(row["machine"], row["shard"])


def identity(row: Any) -> Identity:
    """The line of `shard_identity`."""
    return Identity(row["shard"], row["log_epoch"])


def creation(change: Change, epoch: int, fingerprint: bytes) -> tuple[object, ...]:
    """The parameters of `create_order`. Of the submission it passes how long it takes; the shard dates it."""
    new, entry, wake = change.after, change.entry, change.wake
    assert wake is not None, "a new order has a timer"
    first_sent_at, last_sent_at = wake.tally.first_sent_at, wake.tally.last_sent_at
    assert first_sent_at is not None, "an order is opened with a submission"
    assert last_sent_at is not None, "a submission has an end"
    return (
        new.user_id,
        new.request_id,
        new.order_id,
        new.created_at,
        new.bucket,
        epoch,
        fingerprint,
        new.read_routing,
        new.kind,
        list(new.legs),
        new.amount.amount_minor,
        new.amount.currency_code,
        new.amount.exponent,
        new.description,
        dict(new.labels),
        new.traceparent,
        wake.wake_in,
        last_sent_at - first_sent_at,
        entry.event_id,
        entry.actor,
        entry.evidence,
        entry.tracestate,
    )


def change(change: Change) -> tuple[object, ...]:
    """The parameters of `apply_change`."""
    before, after, entry = change.before, change.after, change.entry
    assert before is not None, "opening an order is `create_order`"
    opens, closes = change.opens, change.closes
    return (
        before.order_id,
        before.created_at,
        before.version,
        after.status,
        after.stage,
        after.leg,
        after.attempt,
        after.upstream_ref,
        after.failure_reason,
        after.basis,
        entry.event_id,
        entry.kind,
        before.status,
        before.stage,
        entry.leg,
        entry.attempt,
        entry.actor,
        entry.proof,
        entry.evidence,
        entry.traceparent,
        *_timer(change),
        *((opens.dead_letter_id, opens.reason, opens.severity, opens.evidence) if opens else (None,) * 4),
        *((closes.outcome, closes.actor, closes.reason) if closes else (None,) * 3),
        dict(after.labels) if after.labels != before.labels else None,
        entry.tracestate,
    )


def _timer(change: Change) -> tuple[object, ...]:
    wake = change.wake
    if wake is None:
        return (None, None, 0, 0, 0, 0, 0, None, None, None, None, None)
    tally = wake.tally
    return (
        wake.timer_class,
        wake.wake_in,
        tally.probe_count,
        tally.silent_count,
        tally.fault_count,
        tally.malformed_count,
        tally.not_found_count,
        tally.first_not_found_at,
        tally.first_answer_at,
        tally.accepted_at,
        tally.first_sent_at,
        tally.last_sent_at,
    )


def _uuid(value: Any) -> UUID:
    """A UUID of the standard library; the driver's own class is slower to compare and to pickle."""
    return UUID(int=value.int)
