"""A user is taken out of the archive: all of his rows, nobody else's, and nothing of them is left in S3."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from archive_svc.amendment import AMENDMENT_TYPE, Noted, key_of
from archive_svc.lifecycle import State
from archive_svc.rebuild import KNOWN, Rebuilder, Rebuilt
from archive_svc.retention import NOT_LOCKED, Retention
from tests.archiving import AUGUST, SEPTEMBER, Archive, Twin, damages, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3

USER = "user.7"
CATALOG = ("archive_months", "archive_parts", "archive_segments")
MANIFESTS = "SELECT manifest_key FROM ordermesh.archive_months ORDER BY month"


@pytest.fixture
async def server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as running:
        yield running


@pytest.fixture
async def archive(shard_database: DatabaseFactory, server: InProcessS3) -> AsyncIterator[Archive]:
    database = await shard_database()
    async with opened(database, Place.of(server)) as ready:
        for number, month in enumerate((AUGUST, SEPTEMBER)):
            await fill(database, 400, month, seed=number)
        yield ready


async def archived(archive: Archive) -> Twin:
    twin = Twin(archive)
    await twin.remember()
    for month in (AUGUST, SEPTEMBER):
        await archive.want(month)
        await archive.work(month=month)
    return twin


def kept_in(server: InProcessS3, archive: Archive) -> bytes:
    """Every byte of every version of every object."""
    objects = server.buckets[archive.store.settings.bucket].objects
    return b"".join(bytes(version.body) for versions in objects.values() for version in versions)


async def test_a_user_is_gone_from_every_month_and_nobody_else_is(
    archive: Archive, server: InProcessS3
) -> None:
    twin = await archived(archive)
    his = await archive.value("SELECT count(*) FROM public.twin_orders WHERE user_id = $1", USER)
    before = {
        segment.stored.key for month in (AUGUST, SEPTEMBER) for segment in await archive.segments(month)
    }
    erasure = await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
    await archive.work()

    erasure = await archive.catalog.want_erasure(erasure.erasure_id, USER, "a test", "he asked for it")
    assert (erasure.orders, erasure.ended_at is not None) == (his, True)
    await twin.forget(USER)
    assert await twin.differences(AUGUST, SEPTEMBER) == {}
    after = {segment.stored.key for month in (AUGUST, SEPTEMBER) for segment in await archive.segments(month)}
    objects = server.buckets[archive.store.settings.bucket].objects
    replaced = before - after
    assert replaced
    assert not any(objects.get(key) for key in replaced), "the old objects are deleted"
    assert before & after, "segments without a row of his stay as they are"

    # The months can be proven, restored, and their catalog made again.
    await archive.catalog.check_month(AUGUST, "a test")
    assert (await archive.work()).quarantined == ""
    await archive.shard.execute("DELETE FROM ordermesh.archive_months")
    rebuilder = Rebuilder(archive.catalog, archive.store, archive.archiver._pacing.grace)
    assert await rebuilder.rebuild("a test", "lost") == [Rebuilt("2023-08"), Rebuilt("2023-09")]
    for month in (AUGUST, SEPTEMBER):
        await archive.want(month, State.RESTORED)
        restored = await archive.work(month=month)
        assert restored.state is State.RESTORED, restored
    assert await twin.differences() == {}


async def test_a_user_without_archived_rows_is_erased_at_once(archive: Archive) -> None:
    twin = await archived(archive)
    erasure = await archive.catalog.want_erasure(uuid4(), "user.70", "a test", "they asked for it")
    await archive.work()
    erasure = await archive.catalog.want_erasure(erasure.erasure_id, "user.70", "a test", "again")
    assert (erasure.orders, erasure.ended_at is not None) == (0, True)
    assert await twin.differences(AUGUST, SEPTEMBER) == {}


async def test_an_erasure_waits_for_months_whose_tables_still_stand(archive: Archive) -> None:
    await archive.want(AUGUST, State.GRACE)
    await archive.work()
    erasure = await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
    await archive.work()
    erasure = await archive.catalog.want_erasure(erasure.erasure_id, USER, "a test", "again")
    assert (erasure.ended_at, erasure.note) == (None, "waits for 2023-08")
    await archive.want(AUGUST)
    await archive.work()
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET not_before = 'epoch'")
    await archive.work()
    erasure = await archive.catalog.want_erasure(erasure.erasure_id, USER, "a test", "again")
    assert erasure.ended_at is not None


@pytest.mark.parametrize("state", [State.FROZEN, State.PLANNED, State.EXPORTED, State.VERIFIED])
async def test_an_erasure_waits_for_months_that_are_being_copied_with_rows_of_the_user(
    archive: Archive, state: State
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    await archive.work(until=state)
    fence = await archive.fence()
    ended = []
    for user_id in (USER, "nobody.here"):
        erasure = await archive.catalog.want_erasure(uuid4(), user_id, "a test", "he asked for it")
        assert await archive.archiver._erase(fence)
        erasure = await archive.catalog.want_erasure(erasure.erasure_id, user_id, "a test", "again")
        ended.append((erasure.ended_at is not None, erasure.note))
    assert ended == [(False, "waits for 2023-08"), (True, "")]
    await archive.want(SEPTEMBER)
    assert (await archive.work(month=SEPTEMBER)).state is State.DROPPED
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET not_before = 'epoch'")
    await archive.work()
    await twin.forget(USER)
    assert await twin.differences(AUGUST, SEPTEMBER) == {}


async def test_a_month_of_one_user_alone_is_empty_afterwards(
    shard_database: DatabaseFactory, server: InProcessS3
) -> None:
    database = await shard_database()
    async with opened(database, Place.of(server)) as archive:
        await fill(database, 60, users=[USER])
        await archive.want(AUGUST)
        await archive.work()
        await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
        await archive.work()
        assert {segment.facts.rows for segment in await archive.segments()} == {0}
        await archive.want(AUGUST, State.RESTORED)
        assert (await archive.work()).state is State.RESTORED
        assert await archive.value("SELECT count(*) FROM ordermesh.orders") == 0


async def test_an_erasure_waits_for_a_month_in_quarantine_and_holds_up_nobody(archive: Archive) -> None:
    await archived(archive)
    await archive.shard.execute(
        "UPDATE ordermesh.archive_months SET quarantined = 'why' WHERE month = $1", AUGUST
    )
    before = {found.key for found in (await archive.store.list("orders/")).objects}
    first, second = [
        await archive.catalog.want_erasure(uuid4(), user_id, "a test", "he asked for it")
        for user_id in (USER, "nobody.here")
    ]
    await archive.catalog.check_month(SEPTEMBER, "a test")
    await archive.work()
    after = {found.key for found in (await archive.store.list("orders/")).objects}
    august = {segment.stored.key for segment in await archive.segments(AUGUST) if segment.table == "orders"}
    september = {segment.stored.key for segment in await archive.segments(SEPTEMBER)}
    assert august <= before, "nothing of it was written anew"
    assert after <= august | september
    first = await archive.catalog.want_erasure(first.erasure_id, USER, "a test", "again")
    assert (first.ended_at, first.note) == (None, "waits for 2023-08, which is quarantined")
    second = await archive.catalog.want_erasure(second.erasure_id, "nobody.here", "a test", "again")
    assert second.ended_at is not None
    assert await archive.catalog.due_check() is None, "segments were checked as well"

    await archive.want(AUGUST)
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET not_before = 'epoch'")
    await archive.work()
    first = await archive.catalog.want_erasure(first.erasure_id, USER, "a test", "again")
    assert first.ended_at is not None


async def test_a_damaged_segment_is_not_written_anew(archive: Archive, server: InProcessS3) -> None:
    await archived(archive)
    told = damages("s1")
    objects = server.buckets[archive.store.settings.bucket].objects
    for segments in (await archive.segments(AUGUST), await archive.segments(SEPTEMBER)):
        for segment in segments:
            body = objects[segment.stored.key][-1].body
            body[len(body) // 2] ^= 1
    erasure = await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
    assert await archive.archiver._erase(await archive.fence())
    erasure = await archive.catalog.want_erasure(erasure.erasure_id, USER, "a test", "again")
    assert (erasure.orders, erasure.ended_at) == (0, None)
    assert "is damaged" in erasure.note
    assert damages("s1") == told + 2, "whoever finds damage tells, of each month"
    other = await archive.catalog.want_erasure(uuid4(), "nobody.here", "a test", "they asked for it")
    assert await archive.archiver._erase(await archive.fence()), "one that fails holds up nobody"
    other = await archive.catalog.want_erasure(other.erasure_id, "nobody.here", "a test", "again")
    assert other.ended_at is not None


async def amended(archive: Archive, month: date, user_id: str = USER) -> str:
    """An order of this month has an amendment, in the shard and in S3; the object's key."""
    sql = (
        "SELECT order_id FROM ordermesh.orders WHERE user_id = $1 AND created_at >= $2 "
        "ORDER BY order_id LIMIT 1"
    )
    order_id = await archive.value(sql, user_id, datetime(month.year, month.month, 1, tzinfo=UTC))
    noted = Noted(uuid4(), order_id, user_id, "paid by hand", {}, "a test", "case 7", datetime.now(UTC))
    key = key_of("s1", noted)
    await archive.store.create(key, noted.body(), content_type=AMENDMENT_TYPE)
    assert await archive.catalog.adopt_amendment(noted)
    return key


async def amendments(archive: Archive) -> set[str]:
    """The keys of all that are there, which the shard and S3 agree about."""
    rows = await archive.rows("SELECT amendment_id FROM ordermesh.archive_amendments")
    stored = {each.key for each in (await archive.store.list("_amendment/")).objects}
    assert {UUID(key.split("/")[-1].removesuffix(".json")) for key in stored} == {row[0] for row in rows}
    return stored


@pytest.mark.parametrize(
    ("august", "retention", "waits"),
    [
        (State.GRACE, NOT_LOCKED, "waits for 2023-08"),
        (State.DROPPED, Retention(timedelta(days=30)), "waits for the lock of "),
    ],
)
async def test_amendments_go_at_once_when_an_erasure_waits(
    shard_database: DatabaseFactory, server: InProcessS3, august: State, retention: Retention, waits: str
) -> None:
    async with opened(await shard_database(), Place.of(server), retention=retention) as archive:
        await fill(archive.database, 400)
        await amended(archive, AUGUST)
        another = await amended(archive, AUGUST, "user.8")
        await archive.want(AUGUST, august)
        assert (await archive.work()).state is august
        erasure = await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
        await archive.work()
        erasure = await archive.catalog.want_erasure(erasure.erasure_id, USER, "a test", "again")
        assert (erasure.ended_at, erasure.note[: len(waits)]) == (None, waits)
        assert await amendments(archive) == {another}


async def test_amendments_of_a_month_below_a_legal_hold_stay_and_no_others(archive: Archive) -> None:
    await amended(archive, AUGUST)
    held = await amended(archive, SEPTEMBER)
    await archived(archive)
    await archive.holds.put(None, SEPTEMBER, "ops:ann", "case 7")
    erasure = await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
    await archive.work()
    erasure = await archive.catalog.want_erasure(erasure.erasure_id, USER, "a test", "again")
    assert (erasure.ended_at, erasure.note) == (None, "waits for LEGAL_HOLD of 2023-09 by ops:ann: case 7")
    assert await amendments(archive) == {held}

    await archive.holds.lift(None, SEPTEMBER, "ops:ann", "over")
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET not_before = 'epoch'")
    await archive.work()
    erasure = await archive.catalog.want_erasure(erasure.erasure_id, USER, "a test", "again")
    assert erasure.ended_at is not None
    assert await amendments(archive) == set()


async def test_amendments_go_although_a_segment_is_damaged(archive: Archive, server: InProcessS3) -> None:
    await amended(archive, AUGUST)
    await archived(archive)
    objects = server.buckets[archive.store.settings.bucket].objects
    for segment in await archive.segments(AUGUST):
        body = objects[segment.stored.key][-1].body
        body[len(body) // 2] ^= 1
    erasure = await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
    assert await archive.archiver._erase(await archive.fence())
    erasure = await archive.catalog.want_erasure(erasure.erasure_id, USER, "a test", "again")
    assert (erasure.orders > 0, erasure.ended_at) == (True, None), "other months go on"
    assert await amendments(archive) == set()


async def test_a_catalog_from_before_an_erasure_is_replaced_when_somebody_says_so(
    archive: Archive, server: InProcessS3
) -> None:
    """A backup brings the database back as it was; the objects that it shows were deleted since."""
    twin = await archived(archive)
    for name in CATALOG:
        await archive.shard.execute(f"CREATE TABLE public.backup_{name} AS SELECT * FROM ordermesh.{name}")
    await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
    await archive.work()
    newest = {row["manifest_key"] for row in await archive.rows(MANIFESTS)}
    await archive.shard.execute("DELETE FROM ordermesh.archive_months")
    for name in CATALOG:
        await archive.shard.execute(f"INSERT INTO ordermesh.{name} SELECT * FROM public.backup_{name}")
    older = {row["manifest_key"] for row in await archive.rows(MANIFESTS)}
    assert not older & newest

    # What another erasure numbered now would hide the newer manifests.
    another = await archive.catalog.want_erasure(uuid4(), "user.8", "a test", "she asked for it")
    await archive.work()
    another = await archive.catalog.want_erasure(another.erasure_id, "user.8", "a test", "again")
    assert (another.orders, another.ended_at) == (0, None)
    assert "CATALOG_BEHIND of 2023-08" in another.note

    rebuilder = Rebuilder(archive.catalog, archive.store, archive.archiver._pacing.grace)
    told = await rebuilder.rebuild("a test", "restored from last night")
    assert [(each.month, each.is_replaceable) for each in told] == [("2023-08", True), ("2023-09", True)]
    assert {row["manifest_key"] for row in await archive.rows(MANIFESTS)} == older, "nothing was done"
    replaced = await rebuilder.rebuild("a test", "restored from last night", replaces=True)
    assert replaced == [Rebuilt("2023-08"), Rebuilt("2023-09")]
    assert {row["manifest_key"] for row in await archive.rows(MANIFESTS)} == newest
    await twin.forget(USER)
    assert await twin.differences(AUGUST, SEPTEMBER) == {}
    assert await rebuilder.rebuild("a test", "again", replaces=True) == [
        Rebuilt("2023-08", KNOWN),
        Rebuilt("2023-09", KNOWN),
    ]


async def test_a_catalog_whose_objects_are_there_is_not_replaced(archive: Archive) -> None:
    await archived(archive)
    await archive.catalog.want_erasure(uuid4(), USER, "a test", "he asked for it")
    await archive.work()
    before = await archive.rows(MANIFESTS)
    await archive.shard.execute("UPDATE ordermesh.archive_months SET edition = 0, manifest_key = 'older'")
    rebuilder = Rebuilder(archive.catalog, archive.store, archive.archiver._pacing.grace)
    assert await rebuilder.rebuild("a test", "to see", replaces=True) == [
        Rebuilt("2023-08", KNOWN),
        Rebuilt("2023-09", KNOWN),
    ]
    assert [row["manifest_key"] for row in await archive.rows(MANIFESTS)] == ["older", "older"]
    assert len(before) == 2
