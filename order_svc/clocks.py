"""The process clock, disciplined by the shard's: ids take their time from here.

Owns the offset between both. When they differ by more than 5 s no ids are made, since an order's month and
its place in every list come from its id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from chassis.errors import Contended, DeadlineExceeded, Overloaded, ShardUnavailable
from order_svc import metrics
from order_svc.errors import ClockSkew

if TYPE_CHECKING:
    from chassis.clock import Clock
    from order_svc.store import OrderStore

log = structlog.get_logger("clock")
SYNC_EVERY_S = 10.0
SKEW_S_MAX = 5.0
ROUND_TRIP_S_MAX = 1.0
"""A slower answer tells the clock worse than the last one did: 10 s in a queue look like a skew of 5 s."""


class ShardClock:
    """Unix milliseconds by the shard's clock, without asking it each time."""

    name = "clock"

    def __init__(self, orders: OrderStore, clock: Clock) -> None:
        self._orders = orders
        self._clock = clock
        self._ahead_s = 0.0
        self._skew_s = 0.0
        self._measured = False

    def now_ms(self) -> int:
        """The shard's time as far as known.

        Raises: ClockSkew when the machines' clocks differ by more than 5 s.
        """
        if abs(self._skew_s) > SKEW_S_MAX:
            raise ClockSkew(skew_s=f"{self._skew_s:.1f}")
        return int((self._clock.now().timestamp() + self._ahead_s) * 1000)

    async def sync(self) -> None:
        """Measure both clocks; half of the way there and back is taken as the way there.

        An answer that took long counts only when there is no better one.
        """
        asked = self._clock.now().timestamp()
        clocks = await self._orders.clocks()
        answered = self._clock.now().timestamp()
        if self._measured and answered - asked > ROUND_TRIP_S_MAX:
            log.warning("clock_not_measured", reason="SLOW_ANSWER")
            return
        self._measured = True
        here = (asked + answered) / 2
        self._ahead_s = clocks.shard.timestamp() - here
        self._skew_s = clocks.machine.timestamp() - here
        metrics.CLOCK_SKEW.set(self._skew_s)

    async def run(self) -> None:
        """Measure every 10 s until cancelled; a database that does not answer leaves the last offset."""
        while True:
            await self._clock.sleep(SYNC_EVERY_S)
            try:
                await self.sync()
            except (Contended, DeadlineExceeded, Overloaded, ShardUnavailable) as failed:
                log.warning("clock_not_measured", reason=failed.reason)
