"""Are the rules right? Each claim is one event, or a short history, against `transition`."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from chassis.money import Money
from order_svc import labels
from order_svc.contract import RecoveryPolicy, Rules, UpstreamContract
from order_svc.domain import open_order, transition
from order_svc.errors import EvidenceRequired, IllegalTransition, OrderNotParked, VersionMismatch
from order_svc.events import Fault, Source, Verdict
from order_svc.order import (
    SEVERITY_MONEY,
    Basis,
    CaseReason,
    Change,
    Kind,
    Outcome,
    Proof,
    Rewait,
    Seen,
    Stage,
    Status,
    TimerClass,
    Unchanged,
)
from order_svc.states import Where, where
from tests.unit.orders import (
    CAREFUL,
    FINAL,
    IDEMPOTENT,
    POLICY,
    SETTLE_S,
    SILENT,
    a_case,
    after,
    begun,
    change_of,
    decide,
    failed_probe,
    not_sent,
    opened,
    poisoned,
    redriven,
    relabelled,
    resolved,
    rules,
    standing,
    told,
    unsure,
    wish,
)

TWO_LEGS = ("payments", "fulfilment")
NOT_FOUND, UNKNOWN, IN_PROGRESS = Verdict.NOT_FOUND, Verdict.UNKNOWN, Verdict.IN_PROGRESS
SUCCEEDED, FAILED = Verdict.SUCCEEDED, Verdict.FAILED


def later(seen: Seen, seconds: float) -> Seen:
    return replace(seen, at=seen.at + timedelta(seconds=seconds))


def test_an_opened_order_waits_for_its_call_and_carries_its_ids_time_and_bucket() -> None:
    change = open_order(wish("payments"), rules())
    assert (change.after.version, change.after.leg, change.after.attempt) == (1, 0, 1)
    assert change.after.bucket == 701
    assert change.wake is not None
    assert change.wake.timer_class is TimerClass.PROBE
    assert change.wake.wake_in == timedelta(seconds=5 + POLICY.submit_margin_s)
    assert change.wake.tally.last_sent_at == change.after.created_at + timedelta(seconds=5)


def test_success_of_the_last_leg_settles_and_of_an_earlier_one_makes_the_next_ready() -> None:
    first = change_of(opened(*TWO_LEGS), told(opened(*TWO_LEGS), SUCCEEDED, source=Source.SUBMIT))
    assert (first.after.stage, first.after.leg, first.after.attempt) == (Stage.READY, 1, 0)
    assert first.wake is not None
    assert (first.wake.timer_class, first.wake.wake_in) == (TimerClass.SUBMIT, timedelta(0))
    ready = after(opened(*TWO_LEGS), first)
    sent = after(ready, change_of(ready, begun()))
    assert (sent.order.stage, sent.order.attempt) == (Stage.SUBMITTING, 1)
    last = change_of(sent, told(sent, SUCCEEDED, upstream_ref="ref-2"))
    assert (last.after.status, last.after.upstream_ref, last.after.basis) == (
        Status.SUCCESS,
        "ref-2",
        Basis.UPSTREAM,
    )
    assert last.wake is None
    assert last.entry.proof is Proof.UPSTREAM_SUCCEEDED


@pytest.mark.parametrize("amount", [Money("EUR", 1251), Money("USD", 1250)])
def test_success_with_another_amount_or_currency_parks_with_severity_one(amount: Money) -> None:
    seen = opened()
    change = change_of(seen, told(seen, SUCCEEDED, amount=amount))
    assert change.after.stage is Stage.PARKED
    assert change.opens is not None
    assert (change.opens.reason, change.opens.severity) == (CaseReason.VERDICT_MISMATCH, SEVERITY_MONEY)
    agreed = change_of(seen, told(seen, SUCCEEDED, amount=Money("EUR", 1250)))
    assert agreed.after.status is Status.SUCCESS


def test_success_under_another_reference_than_the_upstream_gave_before_parks() -> None:
    seen = opened()
    accepted = after(seen, change_of(seen, told(seen, IN_PROGRESS, upstream_ref="ref-1")))
    change = change_of(accepted, told(accepted, SUCCEEDED, upstream_ref="ref-2"))
    assert change.after.stage is Stage.PARKED
    assert change_of(accepted, told(accepted, SUCCEEDED)).after.status is Status.SUCCESS


def test_refusal_of_the_first_leg_fails_the_order_and_of_a_later_one_asks_for_undoing() -> None:
    seen = opened()
    change = change_of(seen, told(seen, FAILED, source=Source.SUBMIT, reason="card expired"))
    assert (change.after.status, change.after.failure_reason) == (Status.FAILED, "card expired")
    assert change.entry.proof is Proof.UPSTREAM_FAILED
    second = standing(Where.SUBMITTING, leg=1, legs=TWO_LEGS)
    parked = change_of(second, told(second, FAILED))
    assert parked.after.stage is Stage.PARKED
    assert parked.opens is not None
    assert parked.opens.reason is CaseReason.UNDO_REQUIRED


def test_an_ambiguous_submission_becomes_unknown_and_is_probed_and_never_resubmitted_blind() -> None:
    seen = opened()
    for event in (
        unsure(seen),
        told(seen, UNKNOWN, source=Source.SUBMIT),
        told(seen, NOT_FOUND, source=Source.SUBMIT),
    ):
        change = change_of(seen, event)
        assert change.after.stage is Stage.UNKNOWN
        assert change.wake is not None
        assert change.wake.timer_class is TimerClass.PROBE
        assert change.wake.tally.probe_count == 0


def test_a_submission_that_never_left_us_is_ready_again_and_a_stale_claim_of_that_is_not() -> None:
    seen = opened()
    change = change_of(seen, not_sent(seen))
    assert (change.after.stage, change.after.attempt) == (Stage.READY, 1)
    ready = after(seen, change)
    again = change_of(ready, begun())
    assert again.after.attempt == 2
    assert decide(after(ready, again), not_sent(seen)) == Unchanged()


def test_only_a_ready_order_begins_a_submission() -> None:
    for at in Where:
        decision = decide(standing(at), begun())
        assert isinstance(decision, Change) is (at is Where.READY)


def absent_twice(contract: UpstreamContract, *, first_s: float, second_s: float) -> Change:
    """NOT_FOUND at two instants after the call of an order that became unknown."""
    seen = opened(contract=contract)
    seen = after(seen, change_of(seen, unsure(seen), contract))
    seen = later(seen, first_s)
    first = change_of(seen, told(seen, NOT_FOUND), contract)
    assert first.after.stage is Stage.UNKNOWN, "one NOT_FOUND is never proof"
    seen = later(after(seen, first), second_s - first_s)
    return change_of(seen, told(seen, NOT_FOUND), contract)


def test_not_found_twice_after_the_settle_window_is_proof_and_earlier_is_not() -> None:
    sent_s = CAREFUL.submit_timeout_s
    assert absent_twice(CAREFUL, first_s=10, second_s=sent_s + SETTLE_S - 1).after.stage is Stage.UNKNOWN
    close = absent_twice(CAREFUL, first_s=sent_s + SETTLE_S, second_s=sent_s + SETTLE_S * 1.4)
    assert close.after.stage is Stage.UNKNOWN
    proven = absent_twice(CAREFUL, first_s=sent_s + SETTLE_S, second_s=sent_s + SETTLE_S * 1.5)
    assert (proven.after.stage, proven.entry.kind) == (Stage.READY, Kind.RESEND_DUE)


def test_a_contract_decides_whether_absence_resends_fails_or_means_nothing() -> None:
    assert absent_twice(CAREFUL, first_s=60, second_s=500).after.stage is Stage.READY
    failed = absent_twice(FINAL, first_s=60, second_s=500)
    assert (failed.after.status, failed.after.basis) == (Status.FAILED, Basis.NOT_FOUND_FINAL)
    assert failed.entry.proof is Proof.NOT_FOUND_FINAL
    assert absent_twice(SILENT, first_s=60, second_s=500).after.stage is Stage.UNKNOWN
    no_lookup = replace(CAREFUL, lookup_by_key=False)
    assert absent_twice(no_lookup, first_s=60, second_s=500).after.stage is Stage.UNKNOWN


def test_absence_of_a_later_leg_asks_for_undoing_where_it_would_fail_the_order() -> None:
    seen = standing(Where.UNKNOWN, leg=1, legs=TWO_LEGS)
    seen = later(after(seen, change_of(seen, told(seen, NOT_FOUND), FINAL)), SETTLE_S)
    change = change_of(seen, told(seen, NOT_FOUND), FINAL)
    assert change.opens is not None
    assert change.opens.reason is CaseReason.UNDO_REQUIRED


def test_absence_proves_nothing_once_the_upstream_said_it_has_the_leg() -> None:
    seen = standing(Where.SUBMITTING)
    for verdict in (IN_PROGRESS, NOT_FOUND, NOT_FOUND):
        seen = later(after(seen, change_of(seen, told(seen, verdict))), SETTLE_S * 2)
    assert seen.order.stage is Stage.UNKNOWN


def test_absence_proves_nothing_after_the_key_expired_and_nothing_is_resent_shortly_before() -> None:
    final, careful = replace(FINAL, key_ttl_s=400), replace(CAREFUL, key_ttl_s=400)
    assert absent_twice(final, first_s=60, second_s=300).after.status is Status.FAILED
    assert absent_twice(final, first_s=60, second_s=500).after.stage is Stage.UNKNOWN
    assert absent_twice(careful, first_s=60, second_s=250).after.stage is Stage.READY
    assert absent_twice(careful, first_s=60, second_s=300).after.stage is Stage.UNKNOWN


@pytest.mark.parametrize("verdict", [NOT_FOUND, UNKNOWN])
def test_an_idempotent_upstream_is_asked_again_at_once_while_its_key_lives(verdict: Verdict) -> None:
    seen = standing(Where.UNKNOWN)
    assert change_of(seen, told(seen, verdict), IDEMPOTENT).after.stage is Stage.READY
    assert change_of(seen, told(seen, verdict), SILENT).after.stage is Stage.UNKNOWN
    assert change_of(later(seen, 86_400), told(seen, verdict), IDEMPOTENT).after.stage is Stage.UNKNOWN


def test_a_resubmission_that_waited_until_its_key_may_be_forgotten_is_probed_instead() -> None:
    seen = standing(Where.UNKNOWN)
    ready = after(seen, change_of(seen, told(seen, UNKNOWN), IDEMPOTENT))
    assert change_of(ready, begun(), IDEMPOTENT).after.stage is Stage.SUBMITTING
    late = change_of(later(ready, 86_400), begun(), IDEMPOTENT)
    assert (late.after.stage, late.after.attempt) == (Stage.UNKNOWN, ready.order.attempt)
    assert late.wake is not None
    assert late.wake.timer_class is TimerClass.PROBE


def test_a_leg_that_was_never_sent_may_wait_for_any_time() -> None:
    seen = opened(contract=IDEMPOTENT)
    ready = after(seen, change_of(seen, not_sent(seen), IDEMPOTENT))
    assert change_of(later(ready, 10 * 86_400), begun(), IDEMPOTENT).after.stage is Stage.SUBMITTING


def test_a_late_word_about_the_last_try_never_gives_up_a_ready_order() -> None:
    ready = standing(Where.READY)
    worn = replace(ready.tally, probe_count=POLICY.probes_max, accepted_at=ready.at - timedelta(days=3))
    late = replace(ready, tally=worn)
    assert change_of(late, told(late, IN_PROGRESS)).after.stage is Stage.ACCEPTED


def test_ignorance_while_the_call_is_in_flight_only_waits() -> None:
    seen = opened()
    decision = decide(later(seen, 1), told(seen, NOT_FOUND), IDEMPOTENT)
    assert decision == Rewait(timedelta(seconds=4 + POLICY.submit_margin_s))


def test_in_progress_spends_no_budget_before_the_pending_deadline_and_does_after() -> None:
    contract = replace(CAREFUL, pending_deadline_s=1000)
    seen = opened(contract=contract)
    for _ in range(10):
        seen = later(after(seen, change_of(seen, told(seen, IN_PROGRESS), contract)), 10)
    assert (seen.order.stage, seen.tally.probe_count) == (Stage.ACCEPTED, 0)
    seen = later(seen, 1000)
    for _ in range(POLICY.probes_max - 1):
        seen = after(seen, change_of(seen, told(seen, IN_PROGRESS), contract))
    assert (seen.order.stage, seen.tally.probe_count) == (Stage.ACCEPTED, POLICY.probes_max - 1)
    assert change_of(seen, told(seen, IN_PROGRESS), contract).after.stage is Stage.PARKED


def test_pushback_is_honoured_up_to_a_bound() -> None:
    seen = opened()
    change = change_of(seen, told(seen, IN_PROGRESS, pushback_s=120.0))
    assert change.wake is not None
    assert change.wake.wake_in == timedelta(seconds=120)
    endless = change_of(seen, told(seen, IN_PROGRESS, pushback_s=1e9))
    assert endless.wake is not None
    assert endless.wake.wake_in == timedelta(seconds=POLICY.pushback_max_s)


def test_answers_that_settle_nothing_spend_the_budget_and_the_case_says_what_was_seen() -> None:
    seen = standing(Where.UNKNOWN)
    for count in range(1, POLICY.probes_max):
        change = change_of(seen, told(seen, UNKNOWN))
        assert change.after.stage is Stage.UNKNOWN
        seen = after(seen, change)
        assert seen.tally.probe_count == count
    parked = change_of(seen, told(seen, UNKNOWN))
    assert parked.after.stage is Stage.PARKED
    assert parked.opens is not None
    assert parked.opens.reason is CaseReason.PROBES_EXHAUSTED
    assert parked.opens.evidence["probe_count"] == POLICY.probes_max
    assert parked.wake is not None
    assert parked.wake.wake_in > timedelta(hours=20)


def test_a_day_of_answers_that_settle_nothing_spends_the_budget_too() -> None:
    policy = RecoveryPolicy()
    seen = standing(Where.UNKNOWN)
    change = transition(seen, told(seen, UNKNOWN), rules(SILENT, policy), jitter=0.5)
    assert isinstance(change, Change)
    seen = later(after(seen, change), policy.probing_max_s)
    spent = transition(seen, told(seen, UNKNOWN), rules(SILENT, policy), jitter=0.5)
    assert isinstance(spent, Change)
    assert spent.after.stage is Stage.PARKED


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.OURS])
def test_no_outage_and_no_fault_of_ours_spends_the_budget_or_touches_the_order(fault: Fault) -> None:
    seen = standing(Where.UNKNOWN)
    for _ in range(1000):
        decision = decide(later(seen, 1_000_000), failed_probe(seen, fault))
        assert isinstance(decision, Rewait)
        tally = seen.tally
        silent, ours = tally.silent_count + decision.silent, tally.fault_count + decision.fault
        seen = replace(seen, tally=replace(tally, silent_count=silent, fault_count=ours))
        assert timedelta(seconds=1) <= decision.wake_in <= timedelta(seconds=POLICY.cap_s)


def test_backoff_doubles_to_its_cap_between_floor_and_full_jitter() -> None:
    policy = RecoveryPolicy()
    assert [policy.backoff(n, 0.0).total_seconds() for n in (0, 5, 50)] == [1.0, 1.0, 1.0]
    highest = [policy.backoff(n, 1 - 1e-12).total_seconds() for n in (0, 1, 2, 8, 9, 500)]
    assert highest == pytest.approx([2, 4, 8, 512, 900, 900])


def test_two_malformed_answers_park_and_a_sensible_one_between_them_does_not() -> None:
    seen = standing(Where.UNKNOWN)
    once = after(seen, change_of(seen, failed_probe(seen, Fault.MALFORMED)))
    assert once.order.stage is Stage.UNKNOWN
    twice = change_of(once, failed_probe(once, Fault.MALFORMED))
    assert twice.opens is not None
    assert twice.opens.reason is CaseReason.MALFORMED_ANSWERS
    sensible = after(once, change_of(once, told(once, UNKNOWN)))
    assert change_of(sensible, failed_probe(sensible, Fault.MALFORMED)).after.stage is Stage.UNKNOWN
    nameless = told(once, SUCCEEDED, upstream_ref="")
    assert change_of(once, nameless).after.stage is Stage.PARKED


def test_poison_parks_a_working_order_and_lets_a_parked_one_wait_for_tomorrow() -> None:
    assert change_of(standing(Where.SUBMITTING), poisoned()).after.stage is Stage.PARKED
    assert isinstance(decide(standing(Where.PARKED), poisoned()), Rewait)
    assert decide(standing(Where.SUCCESS), poisoned()) == Unchanged()


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_verdict_about_an_earlier_submission_is_journaled_and_moves_nothing(verdict: Verdict) -> None:
    seen = standing(Where.UNKNOWN, attempt=2)
    change = change_of(seen, told(seen, verdict, attempt=1))
    assert replace(change.after, version=seen.order.version) == seen.order
    assert (change.entry.kind, change.entry.attempt, change.wake) == (Kind.LATE_VERDICT, 1, None)
    second = standing(Where.ACCEPTED, leg=1, legs=TWO_LEGS)
    assert change_of(second, told(second, verdict, leg=0)).entry.kind is Kind.LATE_VERDICT


def test_a_ready_resubmission_still_listens_to_the_one_before() -> None:
    seen = standing(Where.READY)
    assert change_of(seen, told(seen, SUCCEEDED)).after.status is Status.SUCCESS
    assert change_of(seen, told(seen, FAILED)).after.status is Status.FAILED
    assert change_of(seen, told(seen, IN_PROGRESS)).after.stage is Stage.ACCEPTED
    assert decide(seen, told(seen, NOT_FOUND)) == Unchanged()


def test_late_success_reopens_a_failed_order_when_nothing_was_undone() -> None:
    seen = standing(Where.FAILED)
    change = change_of(replace(seen, order=replace(seen.order, attempt=2)), told(seen, SUCCEEDED))
    assert (change.after.status, change.entry.kind) == (Status.SUCCESS, Kind.REOPENED)
    more = standing(Where.FAILED, legs=TWO_LEGS)
    reopened = change_of(more, told(more, SUCCEEDED))
    assert (reopened.after.stage, reopened.after.status, reopened.after.leg) == (
        Stage.READY,
        Status.PENDING,
        1,
    )
    assert reopened.after.basis is None


def test_late_success_on_a_persons_failed_or_with_another_amount_opens_a_severe_case() -> None:
    seen = standing(Where.FAILED)
    by_hand = replace(seen, order=replace(seen.order, basis=Basis.OPERATOR))
    for situation, event in (
        (by_hand, told(seen, SUCCEEDED)),
        (seen, told(seen, SUCCEEDED, amount=Money("EUR", 1))),
    ):
        change = change_of(situation, event)
        assert change.after.status is Status.FAILED
        assert change.opens is not None
        assert change.opens.severity == SEVERITY_MONEY


@pytest.mark.parametrize(
    ("verdict", "answer"),
    [(FAILED, {}), (SUCCEEDED, {"upstream_ref": "ref-2"}), (SUCCEEDED, {"amount": Money("EUR", 1)})],
)
def test_evidence_against_a_success_opens_a_severe_case_and_leaves_the_order(
    verdict: Verdict, answer: dict[str, object]
) -> None:
    seen = standing(Where.SUCCESS)
    change = change_of(seen, told(seen, verdict, **answer))  # type: ignore[arg-type]
    assert (change.after.status, change.entry.kind) == (Status.SUCCESS, Kind.CASE_OPENED)
    assert change.opens is not None
    assert change.opens.severity == SEVERITY_MONEY


def test_what_a_settled_order_knows_already_changes_nothing() -> None:
    success, failed = standing(Where.SUCCESS), standing(Where.FAILED)
    assert decide(success, told(success, SUCCEEDED)) == Unchanged()
    assert decide(failed, told(failed, FAILED)) == Unchanged()
    assert decide(success, unsure(success)) == Unchanged()
    assert decide(success, failed_probe(success, Fault.SILENT)) == Unchanged()


def test_evidence_settles_a_parked_order_and_closes_its_case() -> None:
    parked = standing(Where.PARKED)
    for verdict, status in ((SUCCEEDED, Status.SUCCESS), (FAILED, Status.FAILED)):
        change = change_of(parked, told(parked, verdict))
        assert change.after.status is status
        assert change.closes is not None
        assert change.closes.outcome is Outcome.EVIDENCE
    for verdict in (IN_PROGRESS, NOT_FOUND, UNKNOWN):
        assert change_of(parked, told(parked, verdict)).after.stage is Stage.PARKED


def test_a_case_about_money_is_not_settled_by_the_upstream_that_caused_it() -> None:
    parked = replace(standing(Where.PARKED), case=a_case(severity=SEVERITY_MONEY))
    for verdict in (SUCCEEDED, FAILED):
        change = change_of(parked, told(parked, verdict))
        assert (change.after.stage, change.closes) == (Stage.PARKED, None)


def test_automation_never_resubmits_a_parked_order() -> None:
    for contract in (CAREFUL, IDEMPOTENT):
        seen = standing(Where.PARKED)
        for verdict in (NOT_FOUND, UNKNOWN, NOT_FOUND) * 20:
            seen = later(after(seen, change_of(seen, told(seen, verdict), contract)), 3600)
        assert seen.order.stage is Stage.PARKED


def test_redrive_probes_first_with_a_fresh_budget_and_only_a_parked_order() -> None:
    seen = standing(Where.PARKED)
    worn = replace(seen, tally=replace(seen.tally, probe_count=99, silent_count=9, not_found_count=1))
    change = change_of(worn, redriven())
    assert change.after.stage is Stage.UNKNOWN
    assert change.wake is not None
    assert (change.wake.wake_in, change.wake.timer_class) == (timedelta(0), TimerClass.PROBE)
    assert (change.wake.tally.probe_count, change.wake.tally.not_found_count) == (0, 0)
    assert change.wake.tally.last_sent_at == seen.tally.last_sent_at
    assert change.closes is not None
    assert (change.closes.outcome, change.closes.actor) == (Outcome.REDRIVEN, "mira")
    for at in set(Where) - {Where.PARKED}:
        with pytest.raises(OrderNotParked):
            decide(standing(at), redriven())


def test_a_person_settles_a_parked_order_with_evidence_and_only_then() -> None:
    parked = standing(Where.PARKED)
    success = change_of(parked, resolved(Status.SUCCESS))
    assert (success.after.status, success.after.basis, success.after.upstream_ref) == (
        Status.SUCCESS,
        Basis.OPERATOR,
        "ref-9",
    )
    failed = change_of(parked, resolved(Status.FAILED, upstream_ref=""))
    assert (failed.after.status, failed.entry.proof) == (Status.FAILED, Proof.OPERATOR)
    with pytest.raises(EvidenceRequired):
        decide(parked, resolved(Status.FAILED, evidence=" "))
    with pytest.raises(EvidenceRequired):
        decide(parked, resolved(Status.SUCCESS, upstream_ref=""))
    for at in set(Where) - {Where.PARKED}:
        with pytest.raises(OrderNotParked):
            decide(standing(at), resolved(Status.FAILED))


def test_a_person_closes_the_case_of_a_settled_order_but_never_turns_success_into_failure() -> None:
    success = replace(standing(Where.SUCCESS), case=a_case(severity=SEVERITY_MONEY))
    closed = change_of(success, resolved(Status.SUCCESS, upstream_ref=""))
    assert (closed.after.status, closed.after.upstream_ref) == (Status.SUCCESS, "ref-1")
    assert closed.closes is not None
    with pytest.raises(IllegalTransition):
        decide(success, resolved(Status.FAILED))
    failed = replace(standing(Where.FAILED), case=a_case(severity=SEVERITY_MONEY))
    assert change_of(failed, resolved(Status.SUCCESS)).after.status is Status.SUCCESS
    assert change_of(failed, resolved(Status.FAILED)).after.status is Status.FAILED


def test_a_second_resubmission_waits_longer_than_the_first() -> None:
    first, second = standing(Where.UNKNOWN, attempt=1), standing(Where.UNKNOWN, attempt=3)
    at_once = change_of(first, told(first, NOT_FOUND), IDEMPOTENT)
    assert at_once.wake is not None
    assert at_once.wake.wake_in == timedelta(0)
    waits = change_of(second, told(second, NOT_FOUND), IDEMPOTENT)
    assert waits.wake is not None
    assert waits.wake.wake_in > timedelta(0)


def test_an_upstream_that_loses_every_submission_parks_in_the_end() -> None:
    for contract in (CAREFUL, IDEMPOTENT):
        seen = standing(Where.UNKNOWN)
        for _ in range(100):
            event = begun() if seen.order.stage is Stage.READY else told(seen, NOT_FOUND)
            seen = later(after(seen, change_of(seen, event, contract)), SETTLE_S * 2)
            if seen.order.stage is Stage.PARKED:
                break
        assert where(seen.order) is Where.PARKED


def test_labels_are_changed_on_the_version_that_was_seen_or_on_any() -> None:
    seen = standing(Where.SUCCESS)
    for expected in (0, seen.order.version):
        change = change_of(seen, relabelled({}, expected_version=expected))
        assert change.after.labels == {}
        assert change.entry.evidence["removed"] == ["cart"]
    with pytest.raises(VersionMismatch) as late:
        decide(seen, relabelled(expected_version=seen.order.version + 1))
    assert late.value.facts["version"] == str(seen.order.version)


def test_what_changed_about_labels_is_evidence_and_always_fits() -> None:
    before = {"cart": "7", "shop": "3"}
    facts = labels.difference(before, {"cart": "8", "gift": ""})
    assert (facts["put"], facts["removed"]) == ({"cart": "8", "gift": ""}, ["shop"])
    assert facts["digest"] == labels.digest({"gift": "", "cart": "8"})
    for most in ({"k": "x" * 4095}, {f"{n:02x}": '"' * 14 for n in range(256)}):
        counted = labels.difference(before, labels.read(most))
        assert (counted["put_count"], counted["removed_count"]) == (len(most), 2)
        assert len(json.dumps(labels.difference(most, {}), ensure_ascii=False).encode()) <= 4096


def test_an_upstream_that_is_no_longer_configured_proves_nothing() -> None:
    seen = standing(Where.UNKNOWN)
    for _ in range(POLICY.probes_max - 1):
        change = transition(seen, told(seen, NOT_FOUND), Rules({}, POLICY), jitter=0.5)
        assert isinstance(change, Change)
        seen = later(after(seen, change), 3600)
    assert seen.order.stage is Stage.UNKNOWN
