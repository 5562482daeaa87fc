"""Does the code walk the table, the whole table and nothing but the table?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from chassis.errors import OrdermeshError
from chassis.money import Money
from order_svc.contract import UpstreamContract
from order_svc.domain import transition
from order_svc.events import AnyEvent, Fault, Relabelled, Resolved, Source, Told, Verdict
from order_svc.order import Basis, Change, Rewait, Seen, Stage, Status, Unchanged
from order_svc.signals import signal_of
from order_svc.states import TABLE, Signal, Where, where
from tests.unit.orders import (
    CAREFUL,
    FINAL,
    IDEMPOTENT,
    POLICY,
    SETTLE_S,
    SILENT,
    a_case,
    begun,
    failed_probe,
    not_sent,
    poisoned,
    redriven,
    relabelled,
    resolved,
    rules,
    standing,
    told,
    unserved,
    unsure,
)

LEGS = ("payments", "fulfilment")


def situations() -> Iterator[Seen]:
    """Every place x leg x attempt, with tallies, cases and instants on both sides of each question asked."""
    for at, leg, attempt in itertools.product(Where, (0, 1), (1, 2)):
        seen = standing(at, leg=leg, legs=LEGS, attempt=attempt)
        yield seen
        yield replace(seen, at=seen.at - timedelta(minutes=59, seconds=58))
        yield replace(seen, tally=replace(seen.tally, probe_count=POLICY.probes_max, malformed_count=1))
        yield replace(seen, tally=replace(seen.tally, accepted_at=seen.at - timedelta(days=3)))
        yield replace(seen, tally=replace(seen.tally, first_sent_at=seen.at - timedelta(days=3)))
        long_ago = seen.at - timedelta(seconds=SETTLE_S * 5)
        yield replace(seen, tally=replace(seen.tally, not_found_count=1, first_not_found_at=long_ago))
        yield replace(seen, order=replace(seen.order, basis=Basis.OPERATOR))
        yield replace(seen, order=replace(seen.order, upstream_ref="ref-1"))
        if leg == 1:
            yield replace(seen, order=replace(seen.order, legs=("payments", "removed")))
        for severity in (1, 2):
            if at is Where.PARKED or at.is_settled:
                yield replace(seen, case=a_case(severity))


def events(seen: Seen) -> Iterator[AnyEvent]:
    yield from (begun(), unsure(seen), not_sent(seen), poisoned(), unserved(), redriven(), relabelled())
    yield from (failed_probe(seen, fault) for fault in Fault)
    for outcome, ref, evidence in itertools.product(
        (Status.SUCCESS, Status.FAILED), ("", "ref-9"), ("", "a file")
    ):
        yield resolved(outcome, upstream_ref=ref, evidence=evidence)
    for verdict, source in itertools.product(Verdict, Source):
        for leg, attempt in itertools.product((0, 1), (1, 2)):
            yield told(seen, verdict, source=source, leg=leg, attempt=attempt)
        yield told(seen, verdict, source=source, amount=Money("EUR", 1))
        yield told(seen, verdict, source=source, upstream_ref="ref-2")
        yield told(seen, verdict, source=source, upstream_ref="", pushback_s=60.0)


def walk() -> Iterator[tuple[Seen, AnyEvent, UpstreamContract]]:
    for contract, seen in itertools.product((CAREFUL, IDEMPOTENT, SILENT, FINAL), situations()):
        for event in events(seen):
            yield seen, event, contract


def test_every_row_of_the_table_is_reached_and_nothing_outside_it_is() -> None:
    reached: set[tuple[Where, Signal]] = set()
    for seen, event, contract in walk():
        try:
            signal = signal_of(seen, event, rules(contract))
        except OrdermeshError:
            continue
        if signal is not Signal.ECHO:
            reached.add((where(seen.order), signal))
    assert reached - TABLE.keys() == set()
    assert TABLE.keys() - reached == set()


def test_whatever_happens_the_promises_about_an_order_hold() -> None:
    for seen, event, contract in walk():
        try:
            decision = transition(seen, event, rules(contract), jitter=0.5)
        except OrdermeshError:
            continue
        if isinstance(decision, Unchanged):
            continue
        if isinstance(decision, Rewait):
            assert seen.order.stage is not Stage.DONE
            assert decision.wake_in >= timedelta(0)
            continue
        assert_sound(seen, event, decision)


def assert_sound(seen: Seen, event: AnyEvent, change: Change) -> None:
    before, after = seen.order, change.after
    assert after.version == before.version + 1
    assert change.entry.event_id == event.event_id
    assert (after.stage is Stage.DONE) == (after.status is not Status.PENDING)
    assert 0 <= after.leg < len(after.legs)
    if before.status is Status.SUCCESS:
        assert after.status is Status.SUCCESS, "SUCCESS never becomes anything else"
    if after.status is Status.FAILED and before.status is not Status.FAILED:
        assert change.entry.proof is not None, "FAILED is said only on proof"
        assert after.basis is not None
        assert after.failure_reason
        assert after.leg == 0 or isinstance(event, Resolved), "what was executed is undone by a person"
    if after.status is Status.SUCCESS:
        assert after.upstream_ref
        assert after.basis is not None
        assert isinstance(event, (Told, Resolved)) or after.status is before.status
    if after.stage is Stage.DONE:
        assert change.wake is None
    elif before.stage is Stage.DONE or after.stage is not before.stage:
        assert change.wake is not None, "an order that moves has a time to wake"
    assert (after.stage is Stage.PARKED) <= (seen.case is not None or change.opens is not None)
    if after.stage is Stage.PARKED:
        assert change.closes is None
    if before.stage is Stage.PARKED and after.stage is not Stage.PARKED:
        assert change.closes is not None, "a case is closed by whatever takes the order out of the park"
    assert not (change.opens is not None and change.closes is not None)


def test_other_labels_are_put_on_at_every_place_and_move_nothing() -> None:
    for seen in situations():
        change = transition(seen, relabelled(), rules(), jitter=0.5)
        assert isinstance(change, Change)
        assert change.after == replace(seen.order, version=seen.order.version + 1, labels={"shop": "3"})
        assert (change.wake, change.opens, change.closes, change.entry.proof) == (None, None, None, None)


def test_only_other_labels_change_labels() -> None:
    for seen, event, contract in walk():
        if isinstance(event, Relabelled):
            continue
        try:
            decision = transition(seen, event, rules(contract), jitter=0.5)
        except OrdermeshError:
            continue
        assert not isinstance(decision, Change) or decision.after.labels == seen.order.labels


def test_automation_never_sends_a_leg_again_without_a_reason_from_its_contract() -> None:
    for seen, event, contract in walk():
        if contract is not SILENT or not isinstance(event, Told):
            continue
        decision = transition(seen, event, rules(contract), jitter=0.5)
        if isinstance(decision, Change) and decision.after.stage is Stage.READY:
            moved_on = decision.after.leg == seen.order.leg + 1
            assert moved_on or seen.order.stage is Stage.READY


@pytest.mark.parametrize("at", list(Where))
def test_a_place_is_a_stage_and_a_status(at: Where) -> None:
    assert where(standing(at).order) is at
