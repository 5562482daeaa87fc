"""A month whose detach was cut off before its catalog was lost goes on from there, or is refused as it is."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from archive_svc.lifecycle import State
from archive_svc.rebuild import KNOWN, ODD, Rebuilder, Rebuilt
from tests.archiving import AUGUST, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3

PARENTS = ("orders", "order_journal")
DETACH = "ALTER TABLE ordermesh.{0} DETACH PARTITION ordermesh.{0}_2023_08"
PENDING = "UPDATE pg_inherits SET inhdetachpending = true WHERE inhrelid = 'ordermesh.{0}_2023_08'::regclass"
"""As when the detach of one is killed between its halves, and the other's did not begin."""
THAW = "DROP TRIGGER frozen ON ordermesh.{0}_2023_08"
DROP = "DROP TABLE ordermesh.{0}_2023_08"


@pytest.fixture
async def archive(shard_database: DatabaseFactory) -> AsyncIterator[Archive]:
    database = await shard_database()
    async with InProcessS3.serving() as server, opened(database, Place.of(server)) as ready:
        await fill(database, 300)
        yield ready


async def left_as(archive: Archive, *changes: str) -> Rebuilder:
    """August is about to be detached, its tables are left like this, and its catalog is lost."""
    await archive.want(AUGUST)
    await archive.work(until=State.DETACHING)
    for change in changes:
        await archive.shard.execute(change)
    await archive.shard.execute("DELETE FROM ordermesh.archive_months")
    return Rebuilder(archive.catalog, archive.store, timedelta(0))


@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("how", [DETACH, PENDING], ids=["detached", "pending"])
async def test_a_month_that_was_being_detached_is_made_again_and_goes_on(
    archive: Archive, how: str, parent: str
) -> None:
    twin = Twin(archive)
    await twin.remember()
    rebuilder = await left_as(archive, how.format(parent))
    assert await rebuilder.rebuild("a test", "it was lost") == [Rebuilt("2023-08")]
    assert (await archive.month(AUGUST)).state is State.DETACHING
    assert await rebuilder.rebuild("a test", "again") == [Rebuilt("2023-08", KNOWN)]
    await archive.work()
    await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
    assert (await archive.work()).state is State.DROPPED
    assert await twin.differences(AUGUST) == {}
    for table in PARENTS:
        assert not await archive.exists(f"{table}_2023_08")


@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("changes", [(DETACH, THAW), (DETACH, DROP)], ids=["changed", "gone"])
async def test_tables_that_stand_as_no_step_leaves_them_are_refused_and_stay(
    archive: Archive, changes: tuple[str, ...], parent: str
) -> None:
    rebuilder = await left_as(archive, *(change.format(parent) for change in changes))
    assert await rebuilder.rebuild("a test", "it was lost") == [Rebuilt("2023-08", ODD)]
    assert await archive.catalog.months() == []
    assert not await archive.archiver.once(await archive.fence())
    (other,) = {*PARENTS} - {parent}
    assert await archive.is_attached(f"ordermesh.{other}_2023_08")


async def test_a_month_that_hangs_as_it_did_is_not_made_again(archive: Archive) -> None:
    rebuilder = await left_as(archive)
    assert await rebuilder.rebuild("a test", "it was lost") == [Rebuilt("2023-08", KNOWN)]
    assert await archive.catalog.months() == []
