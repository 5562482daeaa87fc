"""A segment in cold storage holds up what it is part of, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date
from uuid import UUID, uuid4

import pytest

from archive_svc.entries import CataloguedSegment, Erasure
from archive_svc.foresee import COLD, COLD_GIVEN_UP, STANDS, foreseen
from archive_svc.lifecycle import State
from chassis.s3 import ObjectCold
from tests.archiving import AUGUST, SEPTEMBER, Archive, Twin, damages, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3
from tests.papers import reader

USER, ANOTHER = "user.b", "user.c"
USERS = ("user.a", USER, ANOTHER)


@pytest.fixture
async def server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as running:
        yield running


@pytest.fixture
async def archive(shard_database: DatabaseFactory, server: InProcessS3) -> AsyncIterator[Archive]:
    """Two months that are in S3 alone, each in several parts."""
    async with opened(await shard_database(), Place.of(server), part_bytes=16 * 1024) as ready:
        for seed, month in enumerate((AUGUST, SEPTEMBER)):
            await fill(ready.database, 120, month, seed=seed, users=USERS)
            await ready.want(month)
            assert (await ready.work(month=month)).state is State.DROPPED
        yield ready


async def having(archive: Archive, month: date = AUGUST) -> list[CataloguedSegment]:
    """The segments of a month that have rows of the user."""
    return [each for each in await archive.segments(month) if each.facts.groups_of(USER)]


def cool(server: InProcessS3, archive: Archive, *segments: CataloguedSegment, is_cold: bool = True) -> None:
    """Put objects into cold storage, or restore them from there."""
    for each in segments:
        server.buckets[archive.store.settings.bucket].objects[each.stored.key][-1].is_cold = is_cold


async def asked(archive: Archive, erasure_id: UUID | None = None, user_id: str = USER) -> Erasure:
    """Ask for a user to be erased, or how far that is; it is looked at now."""
    erasure = await archive.catalog.want_erasure(erasure_id or uuid4(), user_id, "a test", "he asked for it")
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET not_before = 'epoch'")
    await archive.work()
    return await archive.catalog.want_erasure(erasure.erasure_id, user_id, "a test", "he asked for it")


@pytest.mark.parametrize("table", ["orders", "order_journal"])
async def test_an_erasure_waits_for_the_cold_part_and_for_no_other(
    archive: Archive, server: InProcessS3, table: str
) -> None:
    told = damages("s1")
    mine = await having(archive)
    cold = next(each for each in mine if each.table == table)
    assert {each.part for each in mine} > {cold.part}
    cool(server, archive, cold)
    erasure = await asked(archive)
    assert erasure.ended_at is None
    assert erasure.note.startswith(f"waits for 2023-08, of which part {cold.part} is in cold storage (")
    assert cold.stored.key in erasure.note
    assert {each.part for each in await having(archive)} == {cold.part}
    assert await having(archive, SEPTEMBER) == []
    left = await archive.rows("SELECT key FROM ordermesh.archive_replaced WHERE deleted_at IS NULL")
    assert left == [], "what others took the place of is gone meanwhile"
    assert damages("s1") == told, "nothing is damaged"

    keys = server.buckets[archive.store.settings.bucket].objects.keys()
    before = set(keys)
    assert (await asked(archive, erasure.erasure_id)).note == erasure.note
    assert {key for key in keys if key.endswith(".parquet")} <= before, "no look leaves anything"
    assert (await asked(archive, user_id="nobody.here")).ended_at is not None, "others go on"

    cool(server, archive, cold, is_cold=False)
    assert (await asked(archive, erasure.erasure_id)).ended_at is not None
    assert await having(archive) == []


async def test_a_cold_copy_that_nobody_reads_is_given_up(archive: Archive, server: InProcessS3) -> None:
    twin = Twin(archive)
    for month in (SEPTEMBER, AUGUST):
        await archive.want(month, State.RESTORED)
        assert (await archive.work(month=month)).state is State.RESTORED
    await twin.remember()
    cool(server, archive, *await archive.segments(AUGUST))
    august, september = await foreseen(archive.catalog, reader(archive.database.dsn, archive.store), USER)
    assert (august.orders, august.objects, august.note) == (0, 0, COLD_GIVEN_UP)
    assert september.orders > 0
    assert (await asked(archive)).ended_at is not None
    assert await archive.segments(AUGUST) == []
    assert await twin.differences() == {}, "the tables have all of it"


async def test_what_would_go_is_said_of_other_months(archive: Archive, server: InProcessS3) -> None:
    cool(server, archive, *await having(archive))
    shard = reader(archive.database.dsn, archive.store)
    august, september = await foreseen(archive.catalog, shard, USER)
    assert (august.month, august.orders, august.objects, august.note) == (AUGUST, 0, 0, COLD)
    assert (september.orders > 0, september.note) == (True, "")
    await archive.holds.put(None, AUGUST, "a test", "case 7")
    august, _ = await foreseen(archive.catalog, shard, USER)
    assert august.note == f"LEGAL_HOLD of 2023-08 by a test: case 7; {COLD}"


async def test_of_a_cold_month_whose_tables_stand_both_are_said(
    shard_database: DatabaseFactory, server: InProcessS3
) -> None:
    async with opened(await shard_database(), Place.of(server)) as archive:
        await fill(archive.database, 120, users=USERS)
        await archive.want(AUGUST, State.GRACE)
        assert (await archive.work()).state is State.GRACE
        cool(server, archive, *await having(archive))
        (august,) = await foreseen(archive.catalog, reader(archive.database.dsn, archive.store), USER)
        assert (august.orders, august.note) == (0, f"{STANDS}; {COLD}")


async def test_cold_segments_are_checked_last_and_each_in_its_turn(
    archive: Archive, server: InProcessS3
) -> None:
    every = await archive.segments(AUGUST)
    first, second = every[0], every[-1]
    cool(server, archive, first, second)
    await archive.catalog.check_month(AUGUST, "a test")
    due = "UPDATE ordermesh.archive_segments SET check_from = 'epoch' WHERE key = ANY($1)"
    await archive.shard.execute(due, [first.stored.key, second.stored.key])
    fence, verifier = await archive.fence(), archive.archiver._verifier

    async def looks(times: int) -> list[str]:
        """What so many checks find in cold storage."""
        found = []
        for _ in range(times):
            try:
                await verifier.check_one(fence)
            except ObjectCold as cold:
                found.append(cold.key)
        return found

    both = sorted([first.stored.key, second.stored.key])
    assert await looks(len(every)) == both, "once each; all others were read"
    assert await looks(4) == [*both, *both]
    cool(server, archive, first, is_cold=False)
    assert set(await looks(3)) == {second.stored.key}
    still = "SELECT key FROM ordermesh.archive_segments WHERE check_from <= clock_timestamp()"
    assert [row["key"] for row in await archive.rows(still)] == [second.stored.key], "it stays due"
