"""Wiring and life of shard_proxy, top to bottom; closed bottom to top."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from chassis import admin, auth, pg, process, rpc, supervise
from chassis.bearers import Bearers
from chassis.clock import SYSTEM_CLOCK
from chassis.jwks import JwksKeeper, http_client
from chassis.rpc.health import SERVICE as HEALTH
from chassis.rpc.health import Health
from chassis.rpc.reflection import Reflection
from chassis.supervise import OwnedTasks
from chassis.tls import CertificateWatcher, ServerIdentity, TlsFiles
from chassis.tokens import PageTokens
from shard_proxy import methods
from shard_proxy.book import RouteBook
from shard_proxy.clients import Buckets
from shard_proxy.fairness import InFlight
from shard_proxy.identity import DEV, PlainEntrance
from shard_proxy.lanes import LaneLimits, Lanes
from shard_proxy.methods import OWN, passed_on
from shard_proxy.move_store import MoveStore
from shard_proxy.mover import VipMover
from shard_proxy.operations import SERVICE as OPERATIONS
from shard_proxy.operations import Operations
from shard_proxy.passthrough import Passthrough, Relay
from shard_proxy.service import RoutingService
from shard_proxy.store import MapFile, MapStore
from shard_proxy.vitals import Vitals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from chassis.jwks import Keys
    from shard_proxy.methods import Passed
    from shard_proxy.settings import ProxySettings

    Listening = AbstractAsyncContextManager[rpc.RunningServer]

CONTROL_CONNECTIONS = 2
"""One for the poll, one for a healing read."""
MOVE_CONNECTIONS = 2
"""For moves of users, which alone write there; reads of the map never wait for them."""
STREAMS_MAX = 1000
"""Calls at once on one connection; a gateway brings all its users over one or two."""


async def serve(settings: ProxySettings) -> None:
    """Run shard_proxy until SIGTERM or until one of its loops dies; then drain and close."""
    async with AsyncExitStack() as stack:
        stack.enter_context(process.started("shard_proxy", settings))
        routes = await stack.enter_async_context(_routes(settings))
        health = Health((*methods.BEHIND, OWN))
        vitals = Vitals(health, routes.book, routes.lanes, SYSTEM_CLOCK)
        vitals.look()
        identity = ServerIdentity(TlsFiles(settings.tls_dir, "shard_proxy"))
        keys = await stack.enter_async_context(_keys(settings))
        door = Door(settings, routes, health)
        servers = [await stack.enter_async_context(door.mtls(identity))]
        if settings.plain_listen is not None:
            servers.append(await stack.enter_async_context(door.plain(settings.plain_listen, keys)))
        readiness = admin.Readiness(map=routes.book.check)
        await stack.enter_async_context(admin.serve(settings.admin_listen, readiness))
        certificates = CertificateWatcher(identity, SYSTEM_CLOCK)
        loops: list[supervise.Loop] = [routes.book, routes.lanes, routes.mover, vitals, certificates]
        if keys is not None:
            loops.append(keys)
        await supervise.until_stopped(
            *loops,
            drain=(
                readiness.drain,
                health.drain,
                partial(_stop, servers, settings.drain_s),
                partial(routes.owned.drain, settings.drain_s),
            ),
        )


@dataclass(frozen=True, slots=True)
class Routes:
    """What calls are routed with, and what changes it."""

    book: RouteBook
    lanes: Lanes
    passed: dict[str, Passed]
    moves: MoveStore
    mover: VipMover
    owned: OwnedTasks


@asynccontextmanager
async def _routes(settings: ProxySettings) -> AsyncIterator[Routes]:
    """Open the control database, the lanes and the book; a dead control database stops no start."""
    control = pg.PgSettings(
        dsn=settings.dsn.get_secret_value(),
        pool_size=CONTROL_CONNECTIONS,
        connect_timeout_s=1.0,
        read_only=True,
    )
    writing = control.model_copy(update={"pool_size": MOVE_CONNECTIONS, "read_only": False})
    lanes = Lanes(TlsFiles(settings.tls_dir, "shard_proxy"), limits_of(settings))
    async with (
        pg.open_database(control, name="control") as database,
        pg.open_database(writing, name="control-moves") as moving,
        lanes.opened(),
    ):
        book = RouteBook(MapStore(database), MapFile(settings.map_file), SYSTEM_CLOCK, changed=lanes.follow)
        await book.open()
        yield routes_of(settings, book, lanes, moving)


def routes_of(settings: ProxySettings, book: RouteBook, lanes: Lanes, moving: pg.Database) -> Routes:
    """What calls are routed with, over a book and lanes. moving: a pool that may write."""
    moves, owned = MoveStore(moving), OwnedTasks()
    buckets = Buckets(lanes, auth.SubjectMinter(settings.subject_dir, "shard_proxy"))
    mover = VipMover(moves, buckets, book, owned, SYSTEM_CLOCK)
    return Routes(book, lanes, passed_on(methods.BEHIND), moves, mover, owned)


def limits_of(settings: ProxySettings) -> LaneLimits:
    """How hard a lane may be leaned on, as the settings say."""
    return LaneLimits(
        slots=settings.lane_slots,
        queue=settings.lane_queue,
        streams=settings.lane_streams,
        bridge_s=settings.bridge_s,
    )


class Door:
    """What both listeners serve; they differ only in how they find out who is asking."""

    def __init__(self, settings: ProxySettings, routes: Routes, health: Health) -> None:
        self._settings = settings
        self._passed = routes.passed
        self._minter = auth.SubjectMinter(settings.subject_dir, "shard_proxy")
        calls, streams = (InFlight(settings.user_calls, settings.vip_calls) for _ in range(2))
        self._relay = Relay(routes.book, routes.lanes, calls, streams)
        tokens = PageTokens(*settings.token_keys())
        routing = RoutingService(routes.book, routes.lanes, routes.passed, tokens, routes.mover, routes.moves)
        self._routing = rpc.Mount(OWN, routing)
        listed = Reflection((*methods.BEHIND, OWN, OPERATIONS, HEALTH))
        self._register = (health.register, listed.register)

    def mtls(self, identity: ServerIdentity) -> Listening:
        """The listener of the mesh."""
        verifier = auth.SubjectVerifier(self._settings.subject_dir, ("gateway",))
        return self._listen(self._settings.listen, auth.Entrance(verifier, self._minter), identity)

    def plain(self, address: str, keys: Keys | None) -> Listening:
        """The listener for people at this machine; the settings made sure that it is loopback.

        keys: of the issuer; None accepts no bearer token.
        """
        issuer, audience = self._settings.issuer, self._settings.audience
        bearers: Bearers | None = None
        if keys is not None:
            bearers = Bearers(keys, issuer=issuer, audience=audience, service=DEV, clock=SYSTEM_CLOCK)
        return self._listen(address, PlainEntrance(self._minter, bearers), None)

    def _listen(self, address: str, identify: auth.Identify, tls: ServerIdentity | None) -> Listening:
        gate = rpc.Gate(identify, inject_deadline=True)
        return rpc.serve(
            address,
            [self._routing],
            gate=gate,
            tls=tls,
            handlers=[
                Passthrough(self._passed, gate, self._relay),
                Operations(self._passed, gate, self._relay),
            ],
            register=self._register,
            streams_max=STREAMS_MAX,
        )


@asynccontextmanager
async def _keys(settings: ProxySettings) -> AsyncIterator[JwksKeeper | None]:
    """The issuer's keys for the plain listener, if there is one that takes tokens."""
    if settings.plain_listen is None or not settings.jwks_url:
        yield None
        return
    async with http_client() as http:
        yield JwksKeeper(settings.jwks_url, None, SYSTEM_CLOCK, http)


async def _stop(servers: list[rpc.RunningServer], grace_s: float) -> None:
    await asyncio.gather(*(server.stop(grace_s) for server in servers))
