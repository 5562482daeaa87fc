"""ops.seaweedfs on real servers: objects outlive kills, no process is left, busy ports are named."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from chassis.s3 import stream
from chassis.testing import eventually
from ops import places, ports, processes
from ops.errors import PortBusy
from ops.seaweedfs import PORTS, SeaweedServer
from tests.buckets import PART_BYTES, Place

pytestmark = pytest.mark.timeout(180)  # Two starts, on a machine that others use as well.


@pytest.fixture
async def own(server_dir: Path) -> AsyncIterator[SeaweedServer]:
    """A server of the test's own, not yet started."""
    server = SeaweedServer(server_dir / f"s3-{uuid4().hex}" / "s3", *(ports.free_port() for _ in PORTS))
    yield server
    await server.stop()


async def large() -> AsyncIterator[bytes]:
    yield b"0123456789abcdef" * (PART_BYTES // 16 + 1)


async def test_what_was_acknowledged_outlives_the_kill_of_the_server(own: SeaweedServer) -> None:
    await own.start()
    async with Place.of(own).store() as store:
        await store.make_bucket()
        small = [await store.create(f"object-{number}", b"%d" % number) for number in range(20)]
        parts = await store.upload("large", large)
        assert own.pid is not None
        os.kill(own.pid, signal.SIGKILL)
        assert await own.died() == -signal.SIGKILL
        await own.start()
        assert [await store.read(each) for each in small] == [b"%d" % number for number in range(20)]
        assert [chunk async for chunk in stream(store, parts)] == [chunk async for chunk in large()]
        assert (await store.create("after", b"the kill")).version_id
    await own.stop()
    assert processes.with_argument(own.mark) == []


async def test_a_server_does_not_outlive_its_killed_parent(own: SeaweedServer) -> None:
    script = (
        "import asyncio, os, signal, sys; from pathlib import Path; from ops.seaweedfs import SeaweedServer\n"
        "asyncio.run(SeaweedServer(Path(sys.argv[1]), *map(int, sys.argv[2:])).start())\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    numbers = [str(number) for number in own._ports.values()]
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(own.data_dir), *numbers)
    assert await parent.wait() == -signal.SIGKILL

    async def gone() -> bool:
        return not processes.with_argument(own.mark)

    assert await eventually(gone, within_s=10)


async def test_a_busy_port_is_named(own: SeaweedServer) -> None:
    inner = own._ports["s3.filer"]
    with socket.create_server(("127.0.0.1", inner)), pytest.raises(PortBusy, match=f"Port {inner}"):
        await own.start()
    assert processes.with_argument(own.mark) == []


def test_the_program_is_copied_to_where_the_servers_user_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = places.seaweedfs()
    monkeypatch.setattr(places, "user_root", lambda: tmp_path)
    monkeypatch.setattr(places, "can_enter", lambda path, uid: path.is_relative_to(tmp_path))
    copied = places.seaweedfs()
    assert copied.is_relative_to(tmp_path)
    assert copied.stat().st_size == installed.stat().st_size
    assert copied.stat().st_mode & 0o777 == 0o755
    assert places.seaweedfs() == copied
    assert [path.name for path in copied.parent.iterdir()] == ["weed"]
