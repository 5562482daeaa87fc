"""Wiring and life of the gateway, top to bottom; closed bottom to top."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from chassis import admin, auth, process, rpc, supervise
from chassis.bearers import Bearers
from chassis.clock import SYSTEM_CLOCK
from chassis.jwks import JwksKeeper, http_client
from chassis.limits import Limiter
from chassis.tls import TlsFiles
from gateway import counting, docs, landing, listener, openapi, orders, refusals, statements
from gateway.clients import Mesh
from gateway.edge import ALIVE_PATH, Edge
from gateway.house import House
from gateway.places import Places
from gateway.rates import Rates
from gateway.streams import Seats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi.telemetry import TelemetryConfig
    from starlette.types import ASGIApp

    from gateway.settings import GatewaySettings

VERSION = "1.0"
_NOT_THEIRS: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
"""FastAPI would begin a trace of its own below ours, with the path, and believe any caller's traceparent."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """An open gateway: it listens; its keys come once their loop runs."""

    house: House
    keys: JwksKeeper
    rest: listener.Listener
    readiness: admin.Readiness


async def serve(settings: GatewaySettings) -> None:
    """Run the gateway until SIGTERM or until one of its loops dies; then drain and close."""
    async with AsyncExitStack() as stack:
        stack.enter_context(process.started("gateway", settings))
        gateway = await stack.enter_async_context(opened(settings))
        await stack.enter_async_context(admin.serve(settings.admin_listen, gateway.readiness))
        await supervise.until_stopped(
            gateway.keys,
            gateway.rest,
            drain=(gateway.readiness.drain, gateway.house.seats.close, gateway.rest.stop),
        )


@asynccontextmanager
async def opened(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    """Open everything the gateway holds, the listener last.

    Raises: PortTaken; OSError when a certificate or key cannot be read.
    """
    async with AsyncExitStack() as stack:
        files = TlsFiles(settings.tls_dir, "gateway")
        channel = await stack.enter_async_context(
            rpc.Channel(settings.mesh_target, service="shard_proxy", tls=files)
        )
        http = await stack.enter_async_context(http_client())
        keys = JwksKeeper(settings.jwks_url, settings.jwks_file, SYSTEM_CLOCK, http)
        mesh = Mesh(channel, auth.SubjectMinter(settings.subject_dir, "gateway"))
        house = furnish(settings, mesh, keys)
        rest = await stack.enter_async_context(listener.serve(application(house), settings))
        yield Gateway(house, keys, rest, admin.Readiness(keys=keys.ready))


def furnish(settings: GatewaySettings, mesh: Mesh, keys: JwksKeeper) -> House:
    """Everything the routes use."""
    return House(
        mesh=mesh,
        bearers=Bearers(
            keys,
            issuer=settings.issuer,
            audience=settings.audience,
            service="gateway",
            clock=SYSTEM_CLOCK,
        ),
        requests=Rates(
            "requests",
            per_s=settings.requests_per_user_per_s,
            burst=settings.requests_burst,
            keys_max=settings.users_tracked_max,
            clock=SYSTEM_CLOCK,
        ),
        creates=Rates(
            "creates",
            per_s=settings.creates_per_user_per_s,
            burst=settings.creates_burst,
            keys_max=settings.users_tracked_max,
            clock=SYSTEM_CLOCK,
        ),
        seats=Seats(settings.streams_max, settings.streams_per_user_max),
        settings=settings,
    )


def application(house: House) -> ASGIApp:
    """The ASGI application: routes, problems, document, and the edge around all of it."""
    app = FastAPI(title=openapi.TITLE, version=VERSION, docs_url=None, redoc_url=None, telemetry=_NOT_THEIRS)
    app.state.house = house
    app.include_router(orders.router)
    app.include_router(statements.router)
    app.add_api_route(ALIVE_PATH, _alive, include_in_schema=False)
    refusals.install(app)
    openapi.install(app)
    docs.install(app)
    landing.install(app)
    counting.prepare((*orders.router.routes, *statements.router.routes))
    settings = house.settings
    in_flight = Limiter(settings.requests_in_flight_max, settings.requests_queue, name="requests")
    return Edge(
        app,
        Places(in_flight),
        body_bytes_max=settings.body_bytes_max,
        trust_traceparent=settings.trust_traceparent,
        is_always_recorded=house.is_always_recorded,
    )


async def _alive() -> PlainTextResponse:
    return PlainTextResponse("alive\n")
