"""The transition table, as data: where an order stands x what an event means -> where it goes and what is
written.

`domain.transition` looks up here and nowhere else, tests walk every cell, and docs/ORDER_STATES.md is
printed from it by `python -m order_svc.states`. A cell that is missing is a transition that must not happen.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum

from order_svc.order import CaseReason, Kind, Order, Stage, Status


class Where(StrEnum):
    """Stage and status as one word: a settled order stands at its status."""

    SUBMITTING = "SUBMITTING"
    ACCEPTED = "ACCEPTED"
    UNKNOWN = "UNKNOWN"
    READY = "READY"
    PARKED = "PARKED"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"

    @property
    def is_settled(self) -> bool:
        """Whether the order is done here."""
        return self in (Where.SUCCESS, Where.FAILED)

    @property
    def status(self) -> Status:
        """The status of an order that stands here."""
        return Status(self.value) if self.is_settled else Status.PENDING

    @property
    def stage(self) -> Stage:
        """The stage of an order that stands here."""
        return Stage.DONE if self.is_settled else Stage(self.value)


def where(order: Order) -> Where:
    """Where an order stands."""
    return Where(order.status.value if order.stage is Stage.DONE else order.stage.value)


class Signal(StrEnum):
    """What an event means for the order it meets, after contract, budget and clock were consulted."""

    BEGIN = "BEGIN"
    TOO_LATE = "TOO_LATE"
    UNSERVED = "UNSERVED"
    EXECUTED = "EXECUTED"
    EXECUTED_LAST = "EXECUTED_LAST"
    MISMATCH = "MISMATCH"
    REFUSED = "REFUSED"
    REFUSED_LATER = "REFUSED_LATER"
    IN_PROGRESS = "IN_PROGRESS"
    OVERDUE = "OVERDUE"
    ABSENT = "ABSENT"
    ABSENT_FINAL = "ABSENT_FINAL"
    NO_WORD = "NO_WORD"
    RESEND = "RESEND"
    SPENT = "SPENT"
    UNSURE = "UNSURE"
    NOT_SENT = "NOT_SENT"
    TOO_EARLY = "TOO_EARLY"
    SILENT = "SILENT"
    OUR_FAULT = "OUR_FAULT"
    NOT_PROBED = "NOT_PROBED"
    MALFORMED = "MALFORMED"
    MALFORMED_AGAIN = "MALFORMED_AGAIN"
    POISON = "POISON"
    LATE = "LATE"
    DISPUTED = "DISPUTED"
    CONTRADICTED = "CONTRADICTED"
    REDRIVE = "REDRIVE"
    RESOLVE_SUCCESS = "RESOLVE_SUCCESS"
    RESOLVE_FAILED = "RESOLVE_FAILED"
    RELABEL = "RELABEL"
    ECHO = "ECHO"


MEANING: dict[Signal, str] = {
    Signal.BEGIN: "the driver begins a submission",
    Signal.TOO_LATE: "the driver comes to a resubmission when the upstream may have forgotten the key",
    Signal.UNSERVED: "a READY order waits for an upstream that is not configured here",
    Signal.EXECUTED: "SUCCEEDED, everything matches, and another leg follows",
    Signal.EXECUTED_LAST: "SUCCEEDED, everything matches, and this was the last leg",
    Signal.MISMATCH: "SUCCEEDED with another amount, currency or reference than asked or known",
    Signal.REFUSED: "FAILED for the first leg: nothing was executed",
    Signal.REFUSED_LATER: "FAILED, or proven absent, for a later leg: earlier ones were executed",
    Signal.IN_PROGRESS: "IN_PROGRESS within the pending deadline; spends no budget",
    Signal.OVERDUE: "IN_PROGRESS after the pending deadline; spends budget",
    Signal.ABSENT: "NOT_FOUND that is no proof yet; spends budget",
    Signal.ABSENT_FINAL: "NOT_FOUND that is proof, and the contract does not want the leg sent again",
    Signal.NO_WORD: "UNKNOWN to a probe; spends budget",
    Signal.RESEND: "ignorance of a leg that was never sent; NOT_FOUND that is proof, or any ignorance of an "
    "idempotent upstream, while the key lives",
    Signal.SPENT: "an answer that settles nothing, and the budget ends with it",
    Signal.UNSURE: "a submission without a verdict",
    Signal.NOT_SENT: "our process knows that it never made the call",
    Signal.TOO_EARLY: "ignorance of the upstream while the submission may still be on its way",
    Signal.SILENT: "no answer to a probe: down, slow or overloaded; spends nothing",
    Signal.OUR_FAULT: "a probe failed through our own fault; spends nothing",
    Signal.NOT_PROBED: "a probe was not made, for want of a free slot or of time; counts nothing",
    Signal.MALFORMED: "an answer that makes no sense",
    Signal.MALFORMED_AGAIN: "so many of them that asking on makes no sense",
    Signal.POISON: "probes that were begun and never reported, too often",
    Signal.LATE: "a verdict about an earlier leg or submission, or one that comes too late to matter",
    Signal.DISPUTED: "a word of an upstream that contradicted itself or us before: a person must settle it",
    Signal.CONTRADICTED: "evidence against a settled order that must not simply be followed",
    Signal.REDRIVE: "a person puts the order back to automation",
    Signal.RESOLVE_SUCCESS: "a person vouches for SUCCESS, with evidence and reference",
    Signal.RESOLVE_FAILED: "a person vouches for FAILED, with evidence",
    Signal.RELABEL: "somebody gives the order other labels; it goes on as before",
    Signal.ECHO: "nothing new",
}


@dataclass(frozen=True, slots=True)
class Row:
    """What follows from one signal at one place.

    kind:   the journal entry; None: nothing is journaled, only the timer moves.
    opens:  the reason of the case that is opened (or takes over the open one). closes: the open case, if
    any, ends.
    """

    to: Where
    kind: Kind | None
    opens: CaseReason | None = None
    closes: bool = False


_S, _A, _U, _R, _P = Where.SUBMITTING, Where.ACCEPTED, Where.UNKNOWN, Where.READY, Where.PARKED
_OK, _NO = Where.SUCCESS, Where.FAILED
_WORKING = (_S, _A, _U)


def _rows() -> dict[tuple[Where, Signal], Row]:
    table = {
        (_R, Signal.BEGIN): Row(_S, Kind.SUBMITTED),
        (_R, Signal.TOO_LATE): Row(_U, Kind.UNSURE),
        (_R, Signal.UNSERVED): Row(_P, Kind.PARKED, opens=CaseReason.UPSTREAM_UNKNOWN),
        (_S, Signal.UNSURE): Row(_U, Kind.UNSURE),
        (_S, Signal.TOO_EARLY): Row(_S, None),
        (_A, Signal.IN_PROGRESS): Row(_A, Kind.PROBED),
        (_A, Signal.OVERDUE): Row(_A, Kind.PROBED),
        (_A, Signal.NO_WORD): Row(_A, Kind.PROBED),
        (_A, Signal.MALFORMED): Row(_A, Kind.PROBED),
        (_P, Signal.DISPUTED): Row(_P, Kind.PROBED),
        (_P, Signal.MISMATCH): Row(_P, Kind.PROBED, opens=CaseReason.VERDICT_MISMATCH),
        (_P, Signal.REFUSED_LATER): Row(_P, Kind.PROBED, opens=CaseReason.UNDO_REQUIRED),
        (_P, Signal.EXECUTED): Row(_R, Kind.LEG_DONE, closes=True),
        (_P, Signal.EXECUTED_LAST): Row(_OK, Kind.SETTLED, closes=True),
        (_P, Signal.REFUSED): Row(_NO, Kind.SETTLED, closes=True),
        (_P, Signal.ABSENT_FINAL): Row(_NO, Kind.SETTLED, closes=True),
        (_P, Signal.POISON): Row(_P, None),
        (_P, Signal.REDRIVE): Row(_U, Kind.REDRIVEN, closes=True),
        (_P, Signal.RESOLVE_SUCCESS): Row(_OK, Kind.CASE_RESOLVED, closes=True),
        (_P, Signal.RESOLVE_FAILED): Row(_NO, Kind.CASE_RESOLVED, closes=True),
        (_NO, Signal.EXECUTED): Row(_R, Kind.REOPENED),
        (_NO, Signal.EXECUTED_LAST): Row(_OK, Kind.REOPENED),
        (_NO, Signal.CONTRADICTED): Row(_NO, Kind.CASE_OPENED, opens=CaseReason.CONTRADICTED),
        (_NO, Signal.RESOLVE_SUCCESS): Row(_OK, Kind.CASE_RESOLVED, closes=True),
        (_NO, Signal.RESOLVE_FAILED): Row(_NO, Kind.CASE_RESOLVED, closes=True),
        (_OK, Signal.CONTRADICTED): Row(_OK, Kind.CASE_OPENED, opens=CaseReason.CONTRADICTED),
        (_OK, Signal.RESOLVE_SUCCESS): Row(_OK, Kind.CASE_RESOLVED, closes=True),
    }
    for at in (*_WORKING, _R):
        table[at, Signal.EXECUTED] = Row(_R, Kind.LEG_DONE)
        table[at, Signal.EXECUTED_LAST] = Row(_OK, Kind.SETTLED)
        table[at, Signal.REFUSED] = Row(_NO, Kind.SETTLED)
        table[at, Signal.MISMATCH] = Row(_P, Kind.PARKED, opens=CaseReason.VERDICT_MISMATCH)
        table[at, Signal.REFUSED_LATER] = Row(_P, Kind.PARKED, opens=CaseReason.UNDO_REQUIRED)
    for at in (_S, _U, _R):
        table[at, Signal.IN_PROGRESS] = table[at, Signal.OVERDUE] = Row(_A, Kind.ACCEPTED)
    for at in (_S, _U):
        table[at, Signal.NO_WORD] = Row(_U, Kind.PROBED)
        table[at, Signal.MALFORMED] = Row(_U, Kind.PROBED)
        table[at, Signal.RESEND] = Row(_R, Kind.RESEND_DUE)
        table[at, Signal.ABSENT_FINAL] = Row(_NO, Kind.SETTLED)
        table[at, Signal.NOT_SENT] = Row(_R, Kind.NOT_SENT)
    for at in _WORKING:
        table[at, Signal.ABSENT] = Row(_U, Kind.PROBED)
        table[at, Signal.SPENT] = Row(_P, Kind.PARKED, opens=CaseReason.PROBES_EXHAUSTED)
        table[at, Signal.MALFORMED_AGAIN] = Row(_P, Kind.PARKED, opens=CaseReason.MALFORMED_ANSWERS)
        table[at, Signal.POISON] = Row(_P, Kind.PARKED, opens=CaseReason.POISON)
    for signal in (Signal.IN_PROGRESS, Signal.OVERDUE, Signal.ABSENT, Signal.NO_WORD, Signal.MALFORMED):
        table[_P, signal] = Row(_P, Kind.PROBED)
    for at in (*_WORKING, _P):
        for signal in (Signal.SILENT, Signal.OUR_FAULT, Signal.NOT_PROBED):
            table[at, signal] = Row(at, None)
    for at in Where:
        table[at, Signal.LATE] = Row(at, Kind.LATE_VERDICT)
        table[at, Signal.RELABEL] = Row(at, Kind.RELABELLED)
    return table


TABLE = _rows()
"""Every transition there is."""


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A transition of undoing, for which the table has room: today such an order is parked with
    UNDO_REQUIRED.
    """

    at: str
    when: str
    to: str
    writes: str


UNDO: tuple[PlannedRow, ...] = (
    PlannedRow(
        "SUBMITTING, ACCEPTED, UNKNOWN",
        "REFUSED_LATER, all earlier legs reversible",
        "UNDO_READY",
        "UNDO_BEGUN",
    ),
    PlannedRow("SUBMITTING, ACCEPTED, UNKNOWN", "REFUSED_LATER, one is not", "PARKED", "PARKED"),
    PlannedRow("UNDO_READY", "BEGIN", "UNDO_SUBMITTING", "SUBMITTED"),
    PlannedRow("UNDO_SUBMITTING", "UNSURE", "UNDO_UNKNOWN", "UNSURE"),
    PlannedRow(
        "UNDO_SUBMITTING, UNDO_UNKNOWN", "EXECUTED, an earlier leg is left", "UNDO_READY", "LEG_UNDONE"
    ),
    PlannedRow("UNDO_SUBMITTING, UNDO_UNKNOWN", "EXECUTED_LAST", "FAILED", "SETTLED"),
    PlannedRow("UNDO_SUBMITTING, UNDO_UNKNOWN", "REFUSED or SPENT", "PARKED", "PARKED"),
)


def document() -> str:
    """docs/ORDER_STATES.md: the table, for people."""
    return "\n".join([*_introduction(), *_signals(), *_transitions(), *_planned()]) + "\n"


def _introduction() -> list[str]:
    return [
        "# Order states",
        "",
        "Printed by `python -m order_svc.states` from the table that the code uses; a test compares them.",
        "",
        "`status` is what callers see: PENDING, SUCCESS or FAILED. `stage` says where an order stands inside",
        "PENDING.",
        "",
        "| stage | status | woken by | meaning |",
        "|---|---|---|---|",
        "| SUBMITTING | PENDING | recovery, after the deadline | journaled; the call may be in flight |",
        "| ACCEPTED | PENDING | recovery, at the upstream's pace | the upstream has it and will decide |",
        "| UNKNOWN | PENDING | recovery, with growing waits | no proof either way |",
        "| READY | PENDING | order_svc, now | the next leg, or a safe resubmission, is due |",
        "| PARKED | PENDING | recovery, daily | a dead letter is open; the truth is still welcome |",
        "| DONE | SUCCESS or FAILED | nobody | settled |",
        "",
        "An order is opened at SUBMITTING (leg 0, attempt 1, version 1, journal entry OPENED).",
        "",
    ]


def _signals() -> list[str]:
    lines = ["## What an event can mean", "", "| signal | meaning |", "|---|---|"]
    return [*lines, *(f"| {signal} | {MEANING[signal]} |" for signal in Signal), ""]


def _transitions() -> list[str]:
    lines = [
        "## Transitions",
        "",
        "What is not listed must not happen and is refused with ILLEGAL_TRANSITION or ORDER_NOT_PARKED; ECHO",
        "changes nothing anywhere. A row that journals nothing only moves the timer.",
        "",
        "| at | signal | to | journal | case |",
        "|---|---|---|---|---|",
    ]
    ordered = sorted(
        TABLE.items(), key=lambda cell: (list(Where).index(cell[0][0]), list(Signal).index(cell[0][1]))
    )
    for (at, signal), row in ordered:
        case = f"opens {row.opens}" if row.opens else "closes" if row.closes else ""
        lines.append(f"| {at} | {signal} | {row.to} | {row.kind or '-'} | {case} |")
    return [*lines, ""]


def _planned() -> list[str]:
    lines = [
        "## Undoing, not built yet",
        "",
        "Legs executed before the one that failed are to be reversed, the last one first. Until then",
        "such an order is parked with UNDO_REQUIRED.",
        "",
        "| at | signal | to | journal |",
        "|---|---|---|---|",
    ]
    return [*lines, *(f"| {row.at} | {row.when} | {row.to} | {row.writes} |" for row in UNDO)]


if __name__ == "__main__":
    sys.stdout.write(document())
