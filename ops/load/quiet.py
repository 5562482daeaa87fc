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
_IN_MOTION = "SELECT count(*) FROM order_timers WHERE stage <> 'PARKED'"


@dataclass(frozen=True, slots=True)
class Quiet:
    """How the waiting ended. in_motion: orders neither settled nor parked; due: executions yet to come."""

    waited_s: float
    in_motion: int
    due: int

    @property
    def reached(self) -> bool:
        """Whether all was quiet before the time was up."""
        return self.in_motion == 0 and self.due == 0


async def until_quiet(endpoints: Endpoints, timeout_s: float, say: Callable[[str], None]) -> Quiet:
    """Wait, at most `timeout_s`; a database that is starting again counts as in motion."""
    started = said = time.monotonic()
    while True:
        now = await _look(endpoints, started)
        if now.reached or now.waited_s >= timeout_s:
            return now
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            say(f"settling, {now.in_motion} in motion, {now.due} to be executed late")
        await asyncio.sleep(LOOK_EVERY_S)


async def _look(endpoints: Endpoints, started: float) -> Quiet:
    in_motion = sum([await _in_motion(shard, dsn) for shard, dsn in endpoints.shard_dsns().items()])
    due = sum([await ledger.pending_count() for ledger in ledgers_of(endpoints)])
    return Quiet(round(time.monotonic() - started, 1), in_motion, due)


async def _in_motion(shard: str, dsn: str) -> int:
    try:
        return int((await fetch(shard, dsn, _IN_MOTION))[0]["count"])
    except StoreUnreadable:
        return 1
