"""Bad input on REST and gRPC: each a typed, documented error, and nothing is stored."""

import json
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import httpx
import jwt
import pytest

from chassis import rpc
from ordermesh.history.v1 import history_service_pb2 as history
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.order.v1.order_service_pb2_grpc import OrderServiceStub
from tests.stack import World

GOOD = {"kind": "payment", "amount": {"currencyCode": "EUR", "amountMinor": 100}}
NOBODYS = "/v1/orders/01939c5e-7a3b-7000-8000-1234567890ab"
"""An order id that ordermesh could have made, and did not."""


@dataclass(frozen=True)
class Bad:
    """A REST request that must be refused. drop: headers that are left out."""

    what: str
    status: int
    reason: str
    method: str = "POST"
    path: str = "/v1/orders"
    body: Any = field(default_factory=lambda: GOOD)
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    field_name: str = ""


REST = (
    Bad("no token", 401, "UNAUTHENTICATED", drop=("authorization",)),
    Bad("a token that is none", 401, "UNAUTHENTICATED", headers={"authorization": "Bearer x.y.z"}),
    Bad("no key", 400, "INVALID_FIELD", drop=("idempotency-key",), field_name="Idempotency-Key"),
    Bad(
        "a key that is no UUID",
        400,
        "INVALID_FIELD",
        headers={"idempotency-key": "7"},
        field_name="Idempotency-Key",
    ),
    Bad("no amount", 400, "INVALID_FIELD", body={"kind": "payment"}, field_name="amount"),
    Bad(
        "an amount in words",
        400,
        "INVALID_FIELD",
        body=GOOD | {"amount": {"currencyCode": "EUR", "amountMinor": "x"}},
    ),
    Bad(
        "an amount of nothing",
        400,
        "INVALID_FIELD",
        body=GOOD | {"amount": {"currencyCode": "EUR", "amountMinor": 0}},
    ),
    Bad(
        "a negative amount",
        400,
        "INVALID_FIELD",
        body=GOOD | {"amount": {"currencyCode": "EUR", "amountMinor": -5}},
    ),
    Bad(
        "a float amount",
        400,
        "INVALID_FIELD",
        body=GOOD | {"amount": {"currencyCode": "EUR", "amountMinor": 1.5}},
    ),
    Bad(
        "no such currency form",
        400,
        "INVALID_FIELD",
        body=GOOD | {"amount": {"currencyCode": "euro", "amountMinor": 5}},
    ),
    Bad("a kind of the wrong type", 400, "INVALID_FIELD", body=GOOD | {"kind": 7}, field_name="kind"),
    Bad("an unknown kind", 400, "UNKNOWN_KIND", body=GOOD | {"kind": "wish"}),
    Bad("an unknown field", 400, "INVALID_FIELD", body=GOOD | {"colour": "red"}, field_name="colour"),
    Bad("a long description", 400, "INVALID_FIELD", body=GOOD | {"description": "x" * 513}),
    Bad("a list", 400, "MALFORMED_REQUEST", body=[GOOD]),
    Bad("no JSON", 400, "MALFORMED_REQUEST", raw=b"{"),
    Bad("another media type", 415, "UNSUPPORTED_MEDIA_TYPE", headers={"content-type": "text/plain"}),
    Bad("5 MB", 413, "TOO_LARGE", raw=b'{"kind":"' + b"x" * 5_000_000 + b'"}'),
    Bad("an unknown path", 404, "NO_SUCH_PATH", path="/v1/wishes"),
    Bad("an unknown method", 405, "METHOD_NOT_ALLOWED", method="DELETE"),
    Bad("an id that is none", 400, "ORDER_ID_INVALID", method="GET", path="/v1/orders/7"),
    Bad(
        "labels of an id that is none",
        400,
        "ORDER_ID_INVALID",
        method="PATCH",
        path="/v1/orders/7",
        body={"labels": {}},
    ),
    Bad(
        "a change of nothing",
        400,
        "INVALID_FIELD",
        method="PATCH",
        path=NOBODYS,
        body={},
        field_name="labels",
    ),
    Bad(
        "a change of the status",
        400,
        "INVALID_FIELD",
        method="PATCH",
        path=NOBODYS,
        body={"labels": {}, "status": "SUCCESS"},
        field_name="status",
    ),
    Bad(
        "labels without names",
        400,
        "INVALID_FIELD",
        method="PATCH",
        path=NOBODYS,
        body={"labels": {"": "x"}},
    ),
    Bad(
        "a change on a version in words",
        400,
        "INVALID_FIELD",
        method="PATCH",
        path=NOBODYS,
        body={"labels": {}},
        headers={"if-match": "latest"},
        field_name="If-Match",
    ),
    Bad(
        "a change without a key",
        400,
        "INVALID_FIELD",
        method="PATCH",
        path=NOBODYS,
        drop=("idempotency-key",),
    ),
    Bad("labels of no order", 404, "ORDER_NOT_FOUND", method="PATCH", path=NOBODYS, body={"labels": {}}),
    Bad("an unknown parameter", 400, "INVALID_FIELD", method="GET", path="/v1/orders?colour=red"),
    Bad("a made-up page token", 400, "PAGE_TOKEN_INVALID", method="GET", path="/v1/orders?pageToken=abc"),
    *(
        Bad(
            query,
            400,
            "INVALID_FIELD",
            method="GET",
            path=f"/v1/orders?{query}",
            field_name=field_,
        )
        for query, field_ in (
            ("status=DONE", "status"),
            ("kind=Two%20words", "kind"),
            ("from=yesterday", "from"),
            ("until=2026-01-01T00:00:00", "until"),
            ("currency=euro", "currency"),
            ("minAmount=5", "currency"),
            ("currency=EUR&minAmount=-1", "minAmount"),
            ("currency=EUR&minAmount=7&maxAmount=6", "maxAmount"),
            ("q=---", "q"),
            ("q=a+b+c+d+e+f+g+h+i", "q"),
            ("pageSize=101", "pageSize"),
            ("consistency=sometimes", "consistency"),
            ("partial=true", "partial"),
        )
    ),
    Bad(
        "a made-up consistency token",
        400,
        "INVALID_FIELD",
        method="GET",
        headers={"ordermesh-consistency-token": "abc"},
        field_name="Ordermesh-Consistency-Token",
    ),
    Bad(
        "a write with a made-up consistency token",
        400,
        "INVALID_FIELD",
        headers={"ordermesh-consistency-token": "abc"},
        field_name="Ordermesh-Consistency-Token",
    ),
)


@pytest.mark.parametrize("bad", REST, ids=lambda bad: bad.what)
async def test_bad_rest_input_is_a_problem_that_says_why_and_stores_nothing(world: World, bad: Bad) -> None:
    user = f"bad.{uuid4().hex[:8]}"
    headers = {
        "authorization": f"Bearer {world.token(user)}",
        "idempotency-key": str(uuid4()),
        "content-type": "application/json",
    } | bad.headers
    for name in bad.drop:
        del headers[name]
    content = (
        None if bad.method == "GET" else bad.raw if bad.raw is not None else json.dumps(bad.body).encode()
    )
    async with world.rest() as http:
        answer = await http.request(bad.method, bad.path, content=content, headers=headers)

    problem = answer.json()
    assert (answer.status_code, problem["reason"]) == (bad.status, bad.reason), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["title"]
    assert problem["requestId"]
    if bad.field_name:
        assert bad.field_name in [violation["field"] for violation in problem["fieldViolations"]]
    assert await orders_of(world, user) == 0


async def test_expired_unsigned_and_foreign_tokens_are_refused(world: World) -> None:
    user = f"bad.{uuid4().hex[:8]}"
    claims = jwt.decode(world.token(user), options={"verify_signature": False})
    unsigned = jwt.encode(claims, "", algorithm="none")
    symmetric = jwt.encode(claims, "a shared secret of some length ....", algorithm="HS256")
    for token in (world.token(user, age_s=700), unsigned, symmetric):
        async with world.rest() as http:
            answer = await http.post(
                "/v1/orders",
                json=GOOD,
                headers={"authorization": f"Bearer {token}", "idempotency-key": str(uuid4())},
            )
        assert (answer.status_code, answer.json()["reason"]) == (httpx.codes.UNAUTHORIZED, "UNAUTHENTICATED")
    assert await orders_of(world, user) == 0


async def test_a_key_with_another_body_is_refused_and_the_first_order_stays(world: World) -> None:
    user, key = f"bad.{uuid4().hex[:8]}", str(uuid4())
    async with world.rest(user) as http:
        first = await http.post("/v1/orders", json=GOOD, headers={"idempotency-key": key})
        other = await http.post(
            "/v1/orders", json=GOOD | {"description": "other"}, headers={"idempotency-key": key}
        )
    assert first.status_code == httpx.codes.CREATED
    assert (other.status_code, other.json()["reason"]) == (
        httpx.codes.UNPROCESSABLE_ENTITY,
        "REQUEST_ID_REUSED",
    )
    assert await orders_of(world, user) == 1


async def test_another_users_order_is_not_shown(world: World) -> None:
    order = await world.create(f"bad.{uuid4().hex[:8]}")
    async with world.rest(f"bad.{uuid4().hex[:8]}") as http:
        for path in (f"/v1/orders/{order.order_id}", f"/v1/orders/{order.order_id}/events"):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["reason"]) == (httpx.codes.FORBIDDEN, "NOT_YOUR_ORDER")
            assert order.user_id not in answer.text


def create(**changes: Any) -> pb.CreateOrderRequest:
    fields: dict[str, Any] = {
        "user_id": "bad.grpc",
        "request_id": str(uuid4()),
        "kind": "payment",
        "amount": Money(currency_code="EUR", amount_minor=100),
    }
    return pb.CreateOrderRequest(**{k: v for k, v in (fields | changes).items() if v is not None})


GRPC = (
    ("no user", create(user_id=None), "INVALID_ARGUMENT", "ROUTING_KEY_MISSING"),
    ("a bad user", create(user_id="a b"), "INVALID_ARGUMENT", "INVALID_FIELD"),
    ("no key", create(request_id=None), "INVALID_ARGUMENT", "INVALID_FIELD"),
    ("a bad key", create(request_id="7"), "INVALID_ARGUMENT", "INVALID_FIELD"),
    ("no amount", create(amount=None), "INVALID_ARGUMENT", "INVALID_FIELD"),
    ("no kind", create(kind=None), "INVALID_ARGUMENT", "INVALID_FIELD"),
    ("an unknown kind", create(kind="wish"), "INVALID_ARGUMENT", "UNKNOWN_KIND"),
    ("a long description", create(description="x" * 513), "INVALID_ARGUMENT", "INVALID_FIELD"),
    (
        "many labels",
        create(labels={str(n): "x" * 100 for n in range(50)}),
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
    ),
)


@pytest.mark.parametrize(("what", "request_", "code", "reason"), GRPC, ids=[row[0] for row in GRPC])
async def test_bad_grpc_input_is_a_typed_status_and_stores_nothing(
    world: World, what: str, request_: pb.CreateOrderRequest, code: str, reason: str
) -> None:
    before = await orders_of(world, "bad.grpc")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.mesh.orders.CreateOrder(request_, timeout=5.0)
    error = rpc.error_of(refused.value)
    assert (error.code.name, error.reason) == (code, reason), what
    assert error.metadata["trace_id"]
    assert await orders_of(world, "bad.grpc") == before


LISTS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("a bad user", {"user_id": "a b"}, "user_id"),
    ("a negative page size", {"page_size": -1}, "page_size"),
    ("an unknown status", {"status": 9}, "status"),
    ("two statuses", {"status": 1, "filter": {"status": 2}}, "status"),
    ("a bad kind", {"filter": {"kind": "Two words"}}, "filter.kind"),
    ("no time", {"filter": {"from_time": {"seconds": 2**40}}}, "from_time"),
    ("amounts of no currency", {"filter": {"amount": {"min_minor": 5}}}, "filter.amount.currency_code"),
    (
        "an empty range",
        {"filter": {"amount": {"currency_code": "EUR", "min_minor": 5, "max_minor": 4}}},
        "filter.amount.max_minor",
    ),
    ("no words", {"filter": {"text": "--"}}, "filter.text"),
    ("an unknown consistency", {"consistency": 9}, "consistency"),
    ("a made-up token", {"consistency_token": "abc"}, "consistency_token"),
    ("no token", {"consistency": history.CONSISTENCY_AT_LEAST_AS_FRESH}, "consistency_token"),
    ("a partial page", {"return_partial_success": True}, "return_partial_success"),
)


@pytest.mark.parametrize(("what", "ask", "field_"), LISTS, ids=[row[0] for row in LISTS])
async def test_a_bad_list_is_refused_with_its_field(
    world: World, what: str, ask: dict[str, Any], field_: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.mesh.history.ListOrders(
            history.ListOrdersRequest(**{"user_id": "bad.grpc", **ask}), timeout=5.0
        )
    error = rpc.error_of(refused.value)
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD"), what
    assert field_ in [violation.field for violation in error.violations]


async def test_a_bad_search_or_explanation_is_refused_with_its_field(world: World) -> None:
    stub = world.mesh.history
    calls: tuple[tuple[Any, Any, str], ...] = (
        (stub.SearchOrders, history.SearchOrdersRequest(user_id="a b"), "user_id"),
        (stub.SearchOrders, history.SearchOrdersRequest(page_size=-1), "page_size"),
        (
            stub.SearchOrders,
            history.SearchOrdersRequest(filter=history.OrderFilter(text="--")),
            "filter.text",
        ),
        (stub.ExplainPage, history.ExplainPageRequest(user_id="a b"), "user_id"),
    )
    for call, request, field_ in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request, timeout=5.0)
        error = rpc.error_of(refused.value)
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert [violation.field for violation in error.violations] == [field_]


async def test_rubbish_bytes_large_messages_and_unknown_methods_are_typed_on_the_plain_port(
    world: World,
) -> None:
    async with grpc.aio.insecure_channel(world.endpoints.grpc.plain) as channel:
        call: Any = channel.unary_unary("/ordermesh.order.v1.OrderService/CreateOrder")
        unknown: Any = channel.unary_unary("/ordermesh.order.v1.OrderService/DropOrders")
        large = create(description="x" * 5_000_000).SerializeToString()
        for attempt, codes in (
            (call(b"\xff\xff\xff", timeout=5.0), {"INVALID_ARGUMENT"}),
            (call(large, timeout=5.0), {"RESOURCE_EXHAUSTED"}),
            (unknown(b"", timeout=5.0), {"UNIMPLEMENTED"}),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await attempt
            assert refused.value.code().name in codes, refused.value
            assert "Traceback" not in (refused.value.details() or "")


async def test_a_header_that_disagrees_with_the_key_is_refused(world: World) -> None:
    async with grpc.aio.insecure_channel(world.endpoints.grpc.plain) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await OrderServiceStub(channel).CreateOrder(
                create(), timeout=5.0, metadata=(("x-ordermesh-user", "somebody.else"),)
            )
    assert rpc.error_of(refused.value).reason == "ROUTING_KEY_MISMATCH"


async def orders_of(world: World, user: str) -> int:
    """Rows of a user on every shard, keys and orders alike."""
    total = 0
    for dsn in world.endpoints.shard_dsns().values():
        connection = await asyncpg.connect(dsn)
        try:
            keys = await connection.fetchval("SELECT count(*) FROM idempotency_keys WHERE user_id = $1", user)
            orders = await connection.fetchval("SELECT count(*) FROM orders WHERE user_id = $1", user)
        finally:
            await connection.close()
        assert keys == orders
        total += orders
    return total
