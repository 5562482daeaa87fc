"""A user's orders of a period on one shard, from its tables and its segments, as one snapshot has them.

The catalog says which months are read from segments. It is read in the snapshot that the tables are read in,
below a lock that keeps every other month attached; where that lock keeps nothing, at a replica, a later look
at the catalog finds out. So an order is read once or the reading fails, whatever the archive does meanwhile;
and the snapshot is taken when who wrote orders of the period has ended (see `settling`).
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Any

from archive_svc import damage
from archive_svc.errors import ArchiveCold, OrdersMoved, StatementIncomplete
from archive_svc.segment import Facts, Step
from archive_svc.statement.amendments import Amendment, amended, by_order
from archive_svc.statement.fetching import Leg, Read, SegmentGone
from archive_svc.statement.places import see_owned
from archive_svc.statement.plan import Piece, month_after, pieces
from archive_svc.statement.rows import Row, select_list
from archive_svc.statement.settling import settled
from chassis import pg
from chassis.clock import SYSTEM_CLOCK
from chassis.ids import id_time
from chassis.s3 import Stored

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from datetime import date
    from uuid import UUID

    from archive_svc.statement.fetching import Fetcher
    from archive_svc.statement.wish import Wanted
    from chassis.clock import Clock
    from chassis.errors import OrdermeshError
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


class Unreadable(StrEnum):
    """Why nobody can say what a copy has of a user."""

    DAMAGED = "DAMAGED"
    COLD = "COLD"


class ShardReader:
    """Reads one shard. sessions: opens one that has `SESSION`, at the primary or at a replica."""

    def __init__(self, shard: str, sessions: Sessions, fetcher: Fetcher, clock: Clock = SYSTEM_CLOCK) -> None:
        self.shard = shard
        self._sessions = sessions
        self._fetcher = fetcher
        self._clock = clock

    async def rows(self, wanted: Wanted, read: Read) -> AsyncGenerator[list[Row], None]:
        """The user's orders, in batches, by (created_at, order_id).

        Raises: StaleRoute when the shard does not own one of the buckets at its epoch; OrdersMoved;
        OrdersUnsettled; StatementIncomplete; ArchiveCold; StorageUnavailable; what chassis.pg raises.
        """
        try:
            async with self._sessions() as session, aclosing(self._rows(session, wanted, read)) as batches:
                async for batch in batches:
                    yield batch
        except SegmentGone as gone:
            raise await self._why(gone) from gone
        except StatementIncomplete as incomplete:
            raise self._told(incomplete) from incomplete.__cause__

    async def archived_order(self, user_id: str, order_id: UUID) -> tuple[Row, int] | None:
        """One order with its amendments, and how many these are; None when no segment has it.

        Raises: as `rows`.
        """
        at = id_time(order_id)
        instant = (at, at + timedelta(microseconds=1))
        try:
            async with self._sessions() as session, session.snapshot():
                months = await self._archived(session, *instant)
                amendments = await self._amendments(session, user_id, *instant)
                run = [piece for piece in pieces(*instant, months) if piece.is_archived]
                legs = await self._legs(session, user_id, run, months)
                async with aclosing(self._fetcher.rows(user_id, legs, Read())) as batches:
                    found = [row async for batch in batches for row in batch if row.order_id == str(order_id)]
        except SegmentGone as gone:
            raise await self._why(gone) from gone
        except StatementIncomplete as incomplete:
            raise self._told(incomplete) from incomplete.__cause__
        mine = amendments.get(str(order_id), [])
        return (amended(found[0], mine), len(mine)) if found else None

    async def archived_counts(self, user_id: str) -> dict[date, dict[int, int] | Unreadable]:
        """How many orders of a user the copy of each month has, by part; what has none is left out.

        Also of copies that nobody reads since their month came back: why not, of one that is damaged. So of
        every one that lies in cold storage. Not of months in quarantine. Only row groups that other users
        share are read: there are two in a segment at most.
        Raises: as `rows`, but for ArchiveCold.
        """
        found: dict[date, dict[int, int] | Unreadable] = {}
        try:
            async with self._sessions() as session, session.snapshot():
                for copy in await session.fetch(QUERIES.copies):
                    try:
                        counts = await self._counts(session, user_id, copy["month"], copy["archive_id"])
                    except (SegmentGone, StatementIncomplete):
                        if copy["is_read"]:
                            raise
                        found[copy["month"]] = Unreadable.DAMAGED
                    except ArchiveCold:
                        found[copy["month"]] = Unreadable.COLD
                    else:
                        found |= {copy["month"]: counts} if counts else {}
        except SegmentGone as gone:
            raise await self._why(gone) from gone
        return found

    async def _counts(self, session: Session, user_id: str, month: date, archive_id: UUID) -> dict[int, int]:
        begins = datetime(month.year, month.month, 1, tzinfo=UTC)
        piece = Piece(month, begins, month_after(month), is_archived=True)
        found = {
            row["part"]: await self._count(user_id, self._leg(user_id, piece, row))
            for row in await session.fetch(QUERIES.segments, archive_id, user_id, piece.since, piece.until)
        }
        return {part: count for part, count in found.items() if count}

    async def _count(self, user_id: str, leg: Leg) -> int:
        count = 0
        for number in leg.groups:
            group = leg.facts.groups[number]
            if group.first_user == group.last_user == user_id:
                count += group.rows
                continue
            shared = replace(leg, groups=range(number, number + 1))
            async with aclosing(self._fetcher.rows(user_id, [shared], Read())) as batches:
                count += sum([len(batch) async for batch in batches])
        return count

    async def _why(self, gone: SegmentGone) -> OrdermeshError:
        """What it means that a segment is gone: another has its place by now, or it is lost."""
        async with self._sessions() as session:
            if await session.fetchval(QUERIES.gone, gone.key):
                return OrdersMoved(shard=self.shard, key=gone.key)
        return self._told(StatementIncomplete(Step.BYTES, shard=self.shard, key=gone.key, what=gone.what))

    def _told(self, incomplete: StatementIncomplete) -> StatementIncomplete:
        """The same, once somebody was told of a segment that was found damaged."""
        if incomplete.step is not None:
            what = {name: incomplete.facts[name] for name in ("key", "month") if name in incomplete.facts}
            damage.tell(
                self.shard, incomplete.step, str(incomplete.facts["what"]), found_by="statement", **what
            )
        return incomplete

    async def _rows(self, session: Session, wanted: Wanted, read: Read) -> AsyncGenerator[list[Row], None]:
        user_id, period = wanted.user_id, (wanted.since, wanted.until)
        held = wanted.placements[self.shard]
        buckets = [one.bucket for one in held]
        hot: list[date] = []
        await settled(session, self.shard, wanted, self._clock)
        async with session.snapshot():
            await session.execute(QUERIES.keep_attached)
            # In this snapshot, which is younger than the wish: no order of it is in a bucket not named here.
            await see_owned(session, held)
            months = await self._archived(session, *period)
            amendments = await self._amendments(session, user_id, *period)
            for is_archived, some in groupby(pieces(*period, months), key=lambda piece: piece.is_archived):
                run = list(some)
                if is_archived:
                    legs = await self._legs(session, user_id, run, months)
                    found = self._fetcher.rows(user_id, legs, read)
                else:
                    hot += [piece.month for piece in run]
                    found = self._hot(session, user_id, buckets, run)
                async with aclosing(found) as batches:
                    async for batch in batches:
                        read.rows += len(batch)
                        if amendments and is_archived:
                            yield [amended(row, amendments.get(row.order_id, ())) for row in batch]
                        else:
                            yield batch
        left = await session.fetchval(QUERIES.left, hot)
        if left is not None:
            raise OrdersMoved(shard=self.shard, month=f"{left:%Y-%m}")

    async def _amendments(
        self, session: Session, user_id: str, since: datetime, until: datetime
    ) -> dict[str, list[Amendment]]:
        return by_order(await session.fetch(QUERIES.amendments, user_id, since, until))

    async def _archived(self, session: Session, since: datetime, until: datetime) -> dict[date, UUID]:
        rows = await session.fetch(QUERIES.archived, since, until)
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
        self, session: Session, user_id: str, run: Sequence[Piece], months: Mapping[date, UUID]
    ) -> list[Leg]:
        return [
            self._leg(user_id, piece, row)
            for piece in run
            for row in await session.fetch(
                QUERIES.segments, months[piece.month], user_id, piece.since, piece.until
            )
        ]

    def _leg(self, user_id: str, piece: Piece, row: Any) -> Leg:
        if row["key"] is None:
            raise StatementIncomplete(
                Step.BYTES, shard=self.shard, month=f"{piece.month:%Y-%m}", what="a segment"
            )
        facts = Facts.from_json(row["facts"])
        if facts.rows != row["order_count"]:
            raise StatementIncomplete(Step.ROWS, shard=self.shard, key=row["key"], what="rows of a part")
        stored = Stored(
            row["key"], row["size_bytes"], row["etag"], version_id=row["version_id"], sha256=row["sha256"]
        )
        return Leg(self.shard, piece, stored, facts, facts.groups_of(user_id))
