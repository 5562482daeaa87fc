"""A start believes nobody but the process that it started."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest

from chassis.testing import eventually
from ops import ports, processes
from ops.errors import PortBusy
from ops.owned import HOST, OwnedServer
from ops.stack.local import LocalStack
from ops.stack.supervisor import Supervisor
from ops.stack.units import Process
from tests import stranger

ROOT = Path(__file__).resolve().parents[3]
WITHIN_S = 30.0


async def says_ready(port: int) -> bool:
    async with httpx.AsyncClient(timeout=2.0) as client:
        try:
            return (await client.get(f"http://{HOST}:{port}/readyz")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


class Strangers:
    """Other people's servers, each on a port."""

    def __init__(self) -> None:
        self.running: list[asyncio.subprocess.Process] = []

    async def settle(self, port: int) -> int:
        """Have one answer on a port; its pid."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", stranger.__name__, str(port), cwd=ROOT
        )
        self.running.append(child)
        await eventually(lambda: says_ready(port), within_s=WITHIN_S)
        return child.pid

    async def leave(self) -> None:
        for child in self.running:
            child.kill()
            await child.wait()
        self.running.clear()


@pytest.fixture
async def strangers() -> AsyncIterator[Strangers]:
    others = Strangers()
    yield others
    await others.leave()


class Slow(OwnedServer):
    """A server that does not listen yet when somebody else takes its port, and believes whoever answers."""

    title = "Slow"

    def __init__(self, data_dir: Path, port: int, thief: Callable[[int], Awaitable[int]]) -> None:
        super().__init__(data_dir, port)
        self.thief = thief
        self.thief_pid = 0

    @property
    def mark(self) -> str:
        return f"--data={self.data_dir}"

    async def _home(self) -> Path:
        return ROOT

    def _configure(self, home: Path) -> None:
        """Nothing."""

    async def _prepare(self, home: Path) -> None:
        self.thief_pid = await self.thief(self.port)

    def _command(self, home: Path) -> list[str | Path]:
        return ["/bin/sh", "-c", "while :; do sleep 1; done", "sh", self.mark]

    async def _answers(self) -> bool:
        return await says_ready(self.port)


async def test_a_server_is_not_up_because_another_answers_on_its_port(
    server_dir: Path, strangers: Strangers
) -> None:
    port = ports.free_port()
    server = Slow(server_dir / f"slow-{uuid4().hex}" / "data", port, strangers.settle)
    with pytest.raises(PortBusy) as refused:
        await server.start()
    said = str(refused.value)
    assert f"Port {port} (Slow) is answered by another process (pid {server.thief_pid}: " in said
    assert "tests.stranger" in said
    assert processes.with_argument(server.mark) == []
    assert await says_ready(port), "the other was left alone"


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[LocalStack]:
    supervisor = Supervisor(tmp_path / "hold", lambda: None)
    made = LocalStack(cast(Any, None), supervisor)
    yield made
    await supervisor.close()
    await made._http.aclose()


def a_service(tmp_path: Path, port: int, module: str, *, listens: bool = False) -> Process:
    environment = {"STRANGER_PORT": str(port) if listens else ""}
    return Process(
        "order_svc.s1", module, environment, tmp_path / "log", "", admin_url=f"http://{HOST}:{port}"
    )


@pytest.mark.parametrize("module", [stranger.__name__, "tests.there_is_none"], ids=["alive", "dead"])
async def test_a_service_is_not_ready_because_another_says_so_on_its_port(
    tmp_path: Path, stack: LocalStack, strangers: Strangers, module: str
) -> None:
    port = ports.free_port()
    pid = await strangers.settle(port)
    await stack.start(a_service(tmp_path, port, module))
    with pytest.raises(PortBusy) as refused:
        await stack.until_ready()
    assert f"Port {port} (admin port of order_svc.s1) is answered by another process (pid {pid}: " in str(
        refused.value
    )


async def test_a_service_that_says_so_itself_is_ready(tmp_path: Path, stack: LocalStack) -> None:
    port = ports.free_port()
    service = a_service(tmp_path, port, stranger.__name__, listens=True)
    await stack.start(service)
    await stack.until_ready()
    assert processes.listens([service.pid], port, "test")
    assert not processes.listens([service.pid], ports.free_port(), "test"), "nobody is there"
