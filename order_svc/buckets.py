"""The handlers of BucketService: a user leaves a bucket. Only shard_proxy may call; who it is for is not
known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from chassis import ids
from chassis.errors import InvalidField
from order_svc.bucket_store import RequestKey
from order_svc.errors import UnknownShard
from ordermesh.order.v1 import bucket_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chassis.rpc import Call
    from chassis.supervise import OwnedTasks
    from order_svc.bucket_store import BucketStore, Fence

KEYS_MAX = 1000
FINGERPRINT_BYTES_MAX = 64
_EVER = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class BucketService:
    """Every method of the proto. Writes are owned tasks: a cancelled call does not cancel them."""

    shard: str
    buckets: BucketStore
    owned: OwnedTasks

    async def OwnBucket(self, request: pb.OwnBucketRequest, call: Call) -> pb.OwnBucketResponse:
        """Own a bucket."""
        bucket = self._bucket(request.shard, request.bucket)
        fence = await self.owned.run(self.buckets.until(call.deadline).own(bucket), name="own bucket")
        return pb.OwnBucketResponse(fence=_fence(fence))

    async def FreezeBucket(self, request: pb.FreezeBucketRequest, call: Call) -> pb.FreezeBucketResponse:
        """Stop writes to a bucket."""
        bucket = self._bucket(request.shard, request.bucket)
        work = self.buckets.until(call.deadline).freeze(bucket, request.epoch, request.move_token)
        return pb.FreezeBucketResponse(fence=_fence(await self.owned.run(work, name="freeze bucket")))

    async def ThawBucket(self, request: pb.ThawBucketRequest, call: Call) -> pb.ThawBucketResponse:
        """Let writes to a bucket go on."""
        bucket = self._bucket(request.shard, request.bucket)
        work = self.buckets.until(call.deadline).thaw(bucket, request.epoch, request.move_token)
        return pb.ThawBucketResponse(fence=_fence(await self.owned.run(work, name="thaw bucket")))

    async def ExportKeys(self, request: pb.ExportKeysRequest, call: Call) -> pb.ExportKeysResponse:
        """A page of a user's keys."""
        self._must_be_here(request.shard)
        if not 1 <= request.limit <= KEYS_MAX:
            raise InvalidField.of("limit", f"must be 1 to {KEYS_MAX}")
        exported = await self.buckets.until(call.deadline).export_keys(
            ids.parse_user_id(request.user_id),
            request.since_time.ToDatetime(tzinfo=UTC) if request.HasField("since_time") else _EVER,
            _request_id(request.after_request_id) if request.after_request_id else _FIRST,
            request.limit,
        )
        return pb.ExportKeysResponse(
            keys=[_written(key) for key in exported.keys], read_time=_stamp(exported.at)
        )

    async def ImportKeys(self, request: pb.ImportKeysRequest, call: Call) -> pb.ImportKeysResponse:
        """Write a user's keys."""
        bucket = self._bucket(request.shard, request.bucket)
        user_id, keys = ids.parse_user_id(request.user_id), _read(request.keys)
        work = self.buckets.until(call.deadline).import_keys(user_id, bucket, keys)
        return pb.ImportKeysResponse(imported_count=await self.owned.run(work, name="import keys"))

    def _must_be_here(self, shard: str) -> None:
        """Raises: UnknownShard unless this process serves the shard."""
        if shard != self.shard:
            raise UnknownShard(shard=shard, here=self.shard)

    def _bucket(self, shard: str, bucket: int) -> int:
        self._must_be_here(shard)
        if bucket >= ids.BUCKETS:
            raise InvalidField.of("bucket", f"must be below {ids.BUCKETS}")
        return bucket


def _fence(fence: Fence) -> pb.Fence:
    return pb.Fence(bucket=fence.bucket, epoch=fence.epoch, state=fence.state)


def _written(key: RequestKey) -> pb.RequestKey:
    return pb.RequestKey(
        request_id=str(key.request_id),
        order_id=str(key.order_id),
        fingerprint=key.fingerprint,
        expire_time=_stamp(key.expires_at),
    )


def _read(keys: Sequence[pb.RequestKey]) -> list[RequestKey]:
    """Raises: InvalidField, OrderIdInvalid."""
    if not 1 <= len(keys) <= KEYS_MAX:
        raise InvalidField.of("keys", f"must be 1 to {KEYS_MAX}")
    if any(not 1 <= len(key.fingerprint) <= FINGERPRINT_BYTES_MAX for key in keys):
        raise InvalidField.of("keys.fingerprint", f"must have 1 to {FINGERPRINT_BYTES_MAX} bytes")
    read = [
        RequestKey(
            _request_id(key.request_id),
            ids.parse_order_id(key.order_id),
            key.fingerprint,
            key.expire_time.ToDatetime(tzinfo=UTC) if key.HasField("expire_time") else None,
        )
        for key in keys
    ]
    if len({key.request_id for key in read}) != len(read):
        raise InvalidField.of("keys", "must not name a request twice")
    return sorted(read, key=lambda key: key.request_id)


def _request_id(text: str) -> UUID:
    return ids.parse_uuid(text, field_name="request_id")


def _stamp(at: datetime | None) -> Timestamp | None:
    if at is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
