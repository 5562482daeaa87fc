"""Is the machine sound? Rules in memory, rules over SQL and an upstream that keeps its contract, together.

Hypothesis invents histories: lost replies, dead processes, late answers, vague, silent and senseless probes,
people. After each step the order in Postgres is what the rules in memory say; at no time is a leg executed
twice, is SUCCESS said of what was not executed, or FAILED of what was.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from order_svc import points
from order_svc.contract import RecoveryPolicy, Rules, UpstreamContract
from order_svc.domain import open_order, transition
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
from order_svc.order import Change, Decision, Order, Seen, Stage, Status
from tests.databases import Databases
from tests.shards import EPOCH, Shard, opened
from tests.unit.orders import after

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
POLICY = RecoveryPolicy(probes_max=6)
SHORT = st.floats(0, 1, exclude_max=True)
FATES = st.sampled_from(
    ["executed", "refused", "reply lost", "reply lost", "process died", "process died", "never made"]
)
WAITS = st.sampled_from([1, 10, 35, 70, 700])


@dataclass(slots=True)
class Call:
    """One Execute on its way: what becomes of it is not known to us."""

    leg: int
    attempt: int
    last_sent_at: datetime
    executes_at: datetime | None = None


@dataclass(slots=True)
class World:
    """What is true outside: what was executed by key, what was refused, what is still on its way."""

    executed: dict[int, int] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    on_their_way: list[Call] = field(default_factory=list)

    def execute(self, leg: int, contract: UpstreamContract) -> None:
        if leg in self.refused or (contract.idempotent_submit and leg in self.executed):
            return
        self.executed[leg] = self.executed.get(leg, 0) + 1

    def catch_up(self, at: datetime, contract: UpstreamContract) -> None:
        """Execute what arrives by now; a request is never inside for longer than the settle window."""
        for call in [call for call in self.on_their_way if call.executes_at and call.executes_at <= at]:
            self.on_their_way.remove(call)
            self.execute(call.leg, contract)

    def truth(self, leg: int) -> Answer:
        """What an honest Probe says."""
        if leg in self.executed:
            return Answer(verdict=Verdict.SUCCEEDED, upstream_ref=f"ref-{leg}")
        if leg in self.refused:
            return Answer(verdict=Verdict.FAILED, reason="card expired")
        return Answer(verdict=Verdict.NOT_FOUND)


class OrderMachine(RuleBasedStateMachine):
    """One order, from its creation to wherever Hypothesis takes it."""

    runner: asyncio.Runner
    shard: Shard

    def sql(self, work: Any) -> Any:
        return self.runner.run(work)

    @initialize(contract=st.sampled_from(sorted(CONTRACTS)), legs=st.integers(1, 2))
    def open(self, contract: str, legs: int) -> None:
        self.contract = CONTRACTS[contract]
        self.consulted = Rules({"payments": self.contract, "fulfilment": self.contract}, POLICY)
        self.world = World()
        self.calls: list[Call] = []
        self.asked_person = False
        # Every history begins today: thousands of them would outrun the partitions made ahead.
        self.sql(self.shard.db.execute("DELETE FROM clock_offset"))
        wish = self.sql(self.shard.wish(*("payments", "fulfilment")[:legs], user_id=f"m{uuid4().hex[:8]}"))
        change = open_order(wish, self.consulted)
        created = self.sql(self.shard.store.create(change, epoch=EPOCH, fingerprint=b"m"))
        assert created.tally is not None
        self.model = Seen(created.order, created.tally, None, wish_time(created.order))
        self.versions = 1
        self.sent()

    def sent(self) -> None:
        tally = self.model.tally
        assert tally.last_sent_at is not None
        self.calls.append(Call(self.model.order.leg, self.model.order.attempt, tally.last_sent_at))

    def now(self) -> datetime:
        at: datetime = self.sql(self.shard.value("SELECT ordermesh.clock()"))
        self.world.catch_up(at, self.contract)
        return at

    def tell(self, event: AnyEvent, jitter: float, consulted: Rules | None = None) -> None:
        """Let both decide on the same event and compare what they saw, said and wrote."""
        asked: list[Seen] = []
        rules = consulted or self.consulted

        def sql_rule(seen: Seen) -> Decision:
            asked.append(seen)
            return transition(seen, event, rules, jitter=jitter)

        decided = self.sql(
            self.shard.store.decide(self.model.order.order_id, event.event_id, sql_rule, at=points.SETTLE)
        )
        (seen,) = asked
        self.model = replace(self.model, at=seen.at)
        assert stripped(seen) == stripped(self.model)
        decision = transition(self.model, event, rules, jitter=jitter)
        assert decision == decided.decision
        if isinstance(decision, Change):
            self.model = after(self.model, decision)
            self.versions += 1
            if isinstance(event, SubmitBegun):
                self.sent()
        self.model = replace(self.model, order=decided.order)
        if isinstance(decision, Change):
            assert without_times(decided.order) == without_times(decision.after)

    @rule(jitter=SHORT, fate=FATES, arrives=st.sampled_from([None, 0.0, 0.3, 0.6, 0.9, 1.0]))
    @precondition(lambda self: self.calls)
    def a_call_ends(self, jitter: float, fate: str, arrives: float | None) -> None:
        """arrives: when within the settle window the upstream executes a request whose reply is lost."""
        call, at = self.calls.pop(0), self.now()
        if fate == "never made":
            event = NotSent(event_id=uuid4(), actor="-", leg=call.leg, attempt=call.attempt, detail="-")
            self.tell(event, jitter)
        elif fate in ("executed", "refused") and at < call.last_sent_at:
            if fate == "refused" and call.leg not in self.world.executed:
                self.world.refused.add(call.leg)
            self.world.execute(call.leg, self.contract)
            self.tell(self.told(call, self.world.truth(call.leg), Source.SUBMIT), jitter)
        else:
            self.lose(call, None if fate == "process died" else jitter, arrives)

    def lose(self, call: Call, jitter: float | None, delay: float | None) -> None:
        """It may still arrive within the settle window; without jitter the process died and says nothing."""
        if delay is not None:
            call.executes_at = call.last_sent_at + timedelta(seconds=(SETTLE_S - 1) * delay)
            self.world.on_their_way.append(call)
        if jitter is not None:
            self.tell(
                Unsure(event_id=uuid4(), actor="order_svc", leg=call.leg, attempt=call.attempt, detail="-"),
                jitter,
            )

    @rule(jitter=SHORT)
    @precondition(lambda self: self.model.order.stage is Stage.READY)
    def the_driver_submits(self, jitter: float) -> None:
        self.now()
        self.tell(SubmitBegun(event_id=uuid4(), actor="order_svc"), jitter)

    @rule(jitter=SHORT, seconds=WAITS, mood=st.sampled_from(["honest", "honest", "honest", "vague", "busy"]))
    def a_probe_is_answered(self, jitter: float, seconds: int, mood: str) -> None:
        self.let_pass(seconds)
        order = self.model.order
        answer = self.world.truth(order.leg)
        if mood == "vague":
            answer = Answer(verdict=Verdict.UNKNOWN)
        if mood == "busy" and answer.verdict is Verdict.NOT_FOUND and self.on_its_way(order.leg):
            answer = Answer(verdict=Verdict.IN_PROGRESS, pushback_s=5.0)
        self.tell(self.told(Call(order.leg, order.attempt, order.created_at), answer, Source.PROBE), jitter)

    def on_its_way(self, leg: int) -> bool:
        return any(call.leg == leg for call in self.world.on_their_way)

    @rule(
        jitter=SHORT,
        odd=st.sampled_from([*Fault, "old answer", "poison", "driver", "unserved"]),
        seldom=st.integers(0, 3),
    )
    def something_odd_happens(self, jitter: float, odd: str, seldom: int) -> None:
        if seldom:
            return
        self.now()
        order = self.model.order
        about = Call(order.leg, order.attempt, order.created_at)
        match odd:
            case "poison":
                self.tell(Poisoned(event_id=uuid4(), actor="order_svc", unfinished_count=4), jitter)
            case "driver":
                self.tell(SubmitBegun(event_id=uuid4(), actor="order_svc"), jitter)
            case "unserved":
                event = Unserved(event_id=uuid4(), actor="order_svc")
                self.tell(event, jitter, Rules({}, POLICY))
            case "old answer":
                about.attempt -= 1
                self.tell(self.told(about, self.world.truth(order.leg), Source.SUBMIT), jitter)
            case _:
                failed = ProbeFailed(
                    event_id=uuid4(),
                    actor="recovery_svc",
                    leg=about.leg,
                    attempt=about.attempt,
                    fault=Fault(odd),
                    detail="-",
                )
                self.tell(failed, jitter)

    def let_pass(self, seconds: int) -> None:
        self.sql(self.shard.let_pass(timedelta(seconds=seconds)))
        at = self.now()
        for call in [call for call in self.calls if call.last_sent_at <= at]:
            # Its deadline is over and its process died: nobody says anything about it any more.
            self.calls.remove(call)
            self.lose(call, None, None)

    @rule(jitter=SHORT, labels=st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy")))
    def somebody_puts_on_other_labels(self, jitter: float, labels: dict[str, str]) -> None:
        self.now()
        before = self.model
        seen_version = before.order.version
        event = Relabelled(event_id=uuid4(), actor="alice", labels=labels, expected_version=seen_version)
        self.tell(event, jitter)
        assert self.model.order.labels == labels
        assert (self.model.tally, self.model.case) == (before.tally, before.case)

    @rule(jitter=SHORT)
    @precondition(lambda self: self.model.order.stage is Stage.PARKED)
    def a_person_redrives(self, jitter: float) -> None:
        self.tell(Redriven(event_id=uuid4(), actor="mira", reason="well again"), jitter)

    @rule(jitter=SHORT)
    @precondition(lambda self: self.model.case is not None and not self.calls and not self.world.on_their_way)
    def a_person_resolves_by_the_books(self, jitter: float) -> None:
        """A person looks at the books when nothing is on its way any more, and says what stands there."""
        self.now()
        order = self.model.order
        done = all(leg in self.world.executed for leg in range(len(order.legs)))
        outcome = Status.SUCCESS if done or order.status is Status.SUCCESS else Status.FAILED
        self.asked_person = self.asked_person or outcome is Status.FAILED
        event = Resolved(
            event_id=uuid4(),
            actor="mira",
            outcome=outcome,
            evidence="the books",
            reason="asked",
            upstream_ref="ref-9",
        )
        self.tell(event, jitter)

    def told(self, call: Call, answer: Answer, source: Source) -> Told:
        return Told(
            event_id=uuid4(), actor="-", leg=call.leg, attempt=call.attempt, answer=answer, source=source
        )

    @invariant()
    def no_leg_is_executed_twice(self) -> None:
        if hasattr(self, "world"):
            assert all(count == 1 for count in self.world.executed.values()), self.world.executed

    @invariant()
    def what_is_said_is_true(self) -> None:
        if not hasattr(self, "model"):
            return
        order = self.model.order
        if order.status is Status.SUCCESS:
            assert set(self.world.executed) == set(range(len(order.legs)))
        if order.status is Status.FAILED and not self.asked_person:
            assert not self.world.executed
            # A refusal is for good: what still arrives with the same key is refused too.
            assert order.leg in self.world.refused or not self.on_its_way(order.leg)

    def teardown(self) -> None:
        """The shard's own books agree: one timer while not done, versions 1..n, an event for each."""
        if not hasattr(self, "model"):
            return
        order_id = self.model.order.order_id
        row = self.sql(self.shard.rows(BOOKS, order_id))[0]
        assert row["versions"] == list(range(1, self.versions + 1)) == sorted(row["events"])
        assert row["timers"] == int(self.model.order.stage is not Stage.DONE)
        assert row["open_cases"] == int(self.model.case is not None)
        assert row["open_cases"] >= int(self.model.order.stage is Stage.PARKED)


BOOKS = """
SELECT (SELECT array_agg(version ORDER BY version) FROM order_journal WHERE order_id = $1) AS versions,
       (SELECT array_agg(version) FROM outbox WHERE order_id = $1) AS events,
       (SELECT count(*) FROM order_timers WHERE order_id = $1) AS timers,
       (SELECT count(*) FROM dead_letters WHERE order_id = $1 AND closed_at IS NULL) AS open_cases
"""


def wish_time(order: Order) -> datetime:
    return order.created_at


def without_times(order: Order) -> Order:
    return replace(order, updated_at=None, settled_at=None)


def stripped(seen: Seen) -> tuple[object, ...]:
    """What a rule decides on, without what only the shard knows."""
    case = seen.case and (seen.case.dead_letter_id, seen.case.reason, seen.case.severity)
    # Waits of silent probes are the timer's own; they decide nothing but the next wait.
    return without_times(seen.order), replace(seen.tally, silent_count=0, fault_count=0), case


@pytest.fixture(scope="module")
async def dsn(databases: Databases) -> Any:
    database = await databases.create("shard")
    yield database
    await databases.drop(database)


def test_rules_in_memory_and_over_sql_agree_and_keep_the_promises(dsn: Any) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        machine = type("Machine", (OrderMachine,), {"runner": runner})
        machine.shard = runner.run(stack.enter_async_context(opened(dsn, pool_size=1)))  # type: ignore[attr-defined]
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=120,
                    stateful_step_count=20,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow],
                ),
            )
        finally:
            runner.run(stack.aclose())
