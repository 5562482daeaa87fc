"""Hourly work on the shard's tables: expired request keys away. Their partitions are archive_svc's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from chassis.errors import Contended, DeadlineExceeded, Overloaded, ShardUnavailable, StaleRoute
from order_svc import metrics

if TYPE_CHECKING:
    from chassis.clock import Clock
    from order_svc.store import OrderStore

log = structlog.get_logger("housekeeping")
EVERY_S = 3600.0
AGAIN_S = 30.0
"""After a failure."""
REAP_AT_ONCE = 1000
REAP_ROUNDS_MAX = 100


class Housekeeping:
    """Keeps the keys table short."""

    name = "housekeeping"

    def __init__(self, orders: OrderStore, clock: Clock) -> None:
        self._orders = orders
        self._clock = clock

    async def run(self) -> None:
        """Work every hour until cancelled; a failure is logged and tried again soon."""
        while True:
            try:
                await self.once()
                wait_s = EVERY_S
            except (Contended, DeadlineExceeded, Overloaded, ShardUnavailable, StaleRoute) as failed:
                log.warning("housekeeping_failed", reason=failed.reason)
                wait_s = AGAIN_S
            await self._clock.sleep(wait_s)

    async def once(self) -> None:
        """Delete expired keys in short statements."""
        for _ in range(REAP_ROUNDS_MAX):
            reaped = await self._orders.reap_keys(REAP_AT_ONCE)
            metrics.KEYS_REAPED.inc(reaped)
            if reaped < REAP_AT_ONCE:
                return
