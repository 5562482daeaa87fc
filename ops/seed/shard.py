"""One shard while it is seeded: what it owns, what it has already, and the transaction of each month.

Owns one session, of the fence's kind: READ COMMITTED, every row with the epoch of its bucket. A month of a
shard is written in one transaction, which also takes the month away from the read model; so after a crash it
is there or it is not, and lists are right in both cases. A month that the shard has no partition of is
written aside, without a trigger for each row, while nobody can move a bucket.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from chassis import pg
from history_svc.document import month_start, next_month
from ops.errors import OpsError
from ops.seed.plan import Origin, PlanRefused
from ops.seed.rows import COLUMNS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
    from datetime import date, datetime

    from ops.seed.rows import Record

CONNECT_S = 5.0
STATEMENT_S = 120.0
_SETTINGS = {
    "application_name": "ordermesh-seed",
    "search_path": "ordermesh, public",
    "default_transaction_isolation": "read committed",
    "timezone": "UTC",
}
MONTHLY = ("orders", "order_journal")
queries = pg.queries("ops.seed", "queries.sql")


class ShardRefused(OpsError):
    """A shard could not be written as it should be; the message names it."""


class SeedShard:
    """One shard's database, open for seeding. epochs: of the buckets it owns."""

    def __init__(self, name: str, session: asyncpg.Connection, epochs: Mapping[int, int]) -> None:
        self.name = name
        self.epochs = epochs
        self._session = session

    async def now(self) -> datetime:
        """The shard's clock."""
        with writing(self.name):
            at: datetime = await self._session.fetchval("SELECT ordermesh.clock()")
        return at

    async def origin_of(self, user_id: str) -> Origin | None:
        """What an order of a user says about the seeding that made it; None when there is none."""
        with writing(self.name):
            request_id = await self._session.fetchval(queries.an_order_of, user_id)
        return None if request_id is None else Origin.of(request_id)

    async def has_month(self, month: date, user_ids: Sequence[str]) -> bool:
        """Whether any of these users has an order of a month."""
        bounds = (month_start(month), month_start(next_month(month)))
        with writing(self.name):
            return bool(await self._session.fetchval(queries.has_month, user_ids, *bounds))

    async def months_there(self, months: Sequence[date]) -> set[date]:
        """Those that the shard has partitions of.

        Raises: ShardRefused when one is archived: it could not be told from what was.
        """
        with writing(self.name):
            archived = {row["month"] for row in await self._session.fetch(queries.archived_months)}
            there = {row["month"] for row in await self._session.fetch(queries.months_there)}
        if found := sorted(archived.intersection(months)):
            raise ShardRefused(f"{found[0]:%Y-%m} of shard {self.name} is archived; take fewer --months.")
        return there

    async def ensure_months(self, months: Iterable[date]) -> None:
        """Make the partitions that are missing."""
        with writing(self.name):
            async with self._session.transaction():
                await self._session.execute(queries.alone)
                for month in months:
                    await self._session.fetchval(queries.ensure_month, month_start(month))

    @asynccontextmanager
    async def month(self, month: date, *, aside: bool) -> AsyncIterator[SeedMonth]:
        """One month's transaction: committed when the context ends well, and taken from the read model then.

        aside: the shard has no partition of it; it is written without a trigger for each row, and attached.
        If cancelled here: nothing of the month is written.
        Raises: ShardRefused.
        """
        with writing(self.name):
            async with self._session.transaction():
                written = SeedMonth(self._session, month if aside else None)
                if aside:
                    await self._hold_fence()
                    await written.make_tables()
                yield written
                if aside:
                    await self._session.execute(queries.alone)
                    await written.attach_tables()
                if written.count:
                    await self._session.execute(queries.plan_index, month)
            for table in ("orders", "order_journal") if written.count else ():
                await self._session.execute(f"ANALYZE {table}_{month:%Y_%m}")

    async def _hold_fence(self) -> None:
        """Keep every bucket where it is, and see that it is where it was: no trigger looks at the rows.

        Raises: ShardRefused.
        """
        await self._session.execute(queries.hold_fence)
        owned = await self._session.fetch(queries.owned_buckets)
        if {row["bucket"]: row["epoch"] for row in owned} != self.epochs:
            raise ShardRefused(f"a bucket of shard {self.name} was moved meanwhile; run it again.")


class SeedMonth:
    """The rows of one month in one shard, in its transaction. aside: the month, when its tables are new."""

    def __init__(self, session: asyncpg.Connection, aside: date | None) -> None:
        self._session = session
        self._aside = aside
        self.count = 0

    async def make_tables(self) -> None:
        """Make the month's partitions, aside."""
        await self._for_each(queries.make_aside)

    async def attach_tables(self) -> None:
        """Let them be partitions, with their indexes and triggers."""
        await self._for_each(queries.attach)

    async def _for_each(self, statement: str) -> None:
        assert self._aside is not None
        begins, ends = month_start(self._aside), month_start(next_month(self._aside))
        for table in MONTHLY:
            await self._session.execute(
                statement.format(table=table, suffix=f"{self._aside:%Y_%m}", begins=begins, ends=ends)
            )

    def _table(self, table: str) -> str:
        return f"{table}_{self._aside:%Y_%m}" if self._aside and table in MONTHLY else table

    async def copy(self, records: Mapping[str, Sequence[Record]]) -> None:
        """Write rows, by table."""
        for table, columns in COLUMNS.items():
            if rows := records.get(table):
                await self._session.copy_records_to_table(
                    self._table(table), records=rows, columns=columns, schema_name="ordermesh"
                )
        self.count += len(records["orders"])


@asynccontextmanager
async def opened(name: str, dsn: str) -> AsyncIterator[SeedShard]:
    """A session on one shard.

    Raises: ShardRefused.
    """
    with writing(name):
        session: asyncpg.Connection[Any] = await asyncpg.connect(
            dsn, timeout=CONNECT_S, command_timeout=STATEMENT_S, server_settings=_SETTINGS
        )
    try:
        with writing(name):
            owned = await session.fetch(queries.owned_buckets)
        yield SeedShard(name, session, {row["bucket"]: row["epoch"] for row in owned})
    finally:
        await session.close(timeout=CONNECT_S)


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Turn what the driver raises into ShardRefused."""
    try:
        yield
    except asyncpg.PostgresError as failed:
        if failed.sqlstate == pg.STALE_ROUTE_STATE:
            raise ShardRefused(f"a bucket of shard {name} was moved meanwhile; run it again.") from failed
        raise ShardRefused(f"shard {name} refused: {failed}") from failed
    except (OSError, TimeoutError, asyncpg.InterfaceError) as failed:
        raise ShardRefused(
            f"shard {name} does not answer: {str(failed) or type(failed).__name__}"
        ) from failed


def checked(origin: Origin | None, mark: int, seed: int) -> Origin | None:
    """The origin of what is there already, if it is of the same plan.

    Raises: PlanRefused.
    """
    if origin is not None and origin.mark != mark:
        raise PlanRefused(f"--seed {seed} was used with other arguments here; repeat those, or take another.")
    return origin
