"""Tells calls that wait for an order when it changed here, so that they need not ask the database all the
time.

A change made by another process (after a failover, say) is seen by a look once a second; so waking is a
shortcut and never the only way.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
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
LATEST_MAX = 4096
"""Orders that changed here last: whoever begins to wait just after a change finds it without asking."""
QUIET = frozenset({Stage.DONE, Stage.PARKED})
"""Where nothing more is to be expected from waiting."""


class Changes:
    """Who waits for which order. watchers_max: a waiting call costs a look a second, so there is a bound."""

    def __init__(self, watchers_max: int) -> None:
        self._max = watchers_max
        self._waiting: dict[UUID, set[asyncio.Event]] = {}
        self._latest: OrderedDict[UUID, Order] = OrderedDict()
        self._count = 0

    def announce(self, order: Order) -> None:
        """Wake everybody who waits for this order, with the order as it was just written."""
        self._latest[order.order_id] = self._newer(order)
        self._latest.move_to_end(order.order_id)
        if len(self._latest) > LATEST_MAX:
            self._latest.popitem(last=False)
        for woken in self._waiting.get(order.order_id, ()):
            woken.set()

    async def follow(self, orders: OrderStore, order: Order, after_version: int) -> AsyncIterator[Order]:
        """The order, just read, and what it becomes, whenever its version is greater than the last one given;
        ends when it is settled.
        """
        seen = after_version
        with self._listen(order.order_id) as woken:
            order = self._newer(order)
            while True:
                if order.version > seen:
                    seen = order.version
                    yield order
                if order.stage is Stage.DONE:
                    return
                order = await self._next(orders, order, woken, LOOK_EVERY_S)

    async def until_quiet(self, orders: OrderStore, order: Order, seconds: float) -> Order:
        """The order, just written, once it is settled or parked, or as it is after so many seconds.

        As it is now when too many wait already: the order is recorded, and an error would hide that.
        """
        if seconds <= 0 or order.stage in QUIET or self._count >= self._max:
            return order
        now = asyncio.get_running_loop().time
        end = now() + seconds
        with self._listen(order.order_id) as woken:
            order = self._newer(order)
            while order.stage not in QUIET and (left := end - now()) > 0:
                order = await self._next(orders, order, woken, min(LOOK_EVERY_S, left))
        return order

    async def _next(self, orders: OrderStore, order: Order, woken: asyncio.Event, seconds: float) -> Order:
        """The order after a change that was announced, or as the database has it when the time is up."""
        try:
            async with asyncio.timeout(seconds):
                await woken.wait()
        except TimeoutError:
            return await orders.get(order.order_id)
        woken.clear()
        return self._newer(order)

    def _newer(self, order: Order) -> Order:
        latest = self._latest.get(order.order_id, order)
        return latest if latest.version > order.version else order

    @contextmanager
    def _listen(self, order_id: UUID) -> Iterator[asyncio.Event]:
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
