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
NOT_YET = "UPDATE ordermesh.archive_months SET not_before = '2100-01-01Z'"
ORDERS, BOUNDS = "ordermesh.orders_2023_08", "FOR VALUES FROM ('2023-08-01Z') TO ('2023-09-01Z')"
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


async def damaged_when_back(archive: Archive, server: InProcessS3, which: int) -> tuple[set[str], set[str]]:
    """The month comes back, and one of the segments of its copy that may have rows of the user is damaged;
    their keys, and those of all others.
    """
    await moved(archive, State.RESTORED)
    mine = [each for each in await archive.segments() if each.facts.groups_of(USER)]
    assert len({each.part for each in mine}) > 1, "one is not the first or not the last"
    body = server.buckets[archive.store.settings.bucket].objects[mine[which].stored.key][-1].body
    body[len(body) // 2] ^= 1
    keys = {each.stored.key for each in mine}
    others = {each.stored.key for each in await archive.segments()} - keys
    assert others
    return keys, others


@pytest.mark.parametrize(("state", "which"), [(State.RESTORED, 0), (State.RESTORED, -1), (State.WANTED, -1)])
async def test_a_damaged_copy_that_nobody_reads_is_given_up(
    shard_database: DatabaseFactory, server: InProcessS3, state: State, which: int
) -> None:
    async with opened(await shard_database(), Place.of(server), part_bytes=16 * 1024) as archive:
        await fill(archive.database, 120, users=("user.1", USER, ANOTHER))
        twin = Twin(archive)
        await twin.remember()
        await moved(archive, State.DROPPED)
        mine, others = await damaged_when_back(archive, server, which)
        if state is State.WANTED:
            await archive.want(AUGUST)
            await archive.shard.execute(NOT_YET)
        before = await archive.month(AUGUST)
        assert before.state is state
        erasure = await asked(archive)
        assert erasure.ended_at is not None, erasure.note
        assert (erasure.orders > 0) == (which == -1), "parts before the damaged one are written anew"

        objects = server.buckets[archive.store.settings.bucket].objects
        month = await archive.month(AUGUST)
        assert (month.state, month.manifest_key, await archive.segments()) == (state, "", [])
        assert "is damaged" in await archive.value("SELECT note FROM ordermesh.archive_months")
        assert not [key for key in objects if key.endswith(".json")]
        assert (mine & objects.keys(), others - objects.keys()) == (set(), set())
        assert USER not in users_in(server, archive)
        left = "SELECT count(*) FROM ordermesh.archive_replaced WHERE deleted_at IS NULL OR erasure_id <> $1"
        assert await archive.value(left, erasure.erasure_id) == 0
        assert await twin.differences() == {}, "the tables have all of it"

        # What is left of it are strays, and the month leaves as one that never did.
        await archive.sweeps.want(uuid4(), "a test", "may they go", deletes=True)
        await archive.work()
        assert (await archive.store.list("order")).objects == ()
        await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
        await moved(archive, State.DROPPED)
        assert await twin.differences(AUGUST) == {}


async def test_a_copy_that_was_given_up_just_before_the_process_died_goes_with_the_next_one(
    shard_database: DatabaseFactory, server: InProcessS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = True

    async def die(name: str) -> None:
        if dies and name == points.BEFORE_RECALL:
            raise faults.FaultFired(name)

    async with opened(await shard_database(), Place.of(server), part_bytes=16 * 1024) as archive:
        await fill(archive.database, 120, users=("user.1", USER, ANOTHER))
        await moved(archive, State.DROPPED)
        await damaged_when_back(archive, server, -1)
        monkeypatch.setattr(faults, "point", die)
        with pytest.raises(faults.FaultFired):
            await asked(archive)
        assert (await archive.month(AUGUST)).manifest_key == "", "the copy is nobody's already"
        assert USER in users_in(server, archive)
        dies = False
        await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
        erasure = await asked(
            archive, await archive.value("SELECT erasure_id FROM ordermesh.archive_erasures")
        )
        assert erasure.ended_at is not None, erasure.note
        assert USER not in users_in(server, archive)


async def test_no_other_copy_is_given_up(archive: Archive) -> None:
    erasure = await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET not_before = 'infinity'")

    async def given_up(fence: int) -> bool:
        month = await archive.month(AUGUST)
        return await archive.catalog.give_up_copy(fence, erasure, month.archive_id, "why")

    fence = await archive.fence()
    for state in (State.VERIFIED, State.COMMITTED, State.GRACE, State.DROPPED):
        await moved(archive, state)
        assert not await given_up(fence), state
    await moved(archive, State.RESTORED)
    before = await archive.segments()
    for user_id, month in ((USER, None), (None, AUGUST)):
        await archive.holds.put(user_id, month, "a test", "case 7")
        assert not await given_up(fence)
        await archive.holds.lift(user_id, month, "a test", "over")
    assert not await given_up(fence - 1)
    quarantined = "UPDATE ordermesh.archive_months SET quarantined = $1"
    await archive.shard.execute(quarantined, "why")
    assert not await given_up(fence)
    await archive.shard.execute(quarantined, "")
    await archive.shard.execute(f"ALTER TABLE ordermesh.orders DETACH PARTITION {ORDERS}")
    assert not await given_up(fence), "by hand; then it is all there is"
    await archive.shard.execute(f"ALTER TABLE ordermesh.orders ATTACH PARTITION {ORDERS} {BOUNDS}")
    assert before == await archive.segments() != []
    assert await given_up(fence)
    assert await archive.segments() == []
