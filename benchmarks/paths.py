"""The three ways to an order: order_svc alone, through shard_proxy, through the gateway.

Each call waits until the order is settled. All users hash to one shard, so that every path, and pgbench,
works in the same database.
"""

from __future__ import annotations

import itertools
import json
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration

from chassis import ids, rpc
from chassis.auth import Role, Subject, SubjectMinter
from chassis.tls import TlsFiles
from ops import mesh
from ops.issuer import mint_token
from ops.load.http import ConnectionLost, Http
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.order.v1.order_pb2 import Order
from ordermesh.order.v1.order_service_pb2_grpc import OrderServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ops.stack.endpoints import Endpoints
    from ops.stack.layout import Places
    from ordermesh.order.v1.order_service_pb2_grpc import OrderServiceAsyncStub

    Call = Callable[[], Awaitable[bool]]

SHARD = "s1"
BUCKETS = range(2048)
"""The buckets of the shard in the local stack."""
WAIT_S = 5
TIMEOUT_S = 8.0
_CANDIDATES = map("bench.{}".format, itertools.count())
USERS = tuple(itertools.islice((user for user in _CANDIDATES if ids.user_bucket(user) in BUCKETS), 200))
_ACT = "spiffe://ordermesh/ops"


@asynccontextmanager
async def opened(endpoints: Endpoints, places: Places) -> AsyncIterator[dict[str, Call]]:
    """Every path by name, cheapest first."""
    async with AsyncExitStack() as stack:
        lane = rpc.Channel(
            endpoints.service("order_svc", SHARD).target,
            service="order_svc",
            tls=TlsFiles(places.tls, "shard_proxy"),
        )
        direct = OrderServiceStub(await stack.enter_async_context(lane))
        stubs = await stack.enter_async_context(mesh.connect(endpoints))
        http = await stack.enter_async_context(Http(endpoints.gateway, connections_max=128))
        yield {
            "order_svc": _to_lane(direct, SubjectMinter(places.subject, "shard_proxy")),
            "shard_proxy": _to_proxy(stubs.orders),
            "gateway": _to_gateway(http, places),
        }


def _to_lane(orders: OrderServiceAsyncStub, minter: SubjectMinter) -> Call:
    """As shard_proxy calls: with the route and the signed subject."""
    users = itertools.cycle(USERS)
    subject = Subject("bench", frozenset({Role.SERVICE}), _ACT)

    async def call() -> bool:
        user = next(users)
        route = {"bucket": str(ids.user_bucket(user)), "epoch": "1", "subject": minter.mint(subject)}
        metadata = tuple((f"x-ordermesh-{name}", value) for name, value in route.items())
        return await _settled(orders, user, metadata)

    return call


def _to_proxy(orders: OrderServiceAsyncStub) -> Call:
    users = itertools.cycle(USERS)

    async def call() -> bool:
        return await _settled(orders, next(users), ())

    return call


def _to_gateway(http: Http, places: Places) -> Call:
    tokens = {user: mint_token(places.issuer, user) for user in USERS}
    users = itertools.cycle(USERS)
    body = json.dumps({"kind": "payment", "amount": {"currencyCode": "EUR", "amountMinor": 700}}).encode()

    async def call() -> bool:
        headers = {
            "authorization": f"Bearer {tokens[next(users)]}",
            "content-type": "application/json",
            "idempotency-key": str(uuid4()),
            "prefer": f"wait={WAIT_S}",
        }
        try:
            answer = await http.post("/v1/orders", headers, body, timeout_s=TIMEOUT_S)
        except (ConnectionLost, OSError, TimeoutError):
            return False
        return answer.status == 201 and json.loads(answer.body)["status"] == "SUCCESS"

    return call


async def _settled(orders: OrderServiceAsyncStub, user: str, metadata: tuple[tuple[str, str], ...]) -> bool:
    request = pb.CreateOrderRequest(
        user_id=user,
        request_id=str(uuid4()),
        kind="payment",
        amount=Money(currency_code="EUR", amount_minor=700),
        wait=Duration(seconds=WAIT_S),
    )
    try:
        made = await orders.CreateOrder(request, timeout=TIMEOUT_S, metadata=metadata)
    except mesh.CallFailed:
        return False
    return made.order.status == Order.SUCCESS
