"""Compares an index with its shard, and writes again what is missing or stale there."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from history_svc import metrics
from history_svc.care.comparing import Difference, Versions, differences, differing_days, suspects
from history_svc.care.operation import Findings
from history_svc.care.writing import OrderWriter
from history_svc.errors import EventsUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from datetime import date, datetime

    from history_svc.care.parts import Parts
    from history_svc.readmodel.port import DaySum, Entry

log = structlog.get_logger("care")
ENTRIES_MAX = 2000
"""Orders compared at once."""
LOOK_EVERY_S = 0.1
NAMED_MAX = 20
"""Orders of a day that a log line names."""


class Comparison:
    """One comparison of one index with one shard.

    repairs: whether what is missing or stale is written again.
    """

    def __init__(self, parts: Parts, index_name: str, *, repairs: bool) -> None:
        self._parts = parts
        self._index = index_name
        self._repairs = repairs
        self._writer = OrderWriter(parts)

    async def run(self, start: datetime, end: datetime, seen: Callable[[int], Awaitable[None]]) -> Findings:
        """Compare the days from start to end, UTC midnights; seen: told how many orders were added up so far.

        If cancelled here: some of what is wrong may be written again.
        Raises: EventsUnavailable when the watermark does not come along; ReadModelUnavailable,
        QuarantineFull, and what the store raises.
        """
        partitions = (await self._parts.projection.started()).streams.partitions
        ours: list[DaySum] = []
        day = start
        while day < end:
            ours += await self._parts.care.add_up(day.date())
            await seen(sum(each.count for each in ours))
            day += timedelta(days=1)
        await self._settled()
        theirs = await self._parts.read_model.sums(self._index, partitions)
        found = Findings()
        for partition, differing in differing_days(ours, theirs):
            found += await self._day(partition, differing)
        return found

    async def _day(self, partition: int, day: date) -> Findings:
        """Compare one day order by order: as far at once as a page of either side goes."""
        found, after = Findings(), ""
        while True:
            before = await self._parts.care.versions(partition, day, after, ENTRIES_MAX)
            await self._settled()
            index = await self._parts.read_model.entries(
                self._index, partition, day, after=after, limit=ENTRIES_MAX
            )
            last = min(
                (page[-1].order_id for page in (before, index) if len(page) == ENTRIES_MAX), default=""
            )
            wrong = await self._wrong(_up_to(last, before), _up_to(last, index))
            found += await self._judge(partition, day, wrong)
            if not last:
                return found
            after = last

    async def _wrong(self, before: Mapping[str, int], index: Mapping[str, int]) -> dict[str, Difference]:
        asked = [UUID(order_id) for order_id in suspects(before, index)]
        if not asked:
            return {}
        now = {str(row.order_id): row.version for row in await self._parts.care.orders_of(asked)}
        quarantined = await self._parts.care.quarantined(asked)
        return differences(Versions(before, index, now), quarantined)

    async def _judge(self, partition: int, day: date, wrong: Mapping[str, Difference]) -> Findings:
        """Say what is wrong, and write again what that helps."""
        if not wrong:
            return Findings()
        counts = {how.value: sum(each is how for each in wrong.values()) for how in Difference}
        for how, count in counts.items():
            metrics.DIFFERENCES.labels(self._parts.care.shard, how).inc(count)
        log.error(
            "projection_differs",
            shard=self._parts.care.shard,
            index=self._index,
            partition=partition,
            day=day.isoformat(),
            orders=sorted(wrong)[:NAMED_MAX],
            **counts,
        )
        found = Findings(**counts)
        again = [UUID(each) for each, how in wrong.items() if how in (Difference.MISSING, Difference.STALE)]
        if not (self._repairs and again):
            return found
        rows = await self._parts.care.orders_of(again)
        put = await self._writer.put(rows, dict.fromkeys(again, (self._index,)), again=True)
        await self._parts.read_model.refresh([self._index])
        return found + Findings(refused=put.refused, repaired=len(put.written))

    async def _settled(self) -> None:
        """Wait until the watermark has passed everything that was read from the shard so far."""
        clock, care = self._parts.clock, self._parts.care
        fence = await care.fence()
        end = clock.monotonic() + self._parts.pacing.settle_s
        while not await care.is_past(fence):
            if clock.monotonic() > end:
                raise EventsUnavailable("the watermark does not come along")
            await clock.sleep(LOOK_EVERY_S)


def _up_to(last: str, entries: Sequence[Entry]) -> dict[str, int]:
    """Versions by order id, up to one of them; all when that is empty."""
    return {entry.order_id: entry.version for entry in entries if not last or entry.order_id <= last}
