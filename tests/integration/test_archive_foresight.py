"""What an erasure would take out is said before anything begins, and is what it takes out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from archive_svc.foresee import BACK, GIVEN_UP, Foreseen, foreseen
from archive_svc.lifecycle import State
from tests.archiving import AUGUST, SEPTEMBER, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3
from tests.papers import reader

USERS = ("user.a", "user.b", "user.c")
COUNTS = "SELECT count(*) FROM ordermesh.orders WHERE user_id = $1 AND created_at < '2023-09-01Z'"


@pytest.fixture
async def archive(shard_database: DatabaseFactory) -> AsyncIterator[Archive]:
    async with (
        InProcessS3.serving() as server,
        opened(await shard_database(), Place.of(server), part_bytes=16 * 1024) as ready,
    ):
        for seed, month in enumerate((AUGUST, SEPTEMBER)):
            await fill(ready.database, 120, month, seed=seed, users=USERS)
        yield ready


async def said(archive: Archive, user_id: str) -> list[Foreseen]:
    return await foreseen(archive.catalog, reader(archive.database.dsn, archive.store), user_id)


async def test_an_erasure_takes_out_what_was_said_and_saying_so_takes_out_nothing(archive: Archive) -> None:
    twin = Twin(archive)
    await twin.remember()
    orders = {user_id: await archive.value(COUNTS, user_id) for user_id in USERS}
    assert all(orders.values())
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.DROPPED
    users = [{group.first_user for group in each.facts.groups} for each in await archive.segments()]
    assert any(len(each) > 1 for each in users) or len(users) > 2, "some share a segment"
    before = await archive.store.list("")
    for user_id in USERS:
        (month,) = await said(archive, user_id)
        assert (month.month, month.orders, month.note) == (AUGUST, orders[user_id], "")
    assert await said(archive, "user.z") == []
    assert (await archive.store.list("")).objects == before.objects
    assert await archive.rows("SELECT FROM ordermesh.archive_erasures") == []

    erasure = await archive.catalog.want_erasure(uuid4(), "user.b", "a test", "they asked for it")
    (month,) = await said(archive, "user.b")
    await archive.work()
    gone = await archive.rows("SELECT key FROM ordermesh.archive_replaced")
    erasure = await archive.catalog.want_erasure(erasure.erasure_id, "user.b", "a test", "again")
    assert erasure.ended_at is not None
    assert (erasure.orders, len(gone)) == (month.orders, month.objects)
    assert await said(archive, "user.b") == []


async def test_what_an_erasure_would_wait_for_is_said(archive: Archive) -> None:
    for month, reach in ((AUGUST, State.GRACE), (SEPTEMBER, State.VERIFIED)):
        await archive.want(month, reach)
        assert (await archive.work(month=month)).state is reach
    august, september = await said(archive, "user.a")
    assert (august.month, august.note) == (AUGUST, "its tables are still there")
    assert september == Foreseen(SEPTEMBER, 0, 0, "it is being copied")
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.DROPPED
    await archive.holds.put(None, AUGUST, "a test", "a court wants it")
    august, _ = await said(archive, "user.a")
    assert august.note == "LEGAL_HOLD of 2023-08 by a test: a court wants it"


async def test_a_month_in_quarantine_is_named_and_nothing_of_it_is_read(archive: Archive) -> None:
    """Else nothing could be said of any month as long as one is damaged."""
    for month in (AUGUST, SEPTEMBER):
        await archive.want(month)
        assert (await archive.work(month=month)).state is State.DROPPED
    for segment in await archive.segments(AUGUST):
        await archive.store.delete(segment.stored)
    await archive.shard.execute(
        "UPDATE ordermesh.archive_months SET quarantined = 'why' WHERE month = $1", AUGUST
    )
    august, september = await said(archive, "user.a")
    assert august == Foreseen(AUGUST, 0, 0, "it is quarantined")
    assert (september.month, september.orders > 0, september.note) == (SEPTEMBER, True, "")
    assert await said(archive, "user.z") == []
    erasure = await archive.catalog.want_erasure(uuid4(), "user.a", "a test", "they asked for it")
    await archive.work()
    erasure = await archive.catalog.want_erasure(erasure.erasure_id, "user.a", "a test", "again")
    assert (erasure.orders, erasure.note) == (september.orders, "waits for 2023-08, which is quarantined")


@pytest.mark.parametrize("state", [State.VERIFIED, State.EXPORTED])
async def test_a_copy_in_quarantine_that_did_not_count_yet_is_one(archive: Archive, state: State) -> None:
    await archive.want(AUGUST, State.VERIFIED)
    assert (await archive.work(until=state)).state is state
    await archive.shard.execute(
        "UPDATE ordermesh.archive_months SET quarantined = 'why' WHERE month = $1", AUGUST
    )
    assert await said(archive, "user.a") == [Foreseen(AUGUST, 0, 0, "it is quarantined")]


async def test_the_copy_of_a_month_that_came_back_is_named(archive: Archive) -> None:
    for reach in (State.DROPPED, State.RESTORED):
        await archive.want(AUGUST, reach)
        assert (await archive.work()).state is reach
    orders = await archive.value(COUNTS, "user.b")
    (month,) = await said(archive, "user.b")
    assert (month.month, month.orders, month.note) == (AUGUST, orders, BACK)
    assert await said(archive, "user.z") == []
    await archive.holds.put(None, AUGUST, "a test", "a court wants it")
    assert "a court wants it" in (await said(archive, "user.b"))[0].note
    await archive.holds.lift(None, AUGUST, "a test", "over")

    erasure = await archive.catalog.want_erasure(uuid4(), "user.b", "a test", "they asked for it")
    await archive.work()
    gone = await archive.rows("SELECT key FROM ordermesh.archive_replaced")
    erasure = await archive.catalog.want_erasure(erasure.erasure_id, "user.b", "a test", "again")
    assert erasure.ended_at is not None
    assert (erasure.orders, len(gone)) == (month.orders, month.objects)
    assert await archive.value(COUNTS, "user.b") == orders, "those in the tables stay"
    assert await said(archive, "user.b") == []


async def test_a_damaged_copy_of_a_month_that_came_back_would_be_given_up(archive: Archive) -> None:
    for reach in (State.DROPPED, State.RESTORED):
        await archive.want(AUGUST, reach)
        assert (await archive.work()).state is reach
    for segment in await archive.segments():
        await archive.store.delete(segment.stored)
    assert await said(archive, "user.b") == [Foreseen(AUGUST, 0, 0, GIVEN_UP)]
    erasure = await archive.catalog.want_erasure(uuid4(), "user.b", "a test", "they asked for it")
    await archive.work()
    erasure = await archive.catalog.want_erasure(erasure.erasure_id, "user.b", "a test", "again")
    assert (erasure.orders, erasure.ended_at is not None) == (0, True)
    assert await said(archive, "user.b") == []
