"""The loop from files to a data stream: read a batch, write it, note how far, and only then read on."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from ops.shipper import metrics
from ops.shipper.streams import short

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ops.shipper.bulk import BulkWriter, Document
    from ops.shipper.tail import Line, Tail

log = structlog.get_logger("shipper")
BATCH_BYTES = 2 * 1024 * 1024
BATCH_LINES = 2000
LOOK_EVERY_S = 0.2
LAST_S = 2.0
"""At stop: for the last lines of processes that have ended."""


class Route(NamedTuple):
    """From where to where. after: called when a batch is written."""

    stream: str
    document_of: Callable[[Line], Document]
    after: Callable[[], object]


class Shipping:
    """Ships the files of one tail."""

    def __init__(self, tail: Tail, writer: BulkWriter, route: Route, started: asyncio.Event) -> None:
        self.name = f"shipping.{route.stream}"
        self._tail = tail
        self._writer = writer
        self._route = route
        self._started = started
        self._is_last = asyncio.Event()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Ship until cancelled."""
        await self._looking_on(self._started.wait())
        while True:
            is_last = self._is_last.is_set()
            if await self.step():
                continue
            if is_last:
                self._ended.set()
            await asyncio.sleep(LOOK_EVERY_S)

    async def step(self) -> bool:
        """Ship one batch; whether there was one. If cancelled here: it is shipped again, and found there."""
        lines = await asyncio.to_thread(self._tail.read, bytes_max=BATCH_BYTES, lines_max=BATCH_LINES)
        self._tell()
        if not lines:
            return False
        documents = [self._route.document_of(line) for line in lines]
        await self._looking_on(self._writer.write(self._route.stream, documents))
        self._tail.passed(lines)
        await asyncio.to_thread(self._tail.save)
        self._route.after()
        return True

    async def _looking_on(self, writing: Coroutine[Any, Any, object]) -> None:
        """Write, or wait to begin, which takes as long as Elasticsearch is away.

        Files that are moved aside meanwhile are opened, so that they can be read when it is back, and it is
        told how much waits.
        """
        task = asyncio.create_task(writing, name=f"{self.name}.waits")
        try:
            while not task.done():
                await asyncio.wait((task,), timeout=LOOK_EVERY_S)
                await asyncio.to_thread(self._tail.look)
                self._tell()
        finally:
            task.cancel()
            await asyncio.wait((task,))
        task.result()

    def _tell(self) -> None:
        metrics.BEHIND_BYTES.labels(short(self._route.stream)).set(self._tail.bytes_behind())

    async def finish(self) -> None:
        """Wait a little for what is in the files now; the next process goes on with the rest."""
        self._is_last.set()
        began = time.monotonic()
        try:
            async with asyncio.timeout(LAST_S):
                await self._ended.wait()
        except TimeoutError:
            log.info("lines_left", stream=self._route.stream, waited_s=round(time.monotonic() - began, 1))
