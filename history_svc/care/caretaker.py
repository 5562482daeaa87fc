"""Carries a shard's operations on while this process leads the shard, and opens those that are needed."""

from __future__ import annotations

import math
from datetime import timedelta
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


FAILURES = (OrdermeshError, EventsUnavailable, QuarantineFull)
"""What a step may end with that is tried again."""


class NotOurs(Exception):
    """The operation was cancelled, or somebody else leads the shard by now."""


class Caretaker:
    """A loop that cares for one shard's part of the projection."""

    def __init__(self, parts: Parts, leadership: Leadership) -> None:
        self.name = f"care.{parts.care.shard}"
        self._parts = parts
        self._leadership = leadership
        self._looked_at = -math.inf

    async def run(self) -> None:
        """Care until cancelled. Whatever fails is noted, and done again ever more rarely."""
        while True:
            await self._leadership.while_leading(
                self._care, shows=[metrics.OPERATIONS_OPEN, metrics.MONTHS_UNSERVED]
            )

    async def _care(self, term: int) -> None:
        clock = self._parts.clock
        self._looked_at = -math.inf  # Nobody has looked in this term.
        failures = 0
        while True:
            pause_s = self._parts.pacing.every_s
            try:
                if await self.step(term):
                    pause_s = 0.0
                failures = 0
            except FAILURES as failed:
                # The shard itself cannot be asked.
                failures += 1
                log.warning("care_failed", shard=self._parts.care.shard, because=_why(failed))
                pause_s = min(AGAIN_S_MAX, pause_s * 2.0 ** min(failures - 1, 8))
            await clock.sleep(pause_s * (0.75 + 0.5 * self._parts.jitter()))

    async def step(self, term: int) -> bool:
        """Look now and then for what is needed, and do the next step of the next operation; whether there was
        one. A step that fails is done again later, and lets other operations go on.

        Raises: what the store raises.
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
            after = await operating.step(self._parts, operation, term, keep)
            await keep(after)
        except NotOurs:
            return True
        except FAILURES as failed:
            await self._defer(operation, term, failed)
            return True
        if after.state is not State.OPEN:
            self._tell(after)
        elif after == operation or (after.phase is operation.phase and after.note):
            await self._parts.clock.sleep(WAITS_S)
        return True

    def _tell(self, ended: Operation) -> None:
        shard = self._parts.care.shard
        metrics.OPERATIONS.labels(shard, ended.kind.value, ended.state.value).inc()
        log.info(
            "operation_ended",
            shard=shard,
            kind=ended.kind.value,
            month=ended.month.isoformat() if ended.month else None,
            state=ended.state.value,
            because=ended.note,
        )

    async def _defer(self, operation: Operation, term: int, failed: Exception) -> None:
        """Note why an operation does not go on, and let it wait."""
        parts = self._parts
        metrics.OPERATION_FAILURES.labels(parts.care.shard, type(failed).__name__).inc()
        log.warning(
            "operation_failed", shard=parts.care.shard, kind=operation.kind.value, because=_why(failed)
        )
        await parts.care.defer(
            operation.operation_id,
            term,
            f"again after {_why(failed)}",
            first=timedelta(seconds=parts.pacing.every_s),
            most=timedelta(seconds=AGAIN_S_MAX),
        )

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
        repairs = kind is Kind.VERIFY
        await self._parts.care.open(uuid4(), kind, month, repairs=repairs, actor=ACTOR, reason=reason)


def _why(failed: Exception) -> str:
    return f"{type(failed).__name__}: {getattr(failed, 'facts', None) or failed}"
