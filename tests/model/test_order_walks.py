"""Can luck break a promise? Thousands of random histories of an order whose upstream keeps its contract.

Pure and seeded: an order in memory, a virtual clock, an upstream that executes requests whose replies were
lost up to the end of its settle window. No leg may be executed twice; SUCCESS and FAILED are only said of
what is so.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

import pytest

from order_svc.contract import RecoveryPolicy, Rules, UpstreamContract
from order_svc.domain import open_order, transition
from order_svc.events import (
    Answer,
    AnyEvent,
    Fault,
    NotSent,
    ProbeFailed,
    Redriven,
    Relabelled,
    Source,
    SubmitBegun,
    Told,
    Unserved,
    Unsure,
    Verdict,
)
from order_svc.order import Change, Seen, Stage, Status
from tests.unit.orders import after, wish

WALKS = 1500
STEPS = 30
SETTLE_S = 60.0
SUBMIT_S = 5.0
CAREFUL = UpstreamContract(
    not_found_final_after_s=SETTLE_S, settle_window_s=SETTLE_S, submit_timeout_s=SUBMIT_S, key_ttl_s=3600
)
CONTRACTS = {
    "resends": CAREFUL,
    "final": replace(CAREFUL, resubmit_on_not_found=False),
    "idempotent": replace(CAREFUL, idempotent_submit=True, not_found_final_after_s=None),
    "vague": UpstreamContract(settle_window_s=SETTLE_S, submit_timeout_s=SUBMIT_S),
}
POLICY = RecoveryPolicy(probes_max=8)


@dataclass(slots=True)
class Call:
    """An Execute that nobody ended yet. executes_at: when the upstream does it, if ever."""

    leg: int
    attempt: int
    ends_at: datetime
    executes_at: datetime | None = None


@dataclass(slots=True)
class Walk:
    """One order, its upstream, and chance."""

    contract: UpstreamContract
    chance: random.Random
    seen: Seen = field(init=False)
    calls: list[Call] = field(default_factory=list)
    inside: list[Call] = field(default_factory=list)
    executed: dict[int, int] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    kinds: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Open the order and take some steps; the promises are checked after each."""
        legs = ("payments", "fulfilment")[: self.chance.randint(1, 2)]
        change = open_order(wish(*legs), self.rules)
        assert change.wake is not None
        self.seen = Seen(change.after, change.wake.tally, None, change.after.created_at)
        self.begin_call()
        for _ in range(STEPS):
            self.step()
            self.keep_promises()

    @property
    def rules(self) -> Rules:
        return Rules({"payments": self.contract, "fulfilment": self.contract}, POLICY)

    def step(self) -> None:
        if self.calls and self.chance.random() < 0.7:
            self.end_call()
        elif self.seen.order.stage is Stage.READY and self.chance.random() < 0.1:
            self.tell(Unserved(event_id=self.event_id(), actor="order_svc"), Rules({}, POLICY))
        elif self.seen.order.stage is Stage.READY and self.chance.random() < 0.8:
            self.tell(SubmitBegun(event_id=self.event_id(), actor="order_svc"))
            self.begin_call()
        elif self.chance.random() < 0.05:
            labels = {"n": str(self.chance.randint(1, 3))}
            self.tell(Relabelled(event_id=self.event_id(), actor="alice", labels=labels, expected_version=0))
        elif self.seen.order.stage is Stage.PARKED and self.chance.random() < 0.5:
            self.tell(Redriven(event_id=self.event_id(), actor="mira", reason="-"))
        else:
            self.let_pass(self.chance.choice((0.1, 1, 10, 31, 62, 100, 700)))
            self.probe()

    def begin_call(self) -> None:
        if self.seen.order.stage is not Stage.SUBMITTING:
            return
        order, last_sent_at = self.seen.order, self.seen.tally.last_sent_at
        assert last_sent_at is not None
        self.calls.append(Call(order.leg, order.attempt, last_sent_at))

    def end_call(self) -> None:
        call = self.calls.pop()
        fate = self.chance.choice(("executed", "refused", "lost", "lost", "lost", "not sent"))
        if fate == "not sent":
            self.tell(
                NotSent(event_id=self.event_id(), actor="-", leg=call.leg, attempt=call.attempt, detail="-")
            )
        elif fate == "lost" or self.seen.at >= call.ends_at:
            self.lose(call)
        else:
            if fate == "refused" and call.leg not in self.executed:
                self.refused.add(call.leg)
            self.execute(call.leg)
            self.tell(self.told(call.leg, call.attempt, self.truth(call.leg), Source.SUBMIT))

    def lose(self, call: Call) -> None:
        if self.chance.random() < 0.7:
            late_s = self.chance.uniform(-SUBMIT_S, SETTLE_S - 0.001)
            call.executes_at = max(self.seen.at, call.ends_at + timedelta(seconds=late_s))
            self.inside.append(call)
        if self.chance.random() < 0.7:
            self.tell(
                Unsure(event_id=self.event_id(), actor="-", leg=call.leg, attempt=call.attempt, detail="-")
            )

    def let_pass(self, seconds: float) -> None:
        self.seen = replace(self.seen, at=self.seen.at + timedelta(seconds=seconds))
        for call in [call for call in self.calls if call.ends_at <= self.seen.at]:
            self.calls.remove(call)
            self.lose(call)
        for call in [call for call in self.inside if call.executes_at and call.executes_at <= self.seen.at]:
            self.inside.remove(call)
            self.execute(call.leg)

    def execute(self, leg: int) -> None:
        if leg in self.refused or (self.contract.idempotent_submit and leg in self.executed):
            return
        self.executed[leg] = self.executed.get(leg, 0) + 1

    def probe(self) -> None:
        order = self.seen.order
        mood = self.chance.choice(("honest",) * 6 + ("vague", "busy", "silent", "old answer"))
        attempt = order.attempt - 1 if mood == "old answer" else order.attempt
        answer = self.truth(order.leg)
        if mood == "vague":
            answer = Answer(verdict=Verdict.UNKNOWN)
        if mood == "busy" and any(call.leg == order.leg for call in self.inside):
            answer = Answer(verdict=Verdict.IN_PROGRESS)
        if mood == "silent":
            self.tell(
                ProbeFailed(
                    event_id=self.event_id(),
                    actor="-",
                    leg=order.leg,
                    attempt=attempt,
                    fault=Fault.SILENT,
                    detail="-",
                )
            )
            return
        self.tell(self.told(order.leg, attempt, answer, Source.PROBE))

    def truth(self, leg: int) -> Answer:
        if leg in self.executed:
            return Answer(verdict=Verdict.SUCCEEDED, upstream_ref=f"ref-{leg}")
        return Answer(verdict=Verdict.FAILED if leg in self.refused else Verdict.NOT_FOUND)

    def told(self, leg: int, attempt: int, answer: Answer, source: Source) -> Told:
        return Told(
            event_id=self.event_id(), actor="-", leg=leg, attempt=attempt, answer=answer, source=source
        )

    def event_id(self) -> UUID:
        return UUID(int=self.chance.getrandbits(128), version=4)

    def tell(self, event: AnyEvent, rules: Rules | None = None) -> None:
        decision = transition(self.seen, event, rules or self.rules, jitter=self.chance.random())
        if isinstance(decision, Change):
            self.kinds.append(decision.entry.kind)
            self.seen = after(self.seen, decision)

    def keep_promises(self) -> None:
        order = self.seen.order
        assert all(count == 1 for count in self.executed.values()), "a leg was executed twice"
        if order.status is Status.SUCCESS:
            assert set(self.executed) == set(range(len(order.legs)))
        if order.status is Status.FAILED:
            assert not self.executed, "FAILED was said of what was executed"


@pytest.mark.parametrize("contract", sorted(CONTRACTS))
def test_no_history_executes_a_leg_twice_or_says_what_is_not_so(contract: str) -> None:
    kinds: set[str] = set()
    for seed in range(WALKS):
        walk = Walk(CONTRACTS[contract], random.Random(seed))
        try:
            walk.run()
        except AssertionError as broken:
            raise AssertionError(f"seed {seed}: {broken}; {' '.join(walk.kinds)}") from broken
        kinds.update(walk.kinds)
    wanted = {"SETTLED", "PARKED", "REDRIVEN", "UNSURE", "ACCEPTED", "LEG_DONE", "LATE_VERDICT"}
    resends = {"RESEND_DUE"} if contract in ("resends", "idempotent") else set()
    assert wanted | resends <= kinds, "the walks must get everywhere"
