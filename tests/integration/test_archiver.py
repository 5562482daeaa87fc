"""A month's way out of a real Postgres into an S3, and everything that must keep it from going further."""

from collections.abc import AsyncIterator

import pytest

from archive_svc.lifecycle import State
from chassis.errors import OrdermeshError
from tests.archiving import AUGUST, SEPTEMBER, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.databases import Database
from tests.inprocess_s3 import InProcessS3

COUNT = 1000


@pytest.fixture
async def database(shard_database: DatabaseFactory) -> Database:
    return await shard_database()


@pytest.fixture
async def s3_server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as server:
        yield server


@pytest.fixture
async def archive(database: Database, s3_server: InProcessS3) -> AsyncIterator[Archive]:
    async with opened(database, Place.of(s3_server)) as ready:
        await fill(database, COUNT)
        yield ready


async def test_a_month_leaves_with_every_row_proven_first(archive: Archive) -> None:
    await archive.want(AUGUST)
    month = await archive.work()
    assert month.state is State.DROPPED, month
    segments = await archive.segments()
    assert sum(s.facts.rows for s in segments if s.table == "orders") == COUNT
    assert sum(s.facts.rows for s in segments if s.table == "order_journal") == 2 * COUNT
    assert len(segments) > 4, "it was cut into several parts"
    assert not await archive.exists("orders_2023_08")
    assert not await archive.exists("order_journal_2023_08")
    assert await archive.exists("orders_2023_09")
    assert await archive.value("SELECT count(*) FROM ordermesh.orders") == 0
    for segment in segments:
        await archive.verifier.read_back(segment)


async def test_nothing_is_asked_for_twice_and_nothing_goes_further_than_asked(archive: Archive) -> None:
    await archive.want(AUGUST, State.VERIFIED)
    assert (await archive.work()).state is State.VERIFIED
    assert await archive.value("SELECT ordermesh.archive_floor() = '-infinity'")
    first = (await archive.month(AUGUST)).archive_id
    await archive.want(AUGUST, State.COMMITTED)
    month = await archive.work()
    assert (month.state, month.archive_id) == (State.COMMITTED, first)
    assert await archive.value("SELECT ordermesh.archive_floor() = '2023-09-01Z'")
    assert await archive.is_attached("orders_2023_08")


async def test_a_frozen_month_takes_no_change_and_a_thawed_one_does(archive: Archive) -> None:
    await archive.want(AUGUST, State.VERIFIED)
    await archive.work()
    for change in (
        "UPDATE ordermesh.orders SET description = 'other'",
        "DELETE FROM ordermesh.order_journal",
        "TRUNCATE ordermesh.orders_2023_08",
    ):
        with pytest.raises(OrdermeshError) as refused:
            await archive.shard.execute(change)
        assert (refused.value.reason, refused.value.facts["month"]) == ("ORDER_ARCHIVED", "2023-08")
    await archive.want(AUGUST, State.THAWED)
    assert (await archive.work()).state is State.THAWED
    assert (
        await archive.shard.execute("UPDATE ordermesh.orders SET description = 'other'") == f"UPDATE {COUNT}"
    )


async def test_the_younger_month_waits_for_the_older(archive: Archive) -> None:
    await archive.want(SEPTEMBER)
    month = await archive.work(month=SEPTEMBER)
    assert month.state is State.WANTED
    assert await archive.value("SELECT note FROM ordermesh.archive_months") == "OLDER_MONTH_FIRST"


@pytest.mark.parametrize("state", [State.COMMITTED, State.GRACE, State.DROPPED])
async def test_a_month_comes_back_as_it_was_from_wherever_it_stands_and_may_leave_again(
    archive: Archive, state: State
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST, state)
    first = await archive.work()
    assert first.state is state
    await archive.want(AUGUST, State.RESTORED)
    assert (await archive.work()).state is State.RESTORED
    assert await archive.is_attached("ordermesh.orders_2023_08")
    assert await twin.differences() == {}
    assert await archive.value("SELECT ordermesh.archive_floor() = '-infinity'")
    assert await archive.shard.execute("UPDATE ordermesh.orders SET labels = labels") == f"UPDATE {COUNT}"

    await archive.want(AUGUST)
    again = await archive.work()
    assert again.state is State.DROPPED
    assert again.archive_id != first.archive_id
    assert await twin.differences(AUGUST) == {}


async def test_a_restored_month_that_is_not_what_was_proven_is_not_given_to_readers(archive: Archive) -> None:
    await archive.want(AUGUST)
    await archive.work()
    await archive.want(AUGUST, State.RESTORED)
    month = await archive.work(until=State.RESTORING)
    await archive.shard.execute(
        "UPDATE ordermesh.archive_months SET orders_hash = orders_hash + 1 WHERE archive_id = $1",
        month.archive_id,
    )
    month = await archive.work()
    assert "not what was proven" in month.quarantined
    assert not await archive.is_attached("ordermesh.orders_2023_08")
