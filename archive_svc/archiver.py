"""Takes the months that somebody wants out of a shard, one step at a time, the oldest first.

One process at a time does so, under a lease whose fence every change names. A step that fails waits ever
longer and lets others go on; what does not agree with Postgres is quarantined and waits for a person.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from archive_svc import metrics, points
from archive_svc.editions import store_manifest
from archive_svc.errors import LeaseLost
from archive_svc.lifecycle import (
    DAMAGES_MAX,
    Month,
    State,
    Step,
    next_due,
    pause_after,
    ripe_until,
)
from archive_svc.retention import NOT_LOCKED
from archive_svc.segment import RowsRefused, SegmentDamaged
from archive_svc.verify import Mismatch
from chassis import faults
from chassis.errors import OrdermeshError
from chassis.s3 import S3Error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from archive_svc.catalog import Catalog
    from archive_svc.detach import Detacher
    from archive_svc.erase import Eraser
    from archive_svc.export import Exporter
    from archive_svc.restore import Restorer
    from archive_svc.retention import Retention
    from archive_svc.sweep import Sweeper
    from archive_svc.verify import Verifier
    from chassis.clock import Clock
    from chassis.s3 import ObjectStore

log = structlog.get_logger("archiver")
ACTOR = "archive_svc"
WAITS = timedelta(seconds=0.5)
"""Between two looks at something that comes by itself."""
BLOCKED = timedelta(minutes=1)
"""Between two looks at something that somebody has to do."""


@dataclass(frozen=True, slots=True)
class Pacing:
    """How old a month has to be, and how long its tables stay when nobody reads them any more.

    reach:        how far months go by themselves when they are old enough; None when somebody has to ask.
    lease:        how long a process that died keeps the shard; a living one tries to keep it as long.
    look_s:       pause after a look that found nothing to do.
    enough_for:   a segment that was read back is read once more after so long, for ever.
    part_bytes:   of rows in a part; a segment is a fraction of it.
    """

    months_min: int
    days_min: int
    settle: timedelta
    grace: timedelta
    reach: State | None
    lease: timedelta
    look_s: float
    enough_for: timedelta
    part_bytes: int


class Archiver:
    """A loop that archives one shard. holder: what nobody else is called. jitter: gives 0 to 1."""

    def __init__(
        self,
        catalog: Catalog,
        store: ObjectStore,
        exporter: Exporter,
        verifier: Verifier,
        detacher: Detacher,
        restorer: Restorer,
        eraser: Eraser,
        sweeper: Sweeper,
        pacing: Pacing,
        clock: Clock,
        jitter: Callable[[], float],
        *,
        holder: str,
        retention: Retention = NOT_LOCKED,
    ) -> None:
        self._retention = retention
        self.name = f"archiver.{catalog.shard}"
        self._catalog = catalog
        self._store = store
        self._exporter = exporter
        self._verifier = verifier
        self._detacher = detacher
        self._restorer = restorer
        self._eraser = eraser
        self._sweeper = sweeper
        self._pacing = pacing
        self._clock = clock
        self._jitter = jitter
        self._holder = holder
        self._steps = {
            Step.FREEZE: self._freeze,
            Step.PLAN: self._plan,
            Step.EXPORT: self._export,
            Step.VERIFY: self._verify,
            Step.COMMIT: self._commit,
            Step.LEAVE: self._leave,
            Step.DETACH: self._detach,
            Step.DROP: self._drop,
            Step.THAW: self._thaw,
            Step.MAKE_TABLES: self._make_tables,
            Step.RESTORE: self._restore,
        }

    async def run(self) -> None:
        """Archive until cancelled; a shard that does not answer is asked again."""
        while True:
            try:
                fence = await self._catalog.take_lease(self._holder, self._pacing.lease)
                if fence is not None:
                    await self._while_held(fence)
            except LeaseLost:
                log.warning("lease_lost", shard=self._catalog.shard)
            except OrdermeshError as failed:
                log.warning("archiver_failed", shard=self._catalog.shard, reason=failed.reason)
            await self._clock.sleep(self._pacing.look_s * (0.5 + 0.5 * self._jitter()))

    async def _while_held(self, fence: int) -> None:
        """Work under one fence, until it is lost or the shard does not answer. Raises: what ended it."""
        renewing = asyncio.create_task(self._renew(fence), name=f"{self.name}.renew")
        working = asyncio.create_task(self._work(fence), name=f"{self.name}.work")
        try:
            done, _ = await asyncio.wait((renewing, working), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (working, renewing):
                task.cancel()
            await asyncio.gather(working, renewing, return_exceptions=True)
            await self._give_back(fence)

    async def _renew(self, fence: int) -> None:
        """Keep the lease. Raises: LeaseLost; why a try failed that began when it could be somebody else's.

        A step may lock the lease for seconds, such as a freeze that waits for who writes; that is waited out.
        """
        lease_s = self._pacing.lease.total_seconds()
        kept_at = self._clock.monotonic()
        pause_s = lease_s / 3
        while True:
            await self._clock.sleep(pause_s)
            asked_at = self._clock.monotonic()
            try:
                await self._catalog.renew_lease(fence, self._pacing.lease)
            except LeaseLost:
                raise
            except OrdermeshError as failed:
                if asked_at - kept_at >= lease_s:
                    raise
                log.info("lease_not_renewed", shard=self._catalog.shard, reason=failed.reason)
                pause_s = lease_s / 30
            else:
                kept_at, pause_s = asked_at, lease_s / 3

    async def _work(self, fence: int) -> None:
        while True:
            if not await self.once(fence):
                await self._clock.sleep(self._pacing.look_s * (0.5 + 0.5 * self._jitter()))

    async def _give_back(self, fence: int) -> None:
        try:
            await self._catalog.give_lease_back(fence)
        except OrdermeshError as failed:
            log.info("lease_not_given_back", shard=self._catalog.shard, reason=failed.reason)

    async def once(self, fence: int) -> bool:
        """Do the next step of the next month; whether there was one.

        Raises: LeaseLost; what chassis.pg raises when the shard does not answer.
        """
        control = await self._catalog.control()
        months = await self._catalog.months()
        if self._pacing.reach is not None and await self._want(control.at, self._pacing.reach):
            return True
        due = next_due(months, control.at, is_halted=control.is_halted)
        if due is None:
            return (
                await self._erase(fence)
                or await self._renew_manifest(months, fence)
                or await self._check(fence)
                or await self._sweep(fence, control.at)
            )
        month, step = due
        try:
            await self._steps[step](month, fence)
        except LeaseLost:
            raise
        except (Mismatch, SegmentDamaged, RowsRefused) as wrong:
            await self._quarantine(month, fence, f"{step.value}: {wrong}")
        except (OrdermeshError, S3Error) as failed:
            await self._failed(month, fence, step, failed)
        return True

    async def _erase(self, fence: int) -> bool:
        """Carry one erasure out; whether one was due. What fails is done again at the next look."""
        try:
            return await self._eraser.erase_one(fence)
        except LeaseLost:
            raise
        except (OrdermeshError, S3Error, SegmentDamaged) as failed:
            metrics.FAILED.labels(self._catalog.shard, "ERASE").inc()
            log.error("erasure_failed", shard=self._catalog.shard, because=str(failed))
            return False

    async def _renew_manifest(self, months: Sequence[Month], fence: int) -> bool:
        """Store one manifest anew that says what was true before; whether there was one."""
        older = next((month for month in months if month.is_manifest_older), None)
        if older is None:
            return False
        try:
            stored = await store_manifest(self._catalog, self._store, self._retention, older, fence)
        except S3Error as failed:
            metrics.FAILED.labels(self._catalog.shard, "CHECK").inc()
            log.warning("manifest_not_renewed", shard=self._catalog.shard, because=str(failed))
            return False
        await self._catalog.note_manifest(fence, older, stored)
        return True

    async def _check(self, fence: int) -> bool:
        """Read one segment once more; whether one was due. Damage is for a person: nobody else has it."""
        try:
            checked = await self._verifier.check_one(fence)
        except S3Error as failed:
            metrics.FAILED.labels(self._catalog.shard, "CHECK").inc()
            log.warning("check_failed", shard=self._catalog.shard, because=str(failed))
            return False
        if checked is None:
            return False
        month, wrong = checked
        if wrong:
            found = next(each for each in await self._catalog.months() if each.month == month)
            await self._quarantine(found, fence, f"CHECK: {wrong}")
        return True

    async def _sweep(self, fence: int, at: datetime) -> bool:
        """Walk over some objects in S3; whether a walk was due. What fails is done again at the next look."""
        try:
            return await self._sweeper.sweep_some(fence, at)
        except S3Error as failed:
            metrics.FAILED.labels(self._catalog.shard, "SWEEP").inc()
            log.warning("sweep_failed", shard=self._catalog.shard, because=str(failed))
            return False

    async def _want(self, at: datetime, reach: State) -> bool:
        """Ask for the oldest month that is old enough and that nobody asked for yet."""
        for view in await self._catalog.overview(self._ripe(at)):
            if view.state is None and not view.blockers:
                await self._catalog.want(view.month, uuid4(), reach, ACTOR, "it is old enough")
                return True
        return False

    def _ripe(self, at: datetime) -> datetime:
        return ripe_until(at, self._pacing.months_min, self._pacing.days_min)

    async def _freeze(self, month: Month, fence: int) -> None:
        at = (await self._catalog.control()).at
        blockers = await self._catalog.freeze(month, fence, self._ripe(at))
        if blockers:
            await self._wait(month, fence, BLOCKED, ", ".join(blockers))
            return
        self._tell(month, State.FROZEN)
        await faults.point(points.AFTER_FREEZE)

    async def _thaw(self, month: Month, fence: int) -> None:
        await self._catalog.thaw(month, fence)
        self._tell(month, State.THAWED)

    async def _plan(self, month: Month, fence: int) -> None:
        if month.frozen_at is None or not await self._catalog.is_searchable(month.frozen_at):
            await self._wait(month, fence, WAITS, "NOT_SEARCHABLE")
            return
        parts = await self._catalog.plan(month, fence, self._pacing.part_bytes)
        if parts < 0:
            await self._wait(month, fence, BLOCKED, "SETTLED_LATELY")
            return
        self._tell(month, State.PLANNED, parts=parts)
        await faults.point(points.AFTER_PLAN)

    async def _export(self, month: Month, fence: int) -> None:
        await self._exporter.export(month, fence)
        await self._catalog.move(month, fence, State.EXPORTED)
        self._tell(month, State.EXPORTED)
        await faults.point(points.AFTER_EXPORT)

    async def _verify(self, month: Month, fence: int) -> None:
        if not await self._verifier.verify(month, fence):
            if month.damages + 1 >= DAMAGES_MAX:
                await self._quarantine(month, fence, f"{DAMAGES_MAX} segments did not read back as written")
            return
        blockers = await self._catalog.prove(month, fence)
        if blockers:
            raise Mismatch(", ".join(blockers))
        self._tell(month, State.VERIFIED)
        await faults.point(points.AFTER_PROOF)

    async def _commit(self, month: Month, fence: int) -> None:
        manifest = await store_manifest(self._catalog, self._store, self._retention, month, fence)
        await faults.point(points.AFTER_MANIFEST)
        await faults.point(points.BEFORE_COMMIT)
        blockers = await self._catalog.commit(month, fence, manifest, manifest.sha256, self._pacing.settle)
        if blockers:
            await self._wait(month, fence, BLOCKED, ", ".join(blockers))
            return
        self._tell(month, State.COMMITTED)
        await faults.point(points.AFTER_COMMIT)

    async def _leave(self, month: Month, fence: int) -> None:
        if held := await self._catalog.legal_hold(month.month):
            await self._wait(month, fence, BLOCKED, held)
            return
        await self._catalog.move(month, fence, State.DETACHING)
        self._tell(month, State.DETACHING)

    async def _detach(self, month: Month, fence: int) -> None:
        if held := await self._detacher.detach(month, fence, self._pacing.grace):
            await self._wait(month, fence, BLOCKED, held)
            return
        self._tell(month, State.GRACE)
        await faults.point(points.AFTER_GRACE)

    async def _drop(self, month: Month, fence: int) -> None:
        blockers = await self._detacher.drop(month, fence)
        if "DRIFTED" in blockers:
            raise Mismatch("the tables are not what was proven any more")
        if blockers:
            await self._wait(month, fence, BLOCKED, ", ".join(blockers))
            return
        self._tell(month, State.DROPPED)
        await faults.point(points.AFTER_DROP)

    async def _make_tables(self, month: Month, fence: int) -> None:
        await self._catalog.begin_restore(month, fence)
        self._tell(month, State.RESTORING)
        await faults.point(points.AFTER_MAKE_TABLES)

    async def _restore(self, month: Month, fence: int) -> None:
        if month.state is State.RESTORING:
            await self._restorer.copy_back(month, fence)
        blockers = await self._catalog.restore(month, fence)
        if "DRIFTED" in blockers:
            raise Mismatch("the tables are not what was proven")
        if blockers:
            await self._wait(month, fence, BLOCKED, ", ".join(blockers))
            return
        self._tell(month, State.RESTORED)
        await faults.point(points.AFTER_RESTORE)

    async def _wait(self, month: Month, fence: int, wait: timedelta, why: str) -> None:
        """Let a month wait for something that is nobody's failure."""
        log.info("month_waits", shard=self._catalog.shard, month=month.name, because=why)
        await self._catalog.defer(month, fence, wait, why, is_failure=False)

    async def _failed(self, month: Month, fence: int, step: Step, failed: Exception) -> None:
        metrics.FAILED.labels(self._catalog.shard, step.value).inc()
        why = f"{step.value}: {type(failed).__name__}: {failed}"
        log.warning("step_failed", shard=self._catalog.shard, month=month.name, step=step.value, because=why)
        await self._catalog.defer(
            month, fence, pause_after(month.failures, self._jitter()), why, is_failure=True
        )

    async def _quarantine(self, month: Month, fence: int, why: str) -> None:
        log.error("month_quarantined", shard=self._catalog.shard, month=month.name, because=why)
        await self._catalog.quarantine(month, fence, why)

    def _tell(self, month: Month, state: State, **more: int) -> None:
        log.info("month_moved", shard=self._catalog.shard, month=month.name, state=state.value, **more)
