"""Objects in S3 that nothing needs are found, and deleted when somebody wants it; what a lost catalog could
be made again of is not one of them.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest

from archive_svc import sweep
from archive_svc.errors import LeaseLost
from archive_svc.lifecycle import State, data_key
from archive_svc.rebuild import Rebuilder, Rebuilt
from archive_svc.statement.files import key_of
from archive_svc.sweep import Sweep, Sweeper
from archive_svc.throttle import Throttle
from chassis.clock import SYSTEM_CLOCK
from ops.seaweedfs import SeaweedServer
from tests.archiving import AUGUST, SEPTEMBER, SWEEPING, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3

COUNT = 400
NOT_OURS = "orders/v1/shard=s1/read-me.txt"
OF_ANOTHER = data_key("s2", AUGUST, "orders", 0, "0" * 32)


@pytest.fixture
async def server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as running:
        yield running


@pytest.fixture
async def archive(shard_database: DatabaseFactory, server: InProcessS3) -> AsyncIterator[Archive]:
    async with opened(await shard_database(), Place.of(server)) as ready:
        await fill(ready.database, COUNT)
        yield ready


async def swept(archive: Archive, *, deletes: bool = False, ago: timedelta = timedelta()) -> Sweep:
    """Ask for a walk, let it end, and say what it found. ago: how long before now it seems to be."""
    wanted = await archive.sweeps.want(uuid4(), "a test", "to see", deletes=deletes)
    fence = await archive.fence()
    at = (await archive.catalog.control()).at - ago
    while await archive.archiver._sweeper.sweep_some(fence, at):
        pass
    over = await archive.sweeps.want(wanted.sweep_id, "a test", "to see", deletes=deletes)
    assert over.ended_at is not None
    return over


async def strays(archive: Archive, walk: Sweep) -> set[str]:
    return {each.key for each in await archive.sweeps.strays_of(walk.sweep_id, 1000)}


async def keys(archive: Archive) -> set[str]:
    return {found.key for found in (await archive.store.list("")).objects}


async def begun(archive: Archive, *keys: str) -> None:
    """Begin uploads that nobody ends, as processes do that are killed."""
    for key in keys:
        await archive.store._client.create_multipart_upload(Bucket=archive.store.settings.bucket, Key=key)


async def under_way(archive: Archive) -> set[str]:
    return {upload.key for upload in (await archive.store.uploads("")).uploads}


async def overtaken(archive: Archive) -> set[str]:
    """An exporter that lost its lease while it stored a segment; what it left behind."""
    before, month, old = await keys(archive), await archive.month(AUGUST), await archive.fence()
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET fence = fence + 1, lease_until = 'epoch'")
    with pytest.raises(LeaseLost):
        await archive.archiver._exporter.export(month, old)
    return await keys(archive) - before


async def committed_in_vain(archive: Archive) -> set[str]:
    """One who lost it between the manifest and the commit."""
    before, month, old = await keys(archive), await archive.month(AUGUST), await archive.fence()
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET fence = fence + 1, lease_until = 'epoch'")
    with pytest.raises(LeaseLost):
        await archive.archiver._commit(month, old)
    return await keys(archive) - before


@pytest.mark.parametrize("kind", ["in_process", "seaweedfs"])
async def test_what_nothing_names_is_told_and_goes_only_when_somebody_wants_it(
    shard_database: DatabaseFactory, server: InProcessS3, s3: SeaweedServer, kind: str
) -> None:
    place = Place.of(server if kind == "in_process" else s3)
    async with opened(await shard_database(), place) as archive:
        await fill(archive.database, COUNT)
        twin = Twin(archive)
        await twin.remember()
        await archive.want(AUGUST)
        await archive.work(until=State.PLANNED)
        left = await overtaken(archive)
        await archive.work(until=State.VERIFIED)
        tried = await committed_in_vain(archive)
        assert (len(left), len(tried)) == (1, 1)
        lost = {key_of("s1", uuid4(), 1), data_key("s1", AUGUST, "order_journal", 3, uuid4().hex)}
        for key in (*lost, NOT_OURS, OF_ANOTHER):
            await archive.store.create(key, b"left behind")
        everything = await keys(archive)

        told = await swept(archive)
        assert (await strays(archive, told), told.deleted, told.refusal) == (left | lost, 0, "")
        assert await keys(archive) == everything
        assert (await archive.sweeps.totals()).strays == 3

        gone = await swept(archive, deletes=True)
        assert (gone.deleted, await keys(archive)) == (3, everything - left - lost)
        assert (await archive.sweeps.totals()).strays == 0
        assert (await archive.work()).state is State.DROPPED
        assert await twin.differences(AUGUST) == {}
        assert (await swept(archive, deletes=True)).deleted == 0
        assert await twin.differences(AUGUST) == {}


async def test_a_young_object_may_be_that_of_a_try_and_stays(archive: Archive, server: InProcessS3) -> None:
    await archive.want(AUGUST, State.COMMITTED)
    await archive.work()
    key = data_key("s1", AUGUST, "orders", 0, uuid4().hex)
    await archive.store.create(key, b"left behind")
    careful = replace(SWEEPING, grace=timedelta(days=1))
    archive.archiver._sweeper = Sweeper(archive.sweeps, archive.store, Throttle(1e9, SYSTEM_CLOCK), careful)
    assert await strays(archive, await swept(archive, deletes=True)) == set()
    (version,) = server.buckets[archive.store.settings.bucket].objects[key]
    version.at -= timedelta(days=1)
    assert await strays(archive, await swept(archive, deletes=True)) == {key}


@pytest.mark.parametrize("forgotten", ["month", "month = '2023-09-01'"])
async def test_a_catalog_that_was_lost_or_is_old_makes_nothing_a_stray(
    archive: Archive, server: InProcessS3, forgotten: str
) -> None:
    """All of it, or the youngest month: everything that it named seems to be named by nobody."""
    await fill(archive.database, COUNT, SEPTEMBER, seed=2)
    twin = Twin(archive)
    await twin.remember()
    for month in (AUGUST, SEPTEMBER):
        await archive.want(month)
        await archive.work(month=month)
    everything = await keys(archive)
    where = "" if forgotten == "month" else f"WHERE {forgotten}"
    await archive.shard.execute(f"DELETE FROM ordermesh.archive_months {where}")
    walk = await swept(archive, deletes=True)
    assert walk.refusal.startswith("CATALOG_BEHIND: it does not know _manifest/")
    assert (await strays(archive, walk), await keys(archive)) == (set(), everything)
    assert (await archive.sweeps.totals()).refusal == walk.refusal

    rebuilder = Rebuilder(archive.catalog, archive.store, timedelta(0))
    assert Rebuilt("2023-09") in await rebuilder.rebuild("a test", "it was lost")
    walk = await swept(archive, deletes=True)
    assert (walk.refusal, await keys(archive)) == ("", everything)
    assert await twin.differences(AUGUST, SEPTEMBER) == {}


async def test_segments_without_a_manifest_and_a_catalog_are_left_to_a_person(archive: Archive) -> None:
    key = data_key("s1", AUGUST, "orders", 0, uuid4().hex)
    await archive.store.create(key, b"left behind")
    walk = await swept(archive, deletes=True)
    assert walk.refusal == "CATALOG_EMPTY: it knows no month, and S3 has copies"
    assert await keys(archive) == {key}


async def test_a_copy_that_another_took_the_place_of_goes_and_the_newer_one_stays(
    archive: Archive, server: InProcessS3
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    await archive.work()
    first = await keys(archive)
    await archive.want(AUGUST, State.RESTORED)
    await archive.work()
    assert await strays(archive, await swept(archive, deletes=True)) == set(), "the copy may be wanted again"
    for versions in server.buckets[archive.store.settings.bucket].objects.values():
        versions[-1].at -= timedelta(hours=1)
    await archive.want(AUGUST)
    await archive.work(until=State.VERIFIED)
    assert await strays(archive, await swept(archive, deletes=True)) == set(), "nothing took its place yet"
    assert (await archive.work()).state is State.DROPPED

    gone = await swept(archive, deletes=True)
    assert await strays(archive, gone) == first
    assert await keys(archive) & first == set()
    await archive.shard.execute("DELETE FROM ordermesh.archive_months")
    rebuilder = Rebuilder(archive.catalog, archive.store, timedelta(0))
    assert await rebuilder.rebuild("a test", "it was lost") == [Rebuilt("2023-08")]
    assert await twin.differences(AUGUST) == {}


async def test_a_manifest_that_cannot_be_read_speaks_for_all_of_its_month(
    archive: Archive, server: InProcessS3
) -> None:
    await archive.want(AUGUST)
    await archive.work()
    manifest = await archive.value("SELECT manifest_key FROM ordermesh.archive_months")
    (version,) = server.buckets[archive.store.settings.bucket].objects[manifest]
    version.body[:1] = b"?"
    await archive.store.create(data_key("s1", AUGUST, "orders", 0, uuid4().hex), b"left behind")
    before = await keys(archive)
    assert await strays(archive, await swept(archive, deletes=True)) == set()
    assert await keys(archive) == before


async def test_a_walk_is_cut_into_rounds_and_its_successor_goes_on_where_it_was(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "ROUND_MAX", 3)
    await archive.want(AUGUST)
    await archive.work()
    lost = {data_key("s1", AUGUST, "orders", part, uuid4().hex) for part in range(8)}
    for key in lost:
        await archive.store.create(key, b"left behind")
    wanted = await archive.sweeps.want(uuid4(), "a test", "to see", deletes=True)
    old, at = await archive.fence(), (await archive.catalog.control()).at
    sweeper = archive.archiver._sweeper
    assert await sweeper.sweep_some(old, at)
    begun = await archive.sweeps.want(wanted.sweep_id, "a test", "to see", deletes=True)
    assert (begun.seen, begun.place, begun.after_key != "") == (3, 0, True)

    await archive.shard.execute("UPDATE ordermesh.archive_lease SET fence = fence + 1, lease_until = 'epoch'")
    there = await keys(archive)
    with pytest.raises(LeaseLost):
        await sweeper.sweep_some(old, at)
    assert await keys(archive) == there, "one who was replaced deletes nothing more"
    fence, rounds = await archive.fence(), 0
    while await sweeper.sweep_some(fence, at):
        rounds += 1
    assert rounds > 4
    over = await archive.sweeps.want(wanted.sweep_id, "a test", "to see", deletes=True)
    assert (over.deleted, over.seen) == (8, len(await keys(archive)) + 8)
    assert await keys(archive) & lost == set()


async def test_a_walk_begins_by_itself_when_it_is_time_and_not_before(archive: Archive) -> None:
    assert not await archive.archiver.once(await archive.fence()), "nobody asked for one"
    daily = replace(SWEEPING, every=timedelta(days=1))
    archive.archiver._sweeper = Sweeper(archive.sweeps, archive.store, Throttle(1e9, SYSTEM_CLOCK), daily)
    fence = await archive.fence()
    assert await archive.archiver.once(fence)
    while await archive.archiver.once(fence):
        pass
    assert (await archive.sweeps.totals()).ended_at is not None
    assert await archive.value("SELECT count(*) FROM ordermesh.archive_sweeps") == 1
    await archive.shard.execute(
        "UPDATE ordermesh.archive_sweeps SET created_at = created_at - interval '1 day'"
    )
    assert await archive.archiver.once(await archive.fence())
    assert await archive.value("SELECT count(*) FROM ordermesh.archive_sweeps") == 2


async def test_a_walk_that_s3_refuses_goes_on_at_the_next_look(archive: Archive, server: InProcessS3) -> None:
    wanted = await archive.sweeps.want(uuid4(), "a test", "to see", deletes=False)
    fence = await archive.fence()
    server.fail("ListObjectsV2", 403, "AccessDenied")
    assert not await archive.archiver.once(fence)
    while await archive.archiver.once(fence):
        pass
    over = await archive.sweeps.want(wanted.sweep_id, "a test", "to see", deletes=False)
    assert (over.ended_at is not None, over.refusal) == (True, "")


@pytest.mark.parametrize("kind", ["in_process", "seaweedfs"])
async def test_uploads_that_nobody_ends_are_given_up_by_a_walk_that_deletes_and_young_ones_are_not(
    shard_database: DatabaseFactory, server: InProcessS3, s3: SeaweedServer, kind: str
) -> None:
    place = Place.of(server if kind == "in_process" else s3)
    async with opened(await shard_database(), place) as archive:
        segment, file = data_key("s1", AUGUST, "orders", 0, "1" * 32), key_of("s1", uuid4(), 1)
        await begun(archive, segment, file, OF_ANOTHER)
        await swept(archive)
        await swept(archive, deletes=True, ago=timedelta(hours=1))
        assert await under_way(archive) == {segment, file, OF_ANOTHER}
        await swept(archive, deletes=True)
        assert await under_way(archive) == {file, OF_ANOTHER}, (
            "a statement may be under way without the lease"
        )
        await swept(archive, deletes=True, ago=-timedelta(days=1))
        assert await under_way(archive) == {OF_ANOTHER}


async def test_an_old_upload_behind_more_young_ones_than_a_round_has_is_given_up(
    archive: Archive, server: InProcessS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "ROUND_MAX", 3)
    now = await archive.value("SELECT clock_timestamp()")
    keys_ = [data_key("s1", AUGUST, "orders", part, "1" * 32) for part in range(8)]
    await begun(archive, *keys_, keys_[-1])
    uploads = server.buckets[archive.store.settings.bucket].uploads
    for number, upload in enumerate(uploads.values()):
        upload.at = now - timedelta(days=30) if number > 6 else now
    hour = replace(SWEEPING, grace=timedelta(hours=1))
    archive.archiver._sweeper = Sweeper(archive.sweeps, archive.store, Throttle(1e9, SYSTEM_CLOCK), hour)
    wanted = await archive.sweeps.want(uuid4(), "a test", "they may go", deletes=True)
    fence, rounds = await archive.fence(), 0
    while await archive.archiver.once(fence):
        rounds += 1
    assert await under_way(archive) == {*keys_[:-1]}
    assert rounds > 8, "no round has more than three"
    over = await archive.sweeps.want(wanted.sweep_id, "a test", "they may go", deletes=True)
    assert (over.ended_at is not None, over.seen) == (True, 0)


async def test_a_bucket_that_shows_no_uploads_holds_up_no_walk(archive: Archive, server: InProcessS3) -> None:
    server.fail("ListMultipartUploads", 403, "AccessDenied", times=100)
    assert (await swept(archive, deletes=True)).refusal == ""
