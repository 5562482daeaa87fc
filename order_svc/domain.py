"""The rules: what one event does to one order. Pure; no clock, no I/O, no protos.

`transition` reads what the event means (`signals`), looks the answer up (`states.TABLE`) and spells out
everything that has to be written with it, for one statement to write. Refusals are typed and carry their
facts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, assert_never
from uuid import UUID, uuid5

from chassis.ids import id_bucket, id_time
from order_svc import labels
from order_svc.errors import IllegalTransition
from order_svc.events import (
    Answer,
    AnyEvent,
    NotSent,
    Poisoned,
    ProbeFailed,
    Redriven,
    Relabelled,
    Resolved,
    SubmitBegun,
    Told,
    Unserved,
    Unsure,
)
from order_svc.order import (
    SEVERITY_MONEY,
    SEVERITY_STUCK,
    Basis,
    CaseClosed,
    CaseOpened,
    CaseReason,
    Change,
    Decision,
    Evidence,
    JournalEntry,
    Kind,
    Order,
    Outcome,
    Proof,
    Rewait,
    Seen,
    Status,
    Tally,
    TimerClass,
    Unchanged,
    Wake,
)
from order_svc.signals import signal_of
from order_svc.states import TABLE, Row, Signal, Where, where

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chassis.money import Money
    from order_svc.contract import Rules

_ANSWERED = frozenset(
    {Signal.OVERDUE, Signal.ABSENT, Signal.NO_WORD, Signal.SPENT, Signal.RESEND, Signal.DISPUTED}
)
"""Answers that settled nothing: they spend the budget."""
_SEVERITIES = {CaseReason.VERDICT_MISMATCH: SEVERITY_MONEY, CaseReason.CONTRADICTED: SEVERITY_MONEY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a caller asks for, checked by `wire` and placed by the proxy."""

    order_id: UUID
    user_id: str
    request_id: UUID
    kind: str
    legs: tuple[str, ...]
    amount: Money
    description: str
    labels: Mapping[str, str]
    event_id: UUID
    actor: str
    traceparent: str = ""
    tracestate: str = ""


def open_order(wish: Wish, rules: Rules) -> Change:
    """The first change of an order: it is about to be submitted to the upstream of its first leg.

    The order's time and bucket are those of its id, and that time is the instant of the first submission.
    """
    at = id_time(wish.order_id)
    order = Order(
        order_id=wish.order_id,
        created_at=at,
        user_id=wish.user_id,
        bucket=id_bucket(wish.order_id),
        kind=wish.kind,
        legs=wish.legs,
        amount=wish.amount,
        request_id=wish.request_id,
        read_routing=wish.user_id,
        description=wish.description,
        labels=wish.labels,
        traceparent=wish.traceparent,
    )
    entry = JournalEntry(
        event_id=wish.event_id,
        kind=Kind.OPENED,
        leg=0,
        attempt=1,
        actor=wish.actor,
        proof=None,
        evidence={"upstream": order.upstream, "key": order.upstream_key},
        traceparent=wish.traceparent,
        tracestate=wish.tracestate,
    )
    wake = Wake(_until_call_is_over(order, rules), TimerClass.PROBE, _sent(Tally(), order, rules, at))
    return Change(before=None, after=order, entry=entry, wake=wake)


def transition(seen: Seen, event: AnyEvent, rules: Rules, *, jitter: float) -> Decision:
    """Decide what one event does to one order. Pure: no clock, no I/O.

    seen:   the order with tally and open case, and the shard's instant of reading them.
    jitter: 0 <= jitter < 1, drawn anew for each event.

    Returns the Change to write in one transaction (compare-and-swap on order.version), a Rewait when only
    the timer moves, Unchanged when the event repeats what is known or comes too late to matter.
    Raises: IllegalTransition, OrderNotParked, EvidenceRequired when a person asks for what must not be;
    VersionMismatch when somebody decided on another version.
    Source: docs/ORDER_STATES.md, the table that tests/unit and tests/model walk.
    """
    signal = signal_of(seen, event, rules)
    if signal is Signal.ECHO:
        return Unchanged()
    row = TABLE.get((where(seen.order), signal))
    if row is None:
        raise IllegalTransition(order_id=seen.order.order_id, at=where(seen.order), signal=signal)
    if row.kind is None:
        return _rewait(seen, event, signal, rules, jitter)
    return _change(seen, event, signal, row, rules, jitter)


def _rewait(seen: Seen, event: AnyEvent, signal: Signal, rules: Rules, jitter: float) -> Rewait:
    policy, tally = rules.policy, seen.tally
    if signal is Signal.NOT_PROBED:
        wake_in = policy.backoff(0, jitter)
    elif seen.order.stage.value == Where.PARKED:
        wake_in = _daily(rules, jitter)
    elif signal is Signal.TOO_EARLY and tally.last_sent_at is not None:
        wake_in = tally.last_sent_at - seen.at + timedelta(seconds=policy.submit_margin_s)
    else:
        count = tally.fault_count if signal is Signal.OUR_FAULT else tally.silent_count
        wake_in = max(policy.backoff(count, jitter), _pushback(event, rules))
    return Rewait(wake_in, silent=signal is Signal.SILENT, fault=signal is Signal.OUR_FAULT)


def _change(seen: Seen, event: AnyEvent, signal: Signal, row: Row, rules: Rules, jitter: float) -> Change:
    before = seen.order
    after = _after(seen, event, signal, row)
    tally = _tally(seen, signal, after, rules)
    evidence = _evidence(seen, event)
    entry = JournalEntry(
        event_id=event.event_id,
        kind=row.kind or Kind.PROBED,
        leg=before.leg if signal is not Signal.LATE or not isinstance(event, Told) else event.leg,
        attempt=after.attempt if signal is Signal.BEGIN else getattr(event, "attempt", before.attempt),
        actor=event.actor,
        proof=_proof(signal),
        evidence=evidence,
        traceparent=event.traceparent,
        tracestate=event.tracestate,
    )
    return Change(
        before=before,
        after=after,
        entry=entry,
        wake=_wake(seen, event, signal, row, after, tally, rules, jitter),
        opens=_opens(seen, event, row, evidence, tally),
        closes=_closes(seen, event, signal) if row.closes and seen.case is not None else None,
    )


def _after(seen: Seen, event: AnyEvent, signal: Signal, row: Row) -> Order:
    """The order after the change; its times are the shard's to set."""
    before = seen.order
    after = replace(before, version=before.version + 1, status=row.to.status, stage=row.to.stage)
    ref = event.answer.upstream_ref if isinstance(event, Told) else getattr(event, "upstream_ref", "")
    match signal:
        case Signal.BEGIN:
            return replace(after, attempt=before.attempt + 1)
        case Signal.EXECUTED:
            # A reopened order loses what it was settled with.
            return replace(
                after, leg=before.leg + 1, attempt=0, upstream_ref="", failure_reason="", basis=None
            )
        case Signal.EXECUTED_LAST:
            return replace(after, upstream_ref=ref, failure_reason="", basis=Basis.UPSTREAM)
        case Signal.REFUSED:
            reason = event.answer.reason if isinstance(event, Told) else ""
            return replace(after, failure_reason=reason or "REFUSED_BY_UPSTREAM", basis=Basis.UPSTREAM)
        case Signal.ABSENT_FINAL:
            return replace(after, failure_reason="NOT_FOUND_AT_UPSTREAM", basis=Basis.NOT_FOUND_FINAL)
        case Signal.IN_PROGRESS | Signal.OVERDUE:
            return replace(after, upstream_ref=before.upstream_ref or ref)
        case Signal.RESOLVE_SUCCESS if before.status is not Status.SUCCESS:
            return replace(after, upstream_ref=ref, failure_reason="", basis=Basis.OPERATOR)
        case Signal.RESOLVE_FAILED if isinstance(event, Resolved):
            return replace(after, failure_reason=before.failure_reason or event.reason, basis=Basis.OPERATOR)
        case Signal.RELABEL if isinstance(event, Relabelled):
            return replace(after, labels=event.labels)
        case _:
            return after


def _tally(seen: Seen, signal: Signal, after: Order, rules: Rules) -> Tally:
    """What is known about the leg after the signal. Anything the upstream says ends the silence."""
    tally, at = seen.tally, seen.at
    match signal:
        case Signal.EXECUTED:
            return Tally()
        case Signal.BEGIN:
            return _sent(tally, after, rules, at)
        case Signal.REDRIVE:
            # A fresh budget; but what was sent stays sent, and what the upstream once had it once had.
            sent = (tally.first_sent_at, tally.last_sent_at)
            return Tally(first_sent_at=sent[0], last_sent_at=sent[1], accepted_at=tally.accepted_at)
        case Signal.NOT_SENT if seen.order.attempt == 1:
            # Nothing of this leg ever left us, so no key can expire.
            return replace(tally, first_sent_at=None, last_sent_at=None)
        case Signal.UNSURE | Signal.NOT_SENT | Signal.TOO_LATE | Signal.UNSERVED:
            return tally
        case Signal.LATE | Signal.POISON | Signal.RELABEL:
            return tally
        case _:
            return _heard(tally, signal, at)


def _heard(tally: Tally, signal: Signal, at: datetime) -> Tally:
    heard = replace(tally, silent_count=0, fault_count=0)
    if signal in (Signal.MALFORMED, Signal.MALFORMED_AGAIN):
        return replace(heard, malformed_count=tally.malformed_count + 1)
    heard = replace(heard, malformed_count=0)
    if signal in (Signal.IN_PROGRESS, Signal.OVERDUE):
        heard = replace(
            heard, accepted_at=tally.accepted_at or at, not_found_count=0, first_not_found_at=None
        )
    if signal is Signal.ABSENT:
        heard = replace(
            heard,
            not_found_count=tally.not_found_count + 1,
            first_not_found_at=tally.first_not_found_at or at,
        )
    if signal in _ANSWERED:
        heard = replace(heard, probe_count=tally.probe_count + 1, first_answer_at=tally.first_answer_at or at)
    return heard


def _sent(tally: Tally, order: Order, rules: Rules, at: datetime) -> Tally:
    """A submission may leave us from now until its call times out; what was heard before says nothing about
    it.
    """
    timeout = timedelta(seconds=rules.contract(order.upstream).submit_timeout_s)
    return replace(
        tally,
        first_sent_at=tally.first_sent_at or at,
        last_sent_at=at + timeout,
        accepted_at=None,
        not_found_count=0,
        first_not_found_at=None,
        silent_count=0,
        fault_count=0,
    )


def _wake(
    seen: Seen,
    event: AnyEvent,
    signal: Signal,
    row: Row,
    after: Order,
    tally: Tally,
    rules: Rules,
    jitter: float,
) -> Wake | None:
    """When to look again. None leaves the timer alone, and a settled order has none."""
    if row.to.is_settled or signal in (Signal.LATE, Signal.RELABEL):
        return None
    match row.to:
        case Where.READY:
            again = after.attempt - 1
            wait = rules.policy.backoff(again, jitter) if again > 0 else timedelta(0)
            return Wake(wait, TimerClass.SUBMIT, tally)
        case Where.SUBMITTING:
            return Wake(_until_call_is_over(after, rules), TimerClass.PROBE, tally)
        case Where.PARKED:
            return Wake(_daily(rules, jitter), TimerClass.PROBE, tally)
        case _:
            wait = _until_probe(seen, signal, row, tally, rules, jitter)
    return Wake(max(wait, _pushback(event, rules)), TimerClass.PROBE, tally)


def _pushback(event: AnyEvent, rules: Rules) -> timedelta:
    """How long the upstream asked to be left alone, within reason."""
    match event:
        case Told():
            asked = event.answer.pushback_s
        case ProbeFailed():
            asked = event.pushback_s
        case _:
            asked = 0.0
    return timedelta(seconds=min(asked, rules.policy.pushback_max_s))


def _until_probe(
    seen: Seen, signal: Signal, row: Row, tally: Tally, rules: Rules, jitter: float
) -> timedelta:
    policy = rules.policy
    match signal:
        case Signal.REDRIVE:
            return timedelta(0)
        case Signal.UNSURE | Signal.TOO_LATE:
            return timedelta(seconds=policy.first_probe_s * (1 + jitter / 4))
        case _ if row.to is Where.ACCEPTED and tally.accepted_at is not None:
            return policy.pace(seen.at - tally.accepted_at, jitter)
    wait = policy.backoff(tally.probe_count, jitter)
    if signal is Signal.ABSENT:
        # Look again when one more NOT_FOUND would be proof, rather than at some later time.
        proof = rules.contract(seen.order.upstream).proves_absence_in(tally, seen.at)
        if proof is not None and timedelta(0) < proof < wait:
            return max(proof, timedelta(seconds=policy.floor_s))
    return wait


def _until_call_is_over(order: Order, rules: Rules) -> timedelta:
    contract = rules.contract(order.upstream)
    return timedelta(seconds=contract.submit_timeout_s + rules.policy.submit_margin_s)


def _daily(rules: Rules, jitter: float) -> timedelta:
    # A tenth of spread, so that what an incident parked together does not wake together for ever.
    return timedelta(seconds=rules.policy.parked_probe_s * (0.95 + jitter / 10))


def _proof(signal: Signal) -> Proof | None:
    match signal:
        case Signal.EXECUTED | Signal.EXECUTED_LAST:
            return Proof.UPSTREAM_SUCCEEDED
        case Signal.REFUSED:
            return Proof.UPSTREAM_FAILED
        case Signal.ABSENT_FINAL:
            return Proof.NOT_FOUND_FINAL
        case Signal.RESOLVE_SUCCESS | Signal.RESOLVE_FAILED:
            return Proof.OPERATOR
        case _:
            return None


def _evidence(seen: Seen, event: AnyEvent) -> Evidence:
    """The facts behind an event, as far as they are known."""
    match event:
        case Told():
            facts: Evidence = {"source": event.source.value, **_said(event.answer)}
        case Unsure() | NotSent():
            facts = {"detail": event.detail}
        case ProbeFailed():
            facts = {"fault": event.fault.value, "detail": event.detail}
        case Poisoned():
            facts = {"unfinished_count": event.unfinished_count}
        case Unserved():
            facts = {"detail": "no address of this upstream is configured here"}
        case Redriven():
            return {"reason": event.reason, "case": str(seen.case.dead_letter_id) if seen.case else ""}
        case Resolved():
            facts = {"outcome": event.outcome.value, "evidence": event.evidence, "reason": event.reason}
            return {**facts, "upstream_ref": event.upstream_ref}
        case Relabelled():
            return labels.difference(seen.order.labels, event.labels)
        case SubmitBegun():
            return {"upstream": seen.order.upstream, "key": seen.order.upstream_key}
        case _:
            assert_never(event)
    return {**facts, "upstream": seen.order.upstream}


def _said(answer: Answer) -> Evidence:
    facts: Evidence = {"verdict": answer.verdict.value}
    if answer.upstream_ref:
        facts["upstream_ref"] = answer.upstream_ref
    if answer.amount is not None:
        facts["amount_minor"] = answer.amount.amount_minor
        facts["currency_code"] = answer.amount.currency_code
    if answer.reason:
        facts["reason"] = answer.reason
    return facts


def _opens(seen: Seen, event: AnyEvent, row: Row, evidence: Evidence, tally: Tally) -> CaseOpened | None:
    if row.opens is None:
        return None
    order, case = seen.order, seen.case
    severity = _SEVERITIES.get(row.opens, SEVERITY_STUCK)
    facts: Evidence = {
        "last": evidence,
        "upstream": order.upstream,
        "key": order.upstream_key,
        "leg": order.leg,
        "attempt": order.attempt,
        "probe_count": tally.probe_count,
        "silent_count": tally.silent_count,
        "not_found_count": tally.not_found_count,
    }
    return CaseOpened(
        dead_letter_id=case.dead_letter_id if case is not None else uuid5(event.event_id, "dead_letter"),
        reason=row.opens,
        severity=min(severity, case.severity) if case is not None else severity,
        evidence=facts,
    )


def _closes(seen: Seen, event: AnyEvent, signal: Signal) -> CaseClosed:
    match event:
        case Redriven():
            return CaseClosed(outcome=Outcome.REDRIVEN, actor=event.actor, reason=event.reason)
        case Resolved():
            return CaseClosed(outcome=Outcome(event.outcome.value), actor=event.actor, reason=event.reason)
        case _:
            return CaseClosed(
                outcome=Outcome.EVIDENCE, actor=event.actor, reason=f"the upstream's word: {signal}"
            )
