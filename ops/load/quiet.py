"""Waiting until nothing is in motion: no timer but of parked orders on any shard, nothing that an upstream
will still execute.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ops.audit.run import ledgers_of
from ops.audit.shards import StoreUnreadable, fetch

if TYPE_CHECKING:
    from collections.abc import Callable

    from ops.stack.endpoints import Endpoints

LOOK_EVERY_S = 0.5
SAY_EVERY_S = 5.0
_IN_MOTION = "SELECT order_id::text FROM order_timers WHERE stage <> 'PARKED'"


@dataclass(frozen=True, slots=True)
class Quiet:
    """How the waiting ended. in_motion: orders neither settled nor parked; due: executions yet to come;
    others: of orders that were in motion before the run, and still are.
    """

    waited_s: float
    in_motion: int
    due: int
    others: int = 0

    @property
    def reached(self) -> bool:
        """Whether all of the run was quiet before the time was up."""
        return self.in_motion == 0 and self.due == 0

    @property
    def is_still(self) -> bool:
        """Whether nothing at all is in motion."""
        return self.reached and self.others == 0


async def in_motion(endpoints: Endpoints) -> frozenset[str]:
    """Orders that are neither settled nor parked, such as those that a seeding left hanging.

    Raises: StoreUnreadable.
    """
    found: set[str] = set()
    for shard, dsn in endpoints.shard_dsns().items():
        found.update(row["order_id"] for row in await fetch(shard, dsn, _IN_MOTION))
    return frozenset(found)


async def until_quiet(
    endpoints: Endpoints,
    timeout_s: float,
    say: Callable[[str], None],
    before: frozenset[str] = frozenset(),
) -> Quiet:
    """Wait, at most `timeout_s`; a database that is starting again counts as in motion. before: orders that
    are not waited for.
    """
    started = said = time.monotonic()
    while True:
        now = await _look(endpoints, started, before)
        if now.reached or now.waited_s >= timeout_s:
            return now
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            say(f"settling, {now.in_motion} in motion, {now.due} to be executed late")
        await asyncio.sleep(LOOK_EVERY_S)


async def _look(endpoints: Endpoints, started: float, before: frozenset[str]) -> Quiet:
    moving: list[str] = []
    for shard, dsn in endpoints.shard_dsns().items():
        try:
            moving += [row["order_id"] for row in await fetch(shard, dsn, _IN_MOTION)]
        except StoreUnreadable:
            moving.append(shard)
    due = [order_id for ledger in ledgers_of(endpoints) for order_id in await ledger.pending()]
    return Quiet(
        round(time.monotonic() - started, 1),
        in_motion=sum(each not in before for each in moving),
        due=sum(each not in before for each in due),
        others=len(before.intersection([*moving, *due])),
    )
