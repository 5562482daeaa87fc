"""While a month's rows are read for a drop or a restore, the lease is renewed, the shard is halted and asked,
and what is decided meanwhile counts.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest

from archive_svc.errors import LeaseLost
from archive_svc.lifecycle import State
from chassis.testing import eventually
from tests.archiving import AUGUST, SEPTEMBER, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3

LEASE = timedelta(seconds=30)
WITHIN_S = 30.0
SLOW = """
ALTER FUNCTION ordermesh.hash_of(oid, text) RENAME TO hash_of_rows;
CREATE FUNCTION ordermesh.hash_of(p_table oid, p_of text, OUT row_count bigint, OUT hash numeric)
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(7, 1);
    WHILE NOT pg_try_advisory_xact_lock_shared(7, 2) LOOP PERFORM pg_sleep(0.02); END LOOP;
    SELECT * INTO row_count, hash FROM ordermesh.hash_of_rows(p_table, p_of);
END $$;
"""
"""Reading a month takes as long as somebody holds lock (7, 2); meanwhile it holds lock (7, 1)."""
READING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 7 AND objid = 1"
WAYS = (
    (State.GRACE, State.DROPPED),
    (State.COMMITTED, State.RESTORED),
    (State.GRACE, State.RESTORED),
    (State.RESTORING, State.RESTORED),
)
"""From where a month stands when its rows are read once more, to where it is asked to be."""


@pytest.fixture
async def archive(shard_database: DatabaseFactory) -> AsyncIterator[Archive]:
    database = await shard_database()
    async with InProcessS3.serving() as server, opened(database, Place.of(server)) as ready:
        await fill(database, 300)
        yield ready


async def stands(archive: Archive, state: State, reach: State) -> None:
    """Let August stand there, asked to go on."""
    await archive.want(AUGUST, State.DROPPED if state is State.RESTORING else state)
    await archive.work()
    if state is State.RESTORING:
        await archive.want(AUGUST, State.RESTORED)
        await archive.work(until=State.RESTORING)
    await archive.want(AUGUST, reach)


@asynccontextmanager
async def read_slowly(archive: Archive, fence: int) -> AsyncIterator["asyncio.Task[bool]"]:
    """A step that is in the middle of reading a month's rows, and ends when this does."""
    await archive.shard.execute(SLOW)
    holder = await asyncpg.connect(archive.database.dsn)
    try:
        await holder.execute("SELECT pg_advisory_lock(7, 2)")
        step = asyncio.create_task(archive.archiver.once(fence))

        async def is_reading() -> bool:
            return bool(await archive.value(READING))

        assert await eventually(is_reading, within_s=WITHIN_S)
        assert not step.done()
        yield step
    finally:
        await holder.close()


@pytest.mark.parametrize(("state", "reach"), WAYS)
async def test_the_lease_is_renewed_and_the_shard_answers_while_a_month_is_read(
    archive: Archive, state: State, reach: State
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await stands(archive, state, reach)
    fence = await archive.fence()
    async with read_slowly(archive, fence) as step:
        await archive.catalog.renew_lease(fence, LEASE)
        assert (await archive.catalog.control()).fence == fence
        assert len(await archive.catalog.overview((await archive.catalog.control()).at)) > 1
        await archive.want(SEPTEMBER, State.VERIFIED)
        await archive.want(AUGUST, reach)
        assert not step.done()
    assert await step
    assert (await archive.month(AUGUST)).state is reach
    assert await twin.differences(*([AUGUST] if reach is State.DROPPED else [])) == {}


async def halted(archive: Archive) -> None:
    await archive.catalog.halt(True, "a test", "stop")


async def held(archive: Archive) -> None:
    await archive.holds.put(None, AUGUST, "a test", "a court wants it")


@pytest.mark.parametrize(
    ("state", "reach", "change", "note"),
    [(*way, halted, "HALTED") for way in WAYS] + [(*WAYS[0], held, "LEGAL_HOLD of 2023-08")],
)
async def test_what_is_decided_while_a_month_is_read_keeps_it_where_it_is(
    archive: Archive, state: State, reach: State, change: Callable[[Archive], Awaitable[None]], note: str
) -> None:
    await stands(archive, state, reach)
    async with read_slowly(archive, await archive.fence()) as step:
        await change(archive)
    assert await step
    month = await archive.month(AUGUST)
    assert month.state is state
    assert await archive.exists("orders_2023_08")
    assert (await archive.value("SELECT note FROM ordermesh.archive_months")).startswith(note)


@pytest.mark.parametrize(("state", "reach"), WAYS)
async def test_who_lost_the_lease_while_he_read_a_month_changes_nothing(
    archive: Archive, state: State, reach: State
) -> None:
    await stands(archive, state, reach)
    async with read_slowly(archive, await archive.fence()) as step:
        await archive.shard.execute("UPDATE ordermesh.archive_lease SET fence = fence + 1")
    with pytest.raises(LeaseLost):
        await step
    assert (await archive.month(AUGUST)).state is state
    assert await archive.exists("orders_2023_08")


async def test_a_month_that_is_asked_back_while_it_is_read_is_not_dropped(archive: Archive) -> None:
    await stands(archive, State.GRACE, State.DROPPED)
    async with read_slowly(archive, await archive.fence()) as step:
        await archive.want(AUGUST, State.RESTORED)
    with pytest.raises(LeaseLost):
        await step
    assert (await archive.work()).state is State.RESTORED


async def test_tables_that_come_back_have_their_indexes_before_they_are_attached(archive: Archive) -> None:
    await stands(archive, State.RESTORING, State.RESTORED)
    for parent in ("orders", "order_journal"):
        here, there = [
            await archive.value("SELECT count(*) FROM pg_index WHERE indrelid = $1::text::regclass", table)
            for table in (f"ordermesh.{parent}", f"ordermesh.{parent}_2023_08")
        ]
        assert here == there > 0
