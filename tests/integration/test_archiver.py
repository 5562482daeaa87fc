"""A month's way out of a real Postgres into an S3, and everything that must keep it from going further."""

from collections.abc import AsyncIterator
from datetime import date, timedelta
from uuid import UUID

import pytest

from archive_svc.lifecycle import State
from archive_svc.rebuild import Rebuilder, Rebuilt
from chassis.errors import OrderArchived, OrdermeshError
from chassis.s3 import Stored
from order_svc.errors import OrderNotFound
from order_svc.store import OrderStore
from tests.archiving import AUGUST, SEPTEMBER, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.databases import Database
from tests.inprocess_s3 import InProcessS3

COUNT = 1000


@pytest.fixture
async def database(shard_database: DatabaseFactory) -> Database:
    return await shard_database()


@pytest.fixture
async def s3_server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as server:
        yield server


@pytest.fixture
async def archive(database: Database, s3_server: InProcessS3) -> AsyncIterator[Archive]:
    async with opened(database, Place.of(s3_server)) as ready:
        await fill(database, COUNT)
        yield ready


async def test_a_month_leaves_with_every_row_proven_first(archive: Archive) -> None:
    await archive.want(AUGUST)
    month = await archive.work()
    assert month.state is State.DROPPED, month
    segments = await archive.segments()
    assert sum(s.facts.rows for s in segments if s.table == "orders") == COUNT
    assert sum(s.facts.rows for s in segments if s.table == "order_journal") == 2 * COUNT
    assert len(segments) > 4, "it was cut into several parts"
    assert not await archive.exists("orders_2023_08")
    assert not await archive.exists("order_journal_2023_08")
    assert await archive.exists("orders_2023_09")
    assert await archive.value("SELECT count(*) FROM ordermesh.orders") == 0
    for segment in segments:
        await archive.verifier.read_back(segment)


async def test_nothing_is_asked_for_twice_and_nothing_goes_further_than_asked(archive: Archive) -> None:
    await archive.want(AUGUST, State.VERIFIED)
    assert (await archive.work()).state is State.VERIFIED
    assert await archive.value("SELECT ordermesh.archive_floor() = '-infinity'")
    first = (await archive.month(AUGUST)).archive_id
    await archive.want(AUGUST, State.COMMITTED)
    month = await archive.work()
    assert (month.state, month.archive_id) == (State.COMMITTED, first)
    assert await archive.value("SELECT ordermesh.archive_floor() = '2023-09-01Z'")
    assert await archive.is_attached("orders_2023_08")


async def test_a_frozen_month_takes_no_change_and_a_thawed_one_does(archive: Archive) -> None:
    await archive.want(AUGUST, State.VERIFIED)
    await archive.work()
    for change in (
        "UPDATE ordermesh.orders SET description = 'other'",
        "DELETE FROM ordermesh.order_journal",
        "TRUNCATE ordermesh.orders_2023_08",
    ):
        with pytest.raises(OrdermeshError) as refused:
            await archive.shard.execute(change)
        assert (refused.value.reason, refused.value.facts["month"]) == ("ORDER_ARCHIVED", "2023-08")
    await archive.want(AUGUST, State.THAWED)
    assert (await archive.work()).state is State.THAWED
    assert (
        await archive.shard.execute("UPDATE ordermesh.orders SET description = 'other'") == f"UPDATE {COUNT}"
    )


async def test_the_younger_month_is_proven_beside_the_older_and_committed_after_it(archive: Archive) -> None:
    await archive.want(AUGUST, State.VERIFIED)
    await archive.work()
    await archive.want(SEPTEMBER)
    assert (await archive.work(month=SEPTEMBER)).state is State.VERIFIED
    fence, month = await archive.fence(), await archive.month(SEPTEMBER)
    manifest = Stored("a key", 1, "an etag")
    assert await archive.catalog.commit(month, fence, manifest, "", timedelta(0)) == ("OLDER_MONTH_FIRST",)
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.DROPPED
    assert (await archive.month(SEPTEMBER)).state is State.DROPPED


async def test_a_restored_month_is_read_below_the_floor_and_holds_up_younger_ones_until_it_leaves(
    archive: Archive,
) -> None:
    orders = OrderStore(archive.shard)
    order_id = await archive.value("SELECT order_id FROM ordermesh.orders LIMIT 1")
    for month in (AUGUST, SEPTEMBER):
        await archive.want(month)
        await archive.work(month=month)
    await archive.want(AUGUST, State.RESTORED)
    assert (await archive.work()).state is State.RESTORED
    assert (await orders.get(order_id)).order_id == order_id
    assert await archive.value("SELECT ordermesh.archive_floor() = '2023-10-01Z'")
    await archive.shard.execute("SELECT ordermesh.ensure_month('2023-10-15Z')")
    october = date(2023, 10, 1)
    await archive.want(october)
    assert (await archive.work(month=october)).state is State.WANTED
    assert (
        await archive.value("SELECT note FROM ordermesh.archive_months WHERE month = $1", october)
        == "OLDER_MONTH_FIRST"
    )
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.DROPPED
    await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
    assert (await archive.work(month=october)).state is State.DROPPED


async def test_the_younger_month_waits_for_the_older(archive: Archive) -> None:
    await archive.want(SEPTEMBER)
    month = await archive.work(month=SEPTEMBER)
    assert month.state is State.WANTED
    assert await archive.value("SELECT note FROM ordermesh.archive_months") == "OLDER_MONTH_FIRST"


@pytest.mark.parametrize("state", [State.COMMITTED, State.GRACE, State.DROPPED])
async def test_a_month_comes_back_as_it_was_from_wherever_it_stands_and_may_leave_again(
    archive: Archive, state: State
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST, state)
    first = await archive.work()
    assert first.state is state
    await archive.want(AUGUST, State.RESTORED)
    assert (await archive.work()).state is State.RESTORED
    assert await archive.is_attached("ordermesh.orders_2023_08")
    assert await twin.differences() == {}
    assert await archive.value("SELECT ordermesh.archive_floor() = '-infinity'")
    assert await archive.shard.execute("UPDATE ordermesh.orders SET labels = labels") == f"UPDATE {COUNT}"

    await archive.want(AUGUST)
    again = await archive.work()
    assert again.state is State.DROPPED
    assert again.archive_id != first.archive_id
    assert await twin.differences(AUGUST) == {}


async def test_a_restored_month_that_is_not_what_was_proven_is_not_given_to_readers(archive: Archive) -> None:
    await archive.want(AUGUST)
    await archive.work()
    await archive.want(AUGUST, State.RESTORED)
    month = await archive.work(until=State.RESTORING)
    await archive.shard.execute(
        "UPDATE ordermesh.archive_months SET orders_hash = orders_hash + 1 WHERE archive_id = $1",
        month.archive_id,
    )
    month = await archive.work()
    assert "not what was proven" in month.quarantined
    assert not await archive.is_attached("ordermesh.orders_2023_08")


async def test_orders_of_a_month_change_no_more_once_it_is_frozen_and_are_not_read_once_it_is_committed(
    archive: Archive,
) -> None:
    orders = OrderStore(archive.shard)
    order_id = await archive.value("SELECT order_id FROM ordermesh.orders LIMIT 1")
    unknown = UUID(int=order_id.int ^ 1)
    await archive.want(AUGUST, State.VERIFIED)
    await archive.work()
    assert (await orders.get(order_id)).order_id == order_id
    assert len(await orders.events(order_id, 0, 10)) == 2
    with pytest.raises(OrderNotFound):
        await orders.get(unknown)
    with pytest.raises(OrderArchived):
        await archive.shard.execute("UPDATE ordermesh.orders SET labels = '{}' WHERE order_id = $1", order_id)

    for state in (State.COMMITTED, State.GRACE, State.DROPPED):
        await archive.want(AUGUST, state)
        assert (await archive.work()).state is state
        for known in (order_id, unknown):
            for asked in (orders.get(known), orders.events(known, 0, 10), orders.events(known, 1, 10)):
                with pytest.raises(OrderArchived) as refused:
                    await asked
                assert refused.value.facts == {"order_id": str(known), "month": "2023-08"}
        assert await orders.get_many([order_id]) == []


async def test_an_order_that_was_settled_lately_keeps_its_month(archive: Archive) -> None:
    """Its request may be repeated, and has to find it."""
    await archive.shard.execute(
        "UPDATE ordermesh.orders SET settled_at = ordermesh.clock() - interval '71 hours' "
        "WHERE order_id = (SELECT order_id FROM ordermesh.orders LIMIT 1)"
    )
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.FROZEN
    assert await archive.value("SELECT note FROM ordermesh.archive_months") == "SETTLED_LATELY"


TIMER = """
INSERT INTO ordermesh.order_timers
       (order_id, created_at, user_id, bucket, route_epoch, upstream, stage, class, due_at)
SELECT order_id, created_at, user_id, bucket, 1, 'payments', 'UNKNOWN', 'PROBE', created_at
  FROM ordermesh.orders LIMIT 1"""
CASE = """
INSERT INTO ordermesh.dead_letters
       (dead_letter_id, order_id, created_at, user_id, bucket, route_epoch, reason, severity, evidence,
        opened_at, opened_version)
SELECT gen_random_uuid(), order_id, created_at, user_id, bucket, 1, 'CONTRADICTION', 1, '{}', created_at, 2
  FROM ordermesh.orders LIMIT 1"""
POISON = """
INSERT INTO ordermesh.quarantine
SELECT order_id, created_at, user_id, 0, 2, 'poison', created_at FROM ordermesh.orders LIMIT 1"""
REST = "CREATE TABLE ordermesh.{table}_rest PARTITION OF ordermesh.{table} DEFAULT"
REFUND = """
CREATE TABLE ordermesh.refunds
       (order_id uuid, created_at timestamptz,
        FOREIGN KEY (order_id, created_at) REFERENCES ordermesh.{table})"""


@pytest.mark.parametrize(
    ("trouble", "blocker"),
    [
        (TIMER, "UNSETTLED_ORDERS"),
        (CASE, "OPEN_DEAD_LETTERS"),
        (POISON, "NOT_SEARCHABLE"),
        (REST.format(table="orders"), "HAS_DEFAULT"),
        (REST.format(table="order_journal"), "HAS_DEFAULT"),
        (REFUND.format(table="orders"), "IS_REFERENCED"),
        (REFUND.format(table="orders_2023_08"), "IS_REFERENCED"),
    ],
)
async def test_a_month_with_open_business_is_not_frozen(archive: Archive, trouble: str, blocker: str) -> None:
    await archive.shard.execute(trouble)
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.WANTED
    assert await archive.value("SELECT note FROM ordermesh.archive_months") == blocker
    assert await archive.shard.execute("UPDATE ordermesh.orders SET labels = labels") == f"UPDATE {COUNT}"


async def test_a_month_whose_changes_are_not_searchable_yet_is_not_copied(archive: Archive) -> None:
    await archive.shard.execute(
        "UPDATE ordermesh.watermarks SET source_at = '2023-08-15Z' WHERE stream_partition = 3"
    )
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.FROZEN
    await archive.shard.execute("DELETE FROM ordermesh.watermarks WHERE stream_partition = 3")
    await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
    assert (await archive.work()).state is State.FROZEN, (
        "a partition that was never indexed is not searchable"
    )


async def test_the_kill_switch_keeps_the_tables_and_lets_copying_go_on(archive: Archive) -> None:
    await archive.want(AUGUST)
    await archive.work(until=State.PLANNED)
    await archive.catalog.halt(True, "a test", "stop")
    assert (await archive.work()).state is State.COMMITTED
    assert await archive.is_attached("ordermesh.orders_2023_08")
    await archive.catalog.halt(False, "a test", "go on")
    assert (await archive.work()).state is State.DROPPED


@pytest.mark.parametrize("state", [State.PLANNED, State.EXPORTED])
@pytest.mark.parametrize(
    ("table", "column"), [("orders", "labels"), ("orders", "description"), ("order_journal", "evidence")]
)
async def test_a_change_behind_the_freeze_that_no_sum_shows_is_not_proven(
    archive: Archive, state: State, table: str, column: str
) -> None:
    """Before the copy it would be in it, and after it not: which of both it was is for a person to say."""
    await archive.want(AUGUST)
    await archive.work(until=state)
    other = "'{\"other\": 1}'"
    for change in (
        f"ALTER TABLE ordermesh.{table}_2023_08 DISABLE TRIGGER frozen",
        f"UPDATE ordermesh.{table}_2023_08 SET {column} = {other} WHERE ctid = '(0,1)'",
        f"ALTER TABLE ordermesh.{table}_2023_08 ENABLE ALWAYS TRIGGER frozen",
    ):
        await archive.shard.execute(change)
    month = await archive.work()
    assert (month.state, month.quarantined) == (
        State.EXPORTED,
        "VERIFY: DRIFTED: the tables are not what was copied",
    )
    await archive.want(AUGUST, State.THAWED)
    assert (await archive.work()).state is State.THAWED
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.DROPPED


async def test_tables_stay_for_their_settle_and_grace_times(
    database: Database, s3_server: InProcessS3
) -> None:
    async with opened(
        database, Place.of(s3_server), settle=timedelta(hours=1), grace=timedelta(hours=1)
    ) as archive:
        await fill(database, 50)
        await archive.want(AUGUST)
        assert (await archive.work()).state is State.COMMITTED
        await archive.shard.execute("UPDATE ordermesh.archive_months SET detach_from = clock_timestamp()")
        assert (await archive.work()).state is State.GRACE
        await archive.shard.execute("UPDATE ordermesh.archive_months SET drop_from = clock_timestamp()")
        assert (await archive.work()).state is State.DROPPED


async def test_an_empty_month_leaves_too(archive: Archive) -> None:
    await archive.want(AUGUST)
    await archive.work()
    await archive.want(SEPTEMBER)
    assert (await archive.work(month=SEPTEMBER)).state is State.DROPPED
    assert await archive.segments(SEPTEMBER) == []
    await archive.want(SEPTEMBER, State.RESTORED)
    assert (await archive.work(month=SEPTEMBER)).state is State.RESTORED


async def test_months_go_by_themselves_when_they_are_old_enough(
    database: Database, s3_server: InProcessS3
) -> None:
    async with opened(database, Place.of(s3_server), reach=State.DROPPED) as archive:
        await fill(database, 50)
        await archive.work()
        assert [month.state for month in await archive.catalog.months()] == [State.DROPPED, State.DROPPED]
        assert await archive.value(
            "SELECT count(*) > 3 FROM pg_inherits WHERE inhparent = 'ordermesh.orders'::regclass"
        )


CATALOG = {
    "archive_months": "month, archive_id, state, begins_at, ends_at, order_count, journal_count, "
    "orders_hash, journal_hash, manifest_key, manifest_version, manifest_sha256",
    "archive_parts": "*",
    "archive_segments": "archive_id, part, of_table, key, version_id, etag, size_bytes, sha256, row_count, "
    "facts",
}


async def known(archive: Archive) -> list[list[tuple[object, ...]]]:
    found = [await archive.rows(f"SELECT {what} FROM ordermesh.{table}") for table, what in CATALOG.items()]
    return [sorted(tuple(map(str, row.values())) for row in rows) for rows in found]


@pytest.mark.parametrize("state", [State.GRACE, State.DROPPED])
async def test_a_lost_catalog_is_made_again_of_the_manifests(archive: Archive, state: State) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST, state)
    await archive.work()
    before = await known(archive)
    rebuilder = Rebuilder(archive.catalog, archive.store, timedelta(0))
    assert await rebuilder.rebuild("a test", "nothing") == [
        Rebuilt("2023-08", "the shard has it, or knows of it")
    ]

    await archive.shard.execute("DELETE FROM ordermesh.archive_months")
    assert await archive.value("SELECT count(*) FROM ordermesh.archive_segments") == 0
    assert await rebuilder.rebuild("a test", "it was lost") == [Rebuilt("2023-08")]
    assert await known(archive) == before
    month = await archive.work()
    if state is State.GRACE:
        assert month.state is State.GRACE, "every segment is read back before the tables go"
        assert await archive.value("SELECT note FROM ordermesh.archive_months") == "NOT_SEEN_IN_S3"
        await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
        month = await archive.work()
    assert month.state is State.DROPPED
    assert (
        await archive.value("SELECT count(*) FROM ordermesh.archive_segments WHERE verified_at IS NULL") == 0
    )
    assert await twin.differences(AUGUST) == {}
    await archive.want(AUGUST, State.RESTORED)
    assert (await archive.work()).state is State.RESTORED
    assert await twin.differences() == {}


async def test_a_month_whose_objects_are_gone_is_not_made_again(
    archive: Archive, s3_server: InProcessS3
) -> None:
    await archive.want(AUGUST)
    await archive.work()
    victim = (await archive.segments())[0]
    objects = s3_server.buckets[archive.store.settings.bucket].objects
    body = objects[victim.stored.key][-1].body
    await archive.shard.execute("DELETE FROM ordermesh.archive_months")
    rebuilder = Rebuilder(archive.catalog, archive.store, timedelta(0))

    del objects[victim.stored.key]
    [found] = await rebuilder.rebuild("a test", "it was lost")
    assert "not there as it was stored" in found.because
    assert await archive.catalog.months() == []
    manifest = next(key for key in objects if key.startswith("_manifest/"))
    objects[manifest][-1].body[10:20] = b"x" * 10
    [found] = await rebuilder.rebuild("a test", "it was lost")
    assert found.because
    assert body
