"""What the stack keeps alive: a service process, or a server. Both start, die and stop in the same way."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from chassis.output import FILE_BYTES_MAX
from ops.ports import HOST
from ops.processes import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Unit(Protocol):
    """One thing that is kept alive."""

    @property
    def name(self) -> str:
        """What people call it, such as `order_svc.s1`."""
        ...

    @property
    def pid(self) -> int:
        """Its process, or 0 while it has none."""
        ...

    async def start(self) -> None:
        """Bring it up; for a process that is when it was spawned, not when it is ready."""
        ...

    async def died(self) -> int:
        """Wait for its end; gives the exit code."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, and end it when it does not."""
        ...


@dataclass(slots=True)
class Process:
    """A service as a child process that dies with us even when we are killed.

    environment: what it gets beyond ours. admin_url: `http://host:port` of its admin port; empty for none.
    """

    name: str
    module: str
    environment: Mapping[str, str]
    log_path: Path
    target: str
    admin_url: str = ""
    shard: str | None = None
    _child: asyncio.subprocess.Process | None = field(default=None, init=False)

    @property
    def pid(self) -> int:
        """The child, or 0 while there is none."""
        child = self._child
        return child.pid if child is not None and child.returncode is None else 0

    @property
    def admin_port(self) -> int:
        """Where `admin_url` is."""
        return int(self.admin_url.rpartition(":")[2])

    @property
    def service(self) -> str:
        """The name without the shard."""
        return self.name.split(".", 1)[0]

    async def start(self) -> None:
        """Spawn it with its output appended to the log."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > FILE_BYTES_MAX:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        with self.log_path.open("ab") as log:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.module,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    async def died(self) -> int:
        """The exit code; negative for a signal."""
        assert self._child is not None
        return await self._child.wait()

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after `grace_s`."""
        child = self._child
        if child is None or child.returncode is not None:
            return
        with suppress(ProcessLookupError):
            child.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await child.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()


class RealServer(Protocol):
    """Postgres, Kafka, Elasticsearch or S3, as ops.postgres and ops.owned run them."""

    port: int

    @property
    def pid(self) -> int | None:
        """Its first process, whoever started it."""
        ...

    @property
    def log_path(self) -> Path:
        """Its log."""
        ...

    async def start(self) -> None:
        """Bring it up; it answers when this returns."""
        ...

    async def died(self) -> int:
        """Wait for its end; gives the exit code."""
        ...

    async def stop(self, *, fast_s: float) -> None:
        """End it in good order, or after `fast_s` in any."""
        ...


@dataclass(slots=True)
class Server:
    """A real server as a unit."""

    name: str
    server: RealServer

    @property
    def pid(self) -> int:
        """Its first process, or 0."""
        return self.server.pid or 0

    @property
    def target(self) -> str:
        """Where clients connect."""
        return f"{HOST}:{self.server.port}"

    async def start(self) -> None:
        """Start it and wait until it answers."""
        await self.server.start()

    async def died(self) -> int:
        """The exit code."""
        return await self.server.died()

    async def stop(self, grace_s: float) -> None:
        """Fast shutdown: sessions are cut, data is safe."""
        await self.server.stop(fast_s=grace_s)
