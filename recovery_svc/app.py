"""Wiring and life of recovery_svc."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

from chassis import admin, meters, process, rpc, supervise
from chassis.auth import BehindProxy, SubjectVerifier
from chassis.clock import SYSTEM_CLOCK
from chassis.limits import Limiter
from chassis.rpc.health import SERVICE as HEALTH
from chassis.rpc.health import Health
from chassis.rpc.reflection import Reflection
from chassis.supervise import OwnedTasks
from chassis.tls import CertificateWatcher, ServerIdentity, TlsFiles
from recovery_svc.clients import Mesh, Upstreams
from recovery_svc.probe import Prober
from recovery_svc.service import RecoveryService
from recovery_svc.settings import RecoverySettings
from recovery_svc.sweep import ShardSweep, Sweeps

SERVICE = "ordermesh.recovery.v1.RecoveryService"
SHARDS_MAX = 256
"""Far more than one process sweeps in time; only here to bound what is in flight."""
CALLS_AT_ONCE = 32
CALLS_WAITING = 64
"""Operators ask seldom; a script that asks in a loop must not starve the sweep."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """A recovery_svc that serves; whoever entered it runs the loops."""

    port: int
    server: rpc.RunningServer
    readiness: admin.Readiness
    health: Health
    sweeps: Sweeps
    owned: OwnedTasks
    certificates: CertificateWatcher


@asynccontextmanager
async def running(settings: RecoverySettings) -> AsyncIterator[Recovery]:
    """Serve while the context lives. Opened top to bottom, closed bottom to top."""
    clock, draw = SYSTEM_CLOCK, random.SystemRandom().random
    tls = TlsFiles(settings.tls_dir, "recovery_svc")
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(
            Mesh.open(settings.proxy_target, tls, claimed_by=f"recovery_svc/{uuid4()}")
        )
        upstreams = await stack.enter_async_context(Upstreams.open(settings.upstreams, tls))
        meters.know(upstream=settings.upstreams)
        owned = OwnedTasks(limit=settings.slots_per_shard * SHARDS_MAX + CALLS_AT_ONCE)
        prober = Prober(mesh, upstreams, settings, clock=clock, draw=draw)
        begin = partial(
            ShardSweep, mesh=mesh, prober=prober, owned=owned, settings=settings, clock=clock, draw=draw
        )
        sweeps = Sweeps(mesh, settings, clock=clock, begin=begin)
        service = RecoveryService(mesh, prober, sweeps, owned, settings, clock)
        identity = ServerIdentity(tls)
        gate = rpc.Gate(
            BehindProxy(SubjectVerifier(settings.subject_dir)),
            Limiter(CALLS_AT_ONCE, CALLS_WAITING, name="recovery_calls"),
        )
        health = Health([SERVICE])
        listed = Reflection([SERVICE, HEALTH])
        server = await stack.enter_async_context(
            rpc.serve(
                settings.listen,
                [rpc.Mount(SERVICE, service)],
                gate=gate,
                tls=identity,
                register=(health.register, listed.register),
            )
        )
        for name in ("", SERVICE):
            health.set(name, serving=True)
        readiness = admin.Readiness(proxy=mesh.shards)
        await stack.enter_async_context(admin.serve(settings.admin_listen, readiness))
        certificates = CertificateWatcher(identity, clock)
        yield Recovery(server.port, server, readiness, health, sweeps, owned, certificates)


async def serve(settings: RecoverySettings) -> None:
    """Run recovery_svc until SIGTERM or until one of its loops dies; claims in work are finished first."""
    with process.started("recovery_svc", settings):
        async with running(settings) as recovery:
            drain = (
                recovery.readiness.drain,
                recovery.health.drain,
                recovery.sweeps.stop,
                partial(recovery.server.stop, settings.drain_s),
                partial(recovery.owned.drain, settings.drain_s),
            )
            await supervise.until_stopped(recovery.sweeps, recovery.certificates, drain=drain)
