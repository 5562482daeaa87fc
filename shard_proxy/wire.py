"""Routing's domain as messages of ordermesh.routing.v1. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from google.protobuf import timestamp_pb2

from chassis.errors import InvalidField, PageTokenInvalid
from chassis.ids import parse_uuid
from ordermesh.routing.v1 import options_pb2
from ordermesh.routing.v1 import routing_service_pb2 as pb
from shard_proxy.domain import MapSnapshot, Placement, VipUser, Why
from shard_proxy.moves import Wish

if TYPE_CHECKING:
    from chassis.rpc import Method
    from shard_proxy.moves import Kind, Move

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 100
NEWEST = (datetime(9999, 12, 31, tzinfo=UTC), UUID(int=(1 << 128) - 1))
"""Above every move."""
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


def move_wish(
    request: pb.PromoteVipRequest | pb.DemoteVipRequest, kind: Kind, actor: str, *, shard: str = ""
) -> Wish:
    """What a person asks for. Raises: InvalidField."""
    move_id = parse_uuid(request.request_id, field_name="request_id")
    return Wish(move_id, request.user_id, kind, request.reason, actor, shard).checked()


def move(found: Move) -> pb.VipMove:
    """One move."""
    written = pb.VipMove(
        move_id=str(found.move_id),
        user_id=found.user_id,
        kind=pb.VipMove.Kind.Value(found.kind),
        phase=pb.VipMove.Phase.Value(found.phase),
        old_bucket=found.old_bucket,
        old_shard=found.old_shard,
        new_bucket=found.new_bucket,
        new_shard=found.new_shard,
        reason=found.reason,
        actor=found.actor,
        attempt=found.attempt,
        failure=found.failure,
        copied_key_count=found.keys_copied,
        create_time=timestamp(found.created_at),
        update_time=timestamp(found.updated_at),
    )
    if found.frozen_ms is not None:
        written.frozen_ms = found.frozen_ms
    return written


def packed_position(last: Move) -> bytes:
    """Where a list of moves goes on."""
    return f"{last.created_at.isoformat()} {last.move_id}".encode()


def position(packed: bytes) -> tuple[datetime, UUID]:
    """The position in a page token. Raises: PageTokenInvalid."""
    try:
        at, move_id = packed.decode().split(" ")
        return datetime.fromisoformat(at), UUID(move_id)
    except ValueError:
        raise PageTokenInvalid from None


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
