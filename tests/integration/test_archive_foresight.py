"""What an erasure would take out is said before anything begins, and is what it takes out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from archive_svc.foresee import Foreseen, foreseen
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
