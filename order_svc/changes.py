"""Tells calls that wait for an order when it changed here, so that they need not ask the database all the
time.

A change made by another process (after a failover, say) is seen by a look once a second; so waking is a
shortcut and never the only way.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chassis.errors import Overloaded
from order_svc import metrics
from order_svc.order import Order, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from uuid import UUID

    from order_svc.store import OrderStore

LOOK_EVERY_S = 1.0
QUIET = frozenset({Stage.DONE, Stage.PARKED})
"""Where nothing more is to be expected from waiting."""


class Changes:
    """Who waits for which order. watchers_max: a waiting call costs a look a second, so there is a bound."""

    def __init__(self, watchers_max: int) -> None:
        self._max = watchers_max
        self._waiting: dict[UUID, set[asyncio.Event]] = {}
        self._count = 0

    def announce(self, order_id: UUID) -> None:
        """Wake everybody who waits for this order."""
        for woken in self._waiting.get(order_id, ()):
            woken.set()

    @contextmanager
    def listen(self, order_id: UUID) -> Iterator[asyncio.Event]:
        """An event that is set at each change of the order.

        Raises: Overloaded when too many wait already.
        """
        if self._count >= self._max:
            raise Overloaded(limiter="watchers")
        woken = asyncio.Event()
        self._waiting.setdefault(order_id, set()).add(woken)
        self._count += 1
        try:
            with metrics.WATCHING.track_inprogress():
                yield woken
        finally:
            self._count -= 1
            self._waiting[order_id].discard(woken)
            if not self._waiting[order_id]:
                del self._waiting[order_id]

    async def follow(self, orders: OrderStore, order_id: UUID, after_version: int) -> AsyncIterator[Order]:
        """The order whenever its version is greater than the last one given, until it is settled."""
        seen = after_version
        with self.listen(order_id) as woken:
            while True:
                woken.clear()
                order = await orders.get(order_id)
                if order.version > seen:
                    seen = order.version
                    yield order
                if order.stage is Stage.DONE:
                    return
                await _either(woken, LOOK_EVERY_S)

    async def until_quiet(self, orders: OrderStore, order: Order, seconds: float) -> Order:
        """The order once it is settled or parked, or as it is after so many seconds."""
        if seconds <= 0 or order.stage in QUIET:
            return order
        end = asyncio.get_running_loop().time() + seconds
        with self.listen(order.order_id) as woken:
            while True:
                woken.clear()
                order = await orders.get(order.order_id)
                left = end - asyncio.get_running_loop().time()
                if order.stage in QUIET or left <= 0:
                    return order
                await _either(woken, min(LOOK_EVERY_S, left))


async def _either(woken: asyncio.Event, seconds: float) -> None:
    """Until the event is set or the time is up."""
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        return
