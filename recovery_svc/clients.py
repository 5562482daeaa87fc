"""Outgoing calls: to order_svc and the map through shard_proxy, and to the upstreams. Each has a deadline.

Nothing is retried here. Calls into the mesh raise CallFailed; a probe never raises, since every way in which
it can end is a finding.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from google.protobuf.duration_pb2 import Duration

from chassis import rpc
from chassis.tls import TlsFiles
from ordermesh.order.v1 import order_pb2, order_service_pb2
from ordermesh.order.v1.order_service_pb2_grpc import OrderServiceStub
from ordermesh.routing.v1 import routing_service_pb2
from ordermesh.routing.v1.routing_service_pb2_grpc import RoutingServiceStub
from ordermesh.upstream.v1 import upstream_service_pb2
from recovery_svc import wire
from recovery_svc.domain import Claim, Finding
from recovery_svc.errors import CallFailed

if TYPE_CHECKING:
    from ordermesh.order.v1.order_service_pb2_grpc import OrderServiceAsyncStub
    from ordermesh.routing.v1.routing_service_pb2_grpc import RoutingServiceAsyncStub

T = TypeVar("T")
PROBE = "/ordermesh.upstream.v1.UpstreamService/Probe"
MAP_TIMEOUT_S = 2.0
"""The proxy answers from memory."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """Everything recovery asks of the mesh. claimed_by: names this process and is new at each start."""

    orders: OrderServiceAsyncStub
    routing: RoutingServiceAsyncStub
    claimed_by: str

    @classmethod
    @asynccontextmanager
    async def open(cls, target: str, tls: TlsFiles, *, claimed_by: str) -> AsyncIterator[Mesh]:
        """Open the channel to shard_proxy."""
        async with rpc.Channel(target, service="shard_proxy", tls=tls) as opened:
            channel = cast("grpc.aio.Channel", opened)
            yield cls(OrderServiceStub(channel), RoutingServiceStub(channel), claimed_by)

    async def shards(self) -> frozenset[str]:
        """The shards of the map."""
        asked = self.routing.ListShards(routing_service_pb2.ListShardsRequest(), timeout=MAP_TIMEOUT_S)
        return frozenset(shard.shard for shard in (await _answered(asked)).shards)

    async def shard_of(self, order_id: str) -> str:
        """The shard where an order lives."""
        request = routing_service_pb2.WhereRequest(order_id=order_id)
        return (await _answered(self.routing.Where(request, timeout=MAP_TIMEOUT_S))).placement.shard

    async def claim(
        self, shard: str, *, limit: int, lease_s: float, timeout_s: float, order_id: str = ""
    ) -> list[Claim]:
        """Claim due orders of a shard, or one order whether due or not. A lost answer's claims run out."""
        request = order_service_pb2.ClaimDueOrdersRequest(
            shard=shard, limit=limit, order_id=order_id, claimed_by=self.claimed_by, lease=_duration(lease_s)
        )
        answer = await _answered(self.orders.ClaimDueOrders(request, timeout=timeout_s))
        return [wire.claim(handed_out, shard) for handed_out in answer.claims]

    async def report(self, claim: Claim, found: Finding, *, timeout_s: float) -> order_pb2.Order:
        """Tell what a probe found out; a repeat changes nothing."""
        request = wire.verdict_request(claim, found)
        return (await _answered(self.orders.ReportVerdict(request, timeout=timeout_s))).order

    async def order(self, order_id: str, *, timeout_s: float) -> order_pb2.Order:
        """An order as it is now."""
        request = order_service_pb2.GetOrderRequest(order_id=order_id)
        return (await _answered(self.orders.GetOrder(request, timeout=timeout_s))).order

    async def overdue(
        self, shard: str, *, size: int, timeout_s: float
    ) -> order_service_pb2.ListDueOrdersResponse:
        """Hanging orders of a shard, the most overdue first."""
        request = order_service_pb2.ListDueOrdersRequest(shard=shard, overdue_only=True, page_size=size)
        return await _answered(self.orders.ListDueOrders(request, timeout=timeout_s))

    async def status(self, shard: str, *, timeout_s: float) -> order_service_pb2.GetShardStatusResponse:
        """Counts and holds of a shard."""
        request = order_service_pb2.GetShardStatusRequest(shard=shard)
        return await _answered(self.orders.GetShardStatus(request, timeout=timeout_s))

    async def put_hold(self, request: order_service_pb2.PutHoldRequest, *, timeout_s: float) -> None:
        """Keep recovery away from orders of a shard."""
        await _answered(self.orders.PutHold(request, timeout=timeout_s))

    async def lift_hold(self, request: order_service_pb2.LiftHoldRequest, *, timeout_s: float) -> bool:
        """End a hold of a shard; says whether there was one."""
        return (await _answered(self.orders.LiftHold(request, timeout=timeout_s))).HasField("hold")


class Upstreams:
    """A channel to each configured upstream."""

    def __init__(self, calls: Mapping[str, Any]) -> None:
        self._calls = calls

    @classmethod
    @asynccontextmanager
    async def open(cls, targets: Mapping[str, str], tls: TlsFiles) -> AsyncIterator[Upstreams]:
        """Open the channels; an upstream that is down connects when it is back."""
        async with AsyncExitStack() as stack:
            calls = {}
            for name, target in targets.items():
                channel = await stack.enter_async_context(rpc.Channel(target, service="upstream", tls=tls))
                # No deserializer: an answer that cannot be decoded is a finding, and grpcio would hide it.
                calls[name] = channel.unary_unary(
                    PROBE, upstream_service_pb2.ProbeRequest.SerializeToString, None
                )
            yield cls(calls)

    @property
    def names(self) -> frozenset[str]:
        """The upstreams that can be probed."""
        return frozenset(self._calls)

    async def probe(self, upstream: str, key: str, *, timeout_s: float) -> Finding:
        """Ask an upstream what became of a key, and judge what comes back."""
        request = upstream_service_pb2.ProbeRequest(idempotency_key=key)
        try:
            body = await self._calls[upstream](request, timeout=timeout_s)
        except grpc.aio.AioRpcError as failed:
            return wire.failure(rpc.error_of(failed), failed.trailing_metadata() or ())
        return wire.finding(body)


async def _answered(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as failed:
        raise CallFailed(failed) from failed


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
