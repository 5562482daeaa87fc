"""What a SIGKILL in the middle of a call of S3 leaves: an object or none, and never a part of one.

A process of its own does the call on the real server and dies at the point; then somebody else does it again.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chassis.s3 import ObjectExists, ObjectNotFound, ObjectStore, stream
from ops.seaweedfs import SeaweedServer
from tests.buckets import PART_BYTES, Place
from tests.faults.points import OBJECT_PARTS_POINTS, OBJECT_PUT_POINTS

KEY = "orders/v1/shard=001/month=2024-08/part-00001.parquet"
SMALL = b"a row\n" * 1000
LARGE = b"0123456789abcdef" * (PART_BYTES // 16 + 1)
VICTIM = """
import asyncio, json, os, sys
from chassis import faults
from chassis.s3 import S3Settings, open_store
from tests.faults import test_object_store_kills as story

async def main() -> None:
    settings = S3Settings.model_validate(json.loads(sys.argv[1]))
    faults.arm(f"{sys.argv[2]}=kill")
    async with open_store(settings) as store:
        await story.DOES[sys.argv[3]](store)

asyncio.run(main())
"""


async def puts(store: ObjectStore) -> None:
    await store.create(KEY, SMALL)


async def uploads(store: ObjectStore) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield LARGE

    await store.upload(KEY, body)


async def deletes(store: ObjectStore) -> None:
    await store.delete(await store.head(KEY))


DOES = {"puts": puts, "uploads": uploads, "deletes": deletes}


@pytest.fixture
async def store(s3: SeaweedServer) -> AsyncIterator[ObjectStore]:
    async with Place.of(s3).store() as opened:
        await opened.make_bucket()
        yield opened


async def killed(store: ObjectStore, point: str, action: str, fired: Path) -> None:
    """Have another process do it and die at the point."""
    settings = store.settings
    told = {**settings.model_dump(mode="json"), "secret_key": settings.secret_key.get_secret_value()}
    victim = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", VICTIM, json.dumps(told), point, action),
        env={"ORDERMESH_FAULTS_FIRED": str(fired), "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert await victim.wait() == -signal.SIGKILL
    assert point in fired.read_text(encoding="utf-8")


async def content(store: ObjectStore) -> bytes:
    return b"".join([piece async for piece in stream(store, await store.head(KEY))])


@pytest.mark.parametrize("point", OBJECT_PUT_POINTS)
async def test_a_put_that_was_killed_is_done_again_with_the_same_end(
    store: ObjectStore, point: str, tmp_path: Path
):
    await killed(store, point, "puts", tmp_path / "fired")
    if point == "s3.before_put":
        with pytest.raises(ObjectNotFound):
            await store.head(KEY)
    else:
        assert await content(store) == SMALL
    made = await store.create(KEY, SMALL)
    assert await content(store) == SMALL
    assert (await store.head(KEY)).version_id == made.version_id
    with pytest.raises(ObjectExists):
        await store.create(KEY, b"of a zombie")


@pytest.mark.parametrize("point", OBJECT_PARTS_POINTS)
async def test_an_upload_that_was_killed_is_whole_or_not_there_and_its_parts_are_found(
    store: ObjectStore, point: str, tmp_path: Path
):
    await killed(store, point, "uploads", tmp_path / "fired")
    left = (await store.uploads("")).uploads
    if point == "s3.after_complete":
        assert left == ()
        assert await content(store) == LARGE
        with pytest.raises(ObjectExists):
            await uploads(store)
    else:
        with pytest.raises(ObjectNotFound):
            await store.head(KEY)
        assert [upload.key for upload in left] == [KEY]
        await uploads(store)
        await store.abort(left[0])
    assert await content(store) == LARGE
    assert (await store.uploads("")).uploads == ()


async def test_a_delete_that_was_killed_is_done_again(store: ObjectStore, tmp_path: Path):
    made = await store.create(KEY, SMALL)
    await killed(store, "s3.after_delete", "deletes", tmp_path / "fired")
    await store.delete(made)
    with pytest.raises(ObjectNotFound):
        await store.head(KEY)
