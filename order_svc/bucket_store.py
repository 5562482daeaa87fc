"""The SQL by which a user leaves a bucket: fences that pause and go on, and keys that are copied along.

Every statement may be repeated, and none of a mover that was overtaken has an effect that lasts. All methods
raise what chassis.pg raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from chassis import faults, pg
from chassis.errors import FROZEN_W, StaleRoute
from chassis.store_spans import traced
from order_svc import points
from order_svc.errors import MoveSuperseded

if TYPE_CHECKING:
    from collections.abc import Sequence

OWNED = "OWNED"
queries = pg.queries("order_svc", "bucket_queries.sql")


@dataclass(frozen=True, slots=True)
class Fence:
    """A bucket as this shard sees it; token: of the last mover that was here."""

    bucket: int
    epoch: int
    state: str
    token: int


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Which request made which order; expires_at: None while the order is not settled."""

    request_id: UUID
    order_id: UUID
    fingerprint: bytes
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Exported:
    """A page of keys, and the shard's time when it was read."""

    keys: list[RequestKey]
    at: datetime


@traced
class BucketStore:
    """The fences and keys of one shard. writes: the same database with other bounds."""

    def __init__(self, database: pg.Database, *, writes: pg.Database | None = None) -> None:
        self._db = database
        self._writes = writes or database

    def until(self, deadline: float) -> BucketStore:
        """The same for one call: its reads end by its deadline, and its writes begin by then."""
        return BucketStore(self._db.until(deadline), writes=self._writes.begun_by(deadline))

    async def own(self, bucket: int) -> Fence:
        """Own a bucket that was never here; one that is here stays as it is.

        Raises: StaleRoute when it is here and not open.
        """
        await faults.point(points.OWN.before)
        fence = _fence(await self._writes.fetchrow(queries.own_bucket, bucket), bucket)
        await faults.point(points.OWN.after)
        if fence.state != OWNED:
            raise StaleRoute(bucket=bucket, epoch=fence.epoch, state=fence.state)
        return fence

    async def freeze(self, bucket: int, epoch: int, token: int) -> Fence:
        """Stop writes to a bucket, once those on their way are through.

        Raises: MoveSuperseded; Contended when a writer takes longer than 300 ms.
        """
        await faults.point(points.FREEZE.before)
        fence = _fence(await self._writes.fetchrow(queries.freeze_bucket, bucket, epoch, token), bucket)
        await faults.point(points.FREEZE.after)
        return _wanted(fence, Fence(bucket, epoch, FROZEN_W, token))

    async def thaw(self, bucket: int, epoch: int, token: int) -> Fence:
        """Let writes to a bucket go on at an epoch.

        Raises: MoveSuperseded when it does not go on at this epoch.
        """
        await faults.point(points.THAW.before)
        fence = _fence(await self._writes.fetchrow(queries.thaw_bucket, bucket, epoch, token), bucket)
        await faults.point(points.THAW.after)
        return _wanted(fence, Fence(bucket, epoch, OWNED, fence.token))

    async def export_keys(self, user_id: str, since: datetime, after: UUID, limit: int) -> Exported:
        """A user's keys that live, by request id, of orders made since an instant."""
        found = await self._db.fetch(queries.export_keys, user_id, after, since, limit)
        keys = [
            RequestKey(
                UUID(int=row["request_id"].int),
                UUID(int=row["order_id"].int),
                row["fingerprint"],
                row["expires_at"],
            )
            for row in found
            if row["request_id"] is not None
        ]
        return Exported(keys, found[0]["at"])

    async def import_keys(self, user_id: str, bucket: int, keys: Sequence[RequestKey]) -> int:
        """Write a user's keys into a bucket; how many are new.

        Raises: StaleRoute when the bucket is not open here.
        """
        columns = (
            [key.request_id for key in keys],
            [key.order_id for key in keys],
            [key.fingerprint for key in keys],
            [key.expires_at for key in keys],
        )
        await faults.point(points.IMPORT.before)
        imported = len(await self._writes.fetch(queries.import_keys, user_id, bucket, *columns))
        await faults.point(points.IMPORT.after)
        return imported


def _fence(row: Any, bucket: int) -> Fence:
    """Raises: StaleRoute for a bucket that was never here."""
    if row is None or row["bucket"] is None:
        raise StaleRoute(bucket=bucket)
    return Fence(row["bucket"], row["epoch"], row["state"], row["move_token"])


def _wanted(found: Fence, wanted: Fence) -> Fence:
    if found != wanted:
        raise MoveSuperseded(bucket=found.bucket, epoch=found.epoch, state=found.state)
    return found
