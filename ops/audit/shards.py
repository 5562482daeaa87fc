"""Read-only sessions on every shard, each in one snapshot for as long as the audit takes.

Owns its connections: one per shard, and one more for each look past the snapshot. Fails with StoreUnreadable.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from ops.audit.findings import EXAMPLES_MAX, Broken
from ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from ops.audit.invariants import Invariant

CONNECT_S = 5.0
STATEMENT_S = 120.0
"""A full read of a large shard; an audit that takes longer says so instead of holding its snapshot for
ever.
"""
BATCH = 1000
"""Orders in memory at once, per shard."""
_SETTINGS = {
    "application_name": "ordermesh-audit",
    "search_path": "ordermesh, public",
    "default_transaction_read_only": "on",
    "statement_timeout": str(int(STATEMENT_S * 1000)),
    "timezone": "UTC",
}
_FIRST = "SELECT count(*) OVER () AS total, id, fact FROM ({}) violations ORDER BY id LIMIT {}"
_ORDERS = """
SELECT o.order_id, o.bucket, o.status, o.stage, o.basis, o.leg, o.legs,
       o.amount_minor, o.currency_code, o.upstream_ref,
       EXISTS (SELECT FROM dead_letters d
                WHERE d.order_id = o.order_id AND d.closed_at IS NULL) AS has_open_case
  FROM orders o"""
_IDS = "SELECT order_id FROM orders ORDER BY order_id"
_FENCE = "SELECT bucket, state, epoch FROM bucket_fence"
_COPIED = """
SELECT user_id, request_id, order_id, COALESCE(expires_at < clock(), false) AS is_over FROM idempotency_keys
 WHERE bucket <> ordermesh.id_bucket(order_id) ORDER BY user_id, request_id"""
_REQUEST = "SELECT order_id, user_id, request_id, created_at, settled_at FROM orders"
_REQUESTS = _REQUEST + " WHERE order_id = ANY ($1::uuid[])"
_REQUESTS_OF = _REQUEST + " WHERE user_id = ANY ($1::text[])"
_MOVED_USERS = "SELECT DISTINCT user_id FROM user_bucket ORDER BY user_id"
_ARCHIVED = """
SELECT begins_at, ends_at, order_count FROM archive_months
 WHERE committed_at IS NOT NULL AND leaf_of('orders', begins_at) IS NULL ORDER BY begins_at"""
_KNOWN = "SELECT order_id FROM orders WHERE order_id = ANY ($1::uuid[])"


class StoreUnreadable(OpsError):
    """A database or ledger could not be read, so nothing can be said about it."""


@dataclass(frozen=True, slots=True)
class OrderRow:
    """What the audit compares of an order."""

    order_id: UUID
    bucket: int
    status: str
    stage: str
    basis: str | None
    leg: int
    legs: Sequence[str]
    amount_minor: int
    currency_code: str
    upstream_ref: str
    has_open_case: bool


@dataclass(frozen=True, slots=True)
class CopiedKey:
    """A key that came along with its user; its order is in another bucket, here or elsewhere. is_over: it is
    not kept for long any more, and its order may be archived.
    """

    user_id: str
    request_id: UUID
    order_id: UUID
    is_over: bool


@dataclass(frozen=True, slots=True)
class Request:
    """An order as the answer to a request."""

    order_id: UUID
    user_id: str
    request_id: UUID
    created_at: datetime
    settled_at: datetime | None


@dataclass(frozen=True, slots=True)
class ArchivedMonth:
    """A month whose orders are in the archive alone, and how many that are, as was proven."""

    begins_at: datetime
    ends_at: datetime
    order_count: int


class Shard:
    """One shard, seen in one snapshot."""

    def __init__(self, name: str, dsn: str, session: asyncpg.Connection) -> None:
        self.name = name
        self._dsn = dsn
        self._session = session

    async def breaks(self, invariant: Invariant) -> tuple[int, tuple[Broken, ...]]:
        """How many rows break an invariant, and the first of them."""
        with reading(self.name):
            rows = await self._session.fetch(_FIRST.format(invariant.statement, EXAMPLES_MAX))
        broken = tuple(Broken(self.name, row["id"], row["fact"]) for row in rows)
        return (rows[0]["total"] if rows else 0), broken

    async def orders(self) -> AsyncIterator[list[OrderRow]]:
        """Every order, in batches."""
        async for rows in self._batches(_ORDERS):
            yield [OrderRow(**row) for row in rows]

    async def order_ids(self) -> AsyncIterator[UUID]:
        """Every order id, ascending."""
        async for rows in self._batches(_IDS):
            for row in rows:
                yield row["order_id"]

    async def fence(self) -> dict[int, tuple[str, int]]:
        """State and epoch of every bucket this shard owns or owned."""
        with reading(self.name):
            rows = await self._session.fetch(_FENCE)
        return {row["bucket"]: (row["state"], row["epoch"]) for row in rows}

    async def copied_keys(self) -> AsyncIterator[list[CopiedKey]]:
        """Every key that was copied, in batches."""
        async for rows in self._batches(_COPIED):
            yield [CopiedKey(**row) for row in rows]

    async def requests_now(self, order_ids: Sequence[UUID]) -> list[Request]:
        """The requests of those of some orders that exist now, past the snapshot."""
        rows = await fetch(self.name, self._dsn, _REQUESTS, order_ids)
        return [Request(**row) for row in rows]

    async def requests_of(self, users: Sequence[str]) -> list[Request]:
        """The requests of every order of some users."""
        with reading(self.name):
            rows = await self._session.fetch(_REQUESTS_OF, users)
        return [Request(**row) for row in rows]

    async def fence_now(self) -> dict[int, tuple[str, int]]:
        """As `fence`, past the snapshot."""
        rows = await fetch(self.name, self._dsn, _FENCE)
        return {row["bucket"]: (row["state"], row["epoch"]) for row in rows}

    async def known_now(self, order_ids: Sequence[UUID]) -> set[UUID]:
        """Which of these orders exist now, past the snapshot."""
        return {row["order_id"] for row in await fetch(self.name, self._dsn, _KNOWN, order_ids)}

    async def archived_now(self) -> list[ArchivedMonth]:
        """The months that are in the archive alone by now, past the snapshot."""
        return [ArchivedMonth(**row) for row in await fetch(self.name, self._dsn, _ARCHIVED)]

    async def _batches(self, statement: str) -> AsyncIterator[list[Any]]:
        with reading(self.name):
            cursor = await self._session.cursor(statement)
        while True:
            with reading(self.name):
                rows = await cursor.fetch(BATCH)
            if not rows:
                return
            yield rows


@asynccontextmanager
async def opened(dsns: Mapping[str, str]) -> AsyncIterator[list[Shard]]:
    """Sessions on all shards, each with its snapshot taken.

    Raises: StoreUnreadable.
    """
    async with AsyncExitStack() as stack:
        shards = []
        for name, dsn in dsns.items():
            with reading(name):
                session = await connect(dsn)
            stack.push_async_callback(session.close, timeout=CONNECT_S)
            await stack.enter_async_context(session.transaction(isolation="repeatable_read", readonly=True))
            shards.append(Shard(name, dsn, session))
        yield shards


async def read_map(dsn: str) -> dict[int, tuple[str, int]]:
    """Owner and epoch of every bucket, by the control database.

    Raises: StoreUnreadable.
    """
    rows = await fetch("control", dsn, "SELECT bucket, shard, epoch FROM buckets")
    return {row["bucket"]: (row["shard"], row["epoch"]) for row in rows}


async def read_moved_users(dsn: str) -> list[str]:
    """Users who ever had more than their hashed bucket, by the control database.

    Raises: StoreUnreadable.
    """
    return [row["user_id"] for row in await fetch("control", dsn, _MOVED_USERS)]


async def connect(dsn: str) -> asyncpg.Connection:
    """A session that cannot write."""
    return await asyncpg.connect(
        dsn, timeout=CONNECT_S, command_timeout=STATEMENT_S, server_settings=_SETTINGS
    )


async def fetch(where: str, dsn: str, statement: str, *values: object) -> list[Any]:
    """The rows of one statement, in a session of its own.

    Raises: StoreUnreadable, which names the database `where`.
    """
    with reading(where):
        session = await connect(dsn)
        try:
            return list(await session.fetch(statement, *values))
        finally:
            await session.close(timeout=CONNECT_S)


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn what a driver raises into StoreUnreadable."""
    try:
        yield
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as failed:
        raise StoreUnreadable(
            f"the database {where} cannot be read: {str(failed) or type(failed).__name__}"
        ) from failed
