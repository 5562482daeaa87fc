"""An archiver that is killed at any point of a month's way is followed by one that ends it: every row is in
the database or in the archive, exactly once, and nothing of the way is left lying in it.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from archive_svc.lifecycle import State
from tests.archiving import AUGUST, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.faults.points import ARCHIVE_POINTS
from tests.inprocess_s3 import InProcessS3

COUNT = 400
BUCKET = "the-archive"
KILLED_WITHIN_S = 60.0


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
        "ORDERMESH_PROFILE": "local",
        "ORDERMESH_ARCHIVE_LOOK_S": "0.05",
        "ORDERMESH_PART_BYTES": "65536",
        "ORDERMESH_TLS_DIR": str(tmp_path),
        "ORDERMESH_SUBJECT_DIR": str(tmp_path),
        "ORDERMESH_FAULTS_FIRED": str(tmp_path / "fired"),
        "ORDERMESH_FAULTS": faults,
    }


@pytest.mark.parametrize("point", ARCHIVE_POINTS)
async def test_a_kill_at_any_point_of_the_way_loses_and_doubles_nothing(
    archive: Archive, place: Place, tmp_path: Path, point: str
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "archive_svc"), env=environment(archive, place, tmp_path, f"{point}=kill")
    )
    assert await asyncio.wait_for(process.wait(), KILLED_WITHIN_S) == -signal.SIGKILL
    assert point in (tmp_path / "fired").read_text(encoding="utf-8")

    await archive.shard.execute("UPDATE ordermesh.archive_lease SET lease_until = 'epoch'")
    month = await archive.work()
    assert month.state is State.DROPPED, month
    assert await twin.differences(AUGUST) == {}
    assert not await archive.exists("orders_2023_08")
    assert not await archive.exists("order_journal_2023_08")
    assert await archive.value("SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == 0
