"""A bound on bytes per second, so that archiving never competes with orders for the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chassis.clock import Clock


class Throttle:
    """Lets so many bytes pass in a second, on average, whatever task they are of."""

    def __init__(self, bytes_per_s: float, clock: Clock) -> None:
        self.bytes_per_s = bytes_per_s
        self._clock = clock
        self._free_at = 0.0

    async def take(self, size_bytes: int) -> None:
        """Return when these bytes may pass; what was not used before is not saved up."""
        now = self._clock.monotonic()
        wait_s = self._free_at - now
        self._free_at = max(now, self._free_at) + size_bytes / self.bytes_per_s
        if wait_s > 0:
            await self._clock.sleep(wait_s)
