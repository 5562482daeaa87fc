"""An archiver that stands still while another one takes its shard does no harm when it comes back; nor does
one that dies inside of a statement of Postgres.
"""

import asyncio
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from archive_svc import points
from archive_svc.errors import LeaseLost
from archive_svc.lifecycle import State
from archive_svc.rebuild import Rebuilder, Rebuilt
from chassis import faults
from chassis.testing import eventually
from tests.archiving import AUGUST, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.faults.test_archive_kills import BUCKET, KILLED_WITHIN_S, environment
from tests.inprocess_s3 import InProcessS3

COUNT = 400
FROZEN_AT = (
    ("archive.after_first_chunk", State.PLANNED),
    ("s3.after_put", State.PLANNED),
    ("archive.before_manifest", State.VERIFIED),
    ("archive.after_manifest", State.VERIFIED),
    ("archive.before_detach", State.DETACHING),
    ("archive.before_drop", State.GRACE),
)
CATALOG = (
    "SELECT * FROM ordermesh.archive_months ORDER BY month",
    "SELECT archive_id, part, of_table, key, sha256, row_count FROM ordermesh.archive_segments ORDER BY key",
)
PENDING = (
    "SELECT count(*) FROM pg_inherits WHERE inhdetachpending AND inhparent = 'ordermesh.orders'::regclass"
)
"""Of the orders alone, which a reader holds up: the journal's month is pending for a moment, too."""


FENCELESS = """
CREATE FUNCTION public.keep_fence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.fence := OLD.fence;
    RETURN NEW;
END $$;
CREATE TRIGGER keep_fence BEFORE UPDATE ON ordermesh.archive_lease
    FOR EACH ROW EXECUTE FUNCTION public.keep_fence();
"""
"""Who takes the lease has the same fence as whoever had it before."""


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with InProcessS3.serving() as server:
        yield Place.of(server)


@pytest.fixture
async def archive(shard_database: DatabaseFactory, place: Place) -> AsyncIterator[Archive]:
    database = await shard_database()
    async with opened(database, place, bucket=BUCKET) as ready:
        await fill(database, COUNT)
        yield ready


@asynccontextmanager
async def archiving(settings: dict[str, str], said: Path) -> AsyncIterator[Process]:
    """A real archive_svc, with what it says in a file; ended by force if it does not end by itself."""
    with said.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "archive_svc"), env=settings, stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ended(process: Process) -> int:
    process.send_signal(signal.SIGTERM)
    return await asyncio.wait_for(process.wait(), KILLED_WITHIN_S)


def says(path: Path, text: str) -> bool:
    return path.exists() and text in path.read_text(encoding="utf-8")


async def known(archive: Archive) -> list[list[tuple[object, ...]]]:
    return [[tuple(row) for row in await archive.rows(statement)] for statement in CATALOG]


@pytest.mark.parametrize(("point", "state"), FROZEN_AT)
async def test_an_archiver_that_was_frozen_comes_back_and_does_no_harm(
    archive: Archive, place: Place, tmp_path: Path, point: str, state: State
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    fired, said = tmp_path / "fired", tmp_path / "frozen.log"
    settings = environment(archive, place, tmp_path, "") | {
        "ORDERMESH_ARCHIVE_LEASE_S": "3",
        "ORDERMESH_STRAY_GRACE_S": "0",
    }
    # The pause keeps it where it is until it is frozen, and is over when it comes back.
    async with archiving(settings | {"ORDERMESH_FAULTS": f"{point}=pause:1:3"}, said) as frozen:

        async def is_there() -> bool:
            return says(fired, point)

        assert await eventually(is_there, within_s=KILLED_WITHIN_S)
        frozen.send_signal(signal.SIGSTOP)
        assert (await archive.month(AUGUST)).state is state
        async with archiving(settings, tmp_path / "other.log") as other:

            async def is_gone() -> bool:
                return (await archive.month(AUGUST)).state is State.DROPPED

            assert await eventually(is_gone, within_s=KILLED_WITHIN_S)
            before, fence = await known(archive), (await archive.catalog.control()).fence
            frozen.send_signal(signal.SIGCONT)

            async def is_told() -> bool:
                return says(said, "lease_lost")

            assert await eventually(is_told, within_s=KILLED_WITHIN_S), "it finds out that it was replaced"
            assert await known(archive) == before
            assert (await archive.catalog.control()).fence == fence, "the other one still has the shard"
            wanted = await archive.sweeps.want(uuid4(), "a test", "what did it leave?", deletes=True)

            async def is_swept() -> bool:
                asked = await archive.sweeps.want(wanted.sweep_id, "a test", "again", deletes=True)
                return asked.ended_at is not None

            assert await eventually(is_swept, within_s=KILLED_WITHIN_S)
            assert await ended(other) == 0
        assert await ended(frozen) == 0
    assert await twin.differences(AUGUST) == {}
    segments = {segment.stored.key for segment in await archive.segments()}
    stored = {found.key for found in (await archive.store.list("")).objects}
    manifest = await archive.value("SELECT manifest_key FROM ordermesh.archive_months")
    assert stored == {*segments, manifest}, "what it stored in vain was swept, and nothing else"


async def came_back(archive: Archive, place: Place, tmp_path: Path, point: str, state: State) -> str:
    """What an archiver does that is frozen there and comes back when somebody else has the shard and has done
    nothing yet: no state of a month keeps it from going on.
    """
    await archive.want(AUGUST)
    fired, said = tmp_path / "fired", tmp_path / "frozen.log"
    settings = environment(archive, place, tmp_path, f"{point}=pause:1:3") | {
        "ORDERMESH_ARCHIVE_LEASE_S": "3"
    }
    async with archiving(settings, said) as frozen:

        async def is_there() -> bool:
            return says(fired, point)

        assert await eventually(is_there, within_s=KILLED_WITHIN_S)
        frozen.send_signal(signal.SIGSTOP)
        assert (await archive.month(AUGUST)).state is state

        async def is_taken() -> bool:
            return await archive.catalog.take_lease("another", timedelta(hours=1)) is not None

        assert await eventually(is_taken, within_s=KILLED_WITHIN_S)
        before = await known(archive)
        frozen.send_signal(signal.SIGCONT)

        async def what_it_did() -> str:
            if await known(archive) != before:
                return "it went on"
            return "it gave up" if says(said, "lease_lost") else ""

        did = await eventually(what_it_did, within_s=KILLED_WITHIN_S)
        assert await ended(frozen) == 0
    return did if await known(archive) == before else "it went on"


@pytest.mark.parametrize(("point", "state"), FROZEN_AT)
async def test_an_archiver_that_was_frozen_is_kept_from_going_on_by_the_fence_alone(
    archive: Archive, place: Place, tmp_path: Path, point: str, state: State
) -> None:
    assert await came_back(archive, place, tmp_path, point, state) == "it gave up"


@pytest.mark.parametrize(("point", "state"), FROZEN_AT)
async def test_without_the_fence_it_would_go_on(
    archive: Archive, place: Place, tmp_path: Path, point: str, state: State
) -> None:
    await archive.shard.execute(FENCELESS)
    assert await came_back(archive, place, tmp_path, point, state) == "it went on"


async def test_a_manifest_of_one_who_was_replaced_is_not_the_newest_whenever_he_stores_it(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He stands still before he stores it; the month is thawed, changed, and archived again meanwhile."""
    await archive.want(AUGUST)
    month = await archive.work(until=State.VERIFIED)
    old, twin = await archive.fence(), Twin(archive)
    first = {segment.stored.key for segment in await archive.segments()}

    async def meanwhile(name: str) -> None:
        if name != points.BEFORE_MANIFEST:
            return
        monkeypatch.undo()
        await archive.shard.execute("UPDATE ordermesh.archive_lease SET fence = fence + 1")
        await archive.want(AUGUST, State.THAWED)
        assert (await archive.work()).state is State.THAWED
        await archive.shard.execute("UPDATE ordermesh.orders SET description = 'written after the thaw'")
        await twin.remember()
        await archive.want(AUGUST)
        assert (await archive.work()).state is State.DROPPED

    monkeypatch.setattr(faults, "point", meanwhile)
    with pytest.raises(LeaseLost):
        await archive.archiver._commit(month, old)
    good = await archive.value("SELECT manifest_key FROM ordermesh.archive_months")
    stored = {found.key: found.stored_at for found in (await archive.store.list("_manifest/")).objects}
    (late,) = stored.keys() - {good}
    assert stored[late] >= stored[good], "it was stored last"

    wanted = await archive.sweeps.want(uuid4(), "a test", "what is there?", deletes=False)
    await archive.work()
    walk = await archive.sweeps.want(wanted.sweep_id, "a test", "again", deletes=False)
    assert (walk.ended_at is not None, walk.refusal) == (True, "")
    strays = {each.key for each in await archive.sweeps.strays_of(walk.sweep_id, 1000)}
    assert strays == {late, *first}, "nobody needs the first copy"
    await archive.shard.execute("DELETE FROM ordermesh.archive_months")
    rebuilder = Rebuilder(archive.catalog, archive.store, timedelta(0))
    assert await rebuilder.rebuild("a test", "lost") == [Rebuilt("2023-08")]
    assert await archive.value("SELECT manifest_key FROM ordermesh.archive_months") == good
    assert await twin.differences(AUGUST) == {}


async def test_a_kill_between_the_halves_of_a_detach_is_ended_by_the_next_one(
    archive: Archive, place: Place, tmp_path: Path
) -> None:
    """A reader of the parent keeps the second half waiting; the process dies, and its session with it."""
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    await archive.work(until=State.DETACHING)
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
    reader = await asyncpg.connect(archive.database.dsn)
    try:
        async with reader.transaction(isolation="repeatable_read"):
            await reader.fetchval("SELECT count(*) FROM ordermesh.orders")
            async with archiving(environment(archive, place, tmp_path, ""), tmp_path / "log") as process:

                async def is_half_done() -> bool:
                    return bool(await archive.value(PENDING))

                assert await eventually(is_half_done, within_s=KILLED_WITHIN_S)
                process.kill()
            # Its machine is gone too: nobody tells Postgres to go on.
            await archive.shard.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE query LIKE 'ALTER TABLE%CONCURRENTLY' AND datname = current_database()"
            )
            assert await archive.value(PENDING) == 1
    finally:
        await reader.close()
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
    assert (await archive.work()).state is State.DROPPED
    assert (await archive.value(PENDING), await twin.differences(AUGUST)) == (0, {})


async def test_a_kill_while_the_tables_are_compared_a_last_time_drops_nothing(
    archive: Archive, place: Place, tmp_path: Path
) -> None:
    """The comparison and the drop are one transaction: held up by a reader, and then nobody's any more."""
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST, State.GRACE)
    await archive.work()
    await archive.want(AUGUST)
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
    reader = await asyncpg.connect(archive.database.dsn)
    try:
        async with reader.transaction():
            await reader.execute("LOCK TABLE ordermesh.order_journal_2023_08 IN ACCESS SHARE MODE")
            async with archiving(environment(archive, place, tmp_path, ""), tmp_path / "log") as process:

                async def is_waiting() -> bool:
                    waits = (
                        "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
                        "WHERE NOT l.granted AND c.relname = 'order_journal_2023_08'"
                    )
                    return bool(await archive.value(waits))

                assert await eventually(is_waiting, within_s=KILLED_WITHIN_S, every_s=0.02)
                process.kill()
    finally:
        await reader.close()
    assert await archive.exists("orders_2023_08")
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
    await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
    assert (await archive.work()).state is State.DROPPED
    assert await twin.differences(AUGUST) == {}
