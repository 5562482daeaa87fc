"""ops.postgres on real servers: it survives kills of itself and its parent, and says what is wrong."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from ops import places, ports
from ops.errors import PortBusy
from ops.postgres import PostgresError, PostgresServer, WrongPermissions


@pytest.fixture
async def server(server_dir: Path, request: pytest.FixtureRequest) -> AsyncIterator[PostgresServer]:
    """A durable server of the test's own, not yet started."""
    own = PostgresServer(server_dir / str(abs(hash(request.node.nodeid))) / "pg", ports.free_port())
    yield own
    await own.stop()


async def answer(server: PostgresServer, sql: str, database: str = "postgres") -> object:
    connection = await asyncpg.connect(server.dsn(database), timeout=10)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def pid_of(server: PostgresServer) -> int | None:
    return server.pid


async def run(*command: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    async with asyncio.timeout(60):
        process = await asyncio.create_subprocess_exec(*command, env=env, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_a_row_survives_the_kill_of_its_server_and_the_server_starts_again(
    server: PostgresServer,
) -> None:
    await server.start()
    assert await server.create_database("s1")
    assert not await server.create_database("s1")
    await server.run_sql("s1", "CREATE TABLE public.kept AS SELECT 42 AS answer")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert await server.died() == -signal.SIGKILL
    await server.start()
    assert await answer(server, "SELECT answer FROM public.kept", "s1") == 42


async def test_a_server_whose_parent_was_killed_is_found_by_its_pid_file_and_replaced(
    server: PostgresServer,
) -> None:
    script = (
        "import asyncio, os, signal, sys; from pathlib import Path; from ops.postgres import PostgresServer\n"
        "asyncio.run(PostgresServer(Path(sys.argv[1]), int(sys.argv[2])).start())\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert await run(sys.executable, "-c", script, str(server.data_dir), str(server.port)) == (
        -signal.SIGKILL,
        "",
    )
    orphan = pid_of(server)
    assert orphan
    await server.start()
    assert pid_of(server) not in {None, orphan}
    assert await answer(server, "SELECT 1") == 1
    await server.stop()
    assert pid_of(server) is None
    await server.stop()  # Again: nothing to do.


async def test_a_pid_file_that_names_another_living_process_does_not_stop_the_start(
    server: PostgresServer,
) -> None:
    await server.start()
    await server.stop()
    leftover = server.data_dir / "postmaster.pid"
    leftover.write_text(f"{os.getpid()}\n{server.data_dir}\n")
    await server.start()
    assert await answer(server, "SELECT 1") == 1


async def test_only_who_has_the_password_gets_in(server: PostgresServer) -> None:
    await server.start()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(
            host="127.0.0.1", port=server.port, user="ordermesh", password="guess", timeout=5
        )
    psql = await run(str(server.psql), "-Atc", "SELECT current_user", env=server.environment())
    assert psql == (0, "ordermesh\n")
    assert server.socket_dir is not None
    assert (server.socket_dir / f".s.PGSQL.{server.port}").is_socket()


async def test_a_busy_port_is_named(server: PostgresServer) -> None:
    with (
        socket.create_server(("127.0.0.1", server.port)),
        pytest.raises(PortBusy, match=f"Port {server.port} is busy"),
    ):
        await server.start()
    assert server.pid is None


async def test_a_setting_that_postgres_refuses_is_quoted_from_its_log(server_dir: Path) -> None:
    server = PostgresServer(
        server_dir / "refused" / "pg", ports.free_port(), settings={"max_connections": "-1"}
    )
    with pytest.raises(PostgresError, match="max_connections"):
        await server.start()


async def test_data_and_binaries_lie_where_the_server_may_enter_and_another_place_is_refused(
    tmp_path: Path,
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    data = places.data_directory(closed, "shards")
    assert data == places.data_directory(closed, "shards")
    assert places.can_enter(places.postgres_bin(), places.server_uid())
    if os.geteuid():
        assert data == closed / "postgres" / "shards"
        return
    assert data.is_relative_to(places.user_root())
    with pytest.raises(WrongPermissions, match="--state-dir"):
        await PostgresServer(closed / "pg", ports.free_port()).start()


async def test_a_name_that_is_no_name_never_reaches_the_server(server: PostgresServer) -> None:
    with pytest.raises(PostgresError, match="no name for a database"):
        await server.drop_database('x"; DROP DATABASE s1; --')
