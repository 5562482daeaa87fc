"""What the mover asks of shards: BucketService of their lanes, in the name of shard_proxy itself.

These calls take no slot of a lane: a move must not queue behind the load that it pauses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from grpc.aio import AioRpcError, UsageError

from chassis import rpc
from chassis.auth import SUBJECT_HEADER, TRUST_DOMAIN, Role, Subject
from chassis.errors import ShardUnavailable
from ordermesh.order.v1 import bucket_service_pb2 as pb
from shard_proxy.lanes import ORDER

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from chassis.auth import SubjectMinter
    from shard_proxy.lanes import Lanes

_PATH = "/ordermesh.order.v1.BucketService/"
_MYSELF = Subject("shard_proxy", frozenset({Role.MOVER}), f"{TRUST_DOMAIN}shard_proxy")
KEYS_MAX = 1000
A = TypeVar("A", bound="Message")


class ShardRefused(Exception):
    """A shard did not do what the mover asked for. reason: as in the catalogue, or gRPC's code."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Buckets:
    """BucketService of every shard. All methods raise ShardRefused, also when nobody answers."""

    lanes: Lanes
    minter: SubjectMinter

    async def own(self, shard: str, bucket: int, *, timeout_s: float) -> None:
        """Let a shard own a bucket."""
        request = pb.OwnBucketRequest(shard=shard, bucket=bucket)
        await self._ask(shard, "OwnBucket", request, pb.OwnBucketResponse, timeout_s)

    async def freeze(self, shard: str, bucket: int, epoch: int, token: int, *, timeout_s: float) -> None:
        """Stop writes to a bucket."""
        request = pb.FreezeBucketRequest(shard=shard, bucket=bucket, epoch=epoch, move_token=token)
        await self._ask(shard, "FreezeBucket", request, pb.FreezeBucketResponse, timeout_s)

    async def thaw(self, shard: str, bucket: int, epoch: int, token: int, *, timeout_s: float) -> None:
        """Let writes to a bucket go on at an epoch."""
        request = pb.ThawBucketRequest(shard=shard, bucket=bucket, epoch=epoch, move_token=token)
        await self._ask(shard, "ThawBucket", request, pb.ThawBucketResponse, timeout_s)

    async def export(
        self, shard: str, user_id: str, since: Timestamp | None, after: str, *, timeout_s: float
    ) -> pb.ExportKeysResponse:
        """A page of a user's keys."""
        request = pb.ExportKeysRequest(
            shard=shard, user_id=user_id, since_time=since, after_request_id=after, limit=KEYS_MAX
        )
        return await self._ask(shard, "ExportKeys", request, pb.ExportKeysResponse, timeout_s)

    async def bring(
        self, shard: str, bucket: int, user_id: str, page: pb.ExportKeysResponse, *, timeout_s: float
    ) -> int:
        """Write a page of keys elsewhere; how many are new there."""
        request = pb.ImportKeysRequest(shard=shard, bucket=bucket, user_id=user_id, keys=page.keys)
        answer = await self._ask(shard, "ImportKeys", request, pb.ImportKeysResponse, timeout_s)
        return answer.imported_count

    async def _ask(self, shard: str, method: str, request: Message, answer: type[A], timeout_s: float) -> A:
        try:
            link = self.lanes.of(ORDER, shard).calls
            await link.until_ready(timeout_s)
            raw = await link.call("unary_unary", _PATH + method)(
                request.SerializeToString(),
                timeout=timeout_s,
                metadata=((SUBJECT_HEADER, self.minter.mint(_MYSELF)),),
            )
        except AioRpcError as failed:
            said = rpc.error_of(failed)
            raise ShardRefused(said.reason or said.code.name) from failed
        except (ShardUnavailable, UsageError) as gone:
            raise ShardRefused("SHARD_UNAVAILABLE") from gone
        return answer.FromString(raw)
