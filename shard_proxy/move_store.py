"""Moves in the control database: one row each, changed only by whoever holds its lease.

A lease has a token that only grows. Every change says the token and the phase it comes from, so that a mover
that was frozen for a while finds out at its next word that it was overtaken.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from chassis import pg
from chassis.store_spans import traced
from shard_proxy.moves import Kind, Move, Phase, Situation

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from shard_proxy.moves import Route, Wish

_QUERIES = pg.queries("shard_proxy", "moves.sql")
LEASE = timedelta(seconds=2)
"""After a mover died its bucket is frozen for so long at most, and the time that its successor needs."""
WRITE_TIMEOUT_S = 1.0


@traced
class MoveStore:
    """The moves as one process sees and drives them."""

    def __init__(self, control: pg.Database) -> None:
        self._control = control
        self._holder = f"shard_proxy/{uuid4()}"

    async def find(self, move_id: UUID) -> Move | None:
        """One move."""
        return _move(await self._control.fetchrow(_QUERIES.find_move, move_id, timeout_s=WRITE_TIMEOUT_S))

    async def situation(self, user_id: str) -> Situation:
        """What there is to know about a user who is to be moved."""
        row = await self._control.fetchrow(_QUERIES.move_situation, user_id, timeout_s=WRITE_TIMEOUT_S)
        assert row is not None, "map_head always has its row"
        return Situation(
            map_version=row["version"],
            vip_buckets=tuple(row["vip_buckets"] or ()),
            dedicated=tuple(row["dedicated"]),
            shards=dict(row["shards"]),
            owners={bucket: shard for bucket, shard in row["owners"]},  # noqa: C416 - pairs come as lists
            busy_buckets=frozenset(row["busy_buckets"]),
            busy_users=frozenset(row["busy_users"]),
        )

    async def owner(self, bucket: int) -> str:
        """The shard that owns a bucket; empty when nobody does."""
        found = await self._control.fetchval(_QUERIES.owner_of, bucket, timeout_s=WRITE_TIMEOUT_S)
        return str(found or "")

    async def plan(self, map_version: int, wish: Wish, route: Route) -> Move | None:
        """Record a move and hold its lease; None when the map is another one by now."""
        row = await self._control.fetchrow(
            _QUERIES.plan_move,
            map_version,
            wish.move_id,
            wish.user_id,
            wish.kind,
            route.old_bucket,
            route.new_bucket,
            route.new_shard,
            wish.reason,
            wish.actor,
            self._holder,
            LEASE,
            timeout_s=WRITE_TIMEOUT_S,
        )
        return _move(row)

    async def claim(self, driving: Collection[UUID]) -> Move | None:
        """Take over a move whose mover fell silent, other than those that are driven here."""
        row = await self._control.fetchrow(
            _QUERIES.claim_move, self._holder, LEASE, list(driving), timeout_s=WRITE_TIMEOUT_S
        )
        return _move(row)

    async def advance(
        self,
        move: Move,
        to: Phase,
        *,
        attempt: int | None = None,
        failure: str = "",
        keys_copied: int = 0,
        frozen_ms: float | None = None,
    ) -> Move | None:
        """Bring a move from its phase to another, and renew the lease; None when the lease or the phase is
        not as believed.
        """
        row = await self._control.fetchrow(
            _QUERIES.advance_move,
            move.move_id,
            move.token,
            move.phase,
            to,
            attempt or move.attempt,
            failure or move.failure,
            keys_copied,
            frozen_ms,
            LEASE,
            timeout_s=WRITE_TIMEOUT_S,
        )
        return _move(row)

    async def flip(self, move: Move, timeout_s: float) -> bool:
        """Change the map; whether this very move was ready for it. Without an answer, ask `find`."""
        return bool(
            await self._control.fetchval(_QUERIES.flip_move, move.move_id, move.token, timeout_s=timeout_s)
        )

    async def newest(self, user_id: str, before: tuple[datetime, UUID], limit: int) -> list[Move]:
        """Moves, of one user or of all, the newest first, below a position."""
        rows = await self._control.fetch(
            _QUERIES.list_moves, user_id, *before, limit, timeout_s=WRITE_TIMEOUT_S
        )
        return [move for row in rows if (move := _move(row)) is not None]


def _move(row: Any) -> Move | None:
    if row is None:
        return None
    return Move(
        move_id=UUID(int=row["move_id"].int),
        user_id=row["user_id"],
        kind=Kind(row["kind"]),
        old_bucket=row["old_bucket"],
        old_shard=row["old_shard"],
        old_epoch=row["old_epoch"],
        new_bucket=row["new_bucket"],
        new_shard=row["new_shard"],
        phase=Phase(row["phase"]),
        attempt=row["attempt"],
        failure=row["failure"],
        reason=row["reason"],
        actor=row["actor"],
        token=row["token"],
        keys_copied=row["keys_copied"],
        frozen_ms=row["frozen_ms"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
