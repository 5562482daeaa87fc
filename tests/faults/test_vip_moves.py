"""What survives a SIGKILL at each step of giving a user a dedicated bucket, while that user keeps ordering.

The process dies at an exact place, in the proxy that drives the move or in a shard that takes part. In the
end the user has the bucket, nothing is left frozen, every acknowledged order exists exactly once, and the
same request still gives the same order. Each test first asserts that the point it armed did fire.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import asyncpg
import grpc
import pytest

from chassis import rpc
from chassis.ids import user_bucket
from chassis.testing import eventually
from ops import audit
from ops.stack import layout
from ordermesh.history.v1 import history_service_pb2 as history
from ordermesh.order.v1.order_pb2 import Order
from ordermesh.routing.v1 import routing_service_pb2 as routing
from tests.faults.points import MOVES, ORDER_SVC, Point, Story
from tests.stack import World, retried

pytestmark = pytest.mark.timeout(180)
Move = routing.VipMove
ON_THE_NEW_SHARD = ("own_bucket", "import_keys")


@dataclass
class Customer:
    """A user who keeps ordering, each order with one request until it is acknowledged."""

    world: World
    user: str
    made: dict[str, str] = field(default_factory=dict)

    async def order(self, request_id: str | None = None) -> Order:
        request_id = request_id or str(uuid4())
        order = await self.world.create(self.user, request_id=request_id)
        assert self.made.setdefault(request_id, order.order_id) == order.order_id
        return order

    @asynccontextmanager
    async def ordering(self) -> AsyncIterator[None]:
        """Order all the time meanwhile, three at once, and in turn the first one again; every order is
        acknowledged in the end.
        """
        enough = asyncio.Event()

        async def go_on() -> None:
            while not enough.is_set():
                await self.order()
                await self.order(next(iter(self.made)))

        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(go_on())
            yield
            enough.set()


async def promoted(world: World, user: str, request_id: str) -> Move:
    """Ask until the move is over, as an operator does whose connection breaks."""

    async def look() -> Move | None:
        request = routing.PromoteVipRequest(user_id=user, request_id=request_id, reason="a test of kills")
        try:
            move = (await world.mesh.routing.PromoteVip(request, timeout=5.0)).move
        except grpc.aio.AioRpcError as failed:
            said = rpc.error_of(failed)
            assert said.reason in ("", "SHARD_UNAVAILABLE", "DEADLINE_EXCEEDED", "STOPPING"), said
            return None
        return move if move.phase == Move.DONE else None

    return await eventually(look, within_s=60.0, every_s=0.1)


@pytest.mark.parametrize("point", MOVES, ids=lambda point: f"{point.service}-{point.name}")
async def test_a_kill_at_any_step_of_a_move_loses_and_doubles_nothing_and_leaves_nothing_frozen(
    world: World, point: Point
) -> None:
    customer = Customer(world, f"moved.{uuid4().hex[:8]}")
    first = await customer.order()
    old_shard = "s1" if user_bucket(customer.user) < 2048 else "s2"
    new = point.name.startswith(ON_THE_NEW_SHARD)
    shard = (layout.VIP_SHARD if new else old_shard) if point.service == ORDER_SVC else None
    specification = f"{point.name}=kill"
    if point.story is Story.MOVE_BACK:
        specification += ";vip.delta.before=pause:1:1.2"

    async with customer.ordering():
        pid = await world.arm(point.service, shard, specification)
        move = await promoted(world, customer.user, str(uuid4()))
        assert point.name in world.fired(pid)
        again = await customer.order(first.request_id)
    assert again.order_id == first.order_id
    last = await customer.order()

    assert (move.old_shard, move.new_shard) == (old_shard, layout.VIP_SHARD)
    assert await where(world, last) == layout.VIP_SHARD
    assert await fence(world, old_shard, move.old_bucket) == "OWNED"
    assert await fence(world, layout.VIP_SHARD, move.new_bucket) == "OWNED"
    for request_id, order_id in customer.made.items():
        assert (await customer.order(request_id)).order_id == order_id
    assert await stored(world, customer.user) == sorted(customer.made.values())
    assert await listed(world, customer.user) == sorted(customer.made.values(), reverse=True)
    await world.until_back(point.service, shard, pid)


async def test_after_all_of_it_the_audit_finds_nothing(world: World) -> None:
    async def settled() -> bool:
        return not any(
            [
                await rows(dsn, "SELECT FROM order_timers WHERE user_id LIKE 'moved.%'")
                for dsn in world.endpoints.shard_dsns().values()
            ]
        )

    await eventually(settled, within_s=60.0, every_s=0.5)
    assert [each for each in await audit.run(world.endpoints) if each.count] == []


async def rows(dsn: str, statement: str, *args: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn, server_settings={"search_path": "ordermesh"})
    try:
        return await connection.fetch(statement, *args)
    finally:
        await connection.close()


async def fence(world: World, shard: str, bucket: int) -> str:
    dsn = world.endpoints.shard_dsns()[shard]
    (row,) = await rows(dsn, "SELECT state FROM bucket_fence WHERE bucket = $1", bucket)
    return str(row["state"])


async def where(world: World, order: Order) -> str:
    request = routing.WhereRequest(order_id=order.order_id)
    found = await retried(lambda: world.mesh.routing.Where(request, timeout=5.0))
    return str(found.placement.shard)


async def stored(world: World, user: str) -> list[str]:
    """Every order of a user on every shard."""
    found = [
        str(row["order_id"])
        for dsn in world.endpoints.shard_dsns().values()
        for row in await rows(dsn, "SELECT order_id FROM orders WHERE user_id = $1", user)
    ]
    return sorted(found)


async def listed(world: World, user: str) -> list[str]:
    """Every order of a user as the list shows them."""
    found: list[str] = []
    request = history.ListOrdersRequest(user_id=user, page_size=100)
    while True:
        page = await retried(lambda: world.mesh.history.ListOrders(request, timeout=5.0))
        found += [order.order_id for order in page.orders]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found
