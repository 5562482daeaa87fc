"""What one shard says for a page, and whether the read model may be relied on for it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from history_svc.page import OLDEST
from history_svc.position import Position

if TYPE_CHECKING:
    from collections.abc import Mapping

    from history_svc.catalog import ShardCatalog
    from history_svc.page import Key, Row

CHANGES_LOOKED_AT_MAX = 2000
"""Changes of a user after the watermark that a page looks through. With more, the read model is so far behind
that the shard itself answers.
"""
OVERLAY_MAX = 500
"""Changed orders that one page overlays; a page with more ends where they end."""
REPLICA_LAG_S_MAX = 1.0


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the read model has one of the stream partitions; position is None when it has nothing."""

    stream_partition: int
    position: Position | None
    as_of: datetime | None


@dataclass(frozen=True, slots=True)
class ShardPart:
    """One shard's part of a page, of one snapshot.

    recent:     rows of the hot window, newest first.
    changed:    the current rows of orders that changed after the marks, or that the read model refused;
    newest
                first, complete down to `changed_down_to`, which is None when there are no more.
    changes:    how many changes were looked through to find them.
    log_epoch:  of the shard now; floor: below it the outbox may be gone.
    xmin:       every transaction before this one is in the snapshot.
    archived_to: what was created before it is archived; OLDEST when nothing is.
    lag:        of the replica that answered; none for a primary.
    at:         when it was read, by the database's clock.
    """

    shard: str
    recent: tuple[Row, ...]
    changed: tuple[Row, ...]
    changed_down_to: Key | None
    changes: int
    marks: tuple[Mark, ...]
    log_epoch: int
    floor: Position | None
    catalog: ShardCatalog
    xmin: int
    archived_to: datetime
    lag: timedelta | None
    at: datetime

    def above(self, floor: datetime) -> ShardPart:
        """The part without what was created before `floor`, which an archive has: complete down to there."""
        if floor == OLDEST:
            return self
        end = self.changed_down_to
        return replace(
            self,
            recent=tuple(row for row in self.recent if row.key.created_at >= floor),
            changed=tuple(row for row in self.changed if row.key.created_at >= floor),
            changed_down_to=None if end is None or end.created_at < floor else end,
        )

    @property
    def as_of(self) -> datetime:
        """Every change that was committed before this instant is in the rows."""
        return self.at - (self.lag or timedelta())

    @property
    def indexed_until(self) -> datetime | None:
        """Every change that was committed before this instant is in the read model; None when nothing is."""
        known = [mark.as_of for mark in self.marks if mark.as_of is not None]
        return min(known) if known and len(known) == len(self.marks) else None

    def why_unreliable(self) -> str:
        """Why the read model cannot be overlaid with what the shard knows; empty when it can."""
        for mark in self.marks:
            if mark.position is None:
                return f"stream partition {mark.stream_partition} was never indexed"
            if mark.position.log_epoch != self.log_epoch:
                return (
                    f"the shard is in log epoch {self.log_epoch}, the read model in {mark.position.log_epoch}"
                )
            if self.floor is not None and mark.position < self.floor:
                return f"changes after {mark.position} may be gone; the outbox begins at {self.floor}"
        if self.changes > CHANGES_LOOKED_AT_MAX:
            return f"more than {CHANGES_LOOKED_AT_MAX} changes of the user are not indexed"
        return ""

    def covers(self, tokens: Mapping[str, tuple[int, int]]) -> bool:
        """Whether a snapshot has every change of a caller's token. tokens: (log_epoch, xid) by shard."""
        wanted = tokens.get(self.shard)
        return wanted is None or self.lag is None or (wanted[0] == self.log_epoch and wanted[1] < self.xmin)
