"""Reads what an event means for the order it meets. Pure; consults the contract, the budget and the instant
given.

The order of the questions is the policy: what is stale moves nothing, proof comes before budget, budget
before another try.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, assert_never

from order_svc.errors import EvidenceRequired, IllegalTransition, OrderNotParked, VersionMismatch
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
from order_svc.order import SEVERITY_MONEY, Basis, Order, Seen, Stage, Status
from order_svc.states import Signal

if TYPE_CHECKING:
    from order_svc.contract import Rules


def signal_of(seen: Seen, event: AnyEvent, rules: Rules) -> Signal:
    """What one event means for one order.

    Raises: OrderNotParked, EvidenceRequired, IllegalTransition for what a person may not do; VersionMismatch
    for what was decided on another version.
    """
    match event:
        case SubmitBegun():
            return _begun(seen, rules)
        case Told():
            return _told(seen, event, rules)
        case Unsure():
            return _unsure(seen.order, event)
        case NotSent():
            waits = seen.order.stage in (Stage.SUBMITTING, Stage.UNKNOWN)
            return Signal.NOT_SENT if waits and _is_current(seen.order, event) else Signal.ECHO
        case ProbeFailed():
            return _probe_failed(seen, event, rules)
        case Poisoned():
            return Signal.ECHO if seen.order.stage in (Stage.READY, Stage.DONE) else Signal.POISON
        case Unserved():
            waits = seen.order.stage is Stage.READY and seen.order.upstream not in rules.contracts
            return Signal.UNSERVED if waits else Signal.ECHO
        case Redriven():
            if seen.order.stage is not Stage.PARKED:
                raise OrderNotParked(order_id=seen.order.order_id, stage=seen.order.stage)
            return Signal.REDRIVE
        case Resolved():
            return _resolved(seen, event)
        case Relabelled():
            if event.expected_version not in (0, seen.order.version):
                raise VersionMismatch(
                    order_id=seen.order.order_id, version=seen.order.version, expected=event.expected_version
                )
            return Signal.RELABEL
        case _:
            assert_never(event)


def _begun(seen: Seen, rules: Rules) -> Signal:
    """Asked again here, since a READY order may have waited for hours: for a process, a slot or a hold."""
    if seen.order.stage is not Stage.READY:
        return Signal.ECHO
    lives = rules.contract(seen.order.upstream).key_lives(seen.tally, seen.at)
    return Signal.BEGIN if lives else Signal.TOO_LATE


def _is_current(order: Order, event: Told | Unsure | NotSent | ProbeFailed) -> bool:
    return (event.leg, event.attempt) == (order.leg, order.attempt)


def _unsure(order: Order, event: Unsure) -> Signal:
    return Signal.UNSURE if order.stage is Stage.SUBMITTING and _is_current(order, event) else Signal.ECHO


def _told(seen: Seen, event: Told, rules: Rules) -> Signal:
    order = seen.order
    if order.stage is Stage.DONE:
        return _told_settled(seen, event)
    if not _is_current(order, event):
        return Signal.LATE
    match event.answer.verdict:
        case Verdict.SUCCEEDED:
            return _succeeded(seen, event, rules)
        case Verdict.FAILED:
            return _denied(seen, Signal.REFUSED)
        case Verdict.IN_PROGRESS:
            return _in_progress(seen, rules)
        case Verdict.NOT_FOUND | Verdict.UNKNOWN:
            return _ignorant(seen, event, rules)
        case _:
            assert_never(event.answer.verdict)


def _told_settled(seen: Seen, event: Told) -> Signal:
    """A word about a settled order: it may reopen a FAILED one, and never moves a SUCCESS."""
    order, answer = seen.order, event.answer
    if event.leg != order.leg or answer.verdict not in (Verdict.SUCCEEDED, Verdict.FAILED):
        return Signal.LATE
    if order.status is Status.SUCCESS:
        agrees = answer.verdict is Verdict.SUCCEEDED and answer.upstream_ref == order.upstream_ref
        return Signal.ECHO if agrees and _matches(order, answer) else Signal.CONTRADICTED
    if answer.verdict is Verdict.FAILED:
        return Signal.ECHO
    # Only a person may have undone by hand what was executed; an open case is a person's already.
    clear = order.basis is not Basis.OPERATOR and seen.case is None
    return (
        _executed(order) if clear and answer.upstream_ref and _matches(order, answer) else Signal.CONTRADICTED
    )


def _succeeded(seen: Seen, event: Told, rules: Rules) -> Signal:
    if not event.answer.upstream_ref:
        return Signal.UNSURE if _answers_submit(seen, event) else _malformed(seen, rules)
    known = seen.order.upstream_ref
    if not _matches(seen.order, event.answer) or known not in ("", event.answer.upstream_ref):
        return Signal.MISMATCH
    return Signal.DISPUTED if _money_in_doubt(seen) else _executed(seen.order)


def _executed(order: Order) -> Signal:
    return Signal.EXECUTED_LAST if order.is_last_leg else Signal.EXECUTED


def _matches(order: Order, answer: Answer) -> bool:
    """Whether what was executed is what was asked for, as far as the upstream says."""
    return answer.amount is None or answer.amount == order.amount


def _denied(seen: Seen, first: Signal) -> Signal:
    """Proof that the current leg was not and will not be executed."""
    if _money_in_doubt(seen):
        return Signal.DISPUTED
    return first if seen.order.leg == 0 else Signal.REFUSED_LATER


def _money_in_doubt(seen: Seen) -> bool:
    """Whether the upstream contradicted itself or us before; then its next word settles nothing either."""
    return seen.case is not None and seen.case.severity == SEVERITY_MONEY


def _in_progress(seen: Seen, rules: Rules) -> Signal:
    since, contract = seen.tally.accepted_at, rules.contract(seen.order.upstream)
    if since is None or seen.at - since < timedelta(seconds=contract.pending_deadline_s):
        return Signal.IN_PROGRESS
    return _counted(seen, rules, Signal.OVERDUE)


def _ignorant(seen: Seen, event: Told, rules: Rules) -> Signal:
    """NOT_FOUND or UNKNOWN about the current submission."""
    order, tally = seen.order, seen.tally
    if event.source is Source.SUBMIT:
        return Signal.UNSURE if order.stage is Stage.SUBMITTING else Signal.ECHO
    if order.stage is Stage.READY:
        return Signal.ECHO
    if order.stage is Stage.SUBMITTING and tally.last_sent_at is not None and seen.at < tally.last_sent_at:
        return Signal.TOO_EARLY
    absent = event.answer.verdict is Verdict.NOT_FOUND
    if tally.first_sent_at is None and tally.accepted_at is None:
        # It was parked before its first submission: nothing of this leg ever left us.
        return _another_try(seen, rules, Signal.ABSENT if absent else Signal.NO_WORD)
    contract = rules.contract(order.upstream)
    if absent and tally.not_found_count >= 1:
        left = contract.proves_absence_in(tally, seen.at)
        if left is not None and left <= timedelta(0):
            if not contract.resubmit_on_not_found:
                return _denied(seen, Signal.ABSENT_FINAL)
            if contract.key_lives(tally, seen.at):
                return _another_try(seen, rules, Signal.ABSENT)
    if (
        contract.idempotent_submit
        and contract.key_lives(tally, seen.at)
        and order.stage is not Stage.ACCEPTED
    ):
        return _another_try(seen, rules, Signal.ABSENT if absent else Signal.NO_WORD)
    return _counted(seen, rules, Signal.ABSENT if absent else Signal.NO_WORD)


def _another_try(seen: Seen, rules: Rules, otherwise: Signal) -> Signal:
    """A resubmission is safe; the budget bounds how many there are, and a parked order waits for a person."""
    counted = _counted(seen, rules, otherwise)
    return counted if counted is Signal.SPENT or seen.order.stage is Stage.PARKED else Signal.RESEND


def _counted(seen: Seen, rules: Rules, signal: Signal) -> Signal:
    # A parked order is a person's already, and a READY one is not given up by a late word about its last try.
    waits = seen.order.stage not in (Stage.PARKED, Stage.READY)
    return Signal.SPENT if waits and rules.policy.spent(seen.tally, seen.at) else signal


def _answers_submit(seen: Seen, event: Told) -> bool:
    return event.source is Source.SUBMIT and seen.order.stage is Stage.SUBMITTING


def _probe_failed(seen: Seen, event: ProbeFailed, rules: Rules) -> Signal:
    if seen.order.stage in (Stage.READY, Stage.DONE) or not _is_current(seen.order, event):
        return Signal.ECHO
    match event.fault:
        case Fault.SILENT:
            return Signal.SILENT
        case Fault.OURS:
            return Signal.OUR_FAULT
        case Fault.NOT_MADE:
            return Signal.NOT_PROBED
        case Fault.MALFORMED:
            return _malformed(seen, rules)
        case _:
            assert_never(event.fault)


def _malformed(seen: Seen, rules: Rules) -> Signal:
    if seen.order.stage is Stage.READY:
        return Signal.ECHO
    last = seen.tally.malformed_count + 1 >= rules.policy.malformed_max
    return Signal.MALFORMED_AGAIN if last and seen.order.stage is not Stage.PARKED else Signal.MALFORMED


def _resolved(seen: Seen, event: Resolved) -> Signal:
    order, says_success = seen.order, event.outcome is Status.SUCCESS
    if seen.case is None:
        raise OrderNotParked(order_id=order.order_id, stage=order.stage)
    if order.status is Status.SUCCESS and not says_success:
        raise IllegalTransition(order_id=order.order_id, status=order.status, outcome=event.outcome)
    has_ref = bool(event.upstream_ref) or order.status is Status.SUCCESS
    if not event.evidence.strip() or (says_success and not has_ref):
        raise EvidenceRequired(order_id=order.order_id, outcome=event.outcome)
    return Signal.RESOLVE_SUCCESS if says_success else Signal.RESOLVE_FAILED
