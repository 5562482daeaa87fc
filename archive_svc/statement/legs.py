"""A user's orders of a period on one shard, from its tables and its segments, as one snapshot has them.

The catalog says which months are read from segments. It is read in the snapshot that the tables are read in,
below a lock that keeps every other month attached; where that lock keeps nothing, at a replica, a later look
at the catalog finds out. So an order is read once or the reading fails, whatever the archive does meanwhile.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, aclosing
from itertools import groupby
from typing import TYPE_CHECKING, Any

from archive_svc.errors import OrdersMoved, StatementIncomplete
from archive_svc.segment import Facts
from archive_svc.statement.fetching import Leg, Read
from archive_svc.statement.plan import Piece, pieces
from archive_svc.statement.rows import Row, select_list
from chassis import pg
from chassis.errors import StaleRoute
from chassis.s3 import Stored

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from datetime import date
    from uuid import UUID

    from archive_svc.statement.fetching import Fetcher
    from archive_svc.statement.wish import Wanted
    from chassis.pg import Session

    Sessions = Callable[[], AbstractAsyncContextManager[Session]]

QUERIES = pg.queries("archive_svc.statement", "legs.sql")
BATCH_ROWS = 2000
READ_S_MAX = 3600.0
"""Of reading a statement; a shard keeps a snapshot as long. A month is detached a day after its commit."""
BATCH_S_MAX = 60.0
SESSION = {
    "statement_timeout": "60000",
    # A process that stands still keeps its snapshot no longer than this.
    "idle_in_transaction_session_timeout": str(int(READ_S_MAX * 1000)),
}
"""What differs in the sessions of a reader."""
_HOT = QUERIES.hot.format(columns=select_list("o"))


class ShardReader:
    """Reads one shard. sessions: opens one that has `SESSION`, at the primary or at a replica."""

    def __init__(self, shard: str, sessions: Sessions, fetcher: Fetcher) -> None:
        self.shard = shard
        self._sessions = sessions
        self._fetcher = fetcher

    async def rows(self, wanted: Wanted, read: Read) -> AsyncGenerator[list[Row], None]:
        """The user's orders, in batches, by (created_at, order_id).

        Raises: StaleRoute when the shard does not own one of the buckets; OrdersMoved; StatementIncomplete;
        StorageUnavailable; what chassis.pg raises.
        """
        buckets = list(wanted.placements[self.shard])
        hot: list[date] = []
        async with self._sessions() as session:
            async with session.snapshot():
                await session.execute(QUERIES.keep_attached)
                if (stale := await session.fetchval(QUERIES.stale, buckets)) is not None:
                    raise StaleRoute(**{name: fact for name, fact in stale.items() if fact is not None})
                months = await self._archived(session, wanted)
                plan = pieces(wanted.since, wanted.until, months)
                for is_archived, some in groupby(plan, key=lambda piece: piece.is_archived):
                    run = list(some)
                    if is_archived:
                        legs = await self._legs(session, wanted, run, months)
                        found = self._fetcher.rows(wanted.user_id, legs, read)
                    else:
                        hot += [piece.month for piece in run]
                        found = self._hot(session, wanted.user_id, buckets, run)
                    async with aclosing(found) as batches:
                        async for batch in batches:
                            read.rows += len(batch)
                            yield batch
            left = await session.fetchval(QUERIES.left, hot)
        if left is not None:
            raise OrdersMoved(shard=self.shard, month=f"{left:%Y-%m}")

    async def _archived(self, session: Session, wanted: Wanted) -> dict[date, UUID]:
        rows = await session.fetch(QUERIES.archived, wanted.since, wanted.until)
        return {row["month"]: row["archive_id"] for row in rows}

    async def _hot(
        self, session: Session, user_id: str, buckets: list[int], run: Sequence[Piece]
    ) -> AsyncGenerator[list[Row], None]:
        for piece in run:
            rows = session.batches(
                _HOT, user_id, piece.since, piece.until, buckets, size=BATCH_ROWS, timeout_s=BATCH_S_MAX
            )
            async with aclosing(rows) as batches:
                async for batch in batches:
                    yield [Row(*record) for record in batch]

    async def _legs(
        self, session: Session, wanted: Wanted, run: Sequence[Piece], months: Mapping[date, UUID]
    ) -> list[Leg]:
        return [
            self._leg(wanted.user_id, piece, row)
            for piece in run
            for row in await session.fetch(
                QUERIES.segments, months[piece.month], wanted.user_id, piece.since, piece.until
            )
        ]

    def _leg(self, user_id: str, piece: Piece, row: Any) -> Leg:
        if row["key"] is None:
            raise StatementIncomplete(shard=self.shard, month=f"{piece.month:%Y-%m}", what="a segment")
        facts = Facts.from_json(row["facts"])
        if facts.rows != row["order_count"]:
            raise StatementIncomplete(shard=self.shard, key=row["key"], what="rows of a part")
        stored = Stored(
            row["key"], row["size_bytes"], row["etag"], version_id=row["version_id"], sha256=row["sha256"]
        )
        return Leg(self.shard, piece, stored, facts, facts.groups_of(user_id))
