"""Keeps a shard's outbox short: a day goes when it is old and everybody has read it, or when the disk needs
it.

First the floor is raised, and for a minute readers may find out that they stand below it; then the day is
detached without holding anybody up, and dropped. The order database must never fill up because a read model
is dead: above `bytes_max` the oldest days go unread, and what stood in them has to be rebuilt. For the leader
only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from chassis import pg
from chassis.errors import OrdermeshError
from history_svc import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chassis.clock import Clock
    from history_svc.channel.leadership import Leadership

log = structlog.get_logger("retention")
QUERIES = pg.queries("history_svc.projector", "retention.sql")
EVERY_S = 30.0
FLOOR_AGE_MIN = timedelta(minutes=1)
"""A page that was begun on the old floor has ended by then."""
_DAY = re.compile(r"outbox_\d{4}_\d{2}_\d{2}")


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long changes are kept. reads_cursors: whether a day must be published as well."""

    age: timedelta
    bytes_max: int
    reads_cursors: bool


class Day(NamedTuple):
    """A day of the outbox that is over, with what is the same for all of them."""

    name: str
    is_attached: bool
    is_known: bool
    is_old: bool
    size_bytes: int
    outbox_bytes: int
    log_epoch: int
    floor_is_current: bool
    floor_xid: int | None
    floor_age: timedelta | None
    read_xid: int | None


class Retention:
    """A loop that drops days of one shard's outbox while this process leads the shard."""

    def __init__(
        self, shard: str, database: pg.Database, leadership: Leadership, keeping: Keeping, clock: Clock
    ) -> None:
        self.name = f"retention.{shard}"
        self._shard = shard
        self._database = database
        self._leadership = leadership
        self._keeping = keeping
        self._clock = clock

    async def run(self) -> None:
        """Look every half minute until cancelled; a failure is logged, the next look goes on from there."""
        while True:
            await self._leadership.while_leading(self._keep, shows=[metrics.OUTBOX_BYTES])

    async def _keep(self, _term: int) -> None:
        while True:
            try:
                while await self.step():
                    continue
            except OrdermeshError as failed:
                log.warning("retention_failed", shard=self._shard, reason=failed.reason)
            await self._clock.sleep(EVERY_S)

    async def step(self) -> bool:
        """Do the one thing that is next; whether there may be another now.

        Idempotent: what a step began is seen and ended by the next, also by another process's.
        Raises: what chassis.pg raises.
        """
        days = await self._days()
        metrics.OUTBOX_BYTES.labels(self._shard).set(days[0].outbox_bytes if days else 0)
        for day in days:
            if not day.is_attached:
                await self._remove(day, is_read=True)
                return True
        oldest = next(iter(days), None)
        if oldest is None:
            return False
        is_crowded = oldest.outbox_bytes > self._keeping.bytes_max
        if not oldest.is_old and not is_crowded:
            return False
        return await self._let_go(oldest, is_crowded=is_crowded)

    async def _days(self) -> Sequence[Day]:
        found = await self._database.fetch(QUERIES.list_days, self._keeping.age, self._keeping.reads_cursors)
        return [Day(*row.values()) for row in found]

    async def _let_go(self, day: Day, *, is_crowded: bool) -> bool:
        last = await self._database.fetchval(_about(day, QUERIES.last_of_day))
        if last is None:
            await self._remove(day, is_read=True)
            return True
        floor = last + 1
        is_read = day.read_xid is not None and day.read_xid >= floor
        if not is_read and not is_crowded:
            return False
        if not day.floor_is_current or day.floor_xid is None or day.floor_xid < floor:
            await self._database.execute(QUERIES.raise_floor, day.log_epoch, floor)
            log.info("floor_raised", shard=self._shard, day=day.name, xid=floor)
            return False
        if day.floor_age is None or day.floor_age < FLOOR_AGE_MIN:
            return False
        await self._remove(day, is_read=is_read)
        return True

    async def _remove(self, day: Day, *, is_read: bool) -> None:
        if day.is_attached:
            await self._database.execute(_about(day, QUERIES.detach_day))
        elif day.is_known:
            await self._database.execute(_about(day, QUERIES.resume_detach))
        await self._database.execute(_about(day, QUERIES.drop_day))
        metrics.DAYS_DROPPED.labels(self._shard, "yes" if is_read else "no").inc()
        tell: Any = log.info if is_read else log.error
        tell("day_dropped", shard=self._shard, day=day.name, size_bytes=day.size_bytes, is_read=is_read)


def _about(day: Day, statement: str) -> str:
    """A statement with a day's name in it; a name cannot be an argument."""
    assert _DAY.fullmatch(day.name), day.name
    return statement.format(day=day.name)
