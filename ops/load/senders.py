"""How an order is asked for: over gRPC with mTLS, or over REST with the user's token.

Both say the same three things: acknowledged, refused for good, or nobody knows. Only a typed refusal of the
request itself is for good; everything else is asked again with the same key.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from chassis import rpc
from ops.issuer import mint_token
from ops.load.asks import description
from ops.load.http import ConnectionLost
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.order.v1.order_pb2 import Order

if TYPE_CHECKING:
    from pathlib import Path

    from ops.load.asks import Ask
    from ops.load.http import Http, Response
    from ordermesh.order.v1.order_service_pb2_grpc import OrderServiceAsyncStub

SEEN_HEADER = "ordermesh-consistency-token"
TOKEN_S = 3600
TOKEN_MARGIN_S = 60
FINAL_CODES = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
FINAL_STATUSES = frozenset({400, 403, 404, 405, 413, 415, 422})


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What the mesh promised: this order exists."""

    order_id: str
    user_id: str
    request_id: str
    amount_minor: int
    currency_code: str
    status: str
    replayed: bool
    version: int = 0
    token: str = ""
    """What a list has to be as fresh as to show this order."""


class RefusedForGood(Exception):
    """This request will never be acknowledged."""


class NobodyKnows(Exception):
    """No acknowledgement came; the order may exist. Sending the same request again is safe."""

    def __init__(self, why: str, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.why = why
        self.retry_after_s = retry_after_s


class Sender(Protocol):
    """One way to ask."""

    name: str

    async def create(self, ask: Ask, *, timeout_s: float) -> Acknowledgement:
        """Ask for an order once.

        Raises: RefusedForGood; NobodyKnows.
        """
        ...


@dataclass(slots=True)
class GrpcSender:
    """Over gRPC, through shard_proxy, under the identity `ops`. wait_s: for the outcome; 0 for none."""

    orders: OrderServiceAsyncStub
    run_id: str
    name: str = "grpc"

    async def create(self, ask: Ask, *, timeout_s: float) -> Acknowledgement:
        """As of Sender."""
        request = pb.CreateOrderRequest(
            user_id=ask.user_id,
            request_id=str(ask.request_id),
            kind=ask.kind,
            amount=Money(currency_code=ask.currency_code, amount_minor=ask.amount_minor),
            description=description(self.run_id),
        )
        try:
            made = await self.orders.CreateOrder(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as failed:
            said = rpc.error_of(failed)
            why = said.reason or said.code.name
            if said.code in FINAL_CODES:
                raise RefusedForGood(why) from failed
            raise NobodyKnows(why, said.retry_after_s or 0.0) from failed
        order = made.order
        return Acknowledgement(
            order.order_id,
            order.user_id,
            order.request_id,
            order.amount.amount_minor,
            order.amount.currency_code,
            Order.Status.Name(order.status),
            made.replayed,
            order.version,
            made.consistency_token,
        )


@dataclass(slots=True)
class Bearers:
    """Tokens by which the gateway knows its users; minted when first needed."""

    issuer_dir: Path
    _tokens: dict[str, tuple[float, str]] = field(default_factory=dict, init=False)

    def of(self, user_id: str) -> str:
        """The authorization header of a user."""
        expires_at, token = self._tokens.get(user_id, (0.0, ""))
        if time.monotonic() > expires_at - TOKEN_MARGIN_S:
            token = mint_token(self.issuer_dir, user_id, ttl_s=TOKEN_S)
            self._tokens[user_id] = time.monotonic() + TOKEN_S, token
        return f"Bearer {token}"

    def forget(self, user_id: str) -> None:
        """Mint another one next time: the gateway did not take this one."""
        self._tokens.pop(user_id, None)


@dataclass(slots=True)
class RestSender:
    """Over REST, through the gateway, as the user."""

    http: Http
    bearers: Bearers
    run_id: str
    name: str = "rest"

    async def create(self, ask: Ask, *, timeout_s: float) -> Acknowledgement:
        """As of Sender."""
        body = {
            "kind": ask.kind,
            "amount": {"currencyCode": ask.currency_code, "amountMinor": ask.amount_minor},
            "description": description(self.run_id),
        }
        headers = {
            "authorization": self.bearers.of(ask.user_id),
            "content-type": "application/json",
            "idempotency-key": str(ask.request_id),
        }
        try:
            answer = await self.http.post(
                "/v1/orders", headers, json.dumps(body).encode(), timeout_s=timeout_s
            )
        except (ConnectionLost, OSError, TimeoutError) as failed:
            raise NobodyKnows(type(failed).__name__) from failed
        if answer.status in (200, 201):
            return _acknowledged(answer, replayed=answer.status == 200)
        why = reason_of(answer)
        if answer.status in FINAL_STATUSES:
            raise RefusedForGood(why)
        if answer.status == 401:
            self.bearers.forget(ask.user_id)
        raise NobodyKnows(why, float(answer.headers.get("retry-after", "0")))


def reason_of(answer: Response) -> str:
    """Why the gateway refused, as its problem document says it."""
    return str(object_of(answer.body).get("reason", f"HTTP_{answer.status}"))


def object_of(body: bytes) -> dict[str, Any]:
    """A JSON object; empty for anything else, such as the page of a broken proxy."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _acknowledged(answer: Response, *, replayed: bool) -> Acknowledgement:
    order = object_of(answer.body)
    try:
        return Acknowledgement(
            order["orderId"],
            order["userId"],
            order["requestId"],
            order["amount"]["amountMinor"],
            order["amount"]["currencyCode"],
            order["status"],
            replayed,
            order["version"],
            answer.headers.get(SEEN_HEADER, ""),
        )
    except (KeyError, TypeError) as malformed:
        raise NobodyKnows("MALFORMED_ANSWER") from malformed
