"""Who is erased from the archive of a shard has no statement that shows it, on whichever shard it stands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from archive_svc import lifecycle
from archive_svc.entries import Erasure
from archive_svc.recall import Recalls
from archive_svc.retention import Retention
from chassis import pg
from chassis.errors import ShardUnavailable
from ordermesh.archive.v1 import statement_service_pb2 as pb
from tests.archiving import AUGUST, SEPTEMBER, Archive, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3
from tests.listeners import Trust
from tests.statements import Statements, running, sweeper_of, told
from tests.statements import opened as home_of

State = pb.Statement
HOME = "the home shard"
NOTE = f"waits for statements on {HOME}"


@pytest.fixture
async def s3() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as server:
        yield server


@pytest.fixture
async def statements(tmp_path, shard_database: DatabaseFactory, s3: InProcessS3) -> AsyncIterator[Statements]:
    async with home_of(await shard_database(), Place.of(s3), Trust.make(tmp_path), tmp_path) as ready:
        yield ready


@pytest.fixture
async def archive(
    statements: Statements, shard_database: DatabaseFactory, s3: InProcessS3
) -> AsyncIterator[Archive]:
    """Another shard, which has orders of alice in its archive."""
    database = await shard_database()
    async with opened(database, Place.of(s3), others={HOME: statements.database}) as ready:
        await fill(database, 200, users=["alice", "bob"])
        await ready.want(AUGUST)
        await ready.work()
        yield ready


class Late(pg.Database):
    """A shard that answers the first recall, not the next one, and all from then on."""

    def __init__(self, shard: pg.Database) -> None:
        self._shard = shard
        self.calls = 0

    async def fetchval(self, sql: str, *args: object, **options: Any) -> Any:
        """As the shard says."""
        self.calls += 1
        if self.calls == 2:
            raise ShardUnavailable(shard="s1")
        return await self._shard.fetchval(sql, *args, **options)

    async def fetchrow(self, sql: str, *args: object, **options: Any) -> Any:
        """As the shard says, at any time."""
        return await self._shard.fetchrow(sql, *args, **options)

    async def execute(self, sql: str, *args: object, **options: Any) -> Any:
        """As the shard says."""
        return await self._shard.execute(sql, *args, **options)


async def erased(archive: Archive) -> Erasure:
    """Alice's erasure, as far as it goes now."""
    erasure = await archive.catalog.want_erasure(uuid4(), "alice", "a test", "they asked for it")
    await archive.work()
    return await archive.catalog.want_erasure(erasure.erasure_id, "alice", "a test", "again")


async def once_more(archive: Archive, erasure: Erasure) -> Erasure:
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET not_before = 'epoch'")
    await archive.work()
    return await archive.catalog.want_erasure(erasure.erasure_id, "alice", "a test", "again")


async def archived_rows(archive: Archive) -> int:
    """How many orders the copies have."""
    return sum(each.facts.rows for each in await archive.segments() if each.table == "orders")


async def test_an_erasure_reaches_what_stands_on_another_shard(
    statements: Statements, archive: Archive
) -> None:
    asked = await statements.request()
    assert await statements.worker.once()
    sweeper = sweeper_of(statements.store, statements.objects, after=timedelta(0))
    await sweeper.once()
    assert len(await statements.keys()) == 1
    assert (await erased(archive)).ended_at is not None

    over = told(await statements.wait(asked))
    assert (over.state, over.order_count, list(over.totals)) == (State.EXPIRED, 0, [])
    mail = await statements.database.fetchrow("SELECT state, note FROM ordermesh.statement_mails")
    assert tuple(mail or ()) == ("DEAD", "its statement is gone")
    await sweeper.once()
    assert await statements.keys() == []
    # What is asked for from then on stays.
    again = await statements.request()
    assert again.name != asked.name
    assert await statements.worker.once()
    await archive.work()
    await sweeper.once()
    assert told(await statements.wait(again)).state == State.READY


async def test_what_is_being_made_meanwhile_is_made_of_what_is_left(
    statements: Statements, archive: Archive
) -> None:
    seen = []
    before = await archived_rows(archive)

    async def read() -> None:
        seen.append(await archived_rows(archive))

    async def erase_meanwhile() -> None:
        statements.maker.holds.pop(1)
        assert (await erased(archive)).ended_at is not None

    statements.maker.holds |= {0: read, 1: erase_meanwhile}
    asked = await statements.request()
    async with running(statements.worker):
        await statements.until(asked, "READY")
    assert await archived_rows(archive) < before
    assert seen == [before, await archived_rows(archive)]
    mails = "SELECT count(*) FROM ordermesh.statement_mails WHERE state = 'WAITING'"
    assert await statements.value(mails) == 1


async def test_an_erasure_waits_for_a_shard_that_does_not_answer(
    statements: Statements, archive: Archive
) -> None:
    asked = await statements.request()
    assert await statements.worker.once()
    closed = pg.PgSettings(dsn="postgresql://nobody@127.0.0.1:1/nothing")
    async with pg.open_database(closed, name="away") as away:
        archive.archiver._eraser._recalls = Recalls({"s1": archive.shard, HOME: away})
        erasure = await erased(archive)
        assert (erasure.ended_at, erasure.note) == (None, NOTE)
        assert erasure.orders > 0, "the rows are out meanwhile"
    archive.archiver._eraser._recalls = Recalls({"s1": archive.shard, HOME: statements.database})
    assert (await once_more(archive, erasure)).ended_at is not None
    assert told(await statements.wait(asked)).state == State.EXPIRED


async def test_what_is_shown_when_the_last_recall_misses_one_shard_is_recalled_by_the_next(
    statements: Statements, archive: Archive
) -> None:
    """The erasure is open until each shard has answered, and more may go meanwhile: of a month that left."""
    late = Late(archive.shard)
    archive.archiver._eraser._recalls = Recalls({HOME: statements.database, "s1": late})
    erasure = await erased(archive)
    assert (erasure.ended_at, erasure.note) == (None, "waits for statements on s1")
    assert late.calls == 2, "it answered at first"
    over = "SELECT until = 'infinity' FROM ordermesh.statement_recalls"
    assert not await statements.value(over), "no shard takes it for over"

    await fill(archive.database, 100, SEPTEMBER, seed=2, users=["alice", "bob"])
    await archive.want(SEPTEMBER)
    assert (await archive.work(month=SEPTEMBER)).state is lifecycle.State.DROPPED
    shown = await statements.request()
    assert await statements.worker.once()
    assert told(await statements.wait(shown)).state == State.READY
    assert (await once_more(archive, erasure)).ended_at is not None
    assert told(await statements.wait(shown)).state == State.EXPIRED
    assert await statements.value(over)
    assert await archive.value(over)


async def test_what_is_made_after_the_last_recall_stays_when_another_shard_is_told_later(
    statements: Statements, archive: Archive
) -> None:
    late = Late(archive.shard)
    others = {"s1": archive.shard, HOME: statements.database, "s3": late}
    archive.archiver._eraser._recalls = Recalls(others)
    before = await statements.request()
    assert await statements.worker.once()
    erasure = await erased(archive)
    assert (erasure.ended_at, erasure.note) == (None, "waits for statements on s3")
    assert told(await statements.wait(before)).state == State.EXPIRED

    shown = await statements.request()
    assert shown.name != before.name
    assert await statements.worker.once()
    assert (await once_more(archive, erasure)).ended_at is not None
    assert told(await statements.wait(shown)).state == State.READY


async def test_what_is_asked_for_while_an_erasure_waits_stays_until_it_is_over(
    statements: Statements, shard_database: DatabaseFactory, s3: InProcessS3
) -> None:
    """A lock in S3 may last for years; what was read without the rows is not recalled all the time."""
    database = await shard_database()
    others, locked = {HOME: statements.database}, Retention(timedelta(days=30))
    async with opened(database, Place.of(s3), others=others, retention=locked) as archive:
        await fill(database, 200, users=["alice", "bob"])
        await archive.want(AUGUST)
        await archive.work()
        before = await statements.request()
        assert await statements.worker.once()
        erasure = await erased(archive)
        assert erasure.note.startswith("waits for the lock of ")
        assert told(await statements.wait(before)).state == State.EXPIRED

        shown = await statements.request()
        assert await statements.worker.once()
        assert (await once_more(archive, erasure)).ended_at is None
        assert told(await statements.wait(shown)).state == State.READY
        objects = s3.buckets[archive.store.settings.bucket].objects
        for row in await archive.rows("SELECT key FROM ordermesh.archive_replaced"):
            objects.pop(row["key"], None)
        assert (await once_more(archive, erasure)).ended_at is not None
        assert told(await statements.wait(shown)).state == State.EXPIRED


async def test_rows_that_went_before_a_damaged_segment_are_recalled(
    statements: Statements, archive: Archive, s3: InProcessS3
) -> None:
    asked = await statements.request()
    assert await statements.worker.once()
    segments = await archive.segments()
    objects = s3.buckets[archive.store.settings.bucket].objects
    body = objects[segments[-1].stored.key][-1].body
    body[len(body) // 2] ^= 1
    erasure = await erased(archive)
    assert erasure.orders > 0
    assert "is damaged" in erasure.note
    assert told(await statements.wait(asked)).state == State.EXPIRED


async def test_no_figure_of_who_is_erased_stays_in_what_had_gone_before(
    statements: Statements, archive: Archive
) -> None:
    shown = []
    for locale in ("en", "hi"):
        asked = await statements.request(locale=locale)
        shown.append(asked)
        if locale == "en":
            assert await statements.worker.once()
            await statements.later(days=7)
            await statements.sweeper.once()
            assert told(await statements.wait(asked)).state == State.EXPIRED
        else:
            await statements.database.execute(
                "UPDATE ordermesh.statements SET read_orders = 7 WHERE state = 'WAITING'"
            )
            await statements.cancel(asked)
    figures = "SELECT count(*) FROM ordermesh.statements WHERE totals <> '[]' OR read_orders <> 0"
    assert await statements.value(figures) == 2
    assert (await erased(archive)).ended_at is not None
    assert await statements.value(figures) == 0
    for asked in shown:
        over = told(await statements.wait(asked))
        assert (over.order_count, list(over.totals)) == (0, [])
