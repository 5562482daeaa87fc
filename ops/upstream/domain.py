"""What a simulated upstream does with a call: pure rules over faults and over what is known about a key.

The ledger asks here and writes what is answered. Nothing here reads a clock or draws a random number: a fault
strikes a key or a call by hashing, so that a run can be repeated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from chassis.money import Money

DURATION_S_MAX = 3600.0
"""Longer than any settle window a test compresses."""
PUSHBACK_S_MAX = 30.0
"""An upstream that works for an hour still wants to be asked twice a minute."""


class Method(StrEnum):
    """The methods of an upstream."""

    EXECUTE = "EXECUTE"
    PROBE = "PROBE"
    REVERSE = "REVERSE"


class Kind(StrEnum):
    """Ways to misbehave; the proto says what each one means."""

    SLOW = "SLOW"
    LATE = "LATE"
    LOST_REPLY = "LOST_REPLY"
    REJECT = "REJECT"
    IN_PROGRESS = "IN_PROGRESS"
    DOWN = "DOWN"
    NOT_FOUND_BUT_EXECUTES = "NOT_FOUND_BUT_EXECUTES"
    UNKNOWN = "UNKNOWN"
    WRONG_AMOUNT = "WRONG_AMOUNT"
    MALFORMED = "MALFORMED"


class Verdict(StrEnum):
    """An upstream's word about one leg, as in the glossary."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    IN_PROGRESS = "IN_PROGRESS"
    NOT_FOUND = "NOT_FOUND"
    UNKNOWN = "UNKNOWN"


TIMED = frozenset({Kind.SLOW, Kind.IN_PROGRESS, Kind.NOT_FOUND_BUT_EXECUTES})
"""Kinds that mean nothing without a duration."""
PER_CALL = frozenset({Kind.DOWN, Kind.SLOW, Kind.LATE, Kind.LOST_REPLY})
"""Kinds that draw for each call; the others draw for each key, so that a key keeps its fate."""
_EVERYWHERE = frozenset(Method)
_EXECUTING = frozenset({Method.EXECUTE})
METHODS_OF = {
    Kind.SLOW: _EVERYWHERE,
    Kind.LATE: _EVERYWHERE,
    Kind.DOWN: _EVERYWHERE,
    Kind.LOST_REPLY: frozenset({Method.EXECUTE, Method.REVERSE}),
    Kind.REJECT: frozenset({Method.EXECUTE, Method.REVERSE}),
    Kind.IN_PROGRESS: _EXECUTING,
    Kind.NOT_FOUND_BUT_EXECUTES: _EXECUTING,
    Kind.WRONG_AMOUNT: _EXECUTING,
    Kind.UNKNOWN: _EVERYWHERE,
    Kind.MALFORMED: _EVERYWHERE,
}
"""Where each kind makes sense: a probe executes nothing, so it has no reply worth losing."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Towards whom a fault is meant; empty parts match everybody."""

    order_id: str = ""
    user_id_prefix: str = ""
    key: str = ""
    method: Method | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to misbehave, towards some calls, with some probability, for some strikes."""

    kind: Kind
    scope: Scope = Scope()
    probability: float = 1.0
    seed: int = 0
    duration_s: float = 0.0
    limit: int = 0
    fault_id: int = 0
    strike_count: int = 0

    @property
    def spent(self) -> bool:
        """Whether it struck as often as it may."""
        return 0 < self.limit <= self.strike_count

    def struck(self) -> Fault:
        """The same fault after one more strike."""
        return replace(self, strike_count=self.strike_count + 1)


@dataclass(frozen=True, slots=True)
class Call:
    """What a fault can see of a call.

    user_id: empty when nobody knows it. number: counts the calls of a process.
    """

    method: Method
    key: str
    order_id: str
    user_id: str
    number: int


@dataclass(frozen=True, slots=True)
class Submission:
    """What an Execute asks for."""

    key: str
    order_id: str
    leg: int
    attempt: int
    user_id: str
    amount: Money


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict with what comes along with it."""

    verdict: Verdict
    upstream_ref: str = ""
    amount: Money | None = None
    reason: str = ""
    pushback_s: float = 0.0
    garbled: bool = False
    """Send a verdict number that does not exist in place of this one."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How an answer reaches the caller, or does not."""

    delay_s: float = 0.0
    late: bool = False
    lost: bool = False
    down: bool = False


@dataclass(frozen=True, slots=True)
class Strikes:
    """The faults that strike one call, asked by kind. The oldest of a kind counts."""

    faults: tuple[Fault, ...] = ()

    def __contains__(self, kind: Kind) -> bool:
        return any(fault.kind is kind for fault in self.faults)

    def duration_s(self, kind: Kind) -> float:
        """How long the fault of this kind lasts; 0 without one."""
        return next((fault.duration_s for fault in self.faults if fault.kind is kind), 0.0)

    @property
    def delivery(self) -> Delivery:
        """What they do to the reply."""
        return Delivery(
            delay_s=self.duration_s(Kind.SLOW),
            late=Kind.LATE in self,
            lost=Kind.LOST_REPLY in self or Kind.NOT_FOUND_BUT_EXECUTES in self,
            down=Kind.DOWN in self,
        )


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a new submission: executed (perhaps as something else), refused, or put off."""

    amount: Money
    verdict: Verdict = Verdict.SUCCEEDED
    after_s: float = 0.0
    hidden: bool = False
    """Until then, deny that the key is known."""


def strikes(faults: Iterable[Fault], call: Call) -> Strikes:
    """The faults that strike a call, oldest first; spent ones are out."""
    return Strikes(tuple(fault for fault in faults if _strikes(fault, call)))


def plan(submission: Submission, struck: Strikes) -> Fate:
    """Decide what a new submission becomes. Refusal wins over delay, delay over success."""
    amount = submission.amount
    if Kind.REJECT in struck:
        return Fate(amount, Verdict.FAILED)
    if Kind.WRONG_AMOUNT in struck:
        amount = replace(amount, amount_minor=amount.amount_minor + 1)
    if Kind.NOT_FOUND_BUT_EXECUTES in struck:
        return Fate(amount, after_s=struck.duration_s(Kind.NOT_FOUND_BUT_EXECUTES), hidden=True)
    return Fate(amount, after_s=struck.duration_s(Kind.IN_PROGRESS))


def waiting(due_at: datetime, at: datetime, *, hidden: bool) -> Answer:
    """The word about something that will be executed later."""
    if hidden:
        return Answer(Verdict.NOT_FOUND)
    left_s = max(0.0, (due_at - at).total_seconds())
    return Answer(Verdict.IN_PROGRESS, pushback_s=min(left_s, PUSHBACK_S_MAX))


def spoken(truth: Answer, struck: Strikes, key: str) -> Answer:
    """What the upstream says when the truth is this: faults change the word, never the ledger."""
    if Kind.UNKNOWN in struck:
        return Answer(Verdict.UNKNOWN, reason="the upstream cannot say")
    if Kind.MALFORMED in struck:
        garbled = _draw("garbled", key) < 0.5  # Half of the keys each: both shapes occur in every larger run.
        return replace(truth, garbled=garbled, verdict=Verdict.SUCCEEDED, upstream_ref="")
    return truth


def _strikes(fault: Fault, call: Call) -> bool:
    scope = fault.scope
    return (
        not fault.spent
        and call.method in METHODS_OF[fault.kind]
        and (scope.method is None or scope.method is call.method)
        and scope.order_id in ("", call.order_id)
        and scope.key in ("", call.key)
        and (not scope.user_id_prefix or call.user_id.startswith(scope.user_id_prefix))
        and _lot(fault, call) < fault.probability
    )


def _lot(fault: Fault, call: Call) -> float:
    """A number in [0, 1) that belongs to this fault and call, or to this key for kinds that stay with one."""
    number = call.number if fault.kind in PER_CALL else ""
    return _draw(fault.seed, fault.kind, call.key, number)


def _draw(*parts: object) -> float:
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
