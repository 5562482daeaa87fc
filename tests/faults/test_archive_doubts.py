"""Whatever S3, the wire, another archiver or a person with too many rights does: a month converges or is
quarantined, and no table is touched while there is a doubt.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from archive_svc import verify
from archive_svc.entries import CataloguedSegment
from archive_svc.errors import LeaseLost
from archive_svc.lifecycle import State
from archive_svc.rebuild import Rebuilder, Rebuilt
from chassis import pg
from chassis.errors import ShardUnavailable
from chassis.testing import eventually
from tests.archiving import AUGUST, Archive, Twin, damages, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3, Version

COUNT = 400
PENDING = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"


@pytest.fixture
async def server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as running:
        yield running


@pytest.fixture
async def archive(shard_database: DatabaseFactory, server: InProcessS3) -> AsyncIterator[Archive]:
    database = await shard_database()
    async with opened(database, Place.of(server)) as ready:
        await fill(database, COUNT)
        yield ready


def version_of(server: InProcessS3, archive: Archive, segment: CataloguedSegment) -> Version:
    bucket = server.buckets[archive.store.settings.bucket]
    return bucket.objects[segment.stored.key][-1]


async def untouched(archive: Archive) -> bool:
    """Whether the month's tables hang where they hung, whole."""
    return await archive.is_attached("ordermesh.orders_2023_08") and await archive.value(
        "SELECT count(*) = $1 FROM ordermesh.orders", COUNT
    )


def flip(body: bytearray) -> None:
    body[len(body) // 2] ^= 0x10


def truncate(body: bytearray) -> None:
    del body[len(body) // 2 :]


def empty(body: bytearray) -> None:
    body.clear()


@pytest.mark.parametrize("damage", [flip, truncate, empty])
async def test_a_segment_that_is_damaged_at_rest_is_made_anew(
    archive: Archive, server: InProcessS3, damage: Callable[[bytearray], None]
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    await archive.work(until=State.EXPORTED)
    victim = (await archive.segments())[1]
    damage(version_of(server, archive, victim).body)
    month = await archive.work()
    assert (month.state, month.damages) == (State.DROPPED, 1)
    assert victim.stored.key not in {segment.stored.key for segment in await archive.segments()}
    assert await twin.differences(AUGUST) == {}


async def test_an_s3_that_damages_whatever_it_is_given_gets_no_month(
    archive: Archive, server: InProcessS3
) -> None:
    await archive.want(AUGUST)
    for _ in range(10):
        if (await archive.work(until=State.EXPORTED)).quarantined:
            break
        for segment in await archive.segments():
            if segment.verified_at is None:
                flip(version_of(server, archive, segment).body)
        await archive.archiver.once(await archive.fence())
    month = await archive.month(AUGUST)
    assert "did not read back as written" in month.quarantined
    assert month.state in (State.PLANNED, State.EXPORTED)
    assert await untouched(archive)
    assert not await archive.archiver.once(await archive.fence()), "nothing more is done to it"


async def test_a_bit_that_flips_on_the_way_in_or_out_costs_a_second_try(
    archive: Archive, server: InProcessS3
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    server.flip_on_the_way_in()
    await archive.work(until=State.EXPORTED)
    server.flip_on_the_way_out()
    month = await archive.work()
    assert (month.state, month.quarantined) == (State.DROPPED, "")
    assert await twin.differences(AUGUST) == {}


async def test_two_segments_that_changed_places_are_both_found(archive: Archive, server: InProcessS3) -> None:
    await archive.want(AUGUST)
    await archive.work(until=State.EXPORTED)
    first, second = [s for s in await archive.segments() if s.table == "orders"][:2]
    one, other = version_of(server, archive, first), version_of(server, archive, second)
    one.body, other.body = other.body, one.body
    assert (await archive.work()).damages == 2
    assert (await archive.month(AUGUST)).state is State.DROPPED


async def test_a_segment_that_is_lost_after_the_commit_keeps_the_tables(
    archive: Archive, server: InProcessS3
) -> None:
    await archive.want(AUGUST)
    await archive.work(until=State.GRACE)
    victim = (await archive.segments())[0]
    del server.buckets[archive.store.settings.bucket].objects[victim.stored.key]
    month = await archive.work()
    assert month.state is State.GRACE
    assert "not there as it was stored" in month.quarantined
    assert await archive.exists("orders_2023_08")


async def due(archive: Archive) -> int:
    """How many segments of August wait to be read once more, as operators see it."""
    views = await archive.catalog.overview(datetime.now(UTC))
    return next(view.due for view in views if view.month == AUGUST)


async def test_what_is_archived_is_read_again_and_again_and_damage_is_found(
    archive: Archive, server: InProcessS3
) -> None:
    await archive.want(AUGUST)
    await archive.work()
    assert server.seen["GetObject"]
    before = server.seen["GetObject"]
    assert not await archive.archiver.once(await archive.fence()), "nothing is due for a year"
    await archive.catalog.check_month(AUGUST, "a test")
    await archive.work()
    assert server.seen["GetObject"] == before + len(await archive.segments())

    victim = (await archive.segments())[2]
    flip(version_of(server, archive, victim).body)
    await archive.catalog.check_month(AUGUST, "a test")
    month = await archive.work()
    assert month.state is State.DROPPED
    assert victim.stored.key in month.quarantined

    # Nothing reads it again by itself; who asks gets an answer, and the month when all of it is whole.
    before = server.seen["GetObject"]
    await archive.shard.execute("UPDATE ordermesh.archive_segments SET check_from = 'epoch'")
    await archive.work()
    assert (server.seen["GetObject"], await due(archive)) == (before, 0)
    await archive.catalog.check_month(AUGUST, "ops:ann")
    assert await due(archive) == len(await archive.segments())
    assert victim.stored.key in (await archive.work()).quarantined
    assert await due(archive) == 0
    flip(version_of(server, archive, victim).body)
    await archive.catalog.check_month(AUGUST, "ops:bob")
    assert (await archive.work()).quarantined == ""
    said = await archive.rows("SELECT actor, note FROM ordermesh.archive_releases ORDER BY asked_at")
    assert [(row["actor"], victim.stored.key in row["note"]) for row in said] == [
        ("ops:ann", True),
        ("ops:bob", False),
    ]
    await archive.want(AUGUST, State.RESTORED)
    assert (await archive.work()).state is State.RESTORED


async def test_a_good_version_that_is_put_back_counts_when_somebody_has_it_verified(
    archive: Archive, server: InProcessS3
) -> None:
    """In a bucket with versions it is another version than the one that was stored."""
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    await archive.work()
    victim = (await archive.segments())[1]
    body = await archive.store.read(victim.stored)
    await archive.store.delete(victim.stored)
    await archive.catalog.check_month(AUGUST, "a test")
    assert victim.stored.key in (await archive.work()).quarantined

    wrong = await archive.store.create(victim.stored.key, b"x" * len(body))
    await archive.catalog.check_month(AUGUST, "a test")
    assert victim.stored.key in (await archive.work()).quarantined, "what is there is not what was stored"
    await archive.store.delete(wrong)
    again = await archive.store.create(victim.stored.key, body)
    assert again.version_id != victim.stored.version_id
    await archive.catalog.check_month(AUGUST, "a test")
    assert (await archive.work()).quarantined == ""
    assert (await archive.segments())[1].stored.version_id == again.version_id
    assert await twin.differences(AUGUST) == {}

    await archive.shard.execute("DELETE FROM ordermesh.archive_months")
    rebuilder = Rebuilder(archive.catalog, archive.store, timedelta(0))
    assert await rebuilder.rebuild("a test", "its manifest names the good version") == [Rebuilt("2023-08")]


async def test_rows_that_postgres_has_and_the_copy_has_not_quarantine_the_month(archive: Archive) -> None:
    """A person with too many rights changes a row of a frozen month behind the trigger."""
    await archive.want(AUGUST)
    await archive.work(until=State.EXPORTED)
    await behind_the_triggers(archive, "UPDATE ordermesh.orders_2023_08 SET amount_minor = amount_minor + 1")
    month = await archive.work()
    assert "VERIFY" in month.quarantined
    assert "sums" in month.quarantined
    assert await untouched(archive)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE orders_2023_08 SET labels = '{}' WHERE ctid = (SELECT ctid FROM orders_2023_08 LIMIT 1)",
        "DELETE FROM order_journal_2023_08 WHERE ctid = (SELECT ctid FROM order_journal_2023_08 LIMIT 1)",
        "UPDATE order_journal_2023_08 SET at = at + interval '1 microsecond' WHERE version = 2",
    ],
)
async def test_tables_that_changed_since_the_proof_are_not_dropped(archive: Archive, change: str) -> None:
    await archive.want(AUGUST, State.GRACE)
    await archive.work()
    await behind_the_triggers(archive, change)
    await archive.want(AUGUST, State.DROPPED)
    month = await archive.work()
    assert "not what was proven" in month.quarantined
    assert month.state is State.GRACE
    assert await archive.exists("orders_2023_08")


async def test_a_month_whose_segment_is_gone_keeps_its_tables_and_somebody_is_told(archive: Archive) -> None:
    await archive.want(AUGUST, State.GRACE)
    await archive.work()
    before = damages("s1")
    await archive.store.delete((await archive.segments())[0].stored)
    await archive.want(AUGUST, State.DROPPED)
    month = await archive.work()
    assert month.quarantined.startswith("DROP: BYTES")
    assert await archive.exists("orders_2023_08")
    assert damages("s1") == before + 1


async def test_without_the_read_back_damage_goes_unseen(
    archive: Archive, server: InProcessS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the tests above: the read-back is what finds damage, nothing else does."""

    async def believe(_: verify.Verifier, segment: CataloguedSegment) -> bytes:
        return b""

    monkeypatch.setattr(verify.Verifier, "read_back", believe)
    await archive.want(AUGUST)
    await archive.work(until=State.EXPORTED)
    flip(version_of(server, archive, (await archive.segments())[0]).body)
    assert (await archive.work()).state is State.DROPPED


async def test_storms_and_lost_answers_of_s3_are_weathered(archive: Archive, server: InProcessS3) -> None:
    twin = Twin(archive)
    await twin.remember()
    server.fail("PutObject", 503, "SlowDown", times=3)
    server.lose_answer("PutObject")
    server.fail("GetObject", 500, "InternalError", times=3)
    server.lose_answer("GetObject")
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.DROPPED
    assert await twin.differences(AUGUST) == {}
    stored = server.buckets[archive.store.settings.bucket].objects
    assert len([key for key in stored if key.endswith(".parquet")]) == len(await archive.segments())


async def test_a_storm_that_does_not_end_lets_the_month_wait(archive: Archive, server: InProcessS3) -> None:
    server.fail("PutObject", 503, "SlowDown", times=1000)
    await archive.want(AUGUST)
    month = await archive.work()
    assert (month.state, month.failures, month.quarantined) == (State.PLANNED, 1, "")
    assert await untouched(archive)
    server.forgive()
    await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
    assert (await archive.work()).state is State.DROPPED


async def test_an_archiver_whose_lease_was_lost_changes_nothing_more(archive: Archive) -> None:
    await archive.want(AUGUST)
    old = await archive.fence()
    await archive.work(until=State.EXPORTED)
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch', holder = 'other'")
    newer = await archive.catalog.take_lease("other", timedelta(seconds=30))
    assert newer is not None
    assert newer > old
    segment = (await archive.segments())[0]
    month = await archive.month(AUGUST)
    believed = []
    calls: list[Coroutine[Any, Any, object]] = [
        archive.catalog.note_verified(old, month.archive_id, segment, timedelta(0)),
        archive.catalog.forget_segment(old, month.archive_id, segment),
        archive.catalog.add_segment(old, month.archive_id, 0, segment.stored, segment.facts),
        archive.catalog.move(month, old, State.VERIFIED),
        archive.catalog.prove(month, old),
        archive.catalog.thaw(month, old),
        archive.catalog.quarantine(month, old, "late"),
        archive.catalog.defer(month, old, timedelta(hours=1), "late", is_failure=True),
        archive.catalog.part_with(month, old, timedelta(0)),
        archive.catalog.drop(month, old),
        archive.catalog.renew_lease(old, timedelta(hours=1)),
    ]
    for number, late in enumerate(calls):
        with suppress(LeaseLost):
            await late
            believed.append(number)
    assert believed == []
    assert await archive.month(AUGUST) == month


async def test_a_detach_that_was_cut_off_in_the_middle_is_ended(archive: Archive) -> None:
    """Somebody reads the parent for long, the detach waits between its two halves, and its session dies."""
    await archive.want(AUGUST, State.GRACE)
    await archive.work(until=State.DETACHING)
    reader = await asyncpg.connect(archive.database.dsn)
    cutter = await asyncpg.connect(archive.database.dsn)
    try:
        async with reader.transaction(isolation="repeatable_read"):
            await reader.fetchval("SELECT count(*) FROM ordermesh.orders")
            fence = await archive.fence()
            working = asyncio.create_task(archive.archiver.once(fence))

            async def is_half_done() -> bool:
                return bool(await cutter.fetchval(PENDING))

            assert await eventually(is_half_done, within_s=30)
            assert await cutter.fetchval(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE query LIKE 'ALTER TABLE%CONCURRENTLY' AND datname = current_database()"
            )
            assert await working
        assert (await archive.month(AUGUST)).failures == 1
        assert await cutter.fetchval(PENDING) == 1
        await cutter.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
    finally:
        await reader.close()
        await cutter.close()
    assert (await archive.work()).state is State.GRACE
    assert await archive.value(PENDING) == 0


async def test_whoever_holds_the_tables_under_an_older_fence_loses_his_session(archive: Archive) -> None:
    """He was frozen between his look at the lease and the detach."""
    await archive.want(AUGUST, State.GRACE)
    await archive.work(until=State.DETACHING)
    async with pg.open_session(pg.PgSettings(dsn=archive.database.dsn), name="frozen") as frozen:
        assert await frozen.fetchval("SELECT pg_try_advisory_lock(73, 0)")
        await archive.archiver.once(await archive.fence())
        await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
        assert (await archive.work()).state is State.GRACE
        with pytest.raises(ShardUnavailable):
            await frozen.ping(5.0)


async def behind_the_triggers(archive: Archive, change: str) -> None:
    connection = await asyncpg.connect(archive.database.dsn, server_settings={"search_path": "ordermesh"})
    try:
        for table in ("orders_2023_08", "order_journal_2023_08"):
            await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        await connection.execute(change)
        for table in ("orders_2023_08", "order_journal_2023_08"):
            await connection.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER frozen")
    finally:
        await connection.close()
