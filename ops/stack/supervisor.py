"""Keeps units alive: what dies is started again within two seconds, what is held stays down until it is let
go.

A hold is a file `<state>/hold/<unit>`, so that people and tests can stop one process, such as the control
database, from outside and start it again. All waits are bounded; the supervisor itself holds no state worth
saving.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from ops.stack.units import Unit

BACKOFF_S_MAX = 1.5
"""Longest pause before a restart; with the spawn itself it stays below two seconds."""
STABLE_AFTER_S = 10.0
"""Who lived so long begins with a short pause again."""
STOP_GRACE_S = 2.5
"""What all units together get to drain: Ctrl-C ends everything within five seconds."""
_STOP_GRACE_S_MIN = 0.3
"""What a unit gets even when those before it used up the time; killed after it, it still loses nothing."""
_HOLD_POLL_S = 0.2


async def together(*parts: Coroutine[None, None, None]) -> None:
    """Run parts of a start side by side; when one fails, cancel the others and raise its own error."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)
    except BaseExceptionGroup as several:
        raise next(_errors(several)) from several


def _errors(several: BaseExceptionGroup) -> Iterator[BaseException]:
    """The single errors of a group, those with a sentence for people first."""
    matching, others = several.split(OpsError)
    for group in (matching, others):
        for error in group.exceptions if group is not None else ():
            if isinstance(error, BaseExceptionGroup):
                yield from _errors(error)
            else:
                yield error


class Supervisor:
    """Runs units until it is closed. `changed` is called whenever a pid changes."""

    def __init__(self, hold_dir: Path, changed: Callable[[], None]) -> None:
        self._hold_dir = hold_dir
        self._changed = changed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._units: dict[str, Unit] = {}
        self.restarts: dict[str, int] = {}
        hold_dir.mkdir(parents=True, exist_ok=True)
        for left in hold_dir.iterdir():
            left.unlink()

    async def start(self, *units: Unit) -> None:
        """Bring units up side by side and keep them alive from now on.

        If cancelled here, or when one fails: `close` stops those that are up already.
        """
        for unit in units:
            self._units[unit.name] = unit
            self.restarts[unit.name] = 0
        await together(*(unit.start() for unit in units))
        for unit in units:
            self._tasks[unit.name] = asyncio.create_task(self._keep(unit), name=f"keep-{unit.name}")
        self._changed()

    async def close(self, *order: tuple[str, ...]) -> None:
        """Stop everything: the named groups one after the other, then the rest at once."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        named = {name for group in order for name in group}
        rest = tuple(name for name in self._units if name not in named)
        end = time.monotonic() + STOP_GRACE_S
        for group in (*order, rest):
            units = [self._units[name] for name in group if name in self._units]
            grace_s = max(_STOP_GRACE_S_MIN, end - time.monotonic())
            await asyncio.gather(*(unit.stop(grace_s) for unit in units))
        self._changed()

    def check(self) -> None:
        """Raise what made the supervisor itself fail, if anything did."""
        for task in self._tasks.values():
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise OpsError(f"{task.get_name()} failed: {error}") from error

    def is_held(self, name: str) -> bool:
        """Whether somebody asked that the unit stays down."""
        return (self._hold_dir / name).exists()

    async def _keep(self, unit: Unit) -> None:
        backoff_s = 0.1
        while True:
            started = time.monotonic()
            await self._died_or_held(unit)
            self._changed()
            while self.is_held(unit.name):  # noqa: ASYNC110 - the hold is a file; nothing signals its end
                await asyncio.sleep(_HOLD_POLL_S)
            if time.monotonic() - started > STABLE_AFTER_S:
                backoff_s = 0.1
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)
            self.restarts[unit.name] += 1
            # A server that cannot start now, say for want of space, is tried again.
            with suppress(OpsError):
                await unit.start()
            self._changed()

    async def _died_or_held(self, unit: Unit) -> None:
        if unit.pid == 0:
            return
        death = asyncio.create_task(unit.died(), name=f"died-{unit.name}")
        try:
            while not death.done():
                if self.is_held(unit.name):
                    await unit.stop(STOP_GRACE_S)
                await asyncio.wait([death], timeout=_HOLD_POLL_S)
        finally:
            death.cancel()
