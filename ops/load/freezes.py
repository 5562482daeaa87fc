"""SIGSTOP and SIGCONT, as planned: a process stands still for a while and then goes on as if nothing was.

As with kills, only children of the running stack are touched. Whatever was stopped is let go on when the run
ends, however it ends; Ctrl-C and SIGTERM included.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ops.load.kills import is_child, processes
from ops.stack.endpoints import Endpoints

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ops.load.plan import Freeze


@dataclass(frozen=True, slots=True)
class Frozen:
    """One freeze that happened. for_s: how long it really lasted."""

    at_s: float
    service: str
    shard: str | None
    pid: int
    for_s: float


@dataclass(slots=True)
class Freezer:
    """Carries out one --freeze until it is cancelled; `done` grows."""

    state_dir: Path
    freeze: Freeze
    done: list[Frozen]
    _turn: int = field(default=0, init=False)

    async def run(self) -> None:
        """Freeze at each multiple of the interval; a process that is just being started again is left out."""
        started = time.monotonic()
        while True:
            self._turn += 1
            await asyncio.sleep(max(0.0, started + self._turn * self.freeze.every_s - time.monotonic()))
            endpoints = Endpoints.read_here(self.state_dir)
            victims = processes(endpoints, self.freeze.name, "--freeze")
            victim = victims[(self._turn - 1) % len(victims)]
            if not is_child(victim.pid, endpoints.stack_pid):
                continue
            began = time.monotonic()
            with _stopped(victim.pid, endpoints.stack_pid):
                await asyncio.sleep(self.freeze.for_s)
            lasted_s = round(time.monotonic() - began, 1)
            self.done.append(
                Frozen(round(began - started, 1), victim.name, victim.shard, victim.pid, lasted_s)
            )


@contextmanager
def _stopped(pid: int, parent: int) -> Iterator[None]:
    """A process stands still while the context lives; if it was killed meanwhile, nobody else is touched."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if is_child(pid, parent):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
