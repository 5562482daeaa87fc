"""The mesh as recovery_svc sees it, in the test's process: map, proxy and order_svc behind one address.

It hands out scripted claims and keeps every report, and can be told what a real order_svc cannot: to hang for
one shard, to lose an answer, to refuse. What the real one makes of a report is tested with the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import grpc

from chassis import ids, rpc
from chassis.auth import Direct, Role, Subject, SubjectMinter
from chassis.tls import ServerIdentity, TlsFiles
from ops import ca
from order_svc.errors import OrderNotFound
from ordermesh.order.v1 import order_pb2
from ordermesh.order.v1 import order_service_pb2 as orders
from ordermesh.order.v1.order_service_pb2_grpc import (
    OrderServiceServicer,
    add_OrderServiceServicer_to_server,
)
from ordermesh.recovery.v1.recovery_service_pb2_grpc import RecoveryServiceStub
from ordermesh.routing.v1 import routing_service_pb2 as routing
from ordermesh.routing.v1.routing_service_pb2_grpc import (
    RoutingServiceServicer,
    add_RoutingServiceServicer_to_server,
)
from recovery_svc import app
from recovery_svc.settings import RecoverySettings

order_ids = ids.OrderIds(lambda: 1_767_225_600_000)
CALL_S = 10.0


def new_order() -> str:
    return str(order_ids.new(bucket=701))


@dataclass(slots=True)
class Shard:
    """One shard of the script: what is due, what was asked, and whether it answers."""

    due: list[order_pb2.Claim] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    holds: dict[str, order_pb2.Hold] = field(default_factory=dict)
    hangs: bool = False
    refuses_with: grpc.StatusCode | None = None

    async def reached(self, context: Any) -> None:
        """Hang or refuse, as told."""
        if self.hangs:
            await asyncio.Event().wait()
        if self.refuses_with is not None:
            await context.abort(self.refuses_with, "as told")


class MeshScript(OrderServiceServicer, RoutingServiceServicer):
    """Answers like proxy and order_svc, from a script."""

    def __init__(self, *shards: str) -> None:
        self.shards = {shard: Shard() for shard in shards}
        self.reports: list[orders.ReportVerdictRequest] = []
        self.report_codes: list[grpc.StatusCode | None] = []
        self.taken: dict[str, orders.ReportVerdictRequest] = {}
        self.taken_at: dict[str, float] = {}
        self.listed = True
        self.lends_again = False
        """Hand out what was not reported again and again, as if each lease ran out at once."""
        self.settled: dict[str, order_pb2.Order] = {}

    def owe(self, shard: str, upstream: str = "payments", *, order_id: str = "", unfinished: int = 0) -> str:
        """Let one order be due."""
        order_id = order_id or new_order()
        claim = order_pb2.Claim(
            order=order_pb2.Order(order_id=order_id, leg=0, attempt=1, status=order_pb2.Order.PENDING),
            lease_token=str(uuid4()),
            upstream=upstream,
            idempotency_key=f"{order_id}/0",
            event_id=str(uuid4()),
            unfinished_count=unfinished,
        )
        self.shards[shard].due.append(claim)
        return order_id

    def report_of(self, order_id: str) -> order_pb2.ProbeReport:
        """What was reported and taken about an order."""
        return self.taken[order_id].report

    async def taken_about(self, *order_ids: str) -> bool:
        """Whether a report about each of the orders was taken."""
        return all(order_id in self.taken for order_id in order_ids)

    async def ClaimDueOrders(self, request: Any, context: Any) -> orders.ClaimDueOrdersResponse:
        shard = self.shards[request.shard]
        if not request.order_id:
            shard.limits.append(request.limit)
        await shard.reached(context)
        wanted = [c for c in shard.due if request.order_id in ("", c.order.order_id)][: request.limit]
        if not self.lends_again:
            shard.due = [claim for claim in shard.due if claim not in wanted]
        return orders.ClaimDueOrdersResponse(claims=wanted)

    async def ReportVerdict(self, request: Any, context: Any) -> orders.ReportVerdictResponse:
        self.reports.append(request)
        code = self.report_codes.pop(0) if self.report_codes else None
        if code is not None:
            await context.abort(code, "as told")
        self.taken[request.order_id] = request
        self.taken_at[request.order_id] = asyncio.get_running_loop().time()
        for shard in self.shards.values():
            shard.due = [claim for claim in shard.due if claim.order.order_id != request.order_id]
        return orders.ReportVerdictResponse(order=order_pb2.Order(order_id=request.order_id, version=2))

    async def GetOrder(self, request: Any, context: Any) -> orders.GetOrderResponse:
        order = self.settled.get(request.order_id)
        if order is None:
            code, message, trailers = rpc.to_status(OrderNotFound())
            await context.abort(code, message, trailers)
        return orders.GetOrderResponse(order=order)

    async def ListDueOrders(self, request: Any, context: Any) -> orders.ListDueOrdersResponse:
        shard = self.shards[request.shard]
        await shard.reached(context)
        due = [order_pb2.DueOrder(order=claim.order) for claim in shard.due[: request.page_size]]
        for number, order in enumerate(due):
            order.due_time.seconds = 1000 + number
        return orders.ListDueOrdersResponse(due_orders=due)

    async def GetShardStatus(self, request: Any, context: Any) -> orders.GetShardStatusResponse:
        shard = self.shards[request.shard]
        await shard.reached(context)
        return orders.GetShardStatusResponse(
            shard=request.shard,
            waiting_counts={"UNKNOWN": len(shard.due)},
            overdue_count=len(shard.due),
            holds=shard.holds.values(),
        )

    async def PutHold(self, request: Any, context: Any) -> orders.PutHoldResponse:
        shard = self.shards[request.shard]
        await shard.reached(context)
        hold = order_pb2.Hold(scope=request.scope, reason=request.reason)
        if request.HasField("until_time"):
            hold.until_time.CopyFrom(request.until_time)
        shard.holds[request.scope] = hold
        return orders.PutHoldResponse(hold=hold)

    async def LiftHold(self, request: Any, context: Any) -> orders.LiftHoldResponse:
        shard = self.shards[request.shard]
        await shard.reached(context)
        return orders.LiftHoldResponse(hold=shard.holds.pop(request.scope, None))

    async def ListShards(self, request: Any, context: Any) -> routing.ListShardsResponse:
        if not self.listed:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "as told")
        return routing.ListShardsResponse(shards=[routing.Shard(shard=shard) for shard in self.shards])

    async def Where(self, request: Any, context: Any) -> routing.WhereResponse:
        owners = [
            name
            for name, shard in self.shards.items()
            if any(claim.order.order_id == request.order_id for claim in shard.due)
        ]
        shard = owners[0] if owners else next(iter(self.shards))
        return routing.WhereResponse(placement=routing.Placement(shard=shard))


def scripted(*shards: str) -> MeshScript:
    """A mesh with these shards; methods that the script lacks answer UNIMPLEMENTED."""
    return MeshScript(*shards)  # type: ignore[abstract]  # only the stubs say so


@dataclass(frozen=True, slots=True)
class Trust:
    """Certificates and subject keys of one test module."""

    tls_dir: Path
    subject_dir: Path

    @classmethod
    def make(cls, directory: Path) -> Trust:
        ca.renew_due(directory / "tls")
        ca.ensure_subject_keys(directory / "subject")
        return cls(directory / "tls", directory / "subject")

    def subject(self, name: str, *roles: Role) -> tuple[tuple[str, str], ...]:
        """The metadata with which the proxy speaks for somebody."""
        token = SubjectMinter(self.subject_dir, "shard_proxy").mint(Subject(name, frozenset(roles)))
        return (("x-ordermesh-subject", token),)


@asynccontextmanager
async def served(script: MeshScript, trust: Trust) -> AsyncIterator[str]:
    """Serve a script with the proxy's identity; gives the address."""
    async with rpc.serve(
        "127.0.0.1:0",
        [],
        gate=rpc.Gate(Direct(frozenset({"recovery_svc"}))),
        tls=ServerIdentity(TlsFiles(trust.tls_dir, "shard_proxy")),
        register=[
            lambda server: add_OrderServiceServicer_to_server(script, server),
            lambda server: add_RoutingServiceServicer_to_server(script, server),
        ],
    ) as server:
        yield f"127.0.0.1:{server.port}"


@dataclass(frozen=True, slots=True)
class Recovery:
    """A recovery_svc in this process and a way to call it as the proxy does."""

    process: app.Recovery
    calls: Any
    trust: Trust

    async def ask(self, method: str, request: Any, *, name: str = "mira", timeout_s: float = CALL_S) -> Any:
        """Call a method as an operator."""
        metadata = self.trust.subject(name, Role.OPERATOR)
        return await getattr(self.calls, method)(request, timeout=timeout_s, metadata=metadata)


@asynccontextmanager
async def recovering(
    proxy: str, upstreams: dict[str, str], trust: Trust, *, sweeping: bool = True, **settings: Any
) -> AsyncIterator[Recovery]:
    """Run recovery_svc in this process with short waits; `settings` override them."""
    chosen: dict[str, Any] = {
        "profile": "local",
        "sweep_period_s": 0.1,
        "sweep_backoff_s_max": 0.4,
        "shards_refresh_s": 0.2,
        "claim_timeout_s": 0.5,
        "probe_timeout_s": 1.0,
        "report_timeout_s": 0.5,
        "slot_wait_s": 0.2,
        "scatter_timeout_s": 0.5,
    } | settings
    model = RecoverySettings(
        proxy_target=proxy,
        upstreams=upstreams,
        tls_dir=trust.tls_dir,
        subject_dir=trust.subject_dir,
        **chosen,
    )
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(app.running(model))
        stack.push_async_callback(process.owned.drain, 5.0)
        if sweeping:
            task = asyncio.create_task(process.sweeps.run(), name="sweeps")
            stack.push_async_callback(process.sweeps.stop)
            stack.callback(task.cancel)
        channel = await stack.enter_async_context(
            rpc.Channel(
                f"127.0.0.1:{process.port}",
                service="recovery_svc",
                tls=TlsFiles(trust.tls_dir, "shard_proxy"),
            )
        )
        yield Recovery(process, RecoveryServiceStub(cast("grpc.aio.Channel", channel)), trust)
