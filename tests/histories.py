"""Shards with orders in them, for tests of the read side: rows as order_svc leaves them, made back-dated
where a test needs it.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from chassis.ids import id_time, user_bucket
from tests.databases import Database

_INSERT = """
INSERT INTO ordermesh.orders (order_id, created_at, user_id, bucket, read_routing, version, status, stage,
                              kind, legs, leg, attempt, amount_minor, currency_code, currency_exp, labels,
                              upstream_ref, failure_reason, basis, request_id, updated_at, settled_at)
VALUES ($1, $2, $3, $4, $3, $5, $6, $7, 'payment', '{payments}', 0, 1, 1250, 'EUR', 2, '{"cart": "7"}',
        $8, $9, $10, $11, $2, $12)
"""
_counter = itertools.count()


@dataclass(frozen=True, slots=True)
class Stored:
    """One order as it was stored."""

    order_id: UUID
    user_id: str
    status: str
    version: int

    @property
    def created_at(self) -> datetime:
        """The time in its id."""
        return id_time(self.order_id)

    @property
    def sort_key(self) -> tuple[datetime, UUID]:
        """Where it stands in the list."""
        return self.created_at, self.order_id


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard's database, owning every hashed bucket and a few dedicated ones at epoch 1."""

    name: str
    database: Database

    async def prepare(self, *buckets: int) -> Shard:
        """Name it and give it buckets; without any, all hashed ones."""
        async with connected(self) as connection:
            await connection.execute("SELECT ordermesh.identify_shard($1)", self.name)
            for first, last in [(bucket, bucket) for bucket in buckets] or [(0, 4200)]:
                await connection.execute("SELECT ordermesh.own_buckets($1, $2, $3)", first, last, self.name)
        return self

    async def store(self, *orders: Stored) -> None:
        """Write orders through the fence."""
        async with connected(self) as connection:
            for month in {order.created_at.replace(day=1) for order in orders}:
                await connection.execute("SELECT ordermesh.ensure_month($1)", month)
            await write(connection, *orders)

    async def fence(self, bucket: int, **changes: Any) -> None:
        """Change a bucket's fence."""
        names = list(changes)
        assignments = ", ".join(f"{name} = ${number}" for number, name in enumerate(names, start=2))
        async with connected(self) as connection:
            sql = f"UPDATE ordermesh.bucket_fence SET {assignments} WHERE bucket = $1"
            await connection.execute(sql, bucket, *changes.values())


class connected:  # noqa: N801 - reads as a verb
    """A connection of its own to a shard."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    async def __aenter__(self) -> Any:
        self._connection = await asyncpg.connect(self._shard.database.dsn, timeout=10, command_timeout=30)
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close(timeout=5)


def order_at(
    at: datetime, user_id: str = "alice", *, bucket: int | None = None, status: str = "PENDING"
) -> Stored:
    """An order created then; two of the same instant differ in their ids."""
    at_ms = int(at.timestamp() * 1000)
    where = user_bucket(user_id) if bucket is None else bucket
    order_id = UUID(int=at_ms << 80 | 7 << 76 | 2 << 62 | where << 46 | next(_counter))
    return Stored(order_id, user_id, status, 1)


def scattered(
    count: int, seed: int, user_id: str = "alice", *, bucket: int | None = None, months: int = 3
) -> list[Stored]:
    """Orders over some months, several in the same millisecond, of all statuses."""
    dice = random.Random(seed)
    start = datetime(2026, 3, 20, tzinfo=UTC)
    instants = [start + timedelta(days=dice.uniform(0, months * 28)) for _ in range(max(1, count // 2))]
    return [
        order_at(
            dice.choice(instants),
            user_id,
            bucket=bucket,
            status=dice.choice(("PENDING", "SUCCESS", "FAILED")),
        )
        for _ in range(count)
    ]


async def write(connection: Any, *orders: Stored) -> None:
    """Write orders of months that are there, in the transaction that the connection is in."""
    await connection.executemany(_INSERT, [_values(order) for order in orders])


def _values(order: Stored) -> tuple[Any, ...]:
    settled = order.status != "PENDING"
    return (
        order.order_id,
        order.created_at,
        order.user_id,
        order.order_id.int >> 46 & 0xFFFF,
        order.version,
        order.status,
        "DONE" if settled else "READY",
        "ref-1" if order.status == "SUCCESS" else "",
        "declined" if order.status == "FAILED" else "",
        "UPSTREAM" if settled else None,
        uuid4(),
        order.created_at if settled else None,
    )
