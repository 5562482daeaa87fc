"""An archiver that is killed at any point of a month's way is followed by one that ends it: every row is in
the database or in the archive, exactly once, and nothing of the way is left lying in it.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from archive_svc.lifecycle import State
from archive_svc.statement.amending import Amender
from archive_svc.statement.amendments import Amend, Amended
from archive_svc.statement.fetching import Fetcher
from archive_svc.statement.legs import SESSION
from chassis import pg
from chassis.s3 import ObjectNotFound, ObjectStore
from ops import ca
from tests.archiving import AUGUST, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.faults.points import AMEND_POINTS, ARCHIVE_POINTS, ERASE_POINTS, RESTORE_POINTS, SWEEP_POINTS
from tests.inprocess_s3 import InProcessS3

COUNT = 400
BUCKET = "the-archive"
KILLED_WITHIN_S = 60.0
SWEEP = UUID(int=1)


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


def environment(archive: Archive, place: Place, tmp_path: Path, faults: str) -> dict[str, str]:
    ca.renew_due(tmp_path)
    ca.ensure_subject_keys(tmp_path)
    return {
        **os.environ,
        "ORDERMESH_SHARDS": json.dumps({"s1": archive.database.dsn}),
        "ORDERMESH_S3": json.dumps(
            {
                "bucket": BUCKET,
                "endpoint": place.endpoint,
                "access_key": place.access_key,
                "secret_key": place.secret_key,
            }
        ),
        "ORDERMESH_PROXY_TARGET": "127.0.0.1:1",
        "ORDERMESH_PROFILE": "local",
        "ORDERMESH_ARCHIVE_LOOK_S": "0.05",
        "ORDERMESH_PART_BYTES": "65536",
        "ORDERMESH_TLS_DIR": str(tmp_path),
        "ORDERMESH_SUBJECT_DIR": str(tmp_path),
        "ORDERMESH_FAULTS_FIRED": str(tmp_path / "fired"),
        "ORDERMESH_FAULTS": faults,
    }


async def killed_at(point: str, settings: dict[str, str]) -> None:
    """Run an archiver that dies there."""
    process = await asyncio.create_subprocess_exec(*(sys.executable, "-m", "archive_svc"), env=settings)
    assert await asyncio.wait_for(process.wait(), KILLED_WITHIN_S) == -signal.SIGKILL
    assert point in Path(settings["ORDERMESH_FAULTS_FIRED"]).read_text(encoding="utf-8")


@pytest.mark.parametrize("point", ARCHIVE_POINTS)
async def test_a_kill_at_any_point_of_the_way_loses_and_doubles_nothing(
    archive: Archive, place: Place, tmp_path: Path, point: str
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    await killed_at(point, environment(archive, place, tmp_path, f"{point}=kill"))

    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
    month = await archive.work()
    assert month.state is State.DROPPED, month
    assert await twin.differences(AUGUST) == {}
    assert not await archive.exists("orders_2023_08")
    assert not await archive.exists("order_journal_2023_08")
    assert await archive.value("SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == 0


@pytest.mark.parametrize("point", RESTORE_POINTS)
async def test_a_kill_while_a_month_comes_back_loses_and_doubles_nothing(
    archive: Archive, place: Place, tmp_path: Path, point: str
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    await archive.work()
    await archive.want(AUGUST, State.RESTORED)
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
    await killed_at(point, environment(archive, place, tmp_path, f"{point}=kill"))

    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
    assert (await archive.work()).state is State.RESTORED
    assert await twin.differences() == {}


@pytest.mark.parametrize("point", ERASE_POINTS)
async def test_a_kill_while_a_user_is_erased_takes_no_row_of_anybody_else(
    archive: Archive, place: Place, tmp_path: Path, point: str
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    await archive.work()
    await archive.catalog.want_erasure(uuid4(), "user.3", "a test", "they asked for it")
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
    await killed_at(point, environment(archive, place, tmp_path, f"{point}=kill"))

    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
    await archive.work()
    await twin.forget("user.3")
    assert await twin.differences(AUGUST) == {}
    assert await archive.catalog.due_erasure() is None


@pytest.mark.parametrize("point", SWEEP_POINTS)
async def test_a_kill_while_strays_are_deleted_takes_nothing_that_is_needed(
    archive: Archive, place: Place, tmp_path: Path, point: str
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    tried = environment(archive, place, tmp_path, "s3.after_put=kill:2") | {"ORDERMESH_STRAY_GRACE_S": "0"}
    await killed_at("s3.after_put", tried)
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
    await archive.work()
    await archive.sweeps.want(SWEEP, "a test", "to see", deletes=True)
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
    (tmp_path / "fired").unlink()
    await killed_at(point, tried | {"ORDERMESH_FAULTS": f"{point}=kill"})

    (stray,) = await archive.sweeps.strays_of(SWEEP, 10)
    assert (await archive.store.head(stray.key)).size_bytes == stray.size_bytes, "it was there when it died"
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
    await archive.work()
    over = await archive.sweeps.want(SWEEP, "a test", "to see", deletes=True)
    assert (over.deleted, over.ended_at is not None) == (1, True)
    with pytest.raises(ObjectNotFound):
        await archive.store.head(stray.key)
    assert await twin.differences(AUGUST) == {}


AMENDER = """
import asyncio, json, sys
from uuid import UUID
from chassis import faults
from chassis.s3 import S3Settings, open_store
from tests.faults import test_archive_kills as story

async def main() -> None:
    faults.arm(f"{sys.argv[1]}=kill")
    async with open_store(S3Settings.model_validate(json.loads(sys.argv[2]))) as store:
        await story.amends(sys.argv[3], store, UUID(sys.argv[4]), sys.argv[5])

asyncio.run(main())
"""


async def amends(dsn: str, store: ObjectStore, order_id: UUID, user_id: str) -> Amended | None:
    """Note the same about an order, each time with the same id."""
    sessions = partial(pg.open_session, pg.PgSettings(dsn=dsn, session=SESSION), name="amender")
    wish = Amend(SWEEP, user_id, order_id, "paid by hand", "case 7", {"description": "a lamp"})
    return await Amender("s1", sessions, Fetcher(store), store).amend(wish, SWEEP, "ops:ann")


@pytest.mark.parametrize("point", AMEND_POINTS)
async def test_a_kill_between_the_object_and_the_row_of_an_amendment_notes_it_once(
    archive: Archive, place: Place, tmp_path: Path, point: str
) -> None:
    order = await archive.rows("SELECT order_id, user_id FROM ordermesh.orders LIMIT 1")
    order_id, user_id = order[0]
    await archive.want(AUGUST)
    await archive.work()
    settings = environment(archive, place, tmp_path, "")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", AMENDER, point, settings["ORDERMESH_S3"], archive.database.dsn),
        *(str(order_id), user_id),
        env=settings | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert await asyncio.wait_for(process.wait(), KILLED_WITHIN_S) == -signal.SIGKILL
    assert point in (tmp_path / "fired").read_text(encoding="utf-8")
    noted = "SELECT count(*) FROM ordermesh.archive_amendments"
    assert await archive.value(noted) == 0
    (stored,) = (await archive.store.list("_amendment/")).objects

    said = await amends(archive.database.dsn, archive.store, order_id, user_id)
    assert said is not None
    assert (said.amendments, await archive.value(noted)) == (1, 1)
    assert (await archive.store.list("_amendment/")).objects == (stored,)
