"""Carries a shard's operations on while this process leads the shard, and opens those that are needed."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from chassis.errors import OrdermeshError
from history_svc import metrics
from history_svc.care import operating
from history_svc.care.operation import ACTOR, Kind, State
from history_svc.errors import EventsUnavailable
from history_svc.projector.indexer import QuarantineFull

if TYPE_CHECKING:
    from datetime import date

    from history_svc.care.operation import Operation
    from history_svc.care.parts import Parts
    from history_svc.channel.leadership import Leadership

log = structlog.get_logger("care")
AGAIN_S_MAX = 30.0
WAITS_S = 0.25
"""Between two steps of an operation that waits for somebody else."""


class NotOurs(Exception):
    """The operation was cancelled, or somebody else leads the shard by now."""


class Caretaker:
    """A loop that cares for one shard's part of the projection."""

    def __init__(self, parts: Parts, leadership: Leadership) -> None:
        self.name = f"care.{parts.care.shard}"
        self._parts = parts
        self._leadership = leadership
        self._failures = 0
        self._looked_at = -math.inf

    async def run(self) -> None:
        """Care until cancelled. Whatever fails is noted, and done again ever more rarely."""
        while True:
            await self._leadership.while_leading(self._care)

    async def _care(self, term: int) -> None:
        clock = self._parts.clock
        while True:
            pause_s = self._parts.pacing.every_s
            try:
                if await self.step(term):
                    pause_s = 0.0
                self._failures = 0
            except (OrdermeshError, EventsUnavailable, QuarantineFull) as failed:
                pause_s = await self._failed(failed, term)
            await clock.sleep(pause_s * (0.75 + 0.5 * self._parts.jitter()))

    async def step(self, term: int) -> bool:
        """Look now and then for what is needed, and do the next step of the next operation; whether there was
        one.

        Raises: as `operating.step`.
        """
        now = self._parts.clock.monotonic()
        if now - self._looked_at >= self._parts.pacing.every_s:
            await self._look()
            self._looked_at = now
        operation = await self._parts.care.next()
        if operation is None:
            return False

        async def keep(moved: Operation) -> None:
            if not await self._parts.care.keep(moved, term):
                raise NotOurs

        try:
            after = await operating.step(self._parts, operation, keep)
            await keep(after)
        except NotOurs:
            return True
        if after.state is not State.OPEN:
            shard = self._parts.care.shard
            metrics.OPERATIONS.labels(shard, after.kind.value, after.state.value).inc()
            log.info(
                "operation_ended",
                shard=shard,
                kind=after.kind.value,
                month=after.month.isoformat() if after.month else None,
                state=after.state.value,
                because=after.note,
            )
        elif after == operation or (after.phase is operation.phase and after.note):
            await self._parts.clock.sleep(WAITS_S)
        return True

    async def _look(self) -> None:
        """Open what is needed."""
        parts, pacing = self._parts, self._parts.pacing
        needs = await parts.care.needs(again_after=pacing.again_after, verify_every=pacing.verify_every)
        metrics.OPERATIONS_OPEN.labels(parts.care.shard).set(needs.open)
        metrics.MONTHS_UNSERVED.labels(parts.care.shard).set(needs.months_unserved)
        if needs.is_lost:
            await self._open(Kind.RESET, None, "changes are gone that the watermarks never passed")
            return
        for month in needs.unserved:
            await self._open(Kind.REBUILD, month, "no index serves the month")
        if needs.unverified and not needs.open:
            await self._open(Kind.VERIFY, needs.unverified[-1], "it is due")

    async def _open(self, kind: Kind, month: date | None, reason: str) -> None:
        await self._parts.care.open(uuid4(), kind, month, repairs=False, actor=ACTOR, reason=reason)

    async def _failed(self, failed: Exception, term: int) -> float:
        """Note why the next operation does not go on; how long to wait."""
        self._failures += 1
        parts = self._parts
        because = f"{type(failed).__name__}: {getattr(failed, 'facts', None) or failed}"
        metrics.OPERATION_FAILURES.labels(parts.care.shard, type(failed).__name__).inc()
        log.warning("care_failed", shard=parts.care.shard, because=because)
        try:
            async with asyncio.timeout(parts.pacing.every_s):
                operation = await parts.care.next()
                if operation is not None:
                    await parts.care.keep(replace(operation, note=f"again after {because}"), term)
        except (OrdermeshError, TimeoutError):
            log.info("care_not_noted", shard=parts.care.shard)
        return min(AGAIN_S_MAX, parts.pacing.every_s * 2.0 ** min(self._failures - 1, 8))
