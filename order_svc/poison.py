"""Orders that were claimed too often without a word: they may kill whoever handles them, and are parked.

Parked beside the answer and not before it: whatever goes wrong there, the innocent claims of the batch are
handed out. What could not be parked is leased and nobody's; it is claimed again when its lease has run out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from chassis.errors import Overloaded, Stopping
from order_svc import points
from order_svc.domain import transition
from order_svc.events import Poisoned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chassis.supervise import OwnedTasks
    from order_svc.contract import Rules
    from order_svc.order import Decision, Seen
    from order_svc.rows import Claim
    from order_svc.store import Decided, OrderStore

log = structlog.get_logger("poison")
ACTOR = "order_svc"


@dataclass(frozen=True, slots=True)
class Poison:
    """Tells the poisonous from the innocent. jitter: draws a number in [0, 1)."""

    orders: OrderStore
    rules: Rules
    owned: OwnedTasks
    jitter: Callable[[], float]

    def sift(self, claims: Sequence[Claim]) -> list[Claim]:
        """The claims to hand out; the others begin to be parked, in tasks of their own."""
        innocent = [claim for claim in claims if claim.unfinished_count <= self.rules.policy.unfinished_max]
        for claim in claims:
            if claim not in innocent:
                self._begin(claim)
        return innocent

    def _begin(self, claim: Claim) -> None:
        try:
            self.owned.start(self._park(claim), name=f"park {claim.order.order_id}")
        except (Stopping, Overloaded) as full:
            log.info("poison_left", order_id=str(claim.order.order_id), reason=full.reason)

    async def _park(self, claim: Claim) -> Decided:
        event = Poisoned(event_id=uuid4(), actor=ACTOR, unfinished_count=claim.unfinished_count)

        def rule(seen: Seen) -> Decision:
            return transition(seen, event, self.rules, jitter=self.jitter())

        return await self.orders.decide(
            claim.order.order_id, event.event_id, rule, at=points.REPORT, lease_token=claim.lease_token
        )
