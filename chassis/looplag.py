"""How late the event loop is: whoever blocks it makes everybody wait, and no other metric says so."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from chassis import metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EVERY_S: Final = 0.25


@asynccontextmanager
async def watched() -> AsyncIterator[None]:
    """Observe the lag of this loop while the context lives."""
    task = asyncio.create_task(_watch(), name="loop-lag")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _watch() -> None:
    while True:
        due = time.monotonic() + EVERY_S
        await asyncio.sleep(EVERY_S)
        metrics.LOOP_LAG.observe(max(0.0, time.monotonic() - due))
