"""A mesh in which users are moved, in the test's own process: a real control database, a shard of ordinary
users and one of VIPs with their order_svc, a history_svc, and two proxies.

The second proxy never looks at the control database by itself: its map is as old as a test wants it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc

from chassis import pg, rpc
from chassis.clock import SYSTEM_CLOCK
from chassis.rpc.health import Health
from chassis.testing import eventually
from chassis.tls import TlsFiles
from history_svc.app import SERVICE as HISTORY
from history_svc.app import service as history_handlers
from history_svc.settings import HistorySettings
from history_svc.store import Shards
from ordermesh.history.v1 import history_service_pb2 as history_pb
from ordermesh.history.v1.history_service_pb2_grpc import HistoryServiceStub
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.order.v1.order_pb2 import Order
from ordermesh.order.v1.order_service_pb2_grpc import OrderServiceStub
from ordermesh.routing.v1 import routing_service_pb2 as routing
from ordermesh.routing.v1.routing_service_pb2_grpc import RoutingServiceStub
from shard_proxy.app import Door, Routes, limits_of, routes_of
from shard_proxy.book import RouteBook
from shard_proxy.lanes import Lanes
from shard_proxy.store import MapStore
from tests import lanes, upstreams
from tests.conftest import DatabaseFactory
from tests.databases import Database
from tests.lanes import CALL_S, create_request
from tests.listeners import Trust
from tests.proxies import Saved, settings_of
from tests.readmodels import MemoryReadModel

SHARDS = {"s1": (0, 4095), "v1": None}
"""The buckets that each owns from the start."""


@dataclass
class Proxy:
    """One proxy and its callers' stubs, as an operator at this machine."""

    routes: Routes
    channel: grpc.aio.Channel
    orders: Any
    history: Any
    routing: Any

    async def create(self, user_id: str, request_id: str = "", **fields: Any) -> pb.CreateOrderResponse:
        """Create an order, waiting for its end."""
        request = create_request(
            user_id=user_id, request_id=request_id or str(uuid4()), **{"wait_s": 5.0, **fields}
        )
        answer: pb.CreateOrderResponse = await self.orders.CreateOrder(request, timeout=CALL_S)
        return answer

    async def get(self, order_id: str) -> Order:
        """One order as it is now."""
        order: Order = (
            await self.orders.GetOrder(pb.GetOrderRequest(order_id=order_id), timeout=CALL_S)
        ).order
        return order

    async def listed(self, user_id: str) -> list[str]:
        """The ids of a user's orders, newest first."""
        request = history_pb.ListOrdersRequest(user_id=user_id, page_size=100)
        page = await self.history.ListOrders(request, timeout=CALL_S)
        assert not page.next_page_token
        return [order.order_id for order in page.orders]

    async def promote(self, user_id: str, request_id: str = "", **fields: Any) -> routing.VipMove:
        """Give a user a dedicated bucket."""
        request = routing.PromoteVipRequest(
            **{"user_id": user_id, "request_id": request_id or str(uuid4()), "reason": "grew", **fields}
        )
        move: routing.VipMove = (await self.routing.PromoteVip(request, timeout=15.0)).move
        return move

    async def demote(self, user_id: str, request_id: str = "", **fields: Any) -> routing.VipMove:
        """Send a user back."""
        request = routing.DemoteVipRequest(
            **{"user_id": user_id, "request_id": request_id or str(uuid4()), "reason": "shrank", **fields}
        )
        move: routing.VipMove = (await self.routing.DemoteVip(request, timeout=15.0)).move
        return move

    async def moves(self, user_id: str = "") -> list[routing.VipMove]:
        """Moves, the newest first."""
        request = routing.ListVipMovesRequest(user_id=user_id)
        return list((await self.routing.ListVipMoves(request, timeout=CALL_S)).moves)


@dataclass
class World:
    """Everything of it, and the databases past the services."""

    fresh: Proxy
    stale: Proxy
    dsns: dict[str, str] = field(default_factory=dict)

    async def sql(self, database: str, statement: str, *args: object) -> list[asyncpg.Record]:
        """Look into `control`, `s1` or `v1`."""
        connection = await asyncpg.connect(self.dsns[database], server_settings={"search_path": "ordermesh"})
        try:
            return await connection.fetch(statement, *args)
        finally:
            await connection.close()

    async def fence(self, shard: str, bucket: int) -> tuple[str, int]:
        """State and epoch of a bucket on a shard."""
        (row,) = await self.sql(shard, "SELECT state, epoch FROM bucket_fence WHERE bucket = $1", bucket)
        return row["state"], row["epoch"]

    async def orders_of(self, user_id: str) -> dict[str, str]:
        """Shard of each order of a user, by request id; each request has one order in all."""
        found = [
            (row["request_id"], shard)
            for shard in SHARDS
            for row in await self.sql(
                shard, "SELECT request_id::text FROM orders WHERE user_id = $1", user_id
            )
        ]
        assert len(dict(found)) == len(found), "a request made two orders"
        return dict(found)


@asynccontextmanager
async def opened(
    directory: Path, shard_database: DatabaseFactory, control_database: DatabaseFactory
) -> AsyncIterator[World]:
    """Start it all; user `alice` and every other is on s1."""
    trust = Trust.make(directory)
    async with AsyncExitStack() as stack:
        payments, fulfilment = [
            await stack.enter_async_context(upstreams.simulated(directory, trust.tls, name=name))
            for name in ("payments", "fulfilment")
        ]
        targets = {"payments": payments.target, "fulfilment": fulfilment.target}
        dsns = {shard: await _shard(shard, (await shard_database()).dsn) for shard in SHARDS}
        ports = {}
        for shard, dsn in dsns.items():
            database = Database(shard, dsn)
            serving = lanes.lane_on(trust, database, targets, shard=shard)
            running, _ = await stack.enter_async_context(serving)
            ports[shard] = running.port
        history_port = await stack.enter_async_context(_history(trust, dsns))
        dsns["control"] = (await control_database()).dsn
        await _fill(dsns["control"], ports, history_port)
        fresh = await stack.enter_async_context(_proxy(directory, dsns["control"], polls=True))
        stale = await stack.enter_async_context(_proxy(directory, dsns["control"], polls=False))
        yield World(fresh, stale, dsns)


async def _shard(name: str, dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SELECT ordermesh.identify_shard($1)", name)
        owned = SHARDS[name]
        if owned is not None:
            await connection.execute("SELECT ordermesh.own_buckets($1, $2, $3)", *owned, name)
        await connection.execute("SELECT ordermesh.ensure_partitions()")
    finally:
        await connection.close()
    return dsn


async def _fill(control: str, ports: dict[str, int], history_port: int) -> None:
    connection = await asyncpg.connect(control)
    try:
        for shard, port in ports.items():
            await connection.execute(
                "SELECT ordermesh.put_shard($1, $2, $3, $4)",
                shard,
                shard == "v1",
                f"127.0.0.1:{port}",
                f"127.0.0.1:{history_port}",
            )
        await connection.execute("SELECT ordermesh.deal_buckets('s1')")
    finally:
        await connection.close()


@asynccontextmanager
async def _history(trust: Trust, dsns: dict[str, str]) -> AsyncIterator[int]:
    settings = HistorySettings(
        tls_dir=trust.tls, subject_dir=trust.subjects, shards=dict(dsns), profile="local"
    )
    async with Shards.open(settings) as shards:
        mount = rpc.Mount(HISTORY, history_handlers(settings, shards, MemoryReadModel()))
        tls = trust.server("history_svc")
        async with rpc.serve("127.0.0.1:0", [mount], gate=trust.lane(), tls=tls) as server:
            yield server.port


@asynccontextmanager
async def _proxy(directory: Path, control: str, *, polls: bool) -> AsyncIterator[Proxy]:
    settings = settings_of(directory, dsn=control)
    reading = pg.PgSettings(dsn=control, pool_size=2)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(pg.open_database(reading, name="control"))
        behind = Lanes(TlsFiles(settings.tls_dir, "shard_proxy"), limits_of(settings))
        await stack.enter_async_context(behind.opened())
        book = RouteBook(MapStore(database), Saved(), SYSTEM_CLOCK, changed=behind.follow)
        await book.open()
        routes = routes_of(settings, book, behind, database)
        for loop in (book, routes.mover) if polls else ():
            task = asyncio.create_task(loop.run(), name=loop.name)
            stack.callback(task.cancel)
        stack.push_async_callback(routes.owned.drain, 2.0)
        door = Door(settings, routes, Health()).plain("127.0.0.1:0", None)
        server = await stack.enter_async_context(door)
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.enable_retries", 0)])
        )

        async def connected() -> bool:
            return all(behind.states().values())

        await eventually(connected)
        yield Proxy(
            routes,
            channel,
            OrderServiceStub(channel),
            HistoryServiceStub(channel),
            RoutingServiceStub(channel),
        )
