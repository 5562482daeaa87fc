"""What recovery decides: what a probe was worth, how long it may take, when to sweep, which shards.

Pure functions over frozen values. What an order makes of a finding is not decided here but by order_svc.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from chassis.errors import InvalidField
from chassis.money import Money

PUSHBACK_S_MAX = 900.0
"""The cap of the backoff: an upstream cannot send an order to sleep for longer."""
PROBE_S_MIN = 0.05
"""A shorter probe would only cost the upstream work and bring no answer."""
REF_CHARS_MAX = 256
REASON_CHARS_MAX = 256
DETAIL_CHARS_MAX = 512
REPORT_PAUSE_S = 0.1
"""First pause between two tries of a report; it doubles."""
REPORT_PAUSE_S_MAX = 2.0
"""A killed order_svc is back within 2 s."""
PAGE_SIZE = 50
PAGE_SIZE_MAX = 100
WORDS_MAX = 512
"""Characters of a reason for a hold."""
FAILURES_COUNTED_MAX = 16
"""2^16 periods are beyond any cap."""


class ProbeClass(StrEnum):
    """What a probe was worth; only ANSWERED and MALFORMED are the upstream's word."""

    ANSWERED = "ANSWERED"
    NO_ANSWER = "NO_ANSWER"
    OUR_FAULT = "OUR_FAULT"
    MALFORMED = "MALFORMED"
    NOT_MADE = "NOT_MADE"


class Verdict(StrEnum):
    """An upstream's word about one leg."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    IN_PROGRESS = "IN_PROGRESS"
    NOT_FOUND = "NOT_FOUND"
    UNKNOWN = "UNKNOWN"


OUR_FAULTS = frozenset(
    {
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "UNIMPLEMENTED",
    }
)
"""Codes that mean a wrong request, credential or address. None of them, and no other code, is a verdict."""
WORTH_ANOTHER_TRY = frozenset(
    {
        "ABORTED",
        "CANCELLED",
        "DEADLINE_EXCEEDED",
        "INTERNAL",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "UNKNOWN",
    }
)
"""Codes after which a report is sent again; its event id makes that harmless, whatever was done before."""
UNREACHABLE = frozenset({"ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE"})
"""Codes by which a shard counts as unreachable in a question to all; others are somebody's mistake."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One order that is ours for the time of a lease."""

    shard: str
    order_id: str
    leg: int
    attempt: int
    upstream: str
    key: str
    event_id: str
    lease_token: str
    unfinished_count: int
    traceparent: str

    @property
    def is_suspect(self) -> bool:
        """Whether a probe of it was begun before and never reported: it may be what kills processes."""
        return self.unfinished_count > 0


@dataclass(frozen=True, slots=True)
class Answer:
    """An upstream's answer, with texts and times cut to what may be passed on."""

    verdict: Verdict
    upstream_ref: str = ""
    amount: Money | None = None
    reason: str = ""
    pushback_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe found out. code: of the call, when it failed."""

    probe_class: ProbeClass
    answer: Answer | None = None
    detail: str = ""
    pushback_s: float = 0.0
    code: str = ""

    @property
    def verdict(self) -> str:
        """The verdict's name, empty without one."""
        return "" if self.answer is None else self.answer.verdict.value


def classify(code: str, *, message: str = "", pushback_s: float | None = None) -> Finding:
    """What a failed probe is worth: no gRPC error is evidence, NOT_FOUND neither; proxies say such too.

    code: name of the gRPC status. pushback_s: how long the upstream asked to be left alone.
    """
    probe_class = ProbeClass.OUR_FAULT if code in OUR_FAULTS else ProbeClass.NO_ANSWER
    detail = f"{code}: {message}" if message else code
    return Finding(probe_class, None, detail[:DETAIL_CHARS_MAX], bounded_pushback(pushback_s or 0.0), code)


def read(verdict: Verdict | None, number: int, answer: Answer | None) -> Finding:
    """What the body of an OK answer is worth.

    verdict: None when its number is not in the contract. answer: None when the body has none.
    """
    if answer is None:
        return malformed("the body has no answer")
    if verdict is None:
        return malformed(f"verdict {number} is not in the contract")
    if verdict is Verdict.SUCCEEDED and not answer.upstream_ref:
        return malformed("SUCCEEDED without upstream_ref")
    if len(answer.upstream_ref) > REF_CHARS_MAX:
        return malformed(f"upstream_ref is longer than {REF_CHARS_MAX} characters")
    return Finding(ProbeClass.ANSWERED, answer)


def malformed(detail: str) -> Finding:
    """An answer that makes no sense."""
    return Finding(ProbeClass.MALFORMED, detail=detail[:DETAIL_CHARS_MAX])


def our_fault(detail: str) -> Finding:
    """A probe that cannot be made as we are configured."""
    return Finding(ProbeClass.OUR_FAULT, detail=detail[:DETAIL_CHARS_MAX])


def not_made(detail: str) -> Finding:
    """A probe that was not made for want of a slot or of time; the order may be claimed again soon."""
    return Finding(ProbeClass.NOT_MADE, detail=detail[:DETAIL_CHARS_MAX])


def bounded_pushback(seconds: float) -> float:
    """How long an upstream is left alone at most; nonsense counts as no wish."""
    return min(seconds, PUSHBACK_S_MAX) if seconds > 0 else 0.0


def probe_time_s(left_s: float, *, timeout_s: float, reserve_s: float) -> float:
    """How long a probe may take if a report is to fit into the lease; 0 when not worth beginning."""
    time_s = min(timeout_s, left_s - reserve_s)
    return time_s if time_s >= PROBE_S_MIN else 0.0


def report_pause_s(tries: int, draw: float, *, asked_s: float | None = None) -> float:
    """How long to wait before the next try of a report: full jitter, never less than the callee asked.

    tries: made so far, from 1. draw: 0 <= draw < 1.
    """
    ceiling = min(REPORT_PAUSE_S_MAX, REPORT_PAUSE_S * 2.0 ** min(tries - 1, FAILURES_COUNTED_MAX))
    return max(min(asked_s or 0.0, REPORT_PAUSE_S_MAX), draw * ceiling)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often one shard is swept."""

    period_s: float
    jitter: float
    backoff_s_max: float

    def pause_s(self, draw: float, *, failures: int = 0) -> float:
        """Time until the next sweep, never the same for two processes.

        draw: 0 <= draw < 1. failures: sweeps in a row that the shard did not answer; each doubles the period.
        """
        period_s = self.period_s * 2.0 ** min(failures, FAILURES_COUNTED_MAX)
        period_s = min(period_s, max(self.period_s, self.backoff_s_max))
        return period_s * (1.0 + self.jitter * (2.0 * draw - 1.0))


@dataclass(frozen=True, slots=True)
class Shift:
    """Which shards to begin sweeping and which to leave."""

    begin: frozenset[str]
    leave: frozenset[str]


def shift(swept: frozenset[str], listed: frozenset[str]) -> Shift:
    """What a fresh list of shards changes. An empty one changes nothing: such a map is a broken map."""
    if not listed:
        return Shift(frozenset(), frozenset())
    return Shift(begin=listed - swept, leave=swept - listed)


def page_size(asked: int) -> int:
    """How many rows a caller gets.

    Raises: InvalidField.
    """
    if not 0 <= asked <= PAGE_SIZE_MAX:
        raise InvalidField.of("page_size", f"must be 0 to {PAGE_SIZE_MAX}")
    return asked or PAGE_SIZE


def hold_scope(upstream: str, known: frozenset[str]) -> str:
    """The scope of a hold: everything, or one upstream.

    Raises: InvalidField for an upstream that nobody configured.
    """
    if not upstream:
        return "all"
    if upstream not in known:
        raise InvalidField.of("upstream", "must be empty or one of " + ", ".join(sorted(known)))
    return f"upstream:{upstream}"


def hold_reason(reason: str, actor: str) -> str:
    """The words kept with a hold; recovery puts it on behalf of a person, whose name is part of them.

    Raises: InvalidField.
    """
    if not 1 <= len(reason) <= WORDS_MAX:
        raise InvalidField.of("reason", f"must have 1 to {WORDS_MAX} characters")
    return f"{actor}: {reason}"[:WORDS_MAX]
