"""The book of routes: the map that calls are routed with, kept fresh from the control database and healed
by refusals.

Three sources, in this order: what the control database says now, what it said last (in memory, then on disk),
and what a shard's fence said when it refused a call. The last is kept as an overlay on one map and goes when
the control database brings another. Nothing here decides about correctness: the fences do.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING

import structlog

from chassis.errors import OrdermeshError
from shard_proxy import metrics
from shard_proxy.domain import MapSnapshot, Owner
from shard_proxy.errors import NoMap

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from chassis.clock import Clock

    class Source(Protocol):
        """Where fresh maps come from."""

        async def version(self) -> int:
            """The map's version now."""
            ...

        async def read(self) -> MapSnapshot:
            """The whole map now."""
            ...

    class Saved(Protocol):
        """Where the last map is kept."""

        def save(self, map_: MapSnapshot) -> None:
            """Keep this map instead of the one before."""
            ...

        def load(self) -> MapSnapshot | None:
            """The map that was kept."""
            ...


log = structlog.get_logger("book")
POLL_EVERY_S = 1.0
REREAD_EVERY_S = 0.2
"""Refusals and unknown buckets make us read the whole map again; made-up order ids must not make that a
flood.
"""


class RouteBook:
    """Holds the one map of this process and replaces it; as a loop it polls.

    changed: called with every map that routes differently from the one before.
    """

    name = "map-poll"

    def __init__(
        self,
        source: Source,
        saved: Saved,
        clock: Clock,
        *,
        changed: Callable[[MapSnapshot], None] | None = None,
    ) -> None:
        self._source = source
        self._saved = saved
        self._clock = clock
        self._changed = changed
        self._base: MapSnapshot | None = None
        self._overlay: dict[int, Owner] = {}
        self._current: MapSnapshot | None = None
        self._reading: asyncio.Task[None] | None = None
        self._read_at: float | None = None
        self._control_answers: bool | None = None

    @property
    def map(self) -> MapSnapshot:
        """The map to route with.

        Raises: NoMap until the first one was seen.
        """
        if self._current is None:
            raise NoMap
        return self._current

    @property
    def has_map(self) -> bool:
        """Whether calls can be routed."""
        return self._current is not None

    @property
    def is_newest(self) -> bool:
        """Whether the control database confirmed or brought the map when it was last asked."""
        return self._control_answers is True

    async def check(self) -> None:
        """Raise unless calls can be routed; for readiness."""
        _ = self.map

    async def open(self) -> None:
        """Get a first map: from the control database, else from disk, else go without and keep asking."""
        await self.reread()
        if self._base is not None:
            return
        saved = await asyncio.to_thread(self._saved.load)
        if saved is not None:
            log.warning("map_from_disk", version=saved.version, read_at=saved.read_at.isoformat())
            self._install(saved)

    async def run(self) -> None:
        """Look at the version each second and read the map when it moved; until cancelled."""
        while True:
            await self._clock.sleep(POLL_EVERY_S)
            try:
                version = await self._source.version()
            except OrdermeshError as gone:
                self._lost_control(gone)
                continue
            self._found_control()
            if self._base is None or version != self._base.version:
                await self.reread()

    async def reread(self) -> None:
        """Read the whole map now, or share a reading that is under way; a dead database changes nothing.

        Readings keep a distance; a database that was gone a moment ago is not waited for.
        If cancelled here: the reading goes on for the others that wait for it.
        """
        if self._reading is None or self._reading.done():
            if self._control_answers is False and self._since_read_s() < POLL_EVERY_S:
                return
            self._reading = asyncio.create_task(self._read(), name="map-read")
        await asyncio.shield(self._reading)

    def adopt(self, bucket: int, owner: Owner) -> None:
        """Believe a fence about one bucket until the control database brings another map."""
        if self._base is None or self._overlay.get(bucket) == owner:
            return
        log.warning("route_adopted", bucket=bucket, shard=owner.shard, epoch=owner.epoch)
        metrics.ROUTES_ADOPTED.inc()
        self._overlay[bucket] = owner
        self._current = self._base.with_owners(self._overlay)

    def _since_read_s(self) -> float:
        return inf if self._read_at is None else self._clock.monotonic() - self._read_at

    async def _read(self) -> None:
        if self._since_read_s() < REREAD_EVERY_S:
            await self._clock.sleep(REREAD_EVERY_S - self._since_read_s())
        try:
            fresh = await self._source.read()
        except OrdermeshError as gone:
            self._lost_control(gone)
            return
        finally:
            self._read_at = self._clock.monotonic()
        self._found_control()
        if self._base is not None and fresh.says_the_same_as(self._base):
            return
        self._install(fresh)
        try:
            await asyncio.to_thread(self._saved.save, fresh)
        except OSError as full:
            log.error("map_not_saved", error=type(full).__name__)

    def _install(self, map_: MapSnapshot) -> None:
        log.info("map_installed", version=map_.version, shards=len(map_.shards), buckets=len(map_.owners))
        self._base = self._current = map_
        self._overlay = {}
        metrics.MAP_VERSION.set(map_.version)
        if self._changed is not None:
            self._changed(map_)

    def _lost_control(self, gone: OrdermeshError) -> None:
        if self._control_answers is not False:
            log.warning("control_database_gone", reason=gone.reason.value)
        self._control_answers = False
        metrics.CONTROL_UP.set(0)

    def _found_control(self) -> None:
        if self._control_answers is False:
            log.info("control_database_answers")
        self._control_answers = True
        metrics.CONTROL_UP.set(1)
        metrics.MAP_CHECKED.set(self._clock.now().timestamp())
