"""What goes on when a part is gone or wrong: the control database, the map, an upstream for half an hour."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from chassis.ids import id_bucket, user_bucket
from chassis.testing import eventually
from ordermesh.history.v1.history_service_pb2 import ListOrdersRequest
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.order.v1.order_pb2 import Order
from ordermesh.upstream.v1.simulator_service_pb2 import Fault
from tests.stack import World, ready, retried

pytestmark = pytest.mark.timeout(180)


@asynccontextmanager
async def shard(world: World, name: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(world.endpoints.shard_dsns()[name])
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def without_control_database(world: World) -> AsyncIterator[None]:
    """Hold the control database's server down."""
    hold = world.places.hold / "postgres.control"
    hold.touch()

    async def is_down() -> bool:
        return world.service("postgres.control").pid == 0

    async def is_up() -> bool:
        return world.service("postgres.control").pid != 0

    try:
        await eventually(is_down, within_s=15)
        yield
    finally:
        hold.unlink()
        await eventually(is_up, within_s=15)


async def test_orders_go_on_without_the_control_database_even_through_a_restart_of_the_proxy(
    world: World,
) -> None:
    async with without_control_database(world):
        for user in ("alice", "bob", "vip.1"):
            order = await world.create(user)
            assert (await world.until_settled(order.order_id)).status == Order.SUCCESS
        old = world.service("shard_proxy").pid
        await world.kill("shard_proxy")
        await world.until_back("shard_proxy", None, old)
        order = await world.create("vip.1")
        assert (await world.until_settled(order.order_id)).status == Order.SUCCESS


async def test_a_write_with_a_stale_epoch_is_refused_by_the_shard_itself(world: World) -> None:
    order = await world.until_settled((await world.create("alice")).order_id)
    async with shard(world, "s1") as database:
        for table in ("orders", "order_journal", "idempotency_keys", "outbox"):
            with pytest.raises(asyncpg.PostgresError) as refused:
                await database.execute(
                    f"UPDATE {table} SET route_epoch = 0 WHERE order_id = $1",
                    UUID(order.order_id),
                )
            assert refused.value.sqlstate == "SH001"


@pytest.fixture
async def own_world(server_dir: Path) -> AsyncIterator[World]:
    """A mesh of its own, for who leaves fences and orders that the map does not know, or moves its clock."""
    async with ready(server_dir / "own-stack") as opened:
        yield opened


async def test_a_wrong_map_is_healed_by_the_first_refused_call_for_writes_and_for_reads(
    own_world: World,
) -> None:
    """The bucket has moved from s1 to s2, and neither the map nor the control database know."""
    world = own_world
    user = next(name for name in (f"moved.{n}" for n in range(1000)) if user_bucket(name) < 2048)
    bucket = user_bucket(user)
    before = await world.until_settled((await world.create(user)).order_id)
    try:
        await move(world, bucket, "s1", "s2", epoch=2)
        made = await world.create(user)
        assert id_bucket(UUID(made.order_id)) == bucket
        assert (await world.until_settled(made.order_id)).status == Order.SUCCESS
        async with shard(world, "s2") as database:
            assert (
                await database.fetchval(
                    "SELECT count(*) FROM orders WHERE order_id = $1", UUID(made.order_id)
                )
                == 1
            )
        page = await world.mesh.history.ListOrders(ListOrdersRequest(user_id=user), timeout=5.0)
        assert [order.order_id for order in page.orders] == [made.order_id]
    finally:
        await move(world, bucket, "s2", "s1", epoch=3)
    again = await world.get(before.order_id)
    assert again.order_id == before.order_id


async def move(world: World, bucket: int, source: str, target: str, *, epoch: int) -> None:
    """Flip the fences as a move does in its last step; the rows themselves stay, as no order is asked for."""
    flip = (
        "INSERT INTO bucket_fence (bucket, epoch, state, owner) VALUES ($1, $2, $3, $4) "
        "ON CONFLICT (bucket) DO UPDATE SET epoch = $2, state = $3, owner = $4"
    )
    async with shard(world, source) as database:
        await database.execute(flip, bucket, epoch, "MOVED", target)
    async with shard(world, target) as database:
        await database.execute(flip, bucket, epoch, "OWNED", target)


async def test_half_an_hour_without_the_upstream_parks_nothing(own_world: World) -> None:
    world = own_world
    user = f"outage.{uuid4().hex[:8]}"
    name = "s1" if user_bucket(user) < 2048 else "s2"
    async with world.fault("payments", kind=Fault.DOWN):
        orders = [await world.create(user) for _ in range(5)]
        async with shard(world, name) as database:
            try:
                for minutes in range(3, 31, 3):
                    await database.execute(
                        "INSERT INTO clock_offset (ahead) VALUES ($1) "
                        "ON CONFLICT (only_row) DO UPDATE SET ahead = $1",
                        timedelta(minutes=minutes),
                    )
                    await until_probed_again(world, database, orders)
            finally:
                await come_back(database)
        for order in orders:
            assert (await world.get(order.order_id)).stage not in (Order.PARKED, Order.DONE)
    for order in orders:
        assert (await world.until_settled(order.order_id)).status == Order.SUCCESS
        assert await world.executions(order.order_id) == {0: 1}


async def until_probed_again(world: World, database: asyncpg.Connection, orders: list[Order]) -> None:
    ids = [UUID(order.order_id) for order in orders]
    silent = "SELECT min(silent_count) FROM order_timers WHERE order_id = ANY($1)"
    before = await database.fetchval(silent, ids)

    async def probed() -> bool:
        return bool(await database.fetchval(silent, ids) > before)

    await eventually(probed, within_s=30)


async def come_back(database: asyncpg.Connection) -> None:
    """Let the shard's time return; what was put off by its future is due now."""
    await database.execute("DELETE FROM clock_offset")
    await database.execute(
        "UPDATE order_timers SET due_at = ordermesh.clock(), lease_token = NULL, lease_until = NULL"
    )


async def test_a_killed_process_of_any_kind_is_back_within_two_seconds_or_so(world: World) -> None:
    for name in ("order_svc", "history_svc", "recovery_svc", "gateway", "shard_proxy"):
        shard_name = "s2" if name == "order_svc" else None
        old = world.service(name, shard_name).pid
        await world.kill(name, shard_name)
        await world.until_back(name, shard_name, old)
    order = await world.create("bob")
    assert (await world.until_settled(order.order_id)).status == Order.SUCCESS
    request = pb.GetOrderRequest(order_id=order.order_id)
    found = await asyncio.gather(
        *(retried(lambda: world.mesh.orders.GetOrder(request, timeout=5.0)) for _ in range(20))
    )
    assert {answer.order.version for answer in found} == {found[0].order.version}
