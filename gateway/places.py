"""How many requests are answered at once. Before the places is a short queue; who finds it full is refused.

A request has its place from when it has arrived as a whole, so that slow senders hold none, until it is
answered. An event stream gives its place back once it has begun: streams have seats of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chassis.errors import DeadlineExceeded, Overloaded
from gateway.metrics import IN_FLIGHT, SHED

if TYPE_CHECKING:
    from chassis.limits import Limiter

WAIT_S = 1.0
"""Longer than that nobody queues: an answer that begins so late is of little use, and others come after."""


class Places:
    """The places of one gateway process."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    async def take(self) -> Place:
        """A place, to be left when the request is answered.

        Raises: Overloaded when the queue is full or took too long.
        """
        try:
            await self._limiter.acquire(WAIT_S)
        except (DeadlineExceeded, Overloaded):
            SHED.inc()
            raise Overloaded(limiter=self._limiter.name) from None
        IN_FLIGHT.inc()
        return Place(self._limiter)


class Place:
    """One place; leaving it twice is leaving it once."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter: Limiter | None = limiter

    def leave(self) -> None:
        """Give the place to the next."""
        if self._limiter is not None:
            IN_FLIGHT.dec()
            self._limiter.release()
            self._limiter = None
