"""Legal holds: who, and which months, must not be deleted from the archive until somebody says so.

The shard's database is the authority: what would delete asks it, and its own guards ask again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from chassis import pg
from chassis.store_spans import traced

if TYPE_CHECKING:
    from datetime import date, datetime
    from typing import Any

QUERIES = pg.queries("archive_svc", "holds.sql")
LISTED_MAX = 1000


@dataclass(frozen=True, slots=True)
class Hold:
    """One of them. user_id, month: one is None. lifted_at: None while it keeps something."""

    user_id: str | None
    month: date | None
    actor: str
    reason: str
    created_at: datetime
    lifted_by: str
    lift_reason: str
    lifted_at: datetime | None


@traced
class Holds:
    """The legal holds of one shard. Every method raises what chassis.pg raises."""

    def __init__(self, shard: str, database: pg.Database) -> None:
        self.shard = shard
        self._database = database

    def until(self, deadline: float) -> Holds:
        """The same for one call: nothing is waited for after its deadline."""
        return Holds(self.shard, self._database.until(deadline))

    async def put(self, user_id: str | None, month: date | None, actor: str, reason: str) -> Hold:
        """Keep a user or a month. Idempotent: one that is kept stays so, by whom it was."""
        row = await self._database.fetchrow(QUERIES.put, uuid4(), user_id, month, actor, reason)
        assert row is not None, "it was made now or before"
        return _hold(row)

    async def lift(self, user_id: str | None, month: date | None, actor: str, reason: str) -> Hold | None:
        """Let a user or a month go again; None when nothing kept it. Idempotent."""
        row = await self._database.fetchrow(QUERIES.lift, user_id, month, actor, reason)
        return None if row is None else _hold(row)

    async def listed(self) -> list[Hold]:
        """Those that keep something, then those that were lifted, the newest first."""
        return [_hold(row) for row in await self._database.fetch(QUERIES.listed, LISTED_MAX)]


def _hold(row: Any) -> Hold:
    return Hold(**{name: row[name] for name in Hold.__slots__})
