"""ops.replica on real servers: it follows, outlives kills on both sides, and is made anew when it cannot."""

import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from chassis.testing import eventually
from ops import ports
from ops.doctor import servers
from ops.doctor.findings import Word
from ops.postgres import PostgresServer
from ops.replica import PRIMARY_SETTINGS, PostgresReplica


@pytest.fixture
async def pair(server_dir: Path) -> AsyncIterator[tuple[PostgresServer, PostgresReplica]]:
    """A primary with one table, and its replica."""
    home = server_dir / f"pair-{uuid4().hex}"
    primary = PostgresServer(home / "s1", ports.free_port(), durable=False, settings=PRIMARY_SETTINGS)
    replica = PostgresReplica(home / "s1.replica", ports.free_port(), primary=primary, durable=False)
    await primary.start()
    await primary.run_sql("postgres", "CREATE TABLE public.kept (id int)")
    await replica.start()
    yield primary, replica
    await replica.stop()
    await primary.stop()


async def count(server: PostgresServer) -> int:
    connection = await asyncpg.connect(server.dsn(), timeout=10)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM public.kept"))
    finally:
        await connection.close()


async def add_one(primary: PostgresServer) -> None:
    await primary.run_sql("postgres", "INSERT INTO public.kept VALUES (1)")


async def until_it_shows(replica: PostgresReplica, rows: int) -> None:
    async def shown() -> bool:
        return await count(replica) == rows

    assert await eventually(shown, within_s=20)


def marked(replica: PostgresReplica) -> bool:
    """Whether the data is still the one that the test touched."""
    return (replica.data_dir / "touched").exists()


def touch(replica: PostgresReplica) -> None:
    (replica.data_dir / "touched").touch()


async def test_a_replica_follows_through_kills_of_itself_and_of_its_primary(
    pair: tuple[PostgresServer, PostgresReplica],
) -> None:
    primary, replica = pair
    touch(replica)
    await add_one(primary)
    await until_it_shows(replica, 1)
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await add_one(replica)

    assert replica.pid
    assert primary.pid
    os.kill(replica.pid, signal.SIGKILL)
    assert await replica.died() == -signal.SIGKILL
    await add_one(primary)
    await replica.start()
    await until_it_shows(replica, 2)

    os.kill(primary.pid, signal.SIGKILL)
    await primary.died()
    assert await count(replica) == 2
    await primary.start()
    await add_one(primary)
    await until_it_shows(replica, 3)
    assert marked(replica)
    assert (await servers.replica("s1", replica.dsn())).word is Word.OK


async def test_a_replica_that_starts_without_its_primary_serves_what_it_has(
    pair: tuple[PostgresServer, PostgresReplica],
) -> None:
    primary, replica = pair
    await add_one(primary)
    await until_it_shows(replica, 1)
    await replica.stop()
    await primary.stop()
    await replica.start()
    assert await count(replica) == 1
    assert (await servers.replica("s1", replica.dsn())).word is Word.BAD


async def test_a_replica_that_cannot_follow_is_made_anew(
    pair: tuple[PostgresServer, PostgresReplica], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, replica = pair
    monkeypatch.setattr("ops.replica.STREAMS_WITHIN_S", 1.0)
    for break_it in (make_another_primary, damage):
        touch(replica)
        await replica.stop()
        await break_it(primary, replica)
        await add_one(primary)
        await replica.start()
        await until_it_shows(replica, await count(primary))
        assert not marked(replica)


async def make_another_primary(primary: PostgresServer, replica: PostgresReplica) -> None:
    await primary.stop()
    shutil.rmtree(primary.data_dir)
    await primary.start()
    await primary.run_sql("postgres", "CREATE TABLE public.kept (id int)")


async def damage(primary: PostgresServer, replica: PostgresReplica) -> None:
    (replica.data_dir / "global" / "pg_control").unlink()
