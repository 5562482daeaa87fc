"""How a page is fetched: over gRPC under the identity `ops`, or over REST as the user.

Both say the same three things: a page, a refusal of our own page token, or no answer. A page token from one
is good for the other, so a walk may change between them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlencode

import grpc

from chassis import rpc
from ops.load.http import ConnectionLost
from ops.load.senders import SEEN_HEADER, reason_of
from ops.load.walk.book import Freshness
from ops.load.walk.judge import Page, Row
from ordermesh.history.v1 import history_service_pb2 as history

if TYPE_CHECKING:
    from ops.load.http import Http
    from ops.load.senders import Bearers
    from ops.load.walk.judge import Asked
    from ordermesh.history.v1.history_service_pb2_grpc import HistoryServiceAsyncStub

_US = timedelta(microseconds=1)
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00Z")
_LEVELS = {
    Freshness.STRONG: history.CONSISTENCY_STRONG,
    Freshness.TOKEN: history.CONSISTENCY_DEFAULT,
    Freshness.AT_LEAST: history.CONSISTENCY_AT_LEAST_AS_FRESH,
    Freshness.BARE: history.CONSISTENCY_DEFAULT,
}
_WITH_TOKEN = frozenset({Freshness.TOKEN, Freshness.AT_LEAST})
REFUSED_CODES = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED})
REFUSED_STATUSES = frozenset({400, 404, 405, 422})


class NoAnswer(Exception):
    """No page came, and nobody said that there is none."""

    def __init__(self, why: str, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.why = why
        self.retry_after_s = retry_after_s


class PageRefused(Exception):
    """The mesh will not give this page, however often it is asked for."""


class Reader(Protocol):
    """One way to ask for a page."""

    name: str
    levels: tuple[Freshness, ...]

    async def read(self, user: str, asked: Asked, after: str, token: str, *, timeout_s: float) -> Page:
        """Ask for a page once. after: its page token; token: of what the user was told.

        Raises: NoAnswer; PageRefused.
        """
        ...


@dataclass(slots=True)
class GrpcReader:
    """Over gRPC, through shard_proxy."""

    stub: HistoryServiceAsyncStub
    name: str = "grpc"
    levels: tuple[Freshness, ...] = tuple(Freshness)

    async def read(self, user: str, asked: Asked, after: str, token: str, *, timeout_s: float) -> Page:
        """As of Reader."""
        request = history.ListOrdersRequest(
            user_id=user,
            page_size=asked.size,
            page_token=after,
            consistency=_LEVELS[asked.freshness],
            consistency_token=token if asked.freshness in _WITH_TOKEN else "",
        )
        try:
            answer = await self.stub.ListOrders(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as failed:
            said = rpc.error_of(failed)
            why = said.reason or said.code.name
            if said.code in REFUSED_CODES:
                raise PageRefused(why) from failed
            raise NoAnswer(why, said.retry_after_s or 0.0) from failed
        info = answer.read_info
        return Page(
            rows=[
                Row(
                    order.order_id,
                    order.user_id,
                    order.request_id,
                    order.create_time.ToMicroseconds(),
                    order.version,
                    dict(order.labels),
                )
                for order in answer.orders
            ],
            token=answer.next_page_token,
            served_by=history.ReadInfo.ServedBy.Name(info.served_by),
            overlay=info.overlay_count,
            lag_s=info.index_lag.ToTimedelta().total_seconds() if info.HasField("index_lag") else None,
            unreachable=tuple(answer.unreachable),
            archived_us=info.archived_before_time.ToMicroseconds(),
        )


@dataclass(slots=True)
class RestReader:
    """Over REST, through the gateway."""

    http: Http
    bearers: Bearers
    name: str = "rest"
    levels: tuple[Freshness, ...] = (Freshness.STRONG, Freshness.TOKEN, Freshness.BARE)

    async def read(self, user: str, asked: Asked, after: str, token: str, *, timeout_s: float) -> Page:
        """As of Reader."""
        query = {"pageSize": str(asked.size)} | ({"pageToken": after} if after else {})
        query["consistency"] = "strong" if asked.freshness is Freshness.STRONG else "default"
        headers = {"authorization": self.bearers.of(user)}
        if token and asked.freshness in _WITH_TOKEN:
            headers[SEEN_HEADER] = token
        try:
            answer = await self.http.send(
                "GET", f"/v1/orders?{urlencode(query)}", headers, timeout_s=timeout_s
            )
        except (ConnectionLost, OSError, TimeoutError) as failed:
            raise NoAnswer(type(failed).__name__) from failed
        if answer.status in REFUSED_STATUSES:
            raise PageRefused(reason_of(answer))
        if answer.status != 200:
            if answer.status == 401:
                self.bearers.forget(user)
            raise NoAnswer(reason_of(answer), float(answer.headers.get("retry-after", "0")))
        try:
            return _page(json.loads(answer.body))
        except (KeyError, TypeError, ValueError) as malformed:
            raise NoAnswer("MALFORMED_ANSWER") from malformed


def _us(instant: str) -> int:
    return (datetime.fromisoformat(instant) - _EPOCH) // _US


def _page(said: dict[str, Any]) -> Page:
    info = said["readInfo"]
    return Page(
        rows=[
            Row(
                order["orderId"],
                order["userId"],
                order["requestId"],
                _us(order["createTime"]),
                order["version"],
                order.get("labels", {}),
            )
            for order in said["orders"]
        ],
        token=said.get("nextPageToken", ""),
        served_by=info["servedBy"],
        overlay=info["overlayCount"],
        lag_s=info.get("indexLagSeconds"),
        unreachable=tuple(said["unreachable"]),
        archived_us=_us(info["archivedBeforeTime"]) if "archivedBeforeTime" in info else 0,
    )
