"""An operation on a shard's part of the projection: what it does and where it stands. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING

from history_svc.document import month_start, next_month

if TYPE_CHECKING:
    from datetime import date, datetime
    from uuid import UUID


ACTOR = "projector"
"""Who asks for what is done by itself."""


class Kind(StrEnum):
    """What is done; in the order in which they go first."""

    RESET = "RESET"
    """Begin anew: watermarks at the end of the log, every month to be built again."""
    RETRY = "RETRY"
    """Write the orders in quarantine once more, as they are now."""
    REBUILD = "REBUILD"
    """Build a month in a new generation of its index, prove it, and serve it."""
    VERIFY = "VERIFY"
    """Compare a month's index with the shard."""


class State(StrEnum):
    """Whether it is over, and how it ended."""

    OPEN = "OPEN"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Phase(StrEnum):
    """Where an open one stands."""

    PLAN = "PLAN"
    """Nothing is done yet."""
    WAIT = "WAIT"
    """Waits until every change from now on is written to the new index too."""
    COPY = "COPY"
    """Writes the orders of the month into the new index."""
    COMPARE = "COMPARE"
    """Compares the index with the shard."""


@dataclass(frozen=True, slots=True)
class Findings:
    """How many orders differ, by how. All of them are proven: what is only late does not count.

    missing, stale:  the index has no document, or an older one, although its watermark says otherwise.
    ahead, extra:    the index knows more than the shard: a version, or an order, that is not there.
    refused:         the read model does not take the document. repaired: written again.
    """

    missing: int = 0
    stale: int = 0
    ahead: int = 0
    extra: int = 0
    refused: int = 0
    repaired: int = 0

    def __add__(self, other: Findings) -> Findings:
        return Findings(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Findings)))

    @property
    def is_foreign(self) -> bool:
        """Whether the index holds what the shard does not: only another index helps."""
        return bool(self.ahead or self.extra)

    @property
    def differing(self) -> int:
        """Orders whose document is wrong."""
        return self.missing + self.stale + self.ahead + self.extra


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of `projection_operations`.

    month:           its first day; None for those that concern the whole shard. repairs: not only looks.
    index_name, generation, index_uuid: the index that is worked on, from WAIT on.
    catalog_version: every watermark has to be written by it before COPY.
    copied_to:       orders up to this id are copied. orders: how many are copied or compared, of about
    expected.
    passes:          how often it was compared. note: why it waits, or why it ended so.
    """

    operation_id: UUID
    kind: Kind
    month: date | None
    repairs: bool
    state: State
    phase: Phase
    generation: int | None
    index_name: str | None
    index_uuid: str | None
    catalog_version: int | None
    copied_to: UUID | None
    orders: int
    expected: int
    findings: Findings
    passes: int
    note: str
    actor: str
    reason: str
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None

    @property
    def bounds(self) -> tuple[datetime, datetime]:
        """Where its month begins and ends, UTC."""
        assert self.month is not None, "the table asks for one"
        return month_start(self.month), month_start(next_month(self.month))
