"""The nouns of an order: what it is, where it stands, what is known about its current leg, and the case of a
parked one.

Pure and frozen. Nothing here decides; `domain` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from chassis.money import Money

Evidence = dict[str, object]
"""Facts as JSON; the store refuses more than 4 KiB, and `wire` cuts every text that comes from outside far
below that.
"""


class Status(StrEnum):
    """What callers see."""

    PENDING = "PENDING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


class Stage(StrEnum):
    """Where an order stands inside PENDING."""

    SUBMITTING = "SUBMITTING"
    ACCEPTED = "ACCEPTED"
    UNKNOWN = "UNKNOWN"
    READY = "READY"
    PARKED = "PARKED"
    DONE = "DONE"


class Basis(StrEnum):
    """On whose word an order was settled."""

    UPSTREAM = "UPSTREAM"
    NOT_FOUND_FINAL = "NOT_FOUND_FINAL"
    OPERATOR = "OPERATOR"


class Proof(StrEnum):
    """What proves a journal entry."""

    UPSTREAM_SUCCEEDED = "UPSTREAM_SUCCEEDED"
    UPSTREAM_FAILED = "UPSTREAM_FAILED"
    NOT_FOUND_FINAL = "NOT_FOUND_FINAL"
    OPERATOR = "OPERATOR"


class TimerClass(StrEnum):
    """Whose loop wakes the order: order_svc submits, recovery_svc probes."""

    SUBMIT = "SUBMIT"
    PROBE = "PROBE"


class Kind(StrEnum):
    """What a journal entry records."""

    OPENED = "OPENED"
    SUBMITTED = "SUBMITTED"
    NOT_SENT = "NOT_SENT"
    UNSURE = "UNSURE"
    ACCEPTED = "ACCEPTED"
    PROBED = "PROBED"
    LEG_DONE = "LEG_DONE"
    RESEND_DUE = "RESEND_DUE"
    SETTLED = "SETTLED"
    PARKED = "PARKED"
    LATE_VERDICT = "LATE_VERDICT"
    CASE_OPENED = "CASE_OPENED"
    REOPENED = "REOPENED"
    REDRIVEN = "REDRIVEN"
    CASE_RESOLVED = "CASE_RESOLVED"
    RELABELLED = "RELABELLED"


class CaseReason(StrEnum):
    """Why a case was opened."""

    PROBES_EXHAUSTED = "PROBES_EXHAUSTED"
    VERDICT_MISMATCH = "VERDICT_MISMATCH"
    MALFORMED_ANSWERS = "MALFORMED_ANSWERS"
    POISON = "POISON"
    UNDO_REQUIRED = "UNDO_REQUIRED"
    CONTRADICTED = "CONTRADICTED"
    UPSTREAM_UNKNOWN = "UPSTREAM_UNKNOWN"


class Outcome(StrEnum):
    """How a case ended."""

    REDRIVEN = "REDRIVEN"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    EVIDENCE = "EVIDENCE"


SEVERITY_MONEY = 1
"""Money may be wrong: an upstream contradicts itself or us."""
SEVERITY_STUCK = 2
"""Automation gave up; nothing says that money is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order as one version of it stands. Times other than created_at are the shard's."""

    order_id: UUID
    created_at: datetime
    user_id: str
    bucket: int
    kind: str
    legs: tuple[str, ...]
    amount: Money
    request_id: UUID
    read_routing: str
    version: int = 1
    status: Status = Status.PENDING
    stage: Stage = Stage.SUBMITTING
    leg: int = 0
    attempt: int = 1
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    upstream_ref: str = ""
    failure_reason: str = ""
    basis: Basis | None = None
    updated_at: datetime | None = None
    settled_at: datetime | None = None
    traceparent: str = ""

    @property
    def upstream(self) -> str:
        """The upstream of the current leg."""
        return self.legs[self.leg]

    @property
    def upstream_key(self) -> str:
        """The key of the current leg at its upstream, the same for ever."""
        return f"{self.order_id}/{self.leg}"

    @property
    def is_last_leg(self) -> bool:
        """Whether the order is a success once this leg is executed."""
        return self.leg == len(self.legs) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What is known about the current leg besides its stage; kept in the timer, so it ends when the order is
    done.

    probe_count spends the budget: answers that settled nothing. silent_count and fault_count only stretch
    the wait.
    first_sent_at .. last_sent_at: since when, and until when, a submission of this leg may have left us.
    """

    probe_count: int = 0
    silent_count: int = 0
    fault_count: int = 0
    malformed_count: int = 0
    not_found_count: int = 0
    first_not_found_at: datetime | None = None
    first_answer_at: datetime | None = None
    accepted_at: datetime | None = None
    first_sent_at: datetime | None = None
    last_sent_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An open dead letter."""

    dead_letter_id: UUID
    reason: CaseReason
    severity: int
    redrive_count: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What one statement read: the order, its tally, its open case and the shard's instant of reading."""

    order: Order
    tally: Tally
    case: Case | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """What happened, who did it and what proves it; `event_id` names it for ever."""

    event_id: UUID
    kind: Kind
    leg: int
    attempt: int
    actor: str
    proof: Proof | None
    evidence: Evidence
    traceparent: str
    tracestate: str = ""


@dataclass(frozen=True, slots=True)
class Wake:
    """When the order is looked at next, and by whom; the shard adds its clock to `wake_in`."""

    wake_in: timedelta
    timer_class: TimerClass
    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseOpened:
    """A case to open; one that is open already takes over reason and evidence, and the worse severity."""

    dead_letter_id: UUID
    reason: CaseReason
    severity: int
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseClosed:
    """The open case ends."""

    outcome: Outcome
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Everything one event does to one order: written in one statement, or not at all.

    after.version is before.version + 1. wake is None exactly when the order is done. The times of `after`
    are set by the shard, and those of the first submission when the order is new.
    """

    before: Order | None
    after: Order
    entry: JournalEntry
    wake: Wake | None
    opens: CaseOpened | None = None
    closes: CaseClosed | None = None


@dataclass(frozen=True, slots=True)
class Rewait:
    """Nothing was learned about the order: only its timer moves, and its lease ends."""

    wake_in: timedelta
    silent: bool = False
    fault: bool = False


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The event repeats what is known, or came too late to matter: nothing is written."""


Decision = Change | Rewait | Unchanged
