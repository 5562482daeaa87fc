"""Routing's domain as messages of ordermesh.routing.v1. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import timestamp_pb2

from chassis.errors import InvalidField, PageTokenInvalid
from ordermesh.routing.v1 import options_pb2
from ordermesh.routing.v1 import routing_service_pb2 as pb
from shard_proxy.domain import MapSnapshot, Placement, VipUser, Why

if TYPE_CHECKING:
    from datetime import datetime

    from chassis.rpc import Method

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 100
_REASONS = {
    Why.HASH: pb.Placement.HASH,
    Why.VIP: pb.Placement.VIP,
    Why.SALTED: pb.Placement.SALTED,
    Why.ORDER_ID: pb.Placement.ORDER_ID,
}


def placement(placed: Placement) -> pb.Placement:
    """A placement; one that names no bucket has none."""
    return pb.Placement(
        bucket=placed.bucket or 0,
        shard=placed.shard,
        epoch=placed.epoch or 0,
        reason=_REASONS.get(placed.why, pb.Placement.REASON_UNSPECIFIED),
    )


def shards(map_: MapSnapshot) -> pb.ListShardsResponse:
    """Every shard with how much it owns."""
    owned = dict.fromkeys(map_.shards, 0)
    for owner in map_.owners.values():
        owned[owner.shard] = owned.get(owner.shard, 0) + 1
    return pb.ListShardsResponse(
        shards=[
            pb.Shard(
                shard=shard.name,
                vip=shard.vip,
                lane_target=shard.lane_target,
                history_target=shard.history_target,
                bucket_count=owned[shard.name],
            )
            for shard in sorted(map_.shards.values(), key=lambda shard: shard.name)
        ],
        map_version=map_.version,
        map_read_time=timestamp(map_.read_at),
    )


def vip_user(map_: MapSnapshot, vip: VipUser) -> pb.VipUser:
    """One row of the VIP table."""
    owner = map_.owners.get(vip.buckets[0])
    return pb.VipUser(
        user_id=vip.user_id,
        buckets=vip.buckets,
        shard=owner.shard if owner is not None else "",
        create_time=timestamp(vip.since),
    )


def page_size(asked: int) -> int:
    """How many rows a page has. Raises: InvalidField."""
    if not 0 <= asked <= PAGE_SIZE_MAX:
        raise InvalidField.of("page_size", f"0 to {PAGE_SIZE_MAX}")
    return asked or PAGE_SIZE_DEFAULT


def user_in(position: bytes) -> str:
    """The user that a page token stands for. Raises: PageTokenInvalid."""
    try:
        return position.decode()
    except UnicodeDecodeError:
        raise PageTokenInvalid from None


def rule(method: Method) -> options_pb2.RouteRule:
    """The routing option of a method, as its proto says it."""
    return options_pb2.RouteRule(
        by=options_pb2.RouteBy.ValueType(method.by),
        key=method.key,
        retry=options_pb2.Retry.ValueType(method.retry),
    )


def timestamp(at: datetime) -> timestamp_pb2.Timestamp:
    """An instant as a message."""
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(at)
    return message
