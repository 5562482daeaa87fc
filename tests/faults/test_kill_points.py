"""What survives a SIGKILL at each named fault point: every order ends settled or parked, executed at most
once.

The process dies at an exact place, the stack starts it again, the client repeats its call with the same
key, and recovery does the rest. Each test first asserts that the point it armed did fire.
"""

from uuid import uuid4

import pytest

from chassis.testing import eventually
from ops.stack.layout import IDEMPOTENT
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.order.v1.order_pb2 import Order
from ordermesh.upstream.v1.simulator_service_pb2 import Fault
from tests.faults.points import ORDER_SVC, POINTS, Point, Story
from tests.stack import World, retried

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point.service}-{point.name}")
async def test_a_kill_at_any_fault_point_leaves_the_order_settled_or_parked_and_executed_once(
    world: World, point: Point
) -> None:
    user = f"faults.{uuid4().hex[:8]}"
    shard = await shard_of(world, user)
    pid = 0

    async def arm() -> None:
        nonlocal pid
        pid = await world.arm(
            point.service, shard if point.service == ORDER_SVC else None, f"{point.name}=kill"
        )

    order = await STORIES[point.story](world, user, arm)

    async def did_fire() -> bool:
        return point.name in world.fired(pid)

    await eventually(did_fire, within_s=30)
    order = await world.until_stage(order.order_id, Order.DONE, Order.PARKED)
    assert order.stage == Order.DONE, "nothing here justifies parking"
    assert order.status == Order.SUCCESS
    executions = await world.executions(order.order_id)
    expected = {} if point.story is Story.RESOLVE else dict.fromkeys(range(len(order.legs)), 1)
    assert executions == expected or (point.story is Story.RESOLVE and executions == {0: 1})
    journal = await world.journal(order.order_id)
    assert len(journal) == order.version
    await world.until_back(point.service, shard if point.service == ORDER_SVC else None, pid)


async def shard_of(world: World, user: str) -> str:
    from ordermesh.routing.v1 import routing_service_pb2 as routing

    where = await retried(lambda: world.mesh.routing.Where(routing.WhereRequest(user_id=user), timeout=5.0))
    return where.placement.shard


async def created(world: World, user: str, arm) -> Order:
    await arm()
    return await world.create(user, kind="purchase")


async def recovered(world: World, user: str, arm) -> Order:
    lost = {"kind": Fault.LOST_REPLY, "user_id_prefix": user, "method": Fault.EXECUTE}
    async with world.fault("payments", limit=1, **lost):
        await arm()
        order = await world.create(user)
        return await world.until_stage(order.order_id, *(set(Order.Stage.values()) - {Order.SUBMITTING}))


async def parked(world: World, user: str) -> Order:
    """An order that an upstream executed and will not tell about."""
    async with world.fault("payments", kind=Fault.UNKNOWN, user_id_prefix=user):
        order = await world.create(user)
        return await world.until_stage(order.order_id, Order.PARKED)


async def redriven(world: World, user: str, arm) -> Order:
    order = await parked(world, user)
    await arm()
    request = pb.RedriveDeadLetterRequest(
        order_id=order.order_id, request_id=str(uuid4()), reason="it knows again"
    )
    await retried(lambda: world.mesh.orders.RedriveDeadLetter(request, timeout=5.0))
    return order


async def resolved(world: World, user: str, arm) -> Order:
    order = await parked(world, user)
    await arm()
    request = pb.ResolveDeadLetterRequest(
        order_id=order.order_id,
        request_id=str(uuid4()),
        outcome=Order.SUCCESS,
        evidence="bank file 42, line 7",
        reason="the bank says so",
        upstream_ref="bank-42-7",
    )
    await retried(lambda: world.mesh.orders.ResolveDeadLetter(request, timeout=5.0))
    return order


async def updated(world: World, user: str, arm) -> Order:
    order = await world.until_settled((await world.create(user)).order_id)
    await arm()
    request = pb.UpdateOrderRequest(order_id=order.order_id, request_id=str(uuid4()), labels={"shop": "3"})
    changed = (await retried(lambda: world.mesh.orders.UpdateOrder(request, timeout=5.0))).order
    assert (changed.version, dict(changed.labels)) == (order.version + 1, {"shop": "3"})
    return changed


STORIES = {
    Story.CREATE: created,
    Story.RECOVER: recovered,
    Story.REDRIVE: redriven,
    Story.RESOLVE: resolved,
    Story.UPDATE: updated,
}


async def test_a_repeated_create_after_a_kill_returns_the_first_order(world: World) -> None:
    user, request_id = f"faults.{uuid4().hex[:8]}", str(uuid4())
    shard = await shard_of(world, user)
    pid = await world.arm(ORDER_SVC, shard, "create.after_commit=kill")

    first = await world.create(user, request_id=request_id)
    again = await world.create(user, request_id=request_id)

    assert "create.after_commit" in world.fired(pid)
    assert first.order_id == again.order_id
    assert IDEMPOTENT["payments"] is False, "a double submission must show in the ledger"
    assert (await world.until_settled(first.order_id)).status == Order.SUCCESS
    assert await world.executions(first.order_id) == {0: 1}
