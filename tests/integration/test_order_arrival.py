"""A writer whose order the shard has found young enough is waited for, however slow he is from there on.

A statement takes a transaction id when no older order is taken any more, and waits for all smaller ones. So a
writer has to have his own before he looks at the clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from archive_svc.errors import OrdersUnsettled
from archive_svc.statement.settling import settled
from chassis import pg
from chassis.testing import eventually
from order_svc.domain import open_order
from order_svc.store import queries
from tests.conftest import DatabaseFactory
from tests.papers import Impatient, wanted
from tests.shards import EPOCH, Shard, opened
from tests.unit.orders import rules

WITHIN_S = 30.0
SLEEPS = """
CREATE OR REPLACE FUNCTION ordermesh.clock() RETURNS timestamptz
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    at timestamptz := clock_timestamp();
BEGIN
    PERFORM pg_advisory_xact_lock_shared(7, 1);
    WHILE NOT pg_try_advisory_xact_lock_shared(7, 2) LOOP PERFORM pg_sleep(0.02); END LOOP;
    RETURN at;
END $$;
"""
"""A clock that is read, and falls asleep while somebody holds lock (7, 2); meanwhile it holds lock (7, 1)."""
SLEEPING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 7 AND objid = 1"
FIRST, THEN = "pg_current_xact_id() AS xid", "ordermesh.clock() AS at"


@pytest.fixture
async def shard(shard_database: DatabaseFactory) -> AsyncIterator[Shard]:
    async with opened(await shard_database()) as opened_shard:
        yield opened_shard


@asynccontextmanager
async def being_written(shard: Shard) -> AsyncIterator[asyncio.Task[Any]]:
    """An order whose writer sleeps between his look at the clock and his rows; written when this ends."""
    change = open_order(await shard.wish(), rules())
    await shard.db.execute(SLEEPS)
    sleeper = await asyncpg.connect(shard.dsn)
    try:
        await sleeper.execute("SELECT pg_advisory_lock(7, 2)")
        writing = asyncio.create_task(shard.store.create(change, epoch=EPOCH, fingerprint=b"f"))

        async def is_sleeping() -> bool:
            return bool(await shard.value(SLEEPING))

        assert await eventually(is_sleeping, within_s=WITHIN_S)
        yield writing
        assert not writing.done()
    finally:
        await sleeper.close()
    created = await writing
    assert created.order.order_id == change.after.order_id


async def is_waited_for(shard: Shard) -> bool:
    """Whether a statement of all that is too old for new orders by now waits for those who write."""
    now = await shard.value("SELECT clock_timestamp()")
    late = await shard.value("SELECT ordermesh.arrives_within()")
    wish = replace(wanted("alice", now - timedelta(hours=1), now - late), as_of=now)
    async with pg.open_session(pg.PgSettings(dsn=shard.dsn), name="reader") as session:
        try:
            await settled(session, "s1", wish, Impatient())
        except OrdersUnsettled:
            return True
    return False


async def test_a_writer_who_has_read_the_clock_is_waited_for(shard: Shard) -> None:
    assert not await is_waited_for(shard)
    async with being_written(shard):
        assert await is_waited_for(shard)
    assert not await is_waited_for(shard)


async def test_the_other_way_round_nobody_would_wait_for_him(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = queries.create_order
    swapped = create.replace(f"{FIRST}, {THEN}", f"{THEN}, {FIRST}")
    assert swapped != create
    monkeypatch.setattr(queries, "create_order", swapped)
    async with being_written(shard):
        assert not await is_waited_for(shard), "the hole that the order closes is there"
