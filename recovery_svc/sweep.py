"""The sweep: every shard has a loop of its own that claims what is due and hands it to the prober.

A slow or dead shard delays nobody else: each loop has its own slots, deadlines and backoff. Claims ask for no
more than there are free slots, of the shard and of the upstreams. All loops of all processes may sweep the
same shard; claims keep them apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

import structlog

from chassis import faults, meters
from chassis.clock import Clock
from chassis.supervise import LoopDied, OwnedTasks
from recovery_svc import metrics
from recovery_svc.clients import Mesh
from recovery_svc.domain import Claim, Rhythm, shift
from recovery_svc.errors import CallFailed
from recovery_svc.probe import Prober
from recovery_svc.settings import RecoverySettings

log = structlog.get_logger("sweep")
AFTER_CLAIM = faults.declare("sweep.after_claim", "orders are claimed; nobody works on them")


class ShardSweep:
    """Sweeps one shard."""

    def __init__(
        self,
        shard: str,
        mesh: Mesh,
        prober: Prober,
        owned: OwnedTasks,
        settings: RecoverySettings,
        *,
        clock: Clock,
        draw: Callable[[], float],
    ) -> None:
        self.shard = shard
        self.name = f"sweep {shard}"
        self.last_sweep: datetime | None = None
        self.probe_count = 0
        self._mesh = mesh
        self._prober = prober
        self._owned = owned
        self._settings = settings
        self._clock = clock
        self._draw = draw
        self._rhythm = Rhythm(settings.sweep_period_s, settings.sweep_jitter, settings.sweep_backoff_s_max)
        self._free = settings.slots_per_shard
        self._freed = asyncio.Event()
        self._failures = 0
        # A claim that is cut off may have been granted: its orders would wait for the end of the lease.
        self._claiming = OwnedTasks(limit=1)
        metrics.IN_FLIGHT.labels(shard)  # a zero from the start

    async def run(self) -> None:
        """Claim and hand over, until cancelled. What was handed over goes on."""
        # There from now on, as 0 until the shard answers: an alert sees no series that is not there.
        metrics.SWEPT_UNTIL.labels(self.shard)
        while True:
            await self._a_free_slot()
            pause_s = await self._claiming.run(self._sweep(), name=self.name)
            await self._clock.sleep(pause_s)

    async def settle(self) -> None:
        """After a cancelled run: let a claim that is on its way arrive and hand it over."""
        await self._claiming.drain(self._settings.claim_timeout_s + 1.0)
        metrics.SWEPT_UNTIL.remove_by_labels({"shard": self.shard})

    async def _sweep(self) -> float:
        """Claim once; returns how long to pause, which is not at all while there is more than we can take."""
        limit, began = min(self._free, self._prober.room()), self._clock.monotonic()
        if limit == 0:
            return self._rhythm.pause_s(self._draw())
        try:
            claims = await self._claim(limit)
        except CallFailed as failed:
            self._failures += 1
            self._note(failed.code.name)
            log.warning("shard_not_swept", shard=self.shard, code=failed.code.name, failures=self._failures)
            return self._rhythm.pause_s(self._draw(), failures=self._failures)
        self._failures = 0
        self._note("OK", len(claims))
        if claims:
            await faults.point(AFTER_CLAIM)
        for claim in claims:
            self._begin(claim, self._prober.lease_ends(began))
        return 0.0 if len(claims) >= limit else self._rhythm.pause_s(self._draw())

    async def _claim(self, limit: int) -> list[Claim]:
        settings = self._settings
        return await self._mesh.claim(
            self.shard, limit=limit, lease_s=settings.lease_s, timeout_s=settings.claim_timeout_s
        )

    async def _a_free_slot(self) -> None:
        """Wait until a slot is free; each is given back within a lease."""
        while self._free == 0:
            self._freed.clear()
            await self._freed.wait()

    def _begin(self, claim: Claim, lease_ends: float) -> None:
        work = self._prober.recover(claim, lease_ends)
        task = self._owned.start(work, name=f"recover {claim.order_id}")
        self._free -= 1
        self.probe_count += 1
        metrics.IN_FLIGHT.labels(self.shard).inc()
        task.add_done_callback(self._ended)

    def _ended(self, _: object) -> None:
        self._free += 1
        metrics.IN_FLIGHT.labels(self.shard).dec()
        self._freed.set()

    def _note(self, code: str, claimed: int = 0) -> None:
        metrics.SWEEPS.labels(self.shard, code).inc()
        if code == "OK":
            self.last_sweep = self._clock.now()
            metrics.SWEPT_UNTIL.labels(self.shard).set(self.last_sweep.timestamp())
            metrics.CLAIMS.labels(self.shard).inc(claimed)


class Sweeps:
    """Keeps one ShardSweep running for each shard of the map."""

    name = "sweeps"

    def __init__(
        self, mesh: Mesh, settings: RecoverySettings, *, clock: Clock, begin: Callable[[str], ShardSweep]
    ) -> None:
        self._mesh = mesh
        self._settings = settings
        self._clock = clock
        self._begin = begin
        self._running: dict[str, tuple[ShardSweep, asyncio.Task[None]]] = {}
        self._stopped = False

    @property
    def sweeps(self) -> dict[str, ShardSweep]:
        """The sweep of each shard that is swept now."""
        return {shard: sweep for shard, (sweep, _) in self._running.items()}

    async def run(self) -> None:
        """Follow the map until cancelled or stopped.

        Raises: LoopDied when the loop of a shard ended by itself.
        """
        try:
            await self._clock.sleep(self._settings.startup_grace_s)
            while not self._stopped:
                await self._follow_map()
                await self._watch(self._settings.shards_refresh_s)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Claim nothing more; claims on their way are handed over first."""
        self._stopped = True
        await self._leave(frozenset(self._running))

    async def _follow_map(self) -> None:
        """Begin and leave shards as the map says; without an answer all goes on as it is."""
        try:
            listed = await self._mesh.shards()
        except CallFailed as failed:
            log.warning("map_not_read", code=failed.code.name)
            return
        if self._stopped:
            return
        meters.know(shard=listed)
        change = shift(frozenset(self._running), listed)
        for shard in sorted(change.begin):
            sweep = self._begin(shard)
            self._running[shard] = sweep, asyncio.create_task(sweep.run(), name=sweep.name)
        await self._leave(change.leave)
        metrics.SHARDS.set(len(self._running))

    async def _watch(self, time_s: float) -> None:
        """Wait for the next look at the map, but not longer than every loop lives."""
        tasks = [task for _, task in self._running.values()]
        if not tasks:
            await self._clock.sleep(min(time_s, self._settings.sweep_period_s))
            return
        done, _ = await asyncio.wait(tasks, timeout=time_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not self._stopped:
                raise LoopDied(task.get_name()) from task.exception()

    async def _leave(self, shards: frozenset[str]) -> None:
        left = [self._running.pop(shard) for shard in shards]
        for _, task in left:
            task.cancel()
        await asyncio.gather(*(task for _, task in left), return_exceptions=True)
        await asyncio.gather(*(sweep.settle() for sweep, _ in left))
