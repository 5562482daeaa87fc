"""Keeps partitions ahead of the clock, so that no insert ever finds none.

Each partition is made in a transaction of its own, aside and then attached, under a short lock timeout: who
holds the table up is waited for in many short tries and never queued behind. A table with a default partition
is left alone and reported, as is one that nobody here knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from archive_svc import metrics
from archive_svc.domain import SHORT, TABLES, missing, reach, strange
from chassis import faults
from chassis.errors import Contended, OrdermeshError

if TYPE_CHECKING:
    from collections.abc import Callable

    from archive_svc.domain import Ahead, Making
    from archive_svc.store import PartitionStore
    from chassis.clock import Clock

log = structlog.get_logger("keeper")
TRIES_MAX = 8
PAUSE_S = 0.2
PAUSE_S_MAX = 5.0

AFTER_MAKE = faults.declare("keeper.after_make", "One partition is there; those after it may be missing.")


class Keeper:
    """A loop that makes the partitions of one shard.

    look_s, again_s: pause after a look that found all well, and the longest after another.
    jitter:          gives 0 to 1, by which pauses are multiplied.
    """

    def __init__(
        self,
        store: PartitionStore,
        ahead: Ahead,
        clock: Clock,
        jitter: Callable[[], float],
        *,
        look_s: float,
        again_s: float,
    ) -> None:
        self.name = f"keeper.{store.shard}"
        self._store = store
        self._ahead = ahead
        self._clock = clock
        self._jitter = jitter
        self._look_s = look_s
        self._again_s = again_s

    async def run(self) -> None:
        """Look until cancelled; a shard that does not answer is asked again soon."""
        while True:
            is_well = False
            try:
                is_well = await self.once()
            except OrdermeshError as failed:
                log.warning("partitions_not_seen", shard=self._store.shard, reason=failed.reason)
            pause_s = self._look_s if is_well else self._again_s
            await self._clock.sleep(pause_s * (0.5 + 0.5 * self._jitter()))

    async def once(self) -> bool:
        """Make what is missing, and say how far partitions reach; whether all is well.

        Idempotent, also when several do it at once. Raises: what chassis.pg raises, when looking fails.
        """
        makings = missing(await self._store.partitions(), self._ahead, await self._store.now())
        made = [making for making in makings if await self._make(making)]
        there, at = await self._store.partitions(), await self._store.now()
        left = missing(there, self._ahead, at)
        for making in left:
            if making in made:
                self._failed(making, "NAME_TAKEN")
        is_well = not left
        for name, why in strange(there):
            is_well = False
            log.error("partitions_strange", shard=self._store.shard, table=name, why=why)
        for table in TABLES:
            until = reach(there[table.name].spans, at) if table.name in there else None
            metrics.UNTIL.labels(self._store.shard, table.name).set(until.timestamp() if until else 0)
            if until is None or until - at < SHORT[table.period]:
                log.error(
                    "partitions_short", shard=self._store.shard, table=table.name, until=until and str(until)
                )
        return is_well

    async def _make(self, making: Making) -> bool:
        """Make one partition in several tries; False when it could not be made."""
        table, shard = making.table.name, self._store.shard
        for number in range(TRIES_MAX):
            try:
                made = await self._store.make(making)
            except Contended:
                await self._clock.sleep(min(PAUSE_S_MAX, PAUSE_S * 2.0**number) * self._jitter())
                continue
            except OrdermeshError as failed:
                return self._failed(making, failed.reason)
            if made:
                metrics.MADE.labels(shard, table).inc()
                log.info("partition_made", shard=shard, table=table, suffix=making.suffix)
                await faults.point(AFTER_MAKE)
            return True
        return self._failed(making, Contended.reason)

    def _failed(self, making: Making, reason: str) -> bool:
        shard = self._store.shard
        metrics.FAILURES.labels(shard, reason).inc()
        log.error(
            "partition_failed", shard=shard, table=making.table.name, suffix=making.suffix, reason=reason
        )
        return False
