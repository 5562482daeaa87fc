"""Where parts begin and end names nobody who was erased, and leads to everybody else as it did."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from archive_svc.lifecycle import State
from archive_svc.rebuild import Rebuilder, Rebuilt
from archive_svc.statement.rows import Row
from chassis.ids import id_time
from tests.archiving import AUGUST, Archive, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3
from tests.papers import known_rows, reader, rows_of, wanted

USERS = tuple(f"user.{letter}" for letter in "abcdef")
BOUNDS = "SELECT part, after_user, until_user FROM ordermesh.archive_parts ORDER BY part"
INSTANT = timedelta(microseconds=1)


@pytest.fixture
async def server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as running:
        yield running


@pytest.fixture
async def archive(shard_database: DatabaseFactory, server: InProcessS3) -> AsyncIterator[Archive]:
    """Every user has several parts."""
    async with opened(await shard_database(), Place.of(server), part_bytes=8 * 1024) as ready:
        await fill(ready.database, 240, users=USERS)
        yield ready


async def named(archive: Archive) -> set[str]:
    return {row[name] for row in await archive.rows(BOUNDS) for name in ("after_user", "until_user")}


async def must_be_read(archive: Archive, known: dict[str, list[Row]]) -> None:
    """Every order is found in the whole period, the first and the last one of each user also alone."""
    shard = reader(archive.database.dsn, archive.store)
    for user_id, rows in known.items():
        assert await rows_of([shard], wanted(user_id)) == rows
        for row in (rows[0], rows[-1]):
            at = id_time(UUID(row.order_id))
            assert await rows_of([shard], wanted(user_id, at, at + INSTANT)) == [row]


async def test_no_part_begins_or_ends_at_who_is_erased_and_all_others_are_read_as_before(
    archive: Archive, server: InProcessS3
) -> None:
    known = await known_rows(archive)
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.DROPPED
    assert await named(archive) == {"", *USERS}
    parts = len(await archive.rows(BOUNDS))
    assert parts > 2 * len(USERS)

    # In the middle, beside one that is erased, the last one, and the first.
    for user_id in ("user.c", "user.d", "user.f", "user.a"):
        erasure = await archive.catalog.want_erasure(uuid4(), user_id, "a test", "they asked for it")
        await archive.work()
        erasure = await archive.catalog.want_erasure(erasure.erasure_id, user_id, "a test", "again")
        assert (erasure.orders, erasure.ended_at is not None) == (len(known.pop(user_id)), True)
        assert await named(archive) == {"", *known}
        assert len(await archive.rows(BOUNDS)) == parts
        objects = server.buckets[archive.store.settings.bucket].objects
        (manifest,) = [versions for key, versions in objects.items() if key.endswith(".json")]
        assert user_id not in bytes(manifest[-1].body).decode()
        await must_be_read(archive, known)

    before = await archive.rows("SELECT * FROM ordermesh.archive_parts ORDER BY part")
    await archive.shard.execute("DELETE FROM ordermesh.archive_months")
    rebuilder = Rebuilder(archive.catalog, archive.store, archive.archiver._pacing.grace)
    assert await rebuilder.rebuild("a test", "it was lost") == [Rebuilt("2023-08")]
    assert await archive.rows("SELECT * FROM ordermesh.archive_parts ORDER BY part") == before
    await must_be_read(archive, known)


async def test_bounds_by_which_a_month_is_copied_stay(archive: Archive) -> None:
    await archive.want(AUGUST, State.VERIFIED)
    fence = await archive.fence()
    for state in (State.PLANNED, State.EXPORTED, State.VERIFIED):
        month = await archive.work(until=state)
        assert month.state is state
        before = await archive.rows(BOUNDS)
        erasure = await archive.catalog.want_erasure(uuid4(), "user.c", "a test", "they asked for it")
        await archive.catalog.unname_bounds(fence, erasure, month.archive_id)
        assert await archive.rows(BOUNDS) == before
