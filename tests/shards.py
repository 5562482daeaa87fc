"""One real shard database with buckets of its own, for tests of order_svc's SQL and of its RPCs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg

from chassis import pg
from chassis.ids import OrderIds, user_bucket
from chassis.money import Money
from order_svc import points
from order_svc.contract import Rules
from order_svc.domain import Wish, open_order, transition
from order_svc.events import AnyEvent
from order_svc.order import Order
from order_svc.store import Created, Decided, OrderStore
from tests.databases import Database
from tests.unit.orders import rules

EPOCH = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard named `s1` that owns every hashed bucket and 4096."""

    dsn: str
    db: pg.Database
    store: OrderStore
    ids: OrderIds

    async def create(self, *legs: str, user_id: str = "alice", contracts: Rules | None = None) -> Created:
        """Write a new order."""
        wish = await self.wish(*legs, user_id=user_id)
        return await self.store.create(open_order(wish, contracts or rules()), epoch=EPOCH, fingerprint=b"f")

    async def wish(self, *legs: str, user_id: str = "alice", bucket: int | None = None) -> Wish:
        """A wish with an id by the shard's clock."""
        at = await self.value("SELECT ordermesh.clock()")
        ids = replace_clock(self.ids, int(at.timestamp() * 1000))
        return Wish(
            order_id=ids.new(user_bucket(user_id) if bucket is None else bucket),
            user_id=user_id,
            request_id=uuid4(),
            kind="payment",
            legs=legs or ("payments",),
            amount=Money("EUR", 1250),
            description="a book",
            labels={"cart": "7"},
            event_id=uuid4(),
            actor="order_svc",
        )

    async def decide(
        self, order: Order, event: AnyEvent, contracts: Rules | None = None, **options: Any
    ) -> Decided:
        """Let the rules decide on an event and write what follows."""
        return await self.store.decide(
            order.order_id,
            event.event_id,
            lambda seen: transition(seen, event, contracts or rules(), jitter=0.5),
            at=points.SETTLE,
            **options,
        )

    async def rows(self, sql: str, *args: object) -> list[asyncpg.Record]:
        return await self.db.fetch(sql, *args)

    async def value(self, sql: str, *args: object) -> Any:
        return await self.db.fetchval(sql, *args)

    async def let_pass(self, time: timedelta) -> None:
        """Let time pass on this shard's clock."""
        await self.db.execute(
            "INSERT INTO clock_offset (ahead) VALUES ($1) ON CONFLICT (only_row) DO UPDATE"
            " SET ahead = clock_offset.ahead + excluded.ahead",
            time,
        )

    async def journal(self, order: Order) -> list[str]:
        """The kinds of an order's journal entries."""
        return [event.kind for event in await self.store.events(order.order_id, 0, 100)]


def replace_clock(ids: OrderIds, now_ms: int) -> OrderIds:
    """The same maker of ids at another time; ids still never go back."""
    ids.now_ms = lambda: now_ms
    return ids


async def prepare(dsn: str, *, shard: str = "s1", partition_base: int = 0) -> None:
    """Name a fresh shard database and give it its buckets and stream partitions."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SELECT ordermesh.identify_shard($1, $2)", shard, partition_base)
        await connection.execute("SELECT ordermesh.own_buckets(0, 4096, $1)", shard)
        await connection.execute("SELECT ordermesh.ensure_partitions()")
    finally:
        await connection.close()


@asynccontextmanager
async def opened(
    database: Database, *, pool_size: int = 4, queue: int = 200, partition_base: int = 0
) -> AsyncIterator[Shard]:
    """A prepared shard over a fresh database."""
    await prepare(database.dsn, partition_base=partition_base)
    settings = pg.PgSettings(dsn=database.dsn, pool_size=pool_size, queue=queue)
    async with pg.open_database(settings, name="s1") as db:
        yield Shard(database.dsn, db, OrderStore(db), OrderIds(now_ms=lambda: 0))
