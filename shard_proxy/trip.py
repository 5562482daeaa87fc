"""The tries of one call: which lane next, with what deadline and metadata, and whether there is a next one
at all.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

from chassis import rpc
from chassis.errors import DeadlineExceeded
from shard_proxy import headers, metrics
from shard_proxy.domain import ANYWHERE, By, Placement
from shard_proxy.errors import BucketFrozen, RouteUnsettled
from shard_proxy.headers import Metadata
from shard_proxy.lanes import OF_PLACEMENTS, OF_SHARDS

if TYPE_CHECKING:
    from chassis.rpc import Call
    from shard_proxy.journey import Journey
    from shard_proxy.lanes import Lane, Lanes
    from shard_proxy.methods import Passed
    from shard_proxy.outcome import Ended

SEND_TRIES_MAX = 4
"""A process that is killed while it starts may lose a call twice."""
BACKOFF_FIRST_S = 0.02
BACKOFF_MAX_S = 0.5
FROZEN_S_MAX = 2.0
"""A freeze is over within one second, whichever way; a mover that died is succeeded a little later."""
FROZEN_PAUSE_S = 0.005
FROZEN_PAUSE_S_MAX = 0.1
MARGIN_S = 0.02
"""The lane gets this much less time than we have, so that its answer, even `too late`, still reaches the
caller.
"""
TIMEOUT_S_MIN = 0.005


class Trip:
    """One call on its way through the lanes. Used by one task."""

    def __init__(self, passed: Passed, call: Call, inbound: Metadata, journey: Journey, lanes: Lanes) -> None:
        self._passed = passed
        self._call = call
        self._inbound = inbound
        self._journey = journey
        self._lanes = lanes
        self._sends = 0
        self._thaws = 0
        self._frozen_until = 0.0
        self.placement: Placement = ANYWHERE

    async def lane(self) -> Lane:
        """Where the call goes now; says so in the call's trailers.

        Raises: as domain.route; ShardUnavailable for a place that has no process.
        """
        self._sends += 1
        self.placement = await self._journey.place()
        self._call.set_trailer(headers.SHARD_TRAILER, self.placement.shard or self._passed.service)
        if self.placement.shard:
            rpc.say_about(shard=self.placement.shard)
        route = headers.route_trailer(self.placement, self._journey.map.version)
        self._call.set_trailer(headers.ROUTE_TRAILER, route)
        service = self._passed.service
        return self._lanes.of(service, self.placement.shard if service in OF_SHARDS else "")

    def timeout_s(self) -> float:
        """What the lane gets: what is left here less a margin, and never more than the method's maximum.

        Raises: DeadlineExceeded when that is not worth beginning.
        """
        left = min(self._call.time_remaining() - MARGIN_S, self._passed.method.timeout_s)
        if left < TIMEOUT_S_MIN:
            raise DeadlineExceeded(limiter="proxy")
        return left

    async def metadata(self) -> Metadata:
        """What the lane is told: the caller's own metadata, where the call belongs, and for whom it is."""
        placements: tuple[Placement, ...] = ()
        if self._passed.service in OF_PLACEMENTS and self._passed.by is By.USER:
            placements = await self._journey.placements()
        return self._inbound + headers.for_lane(
            self.placement, self._call.subject_token, placements, self._journey.replay
        )

    async def again(self, ended: Ended, lane: Lane) -> None:
        """Return when the call should be tried again; a lane that is being started is waited for by its link.

        Raises: what the caller is to be told when it should not.
        """
        if self._journey.is_frozen(ended.remote):
            await self._thaw(lane)
            return
        if self._journey.can_heal(ended.remote):
            await self._journey.heal(ended.remote, self.placement)
            metrics.RESENT.labels(lane.name, "stale_route").inc()
            return
        if self._journey.leads_on(ended.remote):
            metrics.RESENT.labels(lane.name, "elsewhere").inc()
            return
        if not self._may_resend(ended, lane):
            raise ended.spoken(lane.name) from None
        metrics.RESENT.labels(lane.name, "answer_lost" if ended.sent else "not_sent").inc()
        longest_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**self._sends)
        await asyncio.sleep(random.uniform(0, min(longest_s, self.timeout_s())))

    async def lesson(self, ended: Ended) -> None:
        """Learn from the refusal of a call that cannot be sent again, for the calls after it."""
        if self._journey.can_heal(ended.remote) and not self._journey.is_frozen(ended.remote):
            try:
                await self._journey.heal(ended.remote, self.placement)
            except RouteUnsettled:
                return

    async def _thaw(self, lane: Lane) -> None:
        """Wait a moment for a frozen bucket, a little longer each time.

        Raises: BucketFrozen when it stays frozen for longer than a move may take.
        """
        now = time.monotonic()
        self._frozen_until = self._frozen_until or now + FROZEN_S_MAX
        pause_s = min(FROZEN_PAUSE_S * 2**self._thaws, FROZEN_PAUSE_S_MAX) * random.uniform(0.5, 1)
        if now + pause_s > self._frozen_until or pause_s > self.timeout_s():
            raise BucketFrozen(bucket=self.placement.bucket)
        self._thaws += 1
        metrics.RESENT.labels(lane.name, "frozen").inc()
        await asyncio.sleep(pause_s)

    def arrived(self, lane: Lane) -> None:
        """The lane served the call."""
        lane.budget.earn()
        self._journey.arrived()

    def _may_resend(self, ended: Ended, lane: Lane) -> bool:
        harmless = ended.did_nothing or (ended.lost and self._passed.repeatable)
        return harmless and self._sends < SEND_TRIES_MAX and lane.budget.spend()
