"""What became of a seeded order: one of a few lives, lived through the rules of order_svc by a clock of its
own. Pure.

Nothing here decides what an event does; `order_svc.domain` does. A life says what happened and when, keeps
what the rules answer, and notes what the upstreams really did, so that the orders agree with the ledgers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from chassis.money import Money
from ops.seed.words import REASONS
from order_svc.contract import LOCAL_POLICY, Rules
from order_svc.domain import open_order, transition
from order_svc.events import (
    Answer,
    AnyEvent,
    Fault,
    ProbeFailed,
    Redriven,
    Relabelled,
    Resolved,
    Source,
    SubmitBegun,
    Told,
    Unsure,
    Verdict,
)
from order_svc.order import Case, CaseClosed, CaseOpened, Change, Outcome, Rewait, Seen, Stage, Status
from order_svc.settings import LOCAL_CONTRACTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from ops.seed.drafts import Draft
    from order_svc.order import Order, Tally, TimerClass

RULES = Rules({name: promised.contract() for name, promised in LOCAL_CONTRACTS.items()}, LOCAL_POLICY)
"""The rules of the local stack, whose upstreams all orders were sent to."""
ORDER_SVC, RECOVERY_SVC, PERSON = "order_svc", "recovery_svc", "mira"
PROBES_MAX = 100
"""An order that is still not parked after so many is not meant to be."""
HANGING_FROM, HANGING_TO = timedelta(minutes=2), timedelta(minutes=10)
"""When an order that hangs is looked at next: late enough to be seen hanging, soon enough to be settled by
whoever plays with a seeded stack.
"""
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Executed:
    """One row of an upstream's ledger. verdict: SUCCEEDED or FAILED; None for what it will still execute.

    at: when it was executed or refused, or when it will be.
    """

    upstream: str
    key: str
    order_id: str
    leg: int
    attempt: int
    user_id: str
    amount: Money
    verdict: Verdict | None
    upstream_ref: str
    at: datetime


@dataclass(frozen=True, slots=True)
class CaseFile:
    """A dead letter, open or closed."""

    opened: CaseOpened
    opened_at: datetime
    opened_version: int
    closed: CaseClosed | None = None
    closed_at: datetime | None = None
    close_event_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Timer:
    """When an unsettled order is looked at next, and what is known about its leg."""

    timer_class: TimerClass
    due_at: datetime
    tally: Tally


@dataclass(slots=True)
class Life:
    """An order and everything that happened to it, up to the last event told.

    journal:    each change and when it happened; the orders in them have no times of their own.
    settled_at: None while it is not.
    """

    draft: Draft
    seen: Seen
    journal: list[tuple[Change, datetime]]
    timer: Timer | None
    settled_at: datetime | None = None
    cases: list[CaseFile] = field(default_factory=list)
    executed: list[Executed] = field(default_factory=list)

    @classmethod
    def begun(cls, draft: Draft) -> Life:
        """An order that was just opened."""
        change = open_order(draft.wish, RULES)
        assert change.wake is not None, "a new order has a timer"
        at = change.after.created_at
        timer = Timer(change.wake.timer_class, at + change.wake.wake_in, change.wake.tally)
        return cls(draft, Seen(change.after, change.wake.tally, None, at), [(change, at)], timer)

    @property
    def order(self) -> Order:
        """The order as it stands."""
        return self.seen.order

    @property
    def at(self) -> datetime:
        """When the last thing happened."""
        return self.seen.at

    def event_id(self) -> UUID:
        """A new name for an event."""
        return UUID(int=self.draft.draw.getrandbits(128), version=4)

    def pass_time(self, least_s: float, most_s: float) -> None:
        """Let some time pass."""
        passed = timedelta(seconds=round(self.draft.draw.uniform(least_s, most_s), 3))
        self.moves_to(self.at + passed)

    def moves_to(self, at: datetime) -> None:
        """Go on at another time."""
        seen = self.seen
        self.seen = Seen(seen.order, seen.tally, seen.case, at)

    def happens(self, event: AnyEvent) -> None:
        """Let the rules decide on an event, and write down what they answer."""
        decision = transition(self.seen, event, RULES, jitter=self.draft.draw.random())
        if isinstance(decision, Change):
            self._changed(decision, event)
        elif isinstance(decision, Rewait):
            assert self.timer is not None, "only an order with a timer waits"
            known = self.timer.tally
            tally = replace(
                known,
                silent_count=known.silent_count + decision.silent,
                fault_count=known.fault_count + decision.fault,
            )
            self.timer = Timer(self.timer.timer_class, self.at + decision.wake_in, tally)
            self.seen = replace(self.seen, tally=tally)

    def _changed(self, change: Change, event: AnyEvent) -> None:
        """What `apply_change` does in SQL."""
        order = change.after
        self.journal.append((change, self.at))
        if order.stage is not Stage.DONE:
            self.settled_at = None
        elif order.status is not self.order.status:
            self.settled_at = self.at
        if order.stage is Stage.DONE:
            self.timer = None
        elif change.wake is not None:
            self.timer = Timer(change.wake.timer_class, self.at + change.wake.wake_in, change.wake.tally)
        case = self._case(change, event, order.version)
        tally = self.timer.tally if self.timer is not None else self.seen.tally
        self.seen = Seen(order, tally, case, self.at)

    def _case(self, change: Change, event: AnyEvent, version: int) -> Case | None:
        case, opens = self.seen.case, change.opens
        if opens is not None:
            if case is None:
                self.cases.append(CaseFile(opens, self.at, version))
            else:
                self.cases[-1] = replace(self.cases[-1], opened=opens)
            return Case(dead_letter_id=opens.dead_letter_id, reason=opens.reason, severity=opens.severity)
        if change.closes is None:
            return case
        self.cases[-1] = replace(
            self.cases[-1], closed=change.closes, closed_at=self.at, close_event_id=event.event_id
        )
        return None

    # What upstreams and people do.

    def executes(self, verdict: Verdict | None = Verdict.SUCCEEDED, *, amount: Money | None = None) -> str:
        """The upstream of the current leg executes it, refuses it, or will; returns its reference."""
        order = self.order
        digest = hashlib.sha256(order.upstream_key.encode()).hexdigest()[:16]
        ref = f"{order.upstream}-{digest}-1"
        self.executed.append(
            Executed(
                upstream=order.upstream,
                key=order.upstream_key,
                order_id=str(order.order_id),
                leg=order.leg,
                attempt=order.attempt,
                user_id=order.user_id,
                amount=amount or order.amount,
                verdict=verdict,
                upstream_ref=ref,
                at=self.at,
            )
        )
        return ref

    def is_told(self, verdict: Verdict, *, source: Source = Source.PROBE, **answer: object) -> None:
        """The upstream of the current leg gives its word."""
        if verdict is Verdict.SUCCEEDED:
            answer.setdefault("amount", self.order.amount)
        self.happens(
            Told(
                event_id=self.event_id(),
                actor=ORDER_SVC if source is Source.SUBMIT else RECOVERY_SVC,
                leg=self.order.leg,
                attempt=self.order.attempt,
                answer=Answer(verdict=verdict, **answer),  # type: ignore[arg-type]
                source=source,
            )
        )

    def is_unsure(self) -> None:
        """A submission ends without a word."""
        at = {"leg": self.order.leg, "attempt": self.order.attempt}
        self.happens(
            Unsure(event_id=self.event_id(), actor=ORDER_SVC, detail="DEADLINE_EXCEEDED", **at)  # type: ignore[arg-type]
        )

    def begins(self) -> None:
        """The driver submits an order that is READY."""
        self.happens(SubmitBegun(event_id=self.event_id(), actor=ORDER_SVC))

    def is_silent(self, pushback: timedelta = timedelta(0)) -> None:
        """A probe brings no verdict, and perhaps the wish to be left alone for a while."""
        self.happens(
            ProbeFailed(
                event_id=self.event_id(),
                actor=RECOVERY_SVC,
                leg=self.order.leg,
                attempt=self.order.attempt,
                fault=Fault.SILENT,
                detail="UNAVAILABLE",
                pushback_s=pushback.total_seconds(),
            )
        )


# The lives. Each takes an order that was just opened.


def succeeds(life: Life) -> None:
    """Every leg is executed when it is submitted."""
    while life.order.stage is not Stage.DONE:
        if life.order.stage is Stage.READY:
            life.pass_time(0.01, 0.5)
            life.begins()
        life.pass_time(0.02, 3.0)
        ref = life.executes()
        life.is_told(Verdict.SUCCEEDED, source=Source.SUBMIT, upstream_ref=ref)


def is_refused(life: Life) -> None:
    """The upstream of the first leg says no."""
    life.pass_time(0.02, 3.0)
    ref = life.executes(Verdict.FAILED)
    life.is_told(
        Verdict.FAILED, source=Source.SUBMIT, upstream_ref=ref, reason=life.draft.draw.choice(REASONS)
    )


def is_found_out(life: Life) -> None:
    """The reply of the first leg is lost, and a probe finds what was executed."""
    life.pass_time(3.0, 3.5)
    ref = life.executes()
    life.is_unsure()
    life.pass_time(1.0, 600.0)
    life.is_told(Verdict.SUCCEEDED, upstream_ref=ref)
    if life.order.stage is not Stage.DONE:
        succeeds(life)


def is_resent(life: Life) -> None:
    """The first submission never arrives; that is proven, and the second one does."""
    life.pass_time(3.0, 3.5)
    life.is_unsure()
    while life.order.stage is Stage.UNKNOWN and len(life.journal) < PROBES_MAX:
        life.pass_time(4.0, 30.0)
        life.is_told(Verdict.NOT_FOUND)
    succeeds(life)


def takes_long(life: Life) -> None:
    """The upstream accepts the order, and decides hours later."""
    life.pass_time(0.02, 3.0)
    life.is_told(Verdict.IN_PROGRESS, source=Source.SUBMIT)
    life.pass_time(1.0, 20.0)
    life.is_told(Verdict.IN_PROGRESS)
    life.pass_time(3600.0, 80_000.0)
    ref = life.executes()
    life.is_told(Verdict.SUCCEEDED, upstream_ref=ref)
    if life.order.stage is not Stage.DONE:
        succeeds(life)


def is_relabelled(life: Life) -> None:
    """Settled, and given other labels days later."""
    succeeds(life)
    life.pass_time(60.0, 4 * DAY.total_seconds())
    tracked = {**life.order.labels, "parcel": f"P{life.draft.draw.randrange(10**8):08}"}
    life.happens(
        Relabelled(event_id=life.event_id(), actor=life.order.user_id, labels=tracked, expected_version=0)
    )


def is_parked(life: Life) -> None:
    """Nobody at the upstream knows, until the budget is spent; what really happened is drawn."""
    life.pass_time(3.0, 3.5)
    life.is_unsure()
    fate = life.draft.draw.random()
    if fate < 0.8:
        life.executes(Verdict.SUCCEEDED if fate < 0.6 else Verdict.FAILED)
    while life.order.stage is not Stage.PARKED and len(life.journal) < PROBES_MAX:
        life.pass_time(0.5, 5.0)
        life.is_told(Verdict.UNKNOWN)


def is_mismatched(life: Life) -> None:
    """The upstream executes another amount than it was asked for."""
    life.pass_time(0.02, 3.0)
    wrong = Money(life.order.amount.currency_code, life.order.amount.amount_minor + 1)
    ref = life.executes(amount=wrong)
    life.is_told(Verdict.SUCCEEDED, source=Source.SUBMIT, upstream_ref=ref, amount=wrong)


def is_resolved(life: Life) -> None:
    """Parked, and settled by a person after some days."""
    is_parked(life)
    life.pass_time(3600.0, 5 * DAY.total_seconds())
    outcome = life.draft.draw.choice((Status.SUCCESS, Status.FAILED))
    life.happens(
        Resolved(
            event_id=life.event_id(),
            actor=PERSON,
            outcome=outcome,
            evidence="the upstream's statement of the day",
            reason="asked them",
            upstream_ref=f"statement-{life.order.order_id}" if outcome is Status.SUCCESS else "",
        )
    )


def is_redriven(life: Life) -> None:
    """Parked, put back to automation by a person, and settled by the next probe."""
    life.pass_time(3.0, 3.5)
    life.is_unsure()
    ref = life.executes()
    while life.order.stage is not Stage.PARKED and len(life.journal) < PROBES_MAX:
        life.pass_time(0.5, 5.0)
        life.is_told(Verdict.UNKNOWN)
    life.pass_time(600.0, DAY.total_seconds())
    life.happens(Redriven(event_id=life.event_id(), actor=PERSON, reason="the upstream is well again"))
    life.pass_time(0.2, 2.0)
    life.is_told(Verdict.SUCCEEDED, upstream_ref=ref)
    if life.order.stage is not Stage.DONE:
        succeeds(life)


def hangs(life: Life) -> None:
    """The upstream accepted the order and is silent since."""
    life.pass_time(0.02, 3.0)
    life.is_told(Verdict.IN_PROGRESS, source=Source.SUBMIT)


LIVES: tuple[tuple[Callable[[Life], None], float, timedelta], ...] = (
    (succeeds, 0.755, timedelta(minutes=1)),
    (is_refused, 0.09, timedelta(minutes=1)),
    (is_found_out, 0.05, timedelta(hours=1)),
    (is_relabelled, 0.04, 5 * DAY),
    (takes_long, 0.025, DAY),
    (is_resent, 0.01, timedelta(hours=1)),
    (is_parked, 0.012, timedelta(hours=1)),
    (is_resolved, 0.007, 6 * DAY),
    (is_redriven, 0.004, 2 * DAY),
    (is_mismatched, 0.004, timedelta(minutes=1)),
    (hangs, 0.003, timedelta(minutes=1)),
)
"""The lives, how many orders live each of them, and how long it may take."""
_WEIGHTS = [weight for _, weight, _ in LIVES]
_LEFT_OPEN = frozenset({is_parked, is_mismatched, hangs})
OPEN_MAX = 60 * DAY
"""Nobody leaves a case for longer: an older order of that kind was resolved by a person."""


def lived(draft: Draft, *, until: datetime, now: datetime) -> Life:
    """The life of one order, as it stands now.

    until: only a life that is over by then is chosen, so nothing is journaled much later.
    now:   an order that is not settled was probed in vain lately, so that its timer is not overdue.
    """
    life = Life.begun(draft)
    live, _, longest = draft.draw.choices(LIVES, _WEIGHTS)[0]
    if life.at + longest > until:
        live = succeeds
    elif live in _LEFT_OPEN and life.at < until - OPEN_MAX:
        live = is_resolved
    live(life)
    if life.order.stage is not Stage.DONE:
        _wait_on(life, now)
    return life


def _wait_on(life: Life, now: datetime) -> None:
    """The last probe, in vain: an hour ago for a parked order, which is asked daily, else just now."""
    if life.order.stage is Stage.PARKED:
        life.moves_to(now - DAY * 0.9 * life.draft.draw.random())
        life.is_silent()
        return
    asked = HANGING_FROM + (HANGING_TO - HANGING_FROM) * life.draft.draw.random()
    life.moves_to(now + asked / 2)
    life.executes(None)
    life.moves_to(now)
    life.is_silent(asked)


def outcome_redriven(case: CaseFile) -> bool:
    """Whether a case ended by putting its order back to automation."""
    return case.closed is not None and case.closed.outcome is Outcome.REDRIVEN
