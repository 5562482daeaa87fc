"""SIGKILL, as planned: a process of a service every so often, its shards in turn, by the pid that runs now.

Only children of the running stack are ever killed: a pid in endpoints.json may be a moment old, and numbers
come back.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ops.load.plan import PlanRefused
from ops.stack.endpoints import Endpoints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ops.load.plan import Kill
    from ops.stack.endpoints import Service

RESTART_S = 5.0
"""How long a victim that is being started again is waited for; the stack takes two seconds."""


@dataclass(frozen=True, slots=True)
class Killed:
    """One kill that happened."""

    at_s: float
    service: str
    shard: str | None
    pid: int


@dataclass(slots=True)
class Killer:
    """Carries out one --kill until it is cancelled; `done` grows."""

    state_dir: Path
    kill: Kill
    done: list[Killed]
    _turn: int = field(default=0, init=False)

    async def run(self) -> None:
        """Kill at each multiple of the interval."""
        started = time.monotonic()
        while True:
            self._turn += 1
            await asyncio.sleep(max(0.0, started + self._turn * self.kill.every_s - time.monotonic()))
            await self._strike(started)

    async def _strike(self, started: float) -> None:
        end = time.monotonic() + RESTART_S
        while time.monotonic() < end:
            endpoints = Endpoints.read_here(self.state_dir)
            victims = processes(endpoints, self.kill.service)
            victim = victims[(self._turn - 1) % len(victims)]
            if is_child(victim.pid, endpoints.stack_pid):
                try:
                    os.kill(victim.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # It died between the look and the kill; look again.
                else:
                    at_s = round(time.monotonic() - started, 1)
                    self.done.append(Killed(at_s, victim.name, victim.shard, victim.pid))
                    return
            await asyncio.sleep(0.1)


def label(name: str, shard: str | None) -> str:
    """The name of a process, with its shard."""
    return f"{name}.{shard}" if shard else name


def processes(endpoints: Endpoints, name: str, option: str = "--kill") -> Sequence[Service]:
    """The processes of a name: one such as `kafka` or `order_svc.s1`, or each shard's `order_svc`.

    Raises: PlanRefused when the stack has none, with the names it has.
    """
    found = [each for each in endpoints.services if name in (each.name, label(each.name, each.shard))]
    if not found:
        names = ", ".join(sorted({each.name for each in endpoints.services}))
        raise PlanRefused(f"{option} {name}: the stack has {names}.")
    return found


def is_child(pid: int, parent: int) -> bool:
    """Whether a process lives and is a child of another; where there is no /proc, whether pid is one at
    all.
    """
    if pid <= 1:
        return False
    if not Path("/proc/self/stat").exists():
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    state, ppid = stat.rpartition(")")[2].split()[:2]  # The name in parentheses may hold anything.
    return int(ppid) == parent and state != "Z"
