"""Tells the workers of this process that there is something to do; what other processes begin, they find by
looking.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Wakes:
    """One bell for each name: a shard's workers, or its postman. Who is at work hears it afterwards."""

    def __init__(self) -> None:
        self._bells: Mapping[str, asyncio.Event] = defaultdict(asyncio.Event)

    def wake(self, shard: str) -> None:
        """Let whoever sleeps look at once."""
        self._bells[shard].set()

    async def sleep(self, shard: str, seconds: float) -> None:
        """Until somebody wakes this shard, or for so long. One sleeper for each shard."""
        try:
            async with asyncio.timeout(seconds):
                await self._bells[shard].wait()
        except TimeoutError:
            return
        finally:
            self._bells[shard].clear()
