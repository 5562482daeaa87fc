"""history_svc behind a real proxy, in the test's own process, with an operator and a gateway before it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc

from chassis import ids, pg, rpc
from chassis.auth import SUBJECT_HEADER, Role, Subject, SubjectMinter
from chassis.clock import SYSTEM_CLOCK
from chassis.rpc.health import Health
from history_svc import app as history_app
from history_svc.settings import HistorySettings
from history_svc.store import Shards
from ordermesh.history.v1 import history_service_pb2 as pb
from ordermesh.history.v1 import history_service_pb2_grpc as pb_grpc
from shard_proxy.app import Door, limits_of, routes_of
from shard_proxy.book import RouteBook
from shard_proxy.domain import MapSnapshot, Owner, VipUser
from shard_proxy.domain import Shard as OnMap
from shard_proxy.lanes import Lanes
from tests import proxies
from tests.databases import Database
from tests.listeners import CALL_S, Trust
from tests.projections import Projection
from tests.proxies import Saved, Source
from tests.readmodels import MemoryReadModel
from tests.shards import Shard, opened

SERVICE = history_app.SERVICE
VIP, VIP_BUCKET = "vip.1", 4096
EVERYWHERE = {f"{VIP_BUCKET}:v1:1", f"{ids.user_bucket(VIP)}:s1:1"}
"""Where the VIP's orders may be: the dedicated bucket, and the one before the promotion."""


@asynccontextmanager
async def proxy_before(
    trust: Trust, target: str, directory: Path, *, services: dict[str, str]
) -> AsyncIterator[rpc.RunningServer]:
    """The proxy's mTLS door over a map of two shards whose history is served at `target`."""
    settings = proxies.settings_of(directory, tls_dir=trust.tls, subject_dir=trust.subjects)
    map_ = MapSnapshot(
        version=1,
        shards={name: OnMap(name, name == "v1", "127.0.0.1:1", target) for name in ("s1", "v1")},
        services=services,
        owners={**{bucket: Owner("s1", 1) for bucket in range(4096)}, VIP_BUCKET: Owner("v1", 1)},
        vips={VIP: VipUser(VIP, (VIP_BUCKET,), SYSTEM_CLOCK.now())},
        ever={VIP: (VIP_BUCKET, ids.user_bucket(VIP))},
        read_at=SYSTEM_CLOCK.now(),
    )
    nowhere = pg.PgSettings(dsn="postgresql://x:y@127.0.0.1:1/control")
    async with (
        Lanes(trust.files("shard_proxy"), limits_of(settings)).opened() as lanes,
        pg.open_database(nowhere, name="control-moves") as moving,
    ):
        book = RouteBook(Source(map_), Saved(), SYSTEM_CLOCK, changed=lanes.follow)
        await book.open()
        routes = routes_of(settings, book, lanes, moving)
        async with Door(settings, routes, Health()).mtls(trust.server("shard_proxy")) as server:
            yield server


@dataclass
class Behind:
    """What stands behind the proxy, and who asks."""

    trust: Trust
    proxy: rpc.RunningServer
    operator: Any
    gateway: Any

    def as_user(self, user: str, *roles: Role) -> tuple[tuple[str, str], ...]:
        subject = Subject(user, frozenset({Role.USER, *roles}), "spiffe://ordermesh/gateway")
        return ((SUBJECT_HEADER, SubjectMinter(self.trust.subjects, "gateway").mint(subject)),)


@asynccontextmanager
async def behind(directory: Path, implementation: object, *, anywhere: bool = True) -> AsyncIterator[Behind]:
    """An implementation of HistoryService as history_svc, a proxy before it, an operator and a gateway."""
    trust = Trust.make(directory)
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(
            rpc.serve(
                "127.0.0.1:0",
                [rpc.Mount(SERVICE, implementation)],
                gate=trust.lane(),
                tls=trust.server("history_svc"),
            )
        )
        target = f"127.0.0.1:{served.port}"
        services = {"history_svc": target} if anywhere else {}
        proxy = await stack.enter_async_context(proxy_before(trust, target, directory, services=services))
        stubs = []
        for caller in ("ops", "gateway"):
            channel = await stack.enter_async_context(
                rpc.Channel(f"127.0.0.1:{proxy.port}", service="shard_proxy", tls=trust.files(caller))
            )
            stubs.append(pb_grpc.HistoryServiceStub(cast("grpc.aio.Channel", channel)))
        yield Behind(trust, proxy, *stubs)


@dataclass
class Searched:
    """A real history_svc behind the proxy, over one shard and a read model that a test fills."""

    mesh: Behind
    shard: Shard
    read_model: MemoryReadModel
    projection: Projection

    async def search(self, **ask: Any) -> Any:
        return await self.mesh.operator.SearchOrders(pb.SearchOrdersRequest(**ask), timeout=CALL_S)

    async def create(self, *users: str) -> list[str]:
        """An order of each, indexed; their ids, newest first."""
        made = [(await self.shard.create(user_id=user)).order for user in users]
        await self.projection.catch_up()
        made.sort(key=lambda order: (order.created_at, order.order_id), reverse=True)
        return [str(order.order_id) for order in made]


@asynccontextmanager
async def searching(directory: Path, database: Database) -> AsyncIterator[Searched]:
    """history_svc over one shard, with no hot window, so that the read model is always asked."""
    settings = HistorySettings(
        tls_dir=directory,
        subject_dir=directory,
        profile="local",
        hot_window_s=0,
        shards={"s1": database.dsn, "v1": "postgresql://x:y@127.0.0.1:1/v1"},
    )
    async with Shards.open(settings) as shards, opened(database) as shard:
        read_model = MemoryReadModel()
        handlers = history_app.service(settings, shards, read_model)
        async with behind(directory, handlers) as mesh:
            yield Searched(mesh, shard, read_model, Projection(shard, read_model))
