"""Life and death of a process: loops that may not die quietly, writes that outlive their callers, an
orderly stop.

A loop that ends, for whatever reason, ends the process within a second or so: crash is a normal event here, a
half-alive service is not.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog

from chassis.errors import Overloaded, Stopping

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

log = structlog.get_logger("supervise")
T = TypeVar("T")
DEATH_DRAIN_S = 1.0
"""For the whole drain after a loop died: refuse at once, and finish what takes a moment."""
DEATH_STEP_S = 0.4
"""For one step of it, so that waiting for calls leaves time for owned writes."""
OWNED_TASKS_MAX = 1024
"""Owned writes at once. Each holds little more than its order; the limiters before them are far lower."""


class Loop(Protocol):
    """Background work that runs until it is cancelled."""

    @property
    def name(self) -> str:
        """What it is called in logs."""
        ...

    async def run(self) -> None:
        """Work until cancelled; returning or raising ends the process."""
        ...


class LoopDied(Exception):
    """A background loop ended by itself."""


class OwnedTasks:
    """Writes that belong to the process and not to the call that began them.

    The caller's cancellation does not reach them: of 167 cancelled one-row transactions 144 had committed,
    so a cancelled write is an unknown one. At stop they are finished before the pools close.
    """

    def __init__(self, limit: int = OWNED_TASKS_MAX) -> None:
        self._limit = limit
        self._tasks: set[asyncio.Task[Any]] = set()
        self._heard: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    async def run(self, work: Coroutine[Any, Any, T], *, name: str) -> T:
        """Run to the end whatever happens to the caller; the result or error is the work's.

        If cancelled here: the work goes on, and its error, if any, is logged.
        """
        task = self.start(work, name=name)
        self._heard.add(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._heard.discard(task)
            raise

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Begin owned work without waiting for it.

        Raises: Stopping after `drain` began; Overloaded when too much is owned already.
        """
        if self._closed or len(self._tasks) >= self._limit:
            work.close()
            raise Stopping if self._closed else Overloaded(limiter="owned_tasks")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def drain(self, timeout_s: float) -> None:
        """Take no more work and wait for what runs; what is not done in time is cancelled and logged.

        If cancelled here: what is not done by now is cut off as well.
        """
        self._closed = True
        if not self._tasks:
            return
        try:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        finally:
            self._cut_off()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    def _cut_off(self) -> None:
        for task in self._tasks:
            log.warning("owned_task_cut_off", task=task.get_name())
            task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        heard = task in self._heard
        self._heard.discard(task)
        if not task.cancelled() and task.exception() is not None and not heard:
            log.warning("owned_task_failed", task=task.get_name(), error=type(task.exception()).__name__)


class StopSignal:
    """Set by SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def install(self) -> None:
        """Listen to the signals on the running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._event.set)

    def uninstall(self) -> None:
        """Give the signals back."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def set(self) -> None:
        """Ask for a stop from inside."""
        self._event.set()

    async def wait(self) -> None:
        """Until somebody asks for a stop."""
        await self._event.wait()


async def until_stopped(
    *loops: Loop, drain: tuple[Callable[[], Awaitable[object]], ...] = (), stop: StopSignal | None = None
) -> None:
    """Run the loops until SIGTERM, SIGINT or the death of one of them; then drain in the given order.

    drain: what to do before the loops are cancelled: readiness off, server stop, owned tasks. After a death
    it is cut short: a step that takes long is cancelled, and so is whatever has not begun within a second.
    Raises: LoopDied, after draining, when a loop ended by itself.
    """
    asked = stop or StopSignal()
    asked.install()
    running = [asyncio.create_task(loop.run(), name=loop.name) for loop in loops]
    waiting = asyncio.create_task(asked.wait(), name="stop-signal")
    try:
        done, _ = await asyncio.wait([waiting, *running], return_when=asyncio.FIRST_COMPLETED)
        dead = [task for task in done if task is not waiting]
        for task in dead:
            log.error("loop_died", loop=task.get_name(), exc_info=_cause(task))
        log.info("stopping", because="a loop died" if dead else "asked to")
        await (_drain_shortly(drain) if dead else _drain(drain))
    finally:
        for task in (waiting, *running):
            task.cancel()
        await asyncio.gather(waiting, *running, return_exceptions=True)
        asked.uninstall()
    if dead:
        raise LoopDied(", ".join(task.get_name() for task in dead))


async def _drain(steps: Sequence[Callable[[], Awaitable[object]]]) -> None:
    for step in steps:
        await step()


async def _drain_shortly(steps: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Take every step, each for a moment only."""
    loop = asyncio.get_running_loop()
    end = loop.time() + DEATH_DRAIN_S
    for step in steps:
        try:
            async with asyncio.timeout_at(min(end, loop.time() + DEATH_STEP_S)):
                await step()
        except TimeoutError:
            log.warning("drain_cut_short")


def _cause(task: asyncio.Task[Any]) -> BaseException | None:
    return None if task.cancelled() else task.exception()
