"""The mesh as the tools see it: typed stubs over mTLS through shard_proxy, under the identity `ops`.

Commands, the load generator and tests call the same RPCs as everybody; nothing here reaches around the proxy.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from chassis import rpc
from chassis.auth import ACTOR_HEADER
from chassis.tls import TlsFiles
from ordermesh.archive.v1.archive_service_pb2_grpc import ArchiveServiceStub
from ordermesh.archive.v1.statement_service_pb2_grpc import StatementServiceStub
from ordermesh.history.v1.history_service_pb2_grpc import HistoryServiceStub
from ordermesh.history.v1.projection_service_pb2_grpc import ProjectionServiceStub
from ordermesh.order.v1.order_service_pb2_grpc import OrderServiceStub
from ordermesh.recovery.v1.recovery_service_pb2_grpc import RecoveryServiceStub
from ordermesh.routing.v1.routing_service_pb2_grpc import RoutingServiceStub
from ordermesh.upstream.v1.simulator_service_pb2_grpc import SimulatorServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ops.stack.endpoints import Endpoints
    from ordermesh.archive.v1.archive_service_pb2_grpc import ArchiveServiceAsyncStub
    from ordermesh.archive.v1.statement_service_pb2_grpc import StatementServiceAsyncStub
    from ordermesh.history.v1.history_service_pb2_grpc import HistoryServiceAsyncStub
    from ordermesh.history.v1.projection_service_pb2_grpc import ProjectionServiceAsyncStub
    from ordermesh.order.v1.order_service_pb2_grpc import OrderServiceAsyncStub
    from ordermesh.recovery.v1.recovery_service_pb2_grpc import RecoveryServiceAsyncStub
    from ordermesh.routing.v1.routing_service_pb2_grpc import RoutingServiceAsyncStub
    from ordermesh.upstream.v1.simulator_service_pb2_grpc import SimulatorServiceAsyncStub

CallFailed = grpc.aio.AioRpcError
"""What a failed call raises; `rpc.error_of` reads its facts."""
TIMEOUT_S = 10.0
"""What a tool gives one call."""


def spoken_by(actor: str) -> tuple[tuple[str, str], ...]:
    """The metadata that says which person a call is from; the journal keeps it as `ops:<actor>`."""
    return ((ACTOR_HEADER, actor),)


@dataclass(frozen=True, slots=True)
class Mesh:
    """Stubs of every service behind the proxy. Every call needs `timeout=`."""

    orders: OrderServiceAsyncStub
    history: HistoryServiceAsyncStub
    projection: ProjectionServiceAsyncStub
    archive: ArchiveServiceAsyncStub
    statements: StatementServiceAsyncStub
    recovery: RecoveryServiceAsyncStub
    routing: RoutingServiceAsyncStub


def tls_files(endpoints: Endpoints) -> TlsFiles:
    """The files of the identity `ops`."""
    return TlsFiles(Path(endpoints.tls.ca).parent, "ops")


@asynccontextmanager
async def connect(endpoints: Endpoints) -> AsyncIterator[Mesh]:
    """Open one channel to the proxy's mTLS door; calls fail typed when it is not there."""
    async with rpc.Channel(endpoints.grpc.mtls, service="shard_proxy", tls=tls_files(endpoints)) as channel:
        yield Mesh(
            OrderServiceStub(channel),
            HistoryServiceStub(channel),
            ProjectionServiceStub(channel),
            ArchiveServiceStub(channel),
            StatementServiceStub(channel),
            RecoveryServiceStub(channel),
            RoutingServiceStub(channel),
        )


@asynccontextmanager
async def simulator(endpoints: Endpoints, upstream: str) -> AsyncIterator[SimulatorServiceAsyncStub]:
    """The control interface of one simulated upstream."""
    target = next(each.target for each in endpoints.upstreams if each.name == upstream)
    async with rpc.Channel(target, service="upstream", tls=tls_files(endpoints)) as channel:
        yield SimulatorServiceStub(channel)
