"""The S3 of the local stack: named in endpoints.json, healed after a kill, known to the doctor."""

import os
import signal
from uuid import uuid4

from chassis.s3 import open_store
from chassis.testing import eventually
from ops.doctor import servers
from ops.doctor.findings import Word
from ops.stack.endpoints import S3
from tests.stack import World


def bucket_of(world: World) -> S3:
    where = world.endpoints.s3
    assert where is not None
    return where


async def test_objects_of_the_stack_outlive_the_kill_of_its_s3(world: World) -> None:
    where, key = bucket_of(world), f"test/{uuid4().hex}"
    async with open_store(where.settings()) as store:
        made = await store.create(key, b"kept")
        assert made.version_id, "the bucket has versions"
        killed = world.service("s3").pid
        os.kill(killed, signal.SIGKILL)

        async def is_back() -> bool:
            return world.service("s3").pid not in (0, killed)

        assert await eventually(is_back, within_s=30, every_s=0.1)
        assert bucket_of(world) == where, "clients need not ask again where it is"
        assert await store.read(made) == b"kept"
        await store.delete(made)


async def test_the_doctor_tells_a_bucket_from_none_and_from_no_server(world: World) -> None:
    where = bucket_of(world)
    (found,) = await servers.bucket(where)
    assert (found.word, found.check) == (Word.OK, "s3")
    (found,) = await servers.bucket(where.model_copy(update={"bucket": "no-such-bucket"}))
    assert found.word is Word.BAD
    assert "NoSuchBucket" in found.detail
    (found,) = await servers.bucket(where.model_copy(update={"url": "http://127.0.0.1:1"}))
    assert found.word is Word.BAD
    assert "ordermesh start s3" in found.fix
