"""A whole gateway in the test's own process: real sockets, a real issuer, and a mesh behind it over mTLS
whose orders live in memory.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from chassis import consistency, ids, rpc
from chassis.auth import Entrance, SubjectMinter, SubjectVerifier
from chassis.errors import OrdermeshError, Reason
from chassis.tls import ServerIdentity, TlsFiles
from gateway import app, listener
from gateway.settings import GatewaySettings
from history_svc import wire
from ops import ca, issuer
from ordermesh.archive.v1 import statement_service_pb2 as statements
from ordermesh.history.v1 import history_service_pb2 as history
from ordermesh.order.v1 import order_pb2
from ordermesh.order.v1 import order_service_pb2 as orders

Order = order_pb2.Order
CALL_S = 10.0


class NoOrder(OrdermeshError):
    """There is no such order."""

    code, reason = StatusCode.NOT_FOUND, Reason.ORDER_NOT_FOUND


class Reused(OrdermeshError):
    """The request id was used before with another request."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.REQUEST_ID_REUSED


class Outdated(OrdermeshError):
    """The order has another version by now."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.VERSION_MISMATCH


class NoStatement(OrdermeshError):
    """There is no such statement."""

    code, reason = StatusCode.NOT_FOUND, Reason.STATEMENT_NOT_FOUND


class NotReady(OrdermeshError):
    """The statement is not ready."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.STATEMENT_NOT_READY

    def __init__(self, state: str, retry_after_s: float | None) -> None:
        super().__init__(state=state)
        self.retry_after_s = retry_after_s


class Running(OrdermeshError):
    """Another statement is being made."""

    code, reason = StatusCode.RESOURCE_EXHAUSTED, Reason.STATEMENT_RUNNING
    retry_after_s = 30.0


class Whole:
    """A service of which every method that a test does not need is there and refuses."""

    def __getattr__(self, name: str) -> Any:
        """Every other method of the contract."""

        async def other(_: Any, call: rpc.Call) -> Any:
            raise NoOrder(method=call.method.name)

        if name.startswith("_") or not name[0].isupper():
            raise AttributeError(name)
        return other


@dataclass
class Statements(Whole):
    """StatementService over a dictionary; a statement moves on when a test says so."""

    made: dict[str, Any] = field(default_factory=dict)
    by_request: dict[tuple[str, str], str] = field(default_factory=dict)
    waits: list[Any] = field(default_factory=list)
    calls: list[rpc.Call] = field(default_factory=list)

    def operation(self, user_id: str, statement_id: str) -> Any:
        told = self.made.get(statement_id)
        if told is None or told.user_id != user_id:
            raise NoStatement(statement_id=statement_id)
        name = f"users/{user_id}/statements/{statement_id}"
        operation = operations_pb2.Operation(name=name, done=told.state >= statements.Statement.READY)
        operation.metadata.Pack(told)
        if told.state == statements.Statement.READY:
            operation.response.Pack(told)
        if told.state == statements.Statement.FAILED:
            operation.error.code, operation.error.message = 15, "a segment is damaged"
        return operation

    async def RequestStatement(self, request: Any, call: rpc.Call) -> Any:
        self.calls.append(call)
        key = (request.user_id, request.request_id)
        was_there = key in self.by_request
        if not was_there:
            if any(
                t.user_id == request.user_id and t.state < statements.Statement.READY
                for t in self.made.values()
            ):
                raise Running
            told = statements.Statement(
                statement_id=str(uuid.uuid4()), user_id=request.user_id, wish=request.wish, month_count=3
            )
            told.state = statements.Statement.WAITING
            told.create_time.GetCurrentTime()
            self.made[told.statement_id] = told
            self.by_request[key] = told.statement_id
        told = statements.Statement()
        told.CopyFrom(self.made[self.by_request[key]])
        told.was_there = was_there
        operation = self.operation(request.user_id, told.statement_id)
        operation.metadata.Pack(told)
        return operation

    async def WaitStatement(self, request: Any, call: rpc.Call) -> Any:
        self.waits.append(request)
        return self.operation(request.user_id, request.statement_id)

    async def CancelStatement(self, request: Any, call: rpc.Call) -> Any:
        self.operation(request.user_id, request.statement_id)
        self.made[request.statement_id].state = statements.Statement.CANCELLED
        return self.operation(request.user_id, request.statement_id)

    async def ListStatements(self, request: Any, call: rpc.Call) -> Any:
        found = [each for each in self.made.values() if each.user_id == request.user_id]
        return statements.ListStatementsResponse(
            operations=[self.operation(each.user_id, each.statement_id) for each in found],
            next_page_token="more" if found and not request.page_token else "",
        )

    async def LinkStatement(self, request: Any, call: rpc.Call) -> Any:
        self.operation(request.user_id, request.statement_id)
        state = self.made[request.statement_id].state
        if state != statements.Statement.READY:
            raise NotReady(statements.Statement.State.Name(state), None if state > 6 else 2.0)
        return statements.LinkStatementResponse(url="https://s3.invalid/file?signed=1", filename="file.zip")


@dataclass
class Mesh(Whole):
    """OrderService and HistoryService over a dictionary, keeping the promises the gateway repeats.

    `creates` and `pages` are the requests as they arrived, `calls` how; `refusal` is raised by every call
    when set, and GetOrder waits for `held` when there is one.
    when set. `shard` and `xid` are where the next write happens.
    """

    orders: dict[str, Any] = field(default_factory=dict)
    by_request: dict[tuple[str, str], tuple[bytes, str]] = field(default_factory=dict)
    creates: list[Any] = field(default_factory=list)
    pages: list[Any] = field(default_factory=list)
    calls: list[rpc.Call] = field(default_factory=list)
    next_page_token: str = ""
    unreachable: tuple[str, ...] = ()
    refusal: Exception | None = None
    held: asyncio.Event | None = None
    shard: str = "s1"
    xid: int = 100
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    watching: asyncio.Event = field(default_factory=asyncio.Event)
    unwatched: asyncio.Event = field(default_factory=asyncio.Event)
    statements: Statements = field(default_factory=Statements)

    async def CreateOrder(self, request: Any, call: rpc.Call) -> Any:
        self._enter(call)
        self.creates.append(request)
        call.subject.must_own(request.user_id)
        fingerprint = orders.CreateOrderRequest(
            kind=request.kind, amount=request.amount, description=request.description, labels=request.labels
        ).SerializeToString(deterministic=True)
        known = self.by_request.get((request.user_id, request.request_id))
        if known is not None and known[0] != fingerprint:
            raise Reused
        if known is not None:
            return orders.CreateOrderResponse(order=self.orders[known[1]], replayed=True)
        order = order_of(request.user_id, request_id=request.request_id, kind=request.kind)
        order.amount.CopyFrom(request.amount)
        order.description = request.description
        order.labels.update(request.labels)
        self.orders[order.order_id] = order
        self.by_request[request.user_id, request.request_id] = (fingerprint, order.order_id)
        return orders.CreateOrderResponse(order=order, consistency_token=self._written())

    async def GetOrder(self, request: Any, call: rpc.Call) -> Any:
        self._enter(call)
        if self.held is not None:
            await self.held.wait()
        return orders.GetOrderResponse(order=self._seen(request.order_id, call))

    async def UpdateOrder(self, request: Any, call: rpc.Call) -> Any:
        self._enter(call)
        order = self._seen(request.order_id, call)
        if request.expected_version not in (0, order.version):
            raise Outdated(version=order.version)
        order.version += 1
        order.labels.clear()
        order.labels.update(request.labels)
        return orders.UpdateOrderResponse(order=order, consistency_token=self._written())

    async def WatchOrder(self, request: Any, call: rpc.Call) -> AsyncIterator[Any]:
        self._enter(call)
        after = request.after_version
        self.watching.set()
        try:
            while True:
                order = self._seen(request.order_id, call)
                if order.version > after:
                    after = order.version
                    yield orders.WatchOrderResponse(order=order)
                    if order.stage == Order.DONE:
                        return
                async with self.changed:
                    await self.changed.wait()
        finally:
            self.unwatched.set()

    async def ListOrderEvents(self, request: Any, call: rpc.Call) -> Any:
        self._enter(call)
        order = self._seen(request.order_id, call)
        opened = order_pb2.OrderEvent(
            version=1,
            event_id=str(uuid.uuid4()),
            kind="OPENED",
            to_status=Order.PENDING,
            to_stage=Order.SUBMITTING,
            attempt=1,
            actor="gateway",
            evidence_json='{"kind":"payment"}',
            event_time=order.create_time,
        )
        return orders.ListOrderEventsResponse(events=[opened], next_page_token=self.next_page_token)

    async def ListOrders(self, request: Any, call: rpc.Call) -> Any:
        self._enter(call)
        wire.ask(request)
        self.pages.append(request)
        call.subject.must_own(request.user_id)
        mine = [order for order in self.orders.values() if order.user_id == request.user_id]
        return history.ListOrdersResponse(
            orders=mine,
            next_page_token=self.next_page_token,
            read_info=history.ReadInfo(
                sources=["sql:s1", "read_model"],
                served_by=history.ReadInfo.MERGED,
                as_of=stamp(),
                index_lag=Duration(seconds=2, nanos=500_000_000),
                overlay_count=1,
                read_model_asked=True,
            ),
            unreachable=self.unreachable,
        )

    async def settle(self, order_id: str, status: Any = Order.SUCCESS) -> None:
        """Let an order become settled, and tell those who watch it."""
        async with self.changed:
            order = self.orders[order_id]
            order.version += 1
            order.status, order.stage, order.basis = status, Order.DONE, Order.UPSTREAM
            order.settle_time.CopyFrom(stamp())
            self.changed.notify_all()

    def _written(self) -> str:
        self.xid += 1
        return consistency.sealed({self.shard: (1, self.xid)})

    def _enter(self, call: rpc.Call) -> None:
        self.calls.append(call)
        if self.refusal is not None:
            raise self.refusal

    def _seen(self, order_id: str, call: rpc.Call) -> Any:
        order = self.orders.get(order_id)
        if order is None:
            raise NoOrder
        call.subject.must_own(order.user_id)
        return order


def order_of(user_id: str, *, request_id: str = "", kind: str = "payment") -> Any:
    """A new order of a user."""
    order_id = ids.OrderIds(lambda: int(datetime.now(UTC).timestamp() * 1000)).new(ids.user_bucket(user_id))
    return Order(
        order_id=str(order_id),
        user_id=user_id,
        status=Order.PENDING,
        stage=Order.SUBMITTING,
        kind=kind,
        legs=["payments"],
        attempt=1,
        version=1,
        create_time=stamp(),
        update_time=stamp(),
        request_id=request_id,
    )


def stamp() -> Timestamp:
    """Now."""
    made = Timestamp()
    made.FromDatetime(datetime.now(UTC))
    return made


@dataclass(frozen=True, slots=True)
class Rest:
    """A gateway that listens, and what stands around it."""

    http: httpx.AsyncClient
    mesh: Mesh
    gateway: app.Gateway
    issuer_dir: Path

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.gateway.rest.port

    def token(self, user: str = "alice", *roles: str, **options: Any) -> str:
        """A token of the issuer."""
        return issuer.mint_token(self.issuer_dir, user, roles, **options)

    def headers(self, user: str = "alice", *roles: str, **more: str) -> dict[str, str]:
        """Headers with which a user asks; `x_y=...` adds X-Y."""
        named = {name.replace("_", "-"): value for name, value in more.items()}
        return {"authorization": f"Bearer {self.token(user, *roles)}", **named}

    async def create(
        self, user: str = "alice", *, key: str = "", body: Any = None, **more: str
    ) -> httpx.Response:
        """Ask for an order."""
        headers = self.headers(user, idempotency_key=key or str(uuid.uuid4()), **more)
        return await self.http.post("/v1/orders", json=new_order() if body is None else body, headers=headers)

    async def patch(self, path: str, body: Any, user: str = "alice", **more: str) -> httpx.Response:
        """Ask for a change."""
        headers = self.headers(user, idempotency_key=str(uuid.uuid4()), **more)
        return await self.http.patch(path, json=body, headers=headers)

    async def get(self, path: str, user: str = "alice", *roles: str, **more: str) -> httpx.Response:
        """Ask for something."""
        return await self.http.get(path, headers=self.headers(user, *roles, **more))


def new_order(**changes: Any) -> dict[str, Any]:
    """The body of a new order."""
    return {"kind": "payment", "amount": {"currencyCode": "EUR", "amountMinor": 1250}, **changes}


@asynccontextmanager
async def opened(directory: Path, *, loop: bool = True, **changes: Any) -> AsyncIterator[Rest]:
    """A gateway over an in-memory mesh. loop: fetch keys in the background as in production."""
    tls, subjects, issuer_dir = directory / "tls", directory / "subject", directory / "issuer"
    ca.renew_due(tls)
    ca.ensure_subject_keys(subjects)
    ca.ensure_issuer(issuer_dir)
    mesh = Mesh()
    async with AsyncExitStack() as stack:
        gate = rpc.Gate(Entrance(SubjectVerifier(subjects), SubjectMinter(subjects, "shard_proxy")))
        mounts = [
            rpc.Mount("ordermesh.order.v1.OrderService", mesh),
            rpc.Mount("ordermesh.history.v1.HistoryService", mesh),
            rpc.Mount("ordermesh.archive.v1.StatementService", mesh.statements),
        ]
        identity = ServerIdentity(TlsFiles(tls, "shard_proxy"))
        server = await stack.enter_async_context(rpc.serve("127.0.0.1:0", mounts, gate=gate, tls=identity))
        facts = {
            "listen": "127.0.0.1:0",
            "mesh_target": f"127.0.0.1:{server.port}",
            "tls_dir": tls,
            "subject_dir": subjects,
            "jwks_url": "https://nobody.invalid/jwks.json",
            "drain_s": 1.0,
            **changes,
        }
        published = await stack.enter_async_context(
            listener.serve(issuer.application(issuer_dir), GatewaySettings(**facts))
        )
        facts.setdefault("jwks_file", directory / "kept-jwks.json")
        if "jwks_url" not in changes:
            facts["jwks_url"] = f"http://127.0.0.1:{published.port}{issuer.JWKS_PATH}"
        gateway = await stack.enter_async_context(app.opened(GatewaySettings(**facts)))
        await _fetch_keys(gateway, stack, loop=loop)
        http = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{gateway.rest.port}", timeout=CALL_S, trust_env=False
            )
        )
        yield Rest(http, mesh, gateway, issuer_dir)


async def _fetch_keys(gateway: app.Gateway, stack: AsyncExitStack, *, loop: bool) -> None:
    if not loop:
        await gateway.keys.fetch()
        return
    running = asyncio.create_task(gateway.keys.run())
    stack.callback(running.cancel)
    await gateway.keys.fetch()
