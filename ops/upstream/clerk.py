"""The clerk: the one thread that touches the ledger, with a bounded queue before it.

SQLite blocks, so it never runs on the event loop; one thread makes every change one after the other. A caller
that is cancelled stops waiting, but what the clerk has begun it finishes: cancelling a call does not undo an
execution.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from chassis.clock import Clock
from chassis.errors import Overloaded
from ops.upstream.ledger import Ledger

T = TypeVar("T")
QUEUE_MAX = 512
"""Jobs that wait or run. One takes some 50 us, so that the last in the queue waits about 25 ms."""
DUE_EVERY_S = 0.1
"""How late a late execution may be beyond its time."""


class Clerk:
    """Runs jobs on the ledger, one at a time, in the order they came."""

    def __init__(self, ledger: Ledger, thread: ThreadPoolExecutor) -> None:
        self._ledger = ledger
        self._thread = thread
        self._queued = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, name: str, idempotent: bool) -> AsyncIterator[Clerk]:
        """Open the ledger in a thread of its own; at the end what was begun is finished first."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clerk")
        loop = asyncio.get_running_loop()
        try:
            ledger = await loop.run_in_executor(
                thread, lambda: Ledger.open(path, name=name, idempotent=idempotent)
            )
            try:
                yield cls(ledger, thread)
            finally:
                await loop.run_in_executor(thread, ledger.close)
        finally:
            thread.shutdown(wait=False)

    async def do(self, job: Callable[[Ledger], T]) -> T:
        """Run one job on the ledger.

        If cancelled here: a job that was begun is finished, one that was not is dropped.
        Raises: Overloaded when the queue is full; whatever the job raises.
        """
        if self._queued >= QUEUE_MAX:
            raise Overloaded(limiter="ledger")
        work = self._thread.submit(job, self._ledger)
        self._queued += 1
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._one_done))
        return await asyncio.wrap_future(work)

    def _one_done(self) -> None:
        self._queued -= 1


@dataclass(frozen=True, slots=True)
class LateExecutions:
    """The loop that executes what was put off, when its time has come."""

    clerk: Clerk
    clock: Clock
    name: str = "late-executions"

    async def run(self) -> None:
        """Look ten times a second, until cancelled."""
        while True:
            await self.clerk.do(partial(Ledger.execute_due, at=self.clock.now()))
            await self.clock.sleep(DUE_EVERY_S)
