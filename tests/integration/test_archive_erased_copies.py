"""A user is taken out of what nobody reads, too: copies of months that came back, strays of killed tries."""

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID, uuid4

import pyarrow as pa
import pytest
from pyarrow import parquet

from archive_svc import points
from archive_svc.entries import Erasure
from archive_svc.lifecycle import State, data_key
from archive_svc.rebuild import Rebuilder, Rebuilt
from chassis import faults
from chassis.s3 import S3Unavailable
from tests.archiving import AUGUST, SEPTEMBER, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3

USER, ANOTHER = "user.7", "user.8"
ORPHANS = (
    "SELECT count(*) FROM ordermesh.order_journal j "
    "WHERE NOT EXISTS (SELECT FROM ordermesh.orders o WHERE o.order_id = j.order_id)"
)


@pytest.fixture
async def server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as running:
        yield running


@pytest.fixture
async def archive(shard_database: DatabaseFactory, server: InProcessS3) -> AsyncIterator[Archive]:
    database = await shard_database()
    async with opened(database, Place.of(server)) as ready:
        await fill(database, 400)
        yield ready


def users_in(server: InProcessS3, archive: Archive) -> set[str]:
    """Whose rows any version of any segment in S3 has."""
    found: set[str] = set()
    for key, versions in server.buckets[archive.store.settings.bucket].objects.items():
        if key.endswith(".parquet"):
            for version in versions:
                table = parquet.read_table(pa.BufferReader(bytes(version.body)), columns=["user_id"])
                found |= set(table.column("user_id").to_pylist())
    return found


async def asked(archive: Archive, erasure_id: UUID | None = None) -> Erasure:
    """Ask for the user to be erased, or how far that is; it is looked at now."""
    erasure = await archive.catalog.want_erasure(erasure_id or uuid4(), USER, "a test", "he asked for it")
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET not_before = 'epoch'")
    await archive.work()
    return await archive.catalog.want_erasure(erasure.erasure_id, USER, "a test", "he asked for it")


async def moved(archive: Archive, reach: State) -> None:
    await archive.want(AUGUST, reach)
    assert (await archive.work()).state is reach


async def test_an_erasure_is_not_over_when_the_month_comes_back_that_it_waited_for(
    archive: Archive, server: InProcessS3
) -> None:
    await moved(archive, State.GRACE)
    erasure = await asked(archive)
    assert (erasure.ended_at, erasure.note) == (None, "waits for 2023-08")
    await moved(archive, State.RESTORED)
    assert USER in users_in(server, archive), "its segments are there, though nobody reads them"
    manifest = await archive.value("SELECT manifest_key FROM ordermesh.archive_months")
    erasure = await asked(archive, erasure.erasure_id)
    assert erasure.ended_at is not None
    users = users_in(server, archive)
    assert (USER in users, ANOTHER in users) == (False, True)
    assert await archive.value("SELECT manifest_key FROM ordermesh.archive_months") != manifest


async def test_a_copy_from_before_a_restore_goes_when_another_one_counts(
    archive: Archive, server: InProcessS3
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await moved(archive, State.DROPPED)
    first = {segment.stored.key for segment in await archive.segments()}
    await moved(archive, State.RESTORED)
    await moved(archive, State.DROPPED)
    assert first <= server.buckets[archive.store.settings.bucket].objects.keys()
    assert (await asked(archive)).ended_at is not None
    assert USER not in users_in(server, archive)
    await twin.forget(USER)
    assert await twin.differences(AUGUST) == {}


async def test_a_copy_that_was_given_up_goes_while_the_month_is_in_its_tables(
    archive: Archive, server: InProcessS3
) -> None:
    await moved(archive, State.COMMITTED)
    await moved(archive, State.RESTORED)
    await archive.want(AUGUST, State.THAWED)
    assert (await archive.work()).state is State.THAWED
    assert USER in users_in(server, archive)
    assert (await asked(archive)).ended_at is not None
    assert USER not in users_in(server, archive)
    assert await archive.value("SELECT count(*) FROM ordermesh.orders WHERE user_id = $1", USER)


async def test_what_a_killed_try_left_goes_however_young_it_is(archive: Archive, server: InProcessS3) -> None:
    await moved(archive, State.DROPPED)
    for segment in await archive.segments():
        key = data_key("s1", AUGUST, segment.table, segment.part, uuid4().hex)
        await archive.store.create(key, await archive.store.read(segment.stored))
    before = await archive.catalog.want_erasure(uuid4(), "nobody.here", "a test", "a first one")
    assert (await asked(archive)).ended_at is not None
    assert before.ended_at is None
    assert USER not in users_in(server, archive)
    stored = {found.key for found in (await archive.store.list("order")).objects}
    assert stored == {segment.stored.key for segment in await archive.segments()}


async def test_no_journal_comes_back_without_its_orders(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    await moved(archive, State.DROPPED)

    async def dies(name: str) -> None:
        if name == points.AFTER_SWAP:
            monkeypatch.undo()
            raise S3Unavailable("as a kill would")

    monkeypatch.setattr(faults, "point", dies)
    await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
    assert not await archive.archiver._erase(await archive.fence()), "it was cut off"
    await moved(archive, State.RESTORED)
    assert await archive.value(ORPHANS) == 0


async def test_an_erasure_waits_for_a_catalog_that_knows_less_than_s3(
    archive: Archive, server: InProcessS3
) -> None:
    await fill(archive.database, 100, SEPTEMBER, seed=2)
    for month in (AUGUST, SEPTEMBER):
        await archive.want(month)
        assert (await archive.work(month=month)).state is State.DROPPED
    await archive.shard.execute("DELETE FROM ordermesh.archive_months WHERE month = $1", AUGUST)
    fence = await archive.fence()
    erasure = await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
    assert await archive.archiver._erase(fence)
    erasure = await archive.catalog.want_erasure(erasure.erasure_id, USER, "a test", "again")
    assert (erasure.ended_at, erasure.note[:24]) == (None, "waits for CATALOG_BEHIND")
    assert USER in users_in(server, archive)

    rebuilder = Rebuilder(archive.catalog, archive.store, archive.archiver._pacing.grace)
    assert Rebuilt("2023-08") in await rebuilder.rebuild("a test", "it was lost")
    assert (await asked(archive, erasure.erasure_id)).ended_at is not None
    assert USER not in users_in(server, archive)


async def test_a_damaged_version_goes_with_the_one_that_was_put_back(
    archive: Archive, server: InProcessS3
) -> None:
    await moved(archive, State.DROPPED)
    objects = server.buckets[archive.store.settings.bucket].objects
    mine = [each for each in await archive.segments() if each.facts.groups_of(USER)]
    for number, segment in enumerate(mine):
        versions = objects[segment.stored.key]
        good = bytes(versions[-1].body)
        versions[-1].body[len(good) // 2] ^= 1
        versions.append(replace(versions[-1], body=bytearray(good), version_id=f"again-{number}"))
    await archive.catalog.check_month(AUGUST, "a test")
    assert (await archive.work()).quarantined == ""
    assert (await asked(archive)).ended_at is not None
    assert not {segment.stored.key for segment in mine} & objects.keys()
    assert USER not in users_in(server, archive)


async def test_what_an_erasure_left_behind_is_of_the_copy_that_begins_anew(archive: Archive) -> None:
    """Else a hold of the month would not be seen, and its manifest not be renewed."""
    await moved(archive, State.DROPPED)
    await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
    await archive.work()
    await moved(archive, State.RESTORED)
    await archive.want(AUGUST)
    of_month = (
        "SELECT count(*) FROM ordermesh.archive_replaced r JOIN ordermesh.archive_months USING (archive_id)"
    )
    assert await archive.value(of_month) == await archive.value(
        "SELECT count(*) FROM ordermesh.archive_replaced"
    )
    assert await archive.value(of_month) > 0
