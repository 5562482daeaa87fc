"""No older knowledge takes the place of a newer manifest: not of a catalog that came back from a backup, not
of a manifest that the archiver had renewed before the erasure came to it.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from archive_svc import points
from archive_svc.editions import newest_edition
from archive_svc.entries import CataloguedSegment, Erasure
from archive_svc.errors import LeaseLost
from archive_svc.lifecycle import State
from archive_svc.rebuild import KNOWN, Rebuilder, Rebuilt
from chassis import faults
from chassis.s3 import S3Unavailable
from tests.archiving import AUGUST, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3, Version

USER = "user.7"
CATALOG = ("archive_months", "archive_parts", "archive_segments")
DUE = "UPDATE ordermesh.archive_segments SET check_from = 'epoch' WHERE key = $1"


@pytest.fixture
async def server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as running:
        yield running


@pytest.fixture
async def archive(shard_database: DatabaseFactory, server: InProcessS3) -> AsyncIterator[Archive]:
    """August is in S3 alone."""
    database = await shard_database()
    async with opened(database, Place.of(server)) as ready:
        await fill(database, 400)
        await Twin(ready).remember()
        await ready.want(AUGUST)
        assert (await ready.work()).state is State.DROPPED
        yield ready


def objects_in(server: InProcessS3, archive: Archive) -> dict[str, list[Version]]:
    return server.buckets[archive.store.settings.bucket].objects


def damaged_and_put_back(server: InProcessS3, archive: Archive, segment: CataloguedSegment) -> None:
    """The version that counts is damaged at rest; a younger one has the bytes that were stored."""
    versions = objects_in(server, archive)[segment.stored.key]
    good = bytes(versions[-1].body)
    versions[-1].body[len(good) // 2] ^= 1
    versions.append(replace(versions[-1], body=bytearray(good), version_id="put-back"))


async def erased(archive: Archive, erasure_id: UUID | None = None) -> Erasure:
    """Ask for the user to be erased, or how far that is; it is looked at now."""
    erasure = await archive.catalog.want_erasure(erasure_id or uuid4(), USER, "a test", "he asked for it")
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET not_before = 'epoch'")
    await archive.work()
    return await archive.catalog.want_erasure(erasure.erasure_id, USER, "a test", "he asked for it")


async def cut_off(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> Erasure:
    """The user's erasure fails after its first part; the archiver goes on, and the erasure waits."""

    async def dies(name: str) -> None:
        if name == points.AFTER_SWAP:
            monkeypatch.undo()
            raise S3Unavailable("as a kill would")

    monkeypatch.setattr(faults, "point", dies)
    erasure = await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
    for _ in range(2):  # The archiver looks at its months before it erases.
        await archive.work()
    erasure = await archive.catalog.want_erasure(erasure.erasure_id, USER, "a test", "again")
    assert (erasure.orders > 0, erasure.ended_at) == (True, None)
    return erasure


async def test_a_good_version_does_not_count_while_s3_has_a_newer_manifest(
    archive: Archive, server: InProcessS3
) -> None:
    """What would be numbered for it would hide that manifest, and show who was erased."""
    twin = Twin(archive)
    for name in CATALOG:
        await archive.shard.execute(f"CREATE TABLE public.backup_{name} AS SELECT * FROM ordermesh.{name}")
    victim = next(each for each in await archive.segments() if not each.facts.groups_of(USER))
    assert (await erased(archive)).ended_at is not None
    newest = await newest_edition(archive.store, "s1", await archive.month(AUGUST))
    await archive.shard.execute("DELETE FROM ordermesh.archive_months")
    for name in CATALOG:
        await archive.shard.execute(f"INSERT INTO ordermesh.{name} SELECT * FROM public.backup_{name}")

    damaged_and_put_back(server, archive, victim)
    before = await archive.month(AUGUST)
    assert before.edition < newest
    await archive.shard.execute(DUE, victim.stored.key)
    month = await archive.work()
    assert victim.stored.key in month.quarantined
    assert (month.edition, month.manifest_key) == (before.edition, before.manifest_key)
    assert await newest_edition(archive.store, "s1", month) == newest
    assert victim.stored in [each.stored for each in await archive.segments()]

    # Once the catalog is what S3 is, it counts.
    rebuilder = Rebuilder(archive.catalog, archive.store, archive.archiver._pacing.grace)
    told = await rebuilder.rebuild("a test", "restored from last night", replaces=True)
    assert told == [Rebuilt("2023-08")]
    assert (await archive.work()).quarantined == ""
    versions = {each.stored.key: each.stored.version_id for each in await archive.segments()}
    assert versions[victim.stored.key] == "put-back"
    await twin.forget(USER)
    assert await twin.differences(AUGUST) == {}


async def test_nothing_is_put_back_into_a_month_or_a_segment_that_is_another_by_now(
    archive: Archive, server: InProcessS3
) -> None:
    fence, month, victim = await archive.fence(), await archive.month(AUGUST), (await archive.segments())[0]
    swapped = replace(victim, facts=replace(victim.facts, sha256="0" * 64))
    for of, segment in ((fence, swapped), (fence - 1, victim)):
        with pytest.raises(LeaseLost):
            await archive.catalog.put_back(of, month.archive_id, segment)
    assert await archive.month(AUGUST) == month
    damaged_and_put_back(server, archive, victim)
    await archive.shard.execute("DELETE FROM ordermesh.archive_months")
    assert not await archive.verifier._was_put_back(fence, month.archive_id, victim)


async def test_a_manifest_that_the_archiver_renewed_meanwhile_goes_with_the_erasure(
    archive: Archive, server: InProcessS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = (await archive.month(AUGUST)).manifest_key
    erasure = await cut_off(archive, monkeypatch)
    assert (await archive.month(AUGUST)).manifest_key != old, "the archiver did not wait for the erasure"
    assert old in objects_in(server, archive), "it names the user, and nothing of it was deleted yet"
    assert (await erased(archive, erasure.erasure_id)).ended_at is not None
    month = await archive.month(AUGUST)
    there = [key for key in objects_in(server, archive) if key.endswith(".json")]
    assert there == [month.manifest_key]


async def test_an_older_manifest_takes_no_place_of_a_catalog_that_is_newer(
    archive: Archive, server: InProcessS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although all that the older one names is there: it would bring who is erased back."""
    old = (await archive.month(AUGUST)).manifest_key
    before = {each.stored.key for each in await archive.segments()}
    await cut_off(archive, monkeypatch)
    month = await archive.month(AUGUST)
    lost = next(each for each in await archive.segments() if each.stored.key not in before)
    for key in (month.manifest_key, lost.stored.key):
        del objects_in(server, archive)[key]
    rebuilder = Rebuilder(archive.catalog, archive.store, archive.archiver._pacing.grace)
    assert await rebuilder.rebuild("a test", "to see", replaces=True) == [Rebuilt("2023-08", KNOWN)]
    assert old in objects_in(server, archive)
    assert await archive.month(AUGUST) == month
