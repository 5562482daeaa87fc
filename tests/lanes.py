"""One lane in the test's own process: a real order_svc over mTLS, its shard database, two real upstreams.

    async with lanes.serving(trust, database, tmp_path) as lane:
        order = (await lane.create()).order

The caller is shard_proxy's certificate with a signed subject, as in the mesh.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from chassis import faults, rpc
from chassis.auth import Role, Subject
from chassis.errors import Reason
from chassis.ids import user_bucket
from chassis.testing import eventually
from order_svc import app
from order_svc.settings import OrderSettings
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_pb2
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.order.v1 import order_service_pb2_grpc as order_grpc
from ordermesh.upstream.v1 import upstream_service_pb2 as upstream_pb
from tests import upstreams, whereabouts
from tests.databases import Database
from tests.listeners import Trust
from tests.shards import prepare

CALL_S = 10.0
ACT = "spiffe://ordermesh/gateway"
MIRA = Subject("mira", frozenset({Role.OPERATOR}), "spiffe://ordermesh/ops")
RECOVERY = Subject("recovery_svc", frozenset({Role.RECOVERY}), "spiffe://ordermesh/recovery_svc")
SERVICE = Subject("shop", frozenset({Role.SERVICE}), "spiffe://ordermesh/ops")
Order = order_pb2.Order
DONE, PARKED, READY = Order.DONE, Order.PARKED, Order.READY
UNKNOWN, SUBMITTING, ACCEPTED = Order.UNKNOWN, Order.SUBMITTING, Order.ACCEPTED
POLICY = {
    "base_s": 0.1,
    "cap_s": 0.5,
    "floor_s": 0.05,
    "first_probe_s": 0.2,
    "submit_margin_s": 0.2,
    "probes_max": 3,
}
CONTRACTS = {
    "payments": {
        "not_found_final_after_s": 1,
        "settle_window_s": 1,
        "submit_timeout_s": 1,
        "pending_deadline_s": 60,
    },
    "fulfilment": {"idempotent_submit": True, "settle_window_s": 1, "submit_timeout_s": 1},
}


def as_user(name: str) -> Subject:
    return Subject(name, frozenset({Role.USER}), ACT)


@dataclass(frozen=True, slots=True)
class Lane:
    """An order_svc as the proxy sees it, its database, and its upstreams."""

    running: app.Lane
    stub: order_grpc.OrderServiceAsyncStub
    trust: Trust
    dsn: str
    payments: upstreams.Upstream
    fulfilment: upstreams.Upstream
    asked_by: Subject = SERVICE
    route: dict[str, str] = field(default_factory=dict)

    def by(self, subject: Subject, **route: str) -> Lane:
        """The same lane, asked by somebody else, or over another route."""
        return replace(
            self, asked_by=subject, route={name.replace("_", "-"): value for name, value in route.items()}
        )

    async def call(self, method: str, request: Any, *, user_id: str = "", timeout: float = CALL_S) -> Any:
        """Call a method as the proxy does."""
        return await getattr(self.stub, method)(request, timeout=timeout, metadata=self.metadata(user_id))

    def metadata(self, user_id: str = "") -> tuple[tuple[str, str], ...]:
        """What the proxy says beside a call."""
        route = {"bucket": str(user_bucket(user_id)), "epoch": "1"} if user_id else {}
        headers = {f"x-ordermesh-{name}": value for name, value in {**route, **self.route}.items() if value}
        return (*self.trust.metadata(self.asked_by), *headers.items())

    async def create(
        self, *, wait_s: float = 0.0, timeout: float = CALL_S, **fields: Any
    ) -> pb.CreateOrderResponse:
        """Ask for an order."""
        request = create_request(wait_s=wait_s, **fields)
        answer: pb.CreateOrderResponse = await self.call(
            "CreateOrder", request, user_id=request.user_id, timeout=timeout
        )
        return answer

    async def get(self, order: order_pb2.Order) -> order_pb2.Order:
        """An order as it is now."""
        answer = await self.by(SERVICE).call("GetOrder", pb.GetOrderRequest(order_id=order.order_id))
        found: order_pb2.Order = answer.order
        return found

    async def at(self, order: order_pb2.Order, *stages: int, within_s: float = 10.0) -> order_pb2.Order:
        """The order once it stands at one of these stages."""

        async def there() -> order_pb2.Order | None:
            found = await self.get(order)
            return found if found.stage in stages else None

        try:
            return await eventually(there, within_s=within_s)
        except AssertionError as failed:
            told = await whereabouts.in_shard(self.dsn, order.order_id)
            raise AssertionError(f"{failed}\n{told}") from failed

    async def journal(self, order: order_pb2.Order) -> list[str]:
        """The kinds of its journal entries; their versions have no holes."""
        answer = await self.by(MIRA).call(
            "ListOrderEvents", pb.ListOrderEventsRequest(order_id=order.order_id, page_size=100)
        )
        assert [event.version for event in answer.events] == list(range(1, len(answer.events) + 1))
        return [event.kind for event in answer.events]

    async def claim(self, order: order_pb2.Order | None = None, limit: int = 10) -> list[order_pb2.Claim]:
        """Claim as recovery does."""
        request = pb.ClaimDueOrdersRequest(
            shard="s1",
            limit=limit,
            claimed_by="r1",
            order_id=order.order_id if order else "",
            lease=Duration(seconds=30),
        )
        return list((await self.by(RECOVERY).call("ClaimDueOrders", request)).claims)

    async def report(
        self, claim: order_pb2.Claim, report: order_pb2.ProbeReport, **changed: Any
    ) -> order_pb2.Order:
        """Report a finding as recovery does."""
        request = pb.ReportVerdictRequest(
            order_id=claim.order.order_id,
            event_id=claim.event_id,
            lease_token=claim.lease_token,
            leg=claim.order.leg,
            attempt=claim.order.attempt,
            report=report,
        )
        request.MergeFrom(pb.ReportVerdictRequest(**changed))
        order: order_pb2.Order = (await self.by(RECOVERY).call("ReportVerdict", request)).order
        return order

    async def probe(self, order: order_pb2.Order) -> order_pb2.Order:
        """Do what recovery does for one order: claim it, ask its upstream, report the answer."""
        (claim,) = await self.claim(order)
        upstream = {"payments": self.payments, "fulfilment": self.fulfilment}[claim.upstream]
        return await self.report(claim, answered(await upstream.probe(claim.idempotency_key)))

    async def parked(self, **fields: Any) -> order_pb2.Order:
        """An order whose upstream executed it, and says UNKNOWN until it behaves."""
        fields.setdefault("user_id", f"parked-{uuid4().hex[:8]}")
        await self.payments.misbehave("UNKNOWN", user_id_prefix=fields["user_id"])
        order = (await self.create(**fields)).order
        await self.at(order, UNKNOWN)
        for _ in range(POLICY["probes_max"]):  # type: ignore[call-overload]
            order = await self.probe(order)
        assert order.stage == PARKED
        return order

    async def sql(self, statement: str, *args: object) -> list[asyncpg.Record]:
        """Look past the service."""
        connection = await asyncpg.connect(self.dsn, server_settings={"search_path": "ordermesh"})
        try:
            return await connection.fetch(statement, *args)
        finally:
            await connection.close()

    async def let_pass(self, time: timedelta) -> None:
        """Let time pass on the shard's clock."""
        await self.sql(
            "INSERT INTO clock_offset (ahead) VALUES ($1) ON CONFLICT (only_row) DO UPDATE"
            " SET ahead = clock_offset.ahead + excluded.ahead",
            time,
        )


def create_request(*, wait_s: float = 0.0, **fields: Any) -> pb.CreateOrderRequest:
    """A well-formed request of alice, unless told otherwise."""
    amount = fields.pop("amount_minor", 1250)
    request = pb.CreateOrderRequest(
        **{
            "user_id": "alice",
            "request_id": str(uuid4()),
            "kind": "payment",
            "amount": Money(currency_code="EUR", amount_minor=amount),
            **fields,
        }
    )
    if wait_s:
        request.wait.FromTimedelta(timedelta(seconds=wait_s))
    return request


def answered(answer: upstream_pb.Answer) -> order_pb2.ProbeReport:
    """The report of an upstream's word."""
    return order_pb2.ProbeReport(probe_class=order_pb2.PROBE_CLASS_ANSWERED, answer=answer)


def said(verdict: str, **fields: Any) -> order_pb2.ProbeReport:
    """The report of a verdict by its name."""
    return answered(upstream_pb.Answer(verdict=upstream_pb.Verdict.Value(f"VERDICT_{verdict}"), **fields))


@contextmanager
def refuses(reason: Reason) -> Iterator[list[rpc.RemoteError]]:
    """Expect a call to be refused with one of our reasons, whatever its code."""
    facts: list[rpc.RemoteError] = []
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        yield facts
    error = rpc.error_of(failed.value)
    facts.append(error)
    assert error.reason == reason, error


@contextmanager
def armed(specification: str) -> Iterator[None]:
    """Arm fault points of this process; when it ends all of them have fired."""
    faults.arm(specification)
    try:
        yield
        assert not faults.armed()
    finally:
        faults.arm("")


@asynccontextmanager
async def serving(trust: Trust, database: Database, directory: Path, **settings: Any) -> AsyncIterator[Lane]:
    """Serve shard s1 on a fresh database with two upstreams."""
    await prepare(database.dsn)
    async with AsyncExitStack() as stack:
        payments, fulfilment = [
            await stack.enter_async_context(
                upstreams.simulated(directory, trust.tls, name=name, idempotent=idempotent)
            )
            for name, idempotent in (("payments", False), ("fulfilment", True))
        ]
        targets = {"payments": payments.target, "fulfilment": fulfilment.target}
        async with lane_on(trust, database, targets, **settings) as (running, stub):
            yield Lane(running, stub, trust, database.dsn, payments, fulfilment)


@asynccontextmanager
async def lane_on(
    trust: Trust, database: Database, targets: dict[str, str], **given: Any
) -> AsyncIterator[tuple[app.Lane, order_grpc.OrderServiceAsyncStub]]:
    """An order_svc with its loops on a prepared database."""
    settings = OrderSettings(
        **{
            "shard": "s1",
            "dsn": database.dsn,
            "tls_dir": trust.tls,
            "subject_dir": trust.subjects,
            "profile": "local",
            "upstream_targets": json.loads(json.dumps(targets)),
            "contracts": CONTRACTS,
            "policy": POLICY,
            "submit_tick_s": 0.05,
            "submit_lease_s": 1.0,
            **given,
        }
    )
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(app.running(settings))
        for loop in running.loops:
            task = asyncio.create_task(loop.run(), name=loop.name)
            stack.callback(task.cancel)
        stack.push_async_callback(running.owned.drain, 5.0)
        stack.push_async_callback(running.driver.stop)
        channel = await stack.enter_async_context(
            rpc.Channel(f"127.0.0.1:{running.port}", service="order_svc", tls=trust.files("shard_proxy"))
        )
        yield running, order_grpc.OrderServiceStub(channel)
