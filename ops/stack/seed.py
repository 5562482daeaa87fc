"""The first orders: one settled order for each seeded user, through the same call as everybody; made once."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from google.protobuf.duration_pb2 import Duration

from ops import mesh
from ops.stack import layout
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_service_pb2 as pb

if TYPE_CHECKING:
    from ops.stack.endpoints import Endpoints


async def first_orders(endpoints: Endpoints) -> None:
    """Create them; a repeat finds the first ones by their request ids while their keys live."""
    async with mesh.connect(endpoints) as stubs:
        for number, user in enumerate(layout.USERS, start=1):
            request = pb.CreateOrderRequest(
                user_id=user,
                request_id=str(uuid5(NAMESPACE_URL, f"ordermesh:first-order:{user}")),
                kind="payment",
                amount=Money(currency_code="EUR", amount_minor=1000 * number),
                description="a first order",
                wait=Duration(seconds=5),
            )
            await stubs.orders.CreateOrder(request, timeout=mesh.TIMEOUT_S)
