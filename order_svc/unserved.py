"""READY orders that nobody submits, since their upstream is not configured: they are parked for a person.

The driver claims for the upstreams it knows. An order whose next leg needs another one (it was removed from
the configuration, or never added) would wait for ever without being seen. It is left alone for a while first,
as a process with a newer configuration may be starting beside this one.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from chassis.errors import Contended, DeadlineExceeded, Overloaded, ShardUnavailable, StaleRoute
from order_svc import events, points
from order_svc.domain import transition

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from chassis.clock import Clock
    from order_svc.contract import Rules
    from order_svc.order import Decision, Seen
    from order_svc.store import OrderStore

log = structlog.get_logger("unserved")
ACTOR = "order_svc"
AT_ONCE = 100
"""Orders of one round; a removed upstream may leave thousands, and there is no hurry."""


class Unserved:
    """Looks for such orders, once in the time they are left alone. jitter: draws a number in [0, 1)."""

    name = "unserved"

    def __init__(
        self,
        orders: OrderStore,
        rules: Rules,
        *,
        overdue_s: float,
        clock: Clock,
        jitter: Callable[[], float],
    ) -> None:
        self._orders = orders
        self._rules = rules
        self._overdue_s = overdue_s
        self._clock = clock
        self._jitter = jitter

    async def run(self) -> None:
        """Look again and again until cancelled; a round that fails is logged."""
        while True:
            await self._clock.sleep(self._overdue_s)
            try:
                await self.once()
            except (Contended, DeadlineExceeded, Overloaded, ShardUnavailable, StaleRoute) as failed:
                log.warning("unserved_not_parked", reason=failed.reason)

    async def once(self) -> None:
        """Park what has waited long enough."""
        overdue = timedelta(seconds=self._overdue_s)
        for order_id in await self._orders.unserved(self._rules.contracts, overdue, AT_ONCE):
            await self._park(order_id)

    async def _park(self, order_id: UUID) -> None:
        event = events.Unserved(event_id=uuid4(), actor=ACTOR)

        def rule(seen: Seen) -> Decision:
            return transition(seen, event, self._rules, jitter=self._jitter())

        await self._orders.decide(order_id, event.event_id, rule, at=points.REPORT)
