"""Wiring and life of one simulated upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from chassis import admin, process, rpc, supervise
from chassis.auth import Direct
from chassis.clock import SYSTEM_CLOCK
from chassis.rpc.health import SERVICE as HEALTH
from chassis.rpc.health import Health
from chassis.rpc.reflection import Reflection
from chassis.tls import CertificateWatcher, ServerIdentity, TlsFiles
from ops.upstream.clerk import Clerk, LateExecutions
from ops.upstream.service import SimulatorService, UpstreamService
from ops.upstream.settings import UpstreamSettings

UPSTREAM = "ordermesh.upstream.v1.UpstreamService"
SIMULATOR = "ordermesh.upstream.v1.SimulatorService"
PEERS = frozenset({"order_svc", "recovery_svc", "ops"})


@dataclass(frozen=True, slots=True)
class Upstream:
    """A simulated upstream that serves."""

    port: int
    server: rpc.RunningServer
    readiness: admin.Readiness
    health: Health
    loops: tuple[supervise.Loop, ...]


@asynccontextmanager
async def running(settings: UpstreamSettings) -> AsyncIterator[Upstream]:
    """Serve while the context lives. Whoever enters it runs the loops."""
    async with AsyncExitStack() as stack:
        clerk = await stack.enter_async_context(
            Clerk.open(settings.ledger, name=settings.upstream_name, idempotent=settings.idempotent)
        )
        identity = ServerIdentity(TlsFiles(settings.tls_dir, "upstream"))
        mounts = [
            rpc.Mount(UPSTREAM, UpstreamService(clerk, SYSTEM_CLOCK)),
            rpc.Mount(SIMULATOR, SimulatorService(clerk)),
        ]
        # No limiter: a slow fault would take its slots; the clerk's queue bounds the work.
        gate = rpc.Gate(Direct(PEERS))
        health = Health([UPSTREAM, SIMULATOR])
        listed = Reflection([UPSTREAM, SIMULATOR, HEALTH])
        register = (health.register, listed.register)
        server = await stack.enter_async_context(
            rpc.serve(settings.listen, mounts, gate=gate, tls=identity, register=register)
        )
        for name in ("", UPSTREAM, SIMULATOR):
            health.set(name, serving=True)
        readiness = admin.Readiness(ledger=partial(clerk.do, lambda ledger: ledger.pending_count()))
        await stack.enter_async_context(admin.serve(settings.admin_listen, readiness))
        loops = (LateExecutions(clerk, SYSTEM_CLOCK), CertificateWatcher(identity, SYSTEM_CLOCK))
        yield Upstream(server.port, server, readiness, health, loops)


async def serve(settings: UpstreamSettings) -> None:
    """Run a simulated upstream until SIGTERM or until one of its loops dies."""
    with process.started("upstream", settings, upstream=settings.upstream_name):
        async with running(settings) as upstream:
            stop = partial(upstream.server.stop, settings.drain_s)
            drain = (upstream.readiness.drain, upstream.health.drain, stop)
            await supervise.until_stopped(*upstream.loops, drain=drain)
