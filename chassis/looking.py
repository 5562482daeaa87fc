"""Has somebody look at a shard now and then and tell how it stands; every process does, whoever has a lease.

What only the holder of a lease told would stand for ever in a process that lost it. What cannot be seen is
not shown; only times stay, which say themselves how old they are: of several processes the youngest counts,
and an alert on one tells too when nobody looks any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import structlog

from chassis.errors import OrdermeshError

if TYPE_CHECKING:
    from collections.abc import Callable

    from chassis.clock import Clock

log = structlog.get_logger("standing")
LOOK_S = 10.0


class Teller(Protocol):
    """Who tells something of one shard by gauges."""

    name: str
    shard: str

    def begin(self) -> None:
        """Let the times be there as 0, before they are known: an alert sees no series that is not there."""
        ...

    async def tell(self) -> None:
        """Look once and set the gauges. Raises: what chassis.pg raises."""
        ...

    def forget(self) -> None:
        """Take away the gauges that are no times."""
        ...


class Looking:
    """A loop that lets one teller look. jitter: gives 0 to 1."""

    def __init__(
        self, teller: Teller, clock: Clock, jitter: Callable[[], float], *, look_s: float = LOOK_S
    ) -> None:
        self.name = teller.name
        self._teller = teller
        self._clock = clock
        self._jitter = jitter
        self._look_s = look_s

    async def run(self) -> None:
        """Look until cancelled; a shard that does not answer is asked again."""
        self._teller.begin()
        while True:
            await self.once()
            await self._clock.sleep(self._look_s * (0.75 + 0.5 * self._jitter()))

    async def once(self) -> bool:
        """Look once; whether the shard answered."""
        try:
            await self._teller.tell()
        except OrdermeshError as failed:
            log.warning("not_looked_at", shard=self._teller.shard, what=self.name, reason=failed.reason)
            self._teller.forget()
            return False
        return True
