"""Lets statements go whose time is over, and takes away the files that nobody can reach any more.

A file is left without a row that names it when a worker died or lost its turn between storing and saying so.
It is looked for under the statement's own prefix once the statement is over, and once more when it expired.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from archive_svc.statement import metrics
from archive_svc.statement.files import fence_of, prefix_of
from chassis.errors import OrdermeshError
from chassis.s3 import ObjectNotFound, S3Error

if TYPE_CHECKING:
    from collections.abc import Callable

    from archive_svc.statement.store import Leftover, StatementStore
    from chassis.clock import Clock
    from chassis.s3 import ObjectStore

log = structlog.get_logger("statements")
PAUSE = timedelta(minutes=1)
PAUSE_MAX = timedelta(hours=1)


class Sweeper:
    """A loop over the statements of one shard that are over.

    after:  how long after a statement's end its objects are looked for: longer than a worker that lost its
            turn may still be storing one.
    jitter: gives 0 to 1.
    """

    def __init__(
        self,
        store: StatementStore,
        objects: ObjectStore,
        clock: Clock,
        jitter: Callable[[], float],
        *,
        after: timedelta,
        look_s: float,
    ) -> None:
        self.name = f"statements.{store.shard}.sweep"
        self._store = store
        self._objects = objects
        self._clock = clock
        self._jitter = jitter
        self._after = after
        self._look_s = look_s

    async def run(self) -> None:
        """Sweep until cancelled; what does not answer is asked again."""
        while True:
            try:
                await self.once()
            except OrdermeshError as failed:
                log.warning("statements_not_swept", shard=self._store.shard, reason=failed.reason)
            await self._clock.sleep(self._look_s * (0.5 + 0.5 * self._jitter()))

    async def once(self) -> None:
        """Do what is due. Idempotent. Raises: what chassis.pg raises."""
        if gone := await self._store.expire():
            metrics.EXPIRED.labels(self._store.shard).inc(gone)
        for left in await self._store.unclean(self._after):
            try:
                await self._clean(left)
            except S3Error as failed:
                # One that cannot go, such as a locked one, keeps no other; it is looked at again, ever later.
                log.warning("file_not_removed", id=str(left.statement_id), because=str(failed))
                await self._store.not_cleaned(left, pause_after(left.failures, self._jitter()))
                continue
            await self._store.cleaned(left)

    async def _clean(self, left: Leftover) -> None:
        """Remove every file of a statement but the one that stays, and those of turns that began since."""
        prefix = prefix_of(self._store.shard, left.statement_id)
        for found in (await self._objects.list(prefix)).objects:
            if found.key == left.stays or fence_of(found.key) > left.fence:
                continue
            try:
                there = await self._objects.head(found.key)
            except ObjectNotFound:
                continue
            await self._objects.delete(there)
            metrics.REMOVED.labels(self._store.shard).inc()


def pause_after(failures: int, jitter: float) -> timedelta:
    """How long a statement waits of which a file could not go for the nth time. jitter: 0 to 1."""
    return min(PAUSE_MAX, PAUSE * 2.0 ** min(failures, 16)) * (0.5 + 0.5 * jitter)
