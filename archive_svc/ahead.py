"""Calls whose outcomes are wanted one after the other, begun a little before they are."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

T = TypeVar("T")
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="codec")
"""Of the process: Arrow keeps memory for each thread that it ever worked in, 50 MB of it. And so the archive
takes one core, however many shards there are."""


class Ahead(Generic[T]):
    """Outcomes of some calls, in order; while one is waited for, the next ones run. An async context.

    calls:   begun in their order. at_once: no more of them are under way.
    At the end of the context none of them runs any more; what was not asked for is lost.
    """

    def __init__(self, calls: Iterable[Callable[[], Coroutine[Any, Any, T]]], *, at_once: int) -> None:
        self._calls = iter(calls)
        self._at_once = at_once
        self._running: deque[asyncio.Task[T]] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await ended(*self._running)

    async def next(self) -> T:
        """The outcome of the next call; there has to be one. Raises: what that call raised."""
        while len(self._running) < self._at_once and (call := next(self._calls, None)) is not None:
            self._running.append(asyncio.create_task(call(), name="ahead"))
        # Taken off only when it has ended: a cancelled wait leaves it to the end of the context.
        await asyncio.wait(tuple(self._running)[:1])
        return self._running.popleft().result()


async def ended(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks that still run, and return when none does. What they raise is nobody's any more."""
    there = [task for task in tasks if task is not None]
    for task in there:
        task.cancel()
    await asyncio.gather(*there, return_exceptions=True)


async def in_thread(call: Callable[..., T], *args: Any) -> T:
    """What a blocking call gives, one after the other in the process. Returns, even if cancelled here, only
    when it has ended.

    A thread cannot be cancelled, and nobody else may use what it works on before it ends.
    """
    working = asyncio.get_running_loop().run_in_executor(_THREAD, call, *args)
    try:
        return await asyncio.shield(working)
    finally:
        await asyncio.gather(working, return_exceptions=True)
