"""What can happen to an order, as told to `domain.transition`. Each event is named before the first try to
record it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from order_svc.order import Status

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from chassis.money import Money


class Verdict(StrEnum):
    """An upstream's word about one leg."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    IN_PROGRESS = "IN_PROGRESS"
    NOT_FOUND = "NOT_FOUND"
    UNKNOWN = "UNKNOWN"


class Source(StrEnum):
    """What was asked: to execute, or what became of it."""

    SUBMIT = "SUBMIT"
    PROBE = "PROBE"


class Fault(StrEnum):
    """Why a probe brought no verdict. Only MALFORMED is the upstream's word; the others say nothing about
    the order.
    """

    SILENT = "SILENT"
    OURS = "OURS"
    MALFORMED = "MALFORMED"
    NOT_MADE = "NOT_MADE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A verdict with what came along with it; texts are already cut to their limits."""

    verdict: Verdict
    upstream_ref: str = ""
    amount: Money | None = None
    reason: str = ""
    pushback_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, who tells it, and the name it has for ever."""

    event_id: UUID
    actor: str
    traceparent: str = ""
    tracestate: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitBegun(Event):
    """The driver is about to call the upstream of a READY order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Event):
    """An upstream gave its verdict about one submission of one leg."""

    leg: int
    attempt: int
    answer: Answer
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsure(Event):
    """A submission ended without a verdict: it may have been executed, or not, or will be."""

    leg: int
    attempt: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotSent(Event):
    """Our process knows that it never made the call of this submission."""

    leg: int
    attempt: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFailed(Event):
    """A probe brought no verdict."""

    leg: int
    attempt: int
    fault: Fault
    detail: str
    pushback_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisoned(Event):
    """Probing this order was begun again and again and never reported: it may kill whoever handles it."""

    unfinished_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unserved(Event):
    """A READY order waited long enough for an upstream that this process does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redriven(Event):
    """A person puts a parked order back to automation."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved(Event):
    """A person closes a case and vouches for the outcome."""

    outcome: Status
    evidence: str
    reason: str
    upstream_ref: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabelled(Event):
    """Whoever may change the order gives it other labels, all of them. expected_version: 0 means any."""

    labels: Mapping[str, str]
    expected_version: int


AnyEvent = (
    SubmitBegun
    | Told
    | Unsure
    | NotSent
    | ProbeFailed
    | Poisoned
    | Unserved
    | Redriven
    | Resolved
    | Relabelled
)
