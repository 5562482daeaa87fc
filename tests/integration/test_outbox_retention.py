"""Days of the outbox over real Postgres: dropped when everybody has read them, or when the disk needs it, and
never under anybody's feet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY

from chassis import pg
from chassis.clock import SYSTEM_CLOCK
from chassis.errors import Contended, DeadlineExceeded
from chassis.testing import eventually
from history_svc.channel.log import ShardLog
from history_svc.projector.retention import FLOOR_AGE_MIN, QUERIES, Keeping, Retention
from tests.outboxes import COUNT, Outbox

GIB = 1024**3


class World:
    """A shard whose clock can be moved, and the retention that looks at it."""

    def __init__(self, outbox: Outbox, database: pg.Database) -> None:
        self.outbox = outbox
        self.database = database

    def retention(self, *, bytes_max: int = GIB, reads_cursors: bool = False) -> Retention:
        leadership = self.outbox.leadership(ShardLog("s1", self.database))
        keeping = Keeping(timedelta(days=3), bytes_max, reads_cursors)
        return Retention("s1", self.database, leadership, keeping, SYSTEM_CLOCK)

    async def let_pass(self, time: timedelta) -> None:
        await self.database.execute(
            "INSERT INTO clock_offset (ahead) VALUES ($1)"
            " ON CONFLICT (only_row) DO UPDATE SET ahead = clock_offset.ahead + excluded.ahead",
            time,
        )
        await self.database.execute("SELECT ensure_partitions()")

    async def days(self) -> list[str]:
        rows = await self.database.fetch(
            "SELECT relname FROM pg_class WHERE relname ~ '^outbox_[0-9_]+$' ORDER BY 1"
        )
        return [row[0] for row in rows]

    async def floor(self) -> int | None:
        value = await self.database.fetchval("SELECT xid::text::bigint FROM outbox_floor")
        return None if value is None else int(value)

    async def read(self, *, table: str = "watermarks", xid: int | None = None, count: int = COUNT) -> None:
        """Say that everything, or everything below a transaction, is searchable or published."""
        columns = {"watermarks": "updated_at", "relay_cursors": "sent_at, term"}[table]
        values = {"watermarks": "now()", "relay_cursors": "now(), 1"}[table]
        at = "pg_current_xact_id()" if xid is None else f"'{xid}'::xid8"
        await self.database.execute(
            f"INSERT INTO {table} (stream_partition, log_epoch, xid, seq, {columns})"
            f" SELECT p, 1, {at}, 0, {values} FROM generate_series(0, $1 - 1) p"
            " ON CONFLICT (stream_partition) DO UPDATE SET xid = excluded.xid",
            count,
        )

    async def value(self, sql: str, *args: object) -> Any:
        return await self.database.fetchval(sql, *args)


@pytest.fixture
async def world(shard_database) -> AsyncIterator[World]:
    """A shard with changes of a day that is four days over."""
    outbox = await Outbox(await shard_database()).prepare()
    async with pg.open_database(outbox.settings, name="s1") as database:
        await outbox.write(24)
        made = World(outbox, database)
        await made.let_pass(timedelta(days=4))
        yield made


async def test_a_day_goes_when_it_is_old_and_read_and_a_minute_after_the_floor_was_raised(world: World):
    first, *others = await world.days()
    retention = world.retention()
    last = await world.value(f"SELECT max(xid)::text::bigint FROM {first}")
    assert not await retention.step()
    assert await world.floor() is None, "nobody has read it"
    await world.read(count=COUNT - 1)
    assert not await retention.step()
    assert await world.floor() is None, "one partition has not"
    await world.read(xid=last)
    assert not await retention.step()
    assert await world.floor() is None, "of the last transaction something may be unread"
    await world.read()
    assert not await retention.step()
    assert await world.floor() == last + 1
    assert not await retention.step()
    assert first in await world.days(), "whoever reads on the old floor has a minute"
    await world.let_pass(FLOOR_AGE_MIN)
    while await retention.step():
        continue
    assert await world.days() == [day for day in others if day in await world.days()]
    assert first not in await world.days()
    assert len(await world.outbox.write(8)) == 8


async def test_a_day_that_is_not_old_stays_although_it_was_read(shard_database):
    outbox = await Outbox(await shard_database()).prepare()
    async with pg.open_database(outbox.settings, name="s1") as database:
        world = World(outbox, database)
        await outbox.write(8)
        await world.let_pass(timedelta(days=3))
        await world.read()
        before = await world.days()
        assert not await world.retention().step()
        assert await world.days() == before


async def test_a_day_that_is_not_published_stays_although_its_documents_are_searchable(world: World):
    await world.read()
    retention = world.retention(reads_cursors=True)
    assert not await retention.step()
    assert await world.floor() is None
    await world.read(table="relay_cursors")
    assert not await retention.step()
    assert await world.floor() is not None


async def test_a_full_disk_costs_unread_days_the_oldest_first_and_never_today(world: World):
    first = (await world.days())[0]
    crowded = world.retention(bytes_max=0)
    assert not await crowded.step()
    floor = await world.floor()
    assert floor is not None
    assert first in await world.days(), "even then readers get to know a minute before"
    await world.let_pass(FLOOR_AGE_MIN)
    while await crowded.step():
        continue
    assert first not in await world.days()
    today = await world.value("SELECT 'outbox_' || to_char(clock() AT TIME ZONE 'UTC', 'YYYY_MM_DD')")
    assert today in await world.days()
    assert await world.floor() == floor


async def test_a_day_whose_detaching_was_broken_off_is_ended_by_the_next_step(world: World):
    await world.read()
    retention = world.retention()
    first = (await world.days())[0]
    await retention.step()
    await world.let_pass(FLOOR_AGE_MIN)
    async with world.outbox.connected() as reader:
        transaction = reader.transaction()
        await transaction.start()
        await reader.fetchval("SELECT count(*) FROM ordermesh.outbox")
        with pytest.raises((Contended, DeadlineExceeded)):
            await retention.step()
        half = "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = $1::regclass"
        assert await world.value(half, first) is True
        assert len(await world.outbox.write(8)) == 8, "writers go on all the time"
        await transaction.rollback()
    assert await retention.step()
    assert first not in await world.days()


async def test_a_day_that_was_detached_and_not_dropped_is_dropped_by_the_next_step(world: World):
    first = (await world.days())[0]
    await world.database.execute(QUERIES.detach_day.format(day=first))
    assert first in await world.days()
    assert await world.retention().step()
    assert first not in await world.days()


async def test_only_who_leads_lets_days_go(world: World):
    await world.read()
    async with world.outbox.opened() as shard_log:
        leadership = world.outbox.leadership(shard_log)
        keeping = Keeping(timedelta(days=3), GIB, reads_cursors=False)
        retention = Retention("s1", world.database, leadership, keeping, SYSTEM_CLOCK)
        tasks = [asyncio.create_task(loop.run(), name=loop.name) for loop in (retention, leadership)]
        await eventually(world.floor)
        assert leadership.term == 1
        assert shown() is not None
        tasks[1].cancel()

        async def is_gone() -> bool:
            return shown() is None

        await eventually(is_gone)
        tasks[0].cancel()
        await asyncio.wait(tasks)


def shown() -> float | None:
    """How large the outbox is, as this process tells it."""
    return REGISTRY.get_sample_value("ordermesh_outbox_bytes", {"shard": "s1"})
