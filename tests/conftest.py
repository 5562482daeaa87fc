"""What every test may ask for: one real Postgres server per run, and databases of its own on it; one real
Kafka, one real Elasticsearch and one real S3 per run, started when the first test asks for them.

    async def test_something(shard_database): ...
        database = await shard_database()      # .name, .dsn; dropped when the test ends

    async def test_something_else(kafka: KafkaServer, elasticsearch: ElasticsearchServer):
        await kafka.create_topics({f"events-{uuid4().hex}": 8})     # kafka.address
        AsyncElasticsearch(elasticsearch.url)                       # make indices of the test's own names

The servers' directory lies where their user may enter even when the tests run as root.
"""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path

import pytest

from ops import places, ports
from ops.elasticsearch import ElasticsearchServer
from ops.kafka import KafkaServer
from ops.locks import only_one
from ops.owned import PID_FILE, OwnedServer
from ops.postgres import PostgresServer
from ops.prometheus import PrometheusServer
from ops.seaweedfs import PORTS, SeaweedServer
from tests.databases import Database, Databases, Kind

pytest_plugins = ["tests.failing", "tests.stack"]

CLEANING_S_MAX = 60.0
DatabaseFactory = Callable[[], Awaitable[Database]]


@pytest.fixture(scope="session")
def server_dir() -> Iterator[Path]:
    """A directory that a Postgres server started by the tests may enter, also when they run as root."""
    directory = Path(tempfile.mkdtemp(prefix=f"test-{os.getpid()}-", dir=places.user_root()))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def remove_what_killed_runs_left() -> None:
    """Stop the servers of test runs that were killed, and remove their directories."""
    for directory in places.user_root().glob("test-*-*"):
        if is_alive(int(directory.name.split("-")[1])):
            continue
        for pid_file in directory.rglob("postmaster.pid"):
            await PostgresServer(pid_file.parent, ports.free_port()).stop()
        for pid_file in directory.rglob(PID_FILE):
            for left in owners_of(pid_file.parent):
                await left.stop()
        shutil.rmtree(directory, ignore_errors=True)


def owners_of(data_dir: Path) -> list[OwnedServer]:
    """Those who may have left something in a data directory; only the right one finds a process of its."""
    a_port, another = ports.free_port(), ports.free_port()
    return [
        KafkaServer(data_dir, a_port, another),
        SeaweedServer(data_dir, *range(a_port, a_port + len(PORTS))),
        PrometheusServer(data_dir, a_port),
    ]


def nobody_takes_so_long(until: float) -> None:
    """Asked while another worker cleans the machine."""
    if time.monotonic() > until:
        raise AssertionError(f"another run has been cleaning {places.user_root()} for {CLEANING_S_MAX:.0f} s")


@pytest.fixture(scope="session")
async def clean_machine() -> None:
    """Nothing runs that an earlier run left. One worker at a time, or one looks where another removes."""
    check = partial(nobody_takes_so_long, time.monotonic() + CLEANING_S_MAX)
    with ExitStack() as stack:
        await asyncio.to_thread(stack.enter_context, only_one(places.user_root() / "tests.lock", check))
        await remove_what_killed_runs_left()


@pytest.fixture(scope="session")
async def postgres(server_dir: Path, clean_machine: None) -> AsyncIterator[PostgresServer]:
    """The run's Postgres server: real, but without fsync, as the machine is not what dies in tests."""
    server = PostgresServer(
        places.data_directory(server_dir, "tests"),
        ports.free_port(),
        durable=False,
        settings={"max_connections": "300"},
    )
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
async def kafka(server_dir: Path, clean_machine: None) -> AsyncIterator[KafkaServer]:
    """The run's Kafka broker; tests share it, so each makes topics and groups of its own names."""
    server = await KafkaServer.started(
        places.data_directory(server_dir, "tests", kind="kafka"),
        ports.free_port(),
        ports.free_port(),
        quick=True,
    )
    yield server
    await server.stop()


@pytest.fixture(scope="session")
async def elasticsearch(server_dir: Path, clean_machine: None) -> AsyncIterator[ElasticsearchServer]:
    """The run's Elasticsearch node; tests share it, so each makes indices of its own names."""
    server = await ElasticsearchServer.started(
        places.data_directory(server_dir, "tests", kind="elasticsearch"),
        ports.free_port(),
        ports.free_port(),
        quick=True,
    )
    yield server
    await server.stop()


@pytest.fixture(scope="session")
async def s3(server_dir: Path, clean_machine: None) -> AsyncIterator[SeaweedServer]:
    """The run's S3, which is SeaweedFS; tests share it, so each makes buckets of its own names."""
    server = await SeaweedServer.started(
        places.data_directory(server_dir, "tests", kind="s3"), *(ports.free_port() for _ in PORTS)
    )
    yield server
    await server.stop()


@pytest.fixture(scope="session")
def databases(postgres: PostgresServer) -> Databases:
    """Makes databases; a test that wants one for itself asks for shard_database or control_database."""
    return Databases(postgres)


@pytest.fixture
async def shard_database(databases: Databases) -> AsyncIterator[DatabaseFactory]:
    """Makes shard databases that live as long as the test."""
    async with AsyncExitStack() as stack:
        yield _factory(databases, "shard", stack)


@pytest.fixture
async def control_database(databases: Databases) -> AsyncIterator[DatabaseFactory]:
    """Makes control databases that live as long as the test."""
    async with AsyncExitStack() as stack:
        yield _factory(databases, "control", stack)


@pytest.fixture
async def readmodel_database(databases: Databases) -> AsyncIterator[DatabaseFactory]:
    """Makes databases for a read model that live as long as the test."""
    async with AsyncExitStack() as stack:
        yield _factory(databases, "readmodel", stack)


def _factory(databases: Databases, kind: Kind, stack: AsyncExitStack) -> DatabaseFactory:
    async def create() -> Database:
        database = await databases.create(kind)
        stack.push_async_callback(databases.drop, database)
        return database

    return create
