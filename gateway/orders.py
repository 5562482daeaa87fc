"""The routes of `/v1/orders`: read what is asked, call the mesh, say it in HTTP."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response

from chassis.errors import NotYourOrder
from chassis.ids import parse_order_id, parse_user_id
from chassis.money import AMOUNT_MINOR_MAX
from gateway import asks, bodies, replies, seen, wire
from gateway.clients import ORDERS
from gateway.house import Entrance, Inside
from gateway.params import IdempotencyKey, PageSize, PageToken
from gateway.streams import EventStream

if TYPE_CHECKING:
    from chassis.consistency import Seen
    from gateway.asks import Ask
    from gateway.settings import GatewaySettings
    from ordermesh.order.v1 import order_pb2

router = APIRouter(prefix="/v1", tags=["orders"])

OrderId = Annotated[str, Path(description="The order, a UUIDv7.", max_length=64)]
Token = Annotated[
    str | None,
    Header(alias=seen.HEADER, description="What you have seen: from the answer to your last write."),
]
KIND = "^[a-z][a-z0-9_-]{0,31}$"
TEXT_CHARS_MAX = 128
ABOUT_TEXT = "Only orders whose description holds all of these words, or words that begin with them."
ABOUT_CONSISTENCY = (
    "`strong`: as of now, from the primaries. `default`: not older than what you have seen, nor a second old."
    " `eventual`: whatever answers; the cookie is not looked at."
)
ABOUT_PARTIAL = "Whether a shard that is away may be left out, named in `unreachable`; only with `eventual`."


@router.post("/orders", status_code=201, summary="Create an order")
async def create_order(
    ask: Entrance,
    house: Inside,
    request: Request,
    idempotency_key: IdempotencyKey,
    prefer: Annotated[
        str | None, Header(description="`wait=N`: wait up to N seconds for the outcome.")
    ] = None,
    token: Token = None,
) -> Response:
    """Record an order and send it to its first upstream. A repeat with the same Idempotency-Key gives the
    first order.
    """
    ask.visit.allowance = house.creates.admit(ask.who.user_id)
    request_id = asks.idempotency_key(idempotency_key)
    wait_s = asks.wait_s(prefer, house.settings.wait_s_max)
    if "x-request-timeout" not in request.headers:
        latest = ask.visit.arrived + house.settings.timeout_s_max
        ask.deadline = min(ask.deadline + (wait_s or 0), latest)
    before = seen.before_a_write(token, request.cookies)
    body = bodies.read(wire.CreateOrder, await request.body(), request.headers.get("content-type"))
    wanted = wire.create_request(body, user_id=ask.who.user_id, request_id=request_id, wait_s=wait_s or 0)
    answer = await house.mesh.create_order(wanted, ask)
    headers = _seen(answer.consistency_token, before, house.settings)
    headers |= {"location": f"/v1/orders/{answer.order.order_id}", "etag": f'"{answer.order.version}"'}
    if wait_s is not None:
        headers["preference-applied"] = f"wait={wait_s}"
    if answer.replayed:
        headers["idempotent-replayed"] = "true"
    return replies.answer(wire.order(answer.order), status=200 if answer.replayed else 201, headers=headers)


@router.get("/orders/{order_id}", summary="Get an order")
async def get_order(
    ask: Entrance,
    house: Inside,
    order_id: OrderId,
    if_none_match: Annotated[str | None, Header(description="The ETag of the version you have.")] = None,
) -> Response:
    """Show one order as it is now; 304 when it is still the version you have."""
    order = await _own_order(house, order_id, ask)
    headers = {"etag": f'"{order.version}"', "cache-control": "private, no-cache"}
    if asks.matches(if_none_match, order.version):
        return Response(status_code=304, headers=headers)
    return replies.answer(wire.order(order), headers=headers)


@router.patch("/orders/{order_id}", summary="Change an order's labels")
async def update_order(
    ask: Entrance,
    house: Inside,
    request: Request,
    order_id: OrderId,
    idempotency_key: IdempotencyKey,
    if_match: Annotated[
        str | None, Header(description="The ETag of the version you decided on; without it, any.")
    ] = None,
    token: Token = None,
) -> Response:
    """Give an order other labels, all of them; nothing else of it changes but its version. A repeat with the
    same Idempotency-Key shows the order as it is.
    """
    before = seen.before_a_write(token, request.cookies)
    body = bodies.read(wire.UpdateOrder, await request.body(), request.headers.get("content-type"))
    wanted = wire.update_request(
        body,
        order_id=str(parse_order_id(order_id)),
        request_id=asks.idempotency_key(idempotency_key),
        expected_version=asks.expected_version(if_match),
    )
    answer = await house.mesh.update_order(wanted, ask)
    headers = _seen(answer.consistency_token, before, house.settings)
    return replies.answer(wire.order(answer.order), headers={**headers, "etag": f'"{answer.order.version}"'})


@router.get("/orders", summary="List orders")
async def list_orders(
    ask: Entrance,
    house: Inside,
    request: Request,
    status: Annotated[wire.StatusName | None, Query(description="Only orders of this status.")] = None,
    kind: Annotated[str | None, Query(pattern=KIND, description="Only orders of this kind.")] = None,
    from_time: Annotated[datetime | None, Query(alias="from", description="Created then or later.")] = None,
    until_time: Annotated[datetime | None, Query(alias="until", description="Created before.")] = None,
    currency: Annotated[
        str | None, Query(pattern="^[A-Z]{3}$", description="Only amounts in this currency.")
    ] = None,
    min_amount: Annotated[
        int | None,
        Query(
            alias="minAmount", ge=0, le=AMOUNT_MINOR_MAX, description="Not less; minor units of `currency`."
        ),
    ] = None,
    max_amount: Annotated[
        int | None,
        Query(
            alias="maxAmount", ge=1, le=AMOUNT_MINOR_MAX, description="Not more; minor units of `currency`."
        ),
    ] = None,
    q: Annotated[str | None, Query(min_length=1, max_length=TEXT_CHARS_MAX, description=ABOUT_TEXT)] = None,
    page_size: PageSize = None,
    page_token: PageToken = None,
    consistency: Annotated[wire.ConsistencyName | None, Query(description=ABOUT_CONSISTENCY)] = None,
    partial: Annotated[bool, Query(description=ABOUT_PARTIAL)] = False,
    user_id: Annotated[str | None, Query(alias="userId", description="Whose; operators only.")] = None,
    token: Token = None,
) -> Response:
    """List orders, newest first, each exactly once and as it is now; `readInfo` says where they came from.
    With the cookie or the header of your last write the list shows that write.
    """
    query = wire.ListQuery(
        status=status,
        kind=kind,
        from_time=from_time,
        until_time=until_time,
        currency=currency,
        min_amount=min_amount,
        max_amount=max_amount,
        text=q,
        page_size=page_size,
        page_token=page_token,
        consistency=consistency,
        partial=partial,
    )
    fresh_as = seen.before_a_read(token, {} if consistency == "eventual" else request.cookies)
    wanted = wire.list_request(query, user_id=_listed_user(ask, user_id), token=fresh_as)
    page = wire.page(await house.mesh.list_orders(wanted, ask))
    return replies.answer(page, headers=replies.next_link(request, page.next_page_token))


@router.get("/orders/{order_id}/events", summary="Follow an order")
async def follow_order(
    ask: Entrance,
    house: Inside,
    order_id: OrderId,
    last_event_id: Annotated[str | None, Header(description="The version you saw last.")] = None,
) -> Response:
    """Send the order now and after every change, as server-sent events, until it is settled; 204 when nothing
    more will come.
    """
    after = asks.last_event_id(last_event_id)
    order = await _own_order(house, order_id, ask)
    if wire.is_settled(order) and after >= order.version:
        return Response(status_code=204)
    timeout_s = min(house.settings.stream_s_max, ask.who.refused_from - time.time())
    house.seats.take(ask.who.user_id)
    call = house.mesh.watch_order(order.order_id, after, ask, timeout_s=timeout_s)
    return EventStream(call, house.seats, ask.who.user_id, heartbeat_s=house.settings.heartbeat_s)


@router.get("/orders/{order_id}/journal", summary="Read an order's journal")
async def read_journal(
    ask: Entrance,
    house: Inside,
    request: Request,
    order_id: OrderId,
    page_size: PageSize = None,
    page_token: PageToken = None,
) -> Response:
    """Show everything that happened to an order, oldest first."""
    wanted = ORDERS.ListOrderEventsRequest(
        order_id=str(parse_order_id(order_id)), page_size=page_size or 0, page_token=page_token or ""
    )
    journal = wire.journal(await house.mesh.list_events(wanted, ask))
    return replies.answer(journal, headers=replies.next_link(request, journal.next_page_token))


async def _own_order(house: Inside, order_id: str, ask: Ask) -> order_pb2.Order:
    """One order that the asker may see; the mesh checks it too."""
    answer = await house.mesh.get_order(str(parse_order_id(order_id)), ask)
    if not ask.who.is_operator and answer.order.user_id != ask.who.user_id:
        raise NotYourOrder
    return answer.order


def _listed_user(ask: Ask, user_id: str | None) -> str:
    if user_id is None:
        return ask.who.user_id
    parse_user_id(user_id, field_name="userId")
    if user_id != ask.who.user_id and not ask.who.is_operator:
        raise NotYourOrder
    return user_id


def _seen(token: str, before: Seen, settings: GatewaySettings) -> dict[str, str]:
    return seen.after_a_write(
        token, before, cookie_s=settings.consistency_cookie_s, secure=settings.secure_cookies
    )
