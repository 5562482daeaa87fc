"""Wiring and life of archive_svc, top to bottom; closed bottom to top. No shard waits for another."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from archive_svc import export, stretch
from archive_svc.archiver import Archiver
from archive_svc.catalog import Catalog
from archive_svc.detach import Detacher
from archive_svc.erase import Eraser
from archive_svc.holds import Holds
from archive_svc.keeper import Keeper
from archive_svc.recall import Recalls
from archive_svc.restore import Restorer
from archive_svc.service import ArchiveService
from archive_svc.standing import Standing, Standings
from archive_svc.statement import running as statements
from archive_svc.statement.places import AtProxy
from archive_svc.store import PartitionStore
from archive_svc.sweep import Sweeper, Sweeps
from archive_svc.throttle import Throttle
from archive_svc.verify import Verifier
from chassis import admin, auth, meters, pg, process, rpc, supervise
from chassis.clock import SYSTEM_CLOCK
from chassis.limits import Limiter
from chassis.looking import Looking
from chassis.s3 import open_store
from chassis.tls import CertificateWatcher, ServerIdentity, TlsFiles
from ordermesh.routing.v1.routing_service_pb2_grpc import RoutingServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import grpc

    from archive_svc.settings import ArchiveSettings
    from archive_svc.statement.places import Whereabouts
    from chassis.s3 import ObjectStore
    from chassis.supervise import Loop

SERVICE = "ordermesh.archive.v1.ArchiveService"
JITTER = random.SystemRandom().random
QUEUE_PER_CONNECTION = 3
PATIENT = {"statement_timeout": "1800000", "lock_timeout": "60000"}
"""For COPY and DETACH, each in a session of its own."""


async def serve(settings: ArchiveSettings) -> None:
    """Run archive_svc until SIGTERM or until one of its loops dies. Statements need an S3, as months do."""
    async with AsyncExitStack() as stack:
        stack.enter_context(process.started("archive_svc", settings))
        objects = await stack.enter_async_context(open_store(settings.s3)) if settings.s3 else None
        meters.know(shard=settings.shards)
        databases = {
            name: await stack.enter_async_context(
                pg.open_database(_of(settings, name), name=f"archive-{name}")
            )
            for name in settings.shards
        }
        shards = [_shard(settings, name, databases, objects) for name in databases]
        identity = ServerIdentity(TlsFiles(settings.tls_dir, "archive_svc"))
        gate = rpc.Gate(
            auth.BehindProxy(auth.SubjectVerifier(settings.subject_dir)),
            Limiter(settings.calls_max, settings.calls_queue, name="archive_calls"),
        )
        catalogs = {shard.catalog.shard: shard.catalog for shard in shards}
        amenders = statements.amenders_of(settings, objects) if objects is not None else {}
        sweeps = {shard.catalog.shard: shard.sweeps for shard in shards}
        holds = {shard.catalog.shard: shard.holds for shard in shards}
        service = ArchiveService(catalogs, sweeps, holds, settings.pacing(), objects, amenders)
        mounts = [rpc.Mount(SERVICE, service)]
        loops = [loop for shard in shards for loop in shard.loops]
        if objects is not None:
            maker = statements.maker_of(settings, objects)
            places = await stack.enter_async_context(_places(settings))
            made = await stack.enter_async_context(statements.opened(settings, objects, maker, places))
            mounts.append(rpc.Mount(statements.SERVICE, made.service))
            loops += made.loops
        server = await stack.enter_async_context(rpc.serve(settings.listen, mounts, gate=gate, tls=identity))
        # Ready whatever a shard does: the others' partitions are kept all the same.
        readiness = admin.Readiness()
        await stack.enter_async_context(admin.serve(settings.admin_listen, readiness))
        loops.append(CertificateWatcher(identity, SYSTEM_CLOCK))
        await supervise.until_stopped(*loops, drain=(readiness.drain, partial(server.stop, settings.drain_s)))


@asynccontextmanager
async def _places(settings: ArchiveSettings) -> AsyncIterator[Whereabouts]:
    """Where users' orders are, as the proxy knows it; it may be away."""
    assert settings.proxy_target is not None, "there is none without an S3"
    tls = TlsFiles(settings.tls_dir, "archive_svc")
    async with rpc.Channel(settings.proxy_target, service="shard_proxy", tls=tls) as channel:
        yield AtProxy(RoutingServiceStub(cast("grpc.aio.Channel", channel)))


@dataclass(frozen=True, slots=True)
class Shard:
    """What runs for one shard."""

    catalog: Catalog
    sweeps: Sweeps
    holds: Holds
    loops: list[Loop]


def _of(settings: ArchiveSettings, name: str) -> pg.PgSettings:
    """How a shard is connected to; nothing connects before something runs."""
    return pg.PgSettings(
        dsn=settings.shards[name].get_secret_value(),
        pool_size=settings.pool_size,
        queue=QUEUE_PER_CONNECTION * settings.pool_size,
    )


def _shard(
    settings: ArchiveSettings, name: str, databases: Mapping[str, pg.Database], objects: ObjectStore | None
) -> Shard:
    """One shard's keeper and, with an S3, its archiver. databases: of all shards, for erasures."""
    catalog, sweeps = Catalog(name, databases[name]), Sweeps(name, databases[name])
    loops: list[Loop] = [
        Keeper(
            PartitionStore(name, databases[name]),
            settings.ahead(),
            SYSTEM_CLOCK,
            JITTER,
            look_s=settings.look_s,
            again_s=settings.again_s,
        )
    ]
    if objects is not None:
        loops.append(_archiver(settings, catalog, sweeps, objects, Recalls(databases)))
        standing = Standing(Standings(name, databases[name]), catalog, sweeps, settings.pacing())
        loops.append(Looking(standing, SYSTEM_CLOCK, JITTER))
    return Shard(catalog, sweeps, Holds(name, databases[name]), loops)


def _archiver(
    settings: ArchiveSettings, catalog: Catalog, sweeps: Sweeps, objects: ObjectStore, recalls: Recalls
) -> Archiver:
    wanted = _of(settings, catalog.shard)
    throttle = Throttle(settings.archive_bytes_per_s, SYSTEM_CLOCK)
    name = f"archive-{catalog.shard}"
    sessions = partial(pg.open_session, wanted.model_copy(update={"session": PATIENT}), name=name)
    exporting = partial(pg.open_session, wanted.model_copy(update={"session": stretch.SESSION}), name=name)
    pacing, retention = settings.pacing(), settings.retention()
    verifier = Verifier(catalog, objects, throttle, enough_for=pacing.enough_for)
    slowly = Throttle(settings.sweep_objects_per_s, SYSTEM_CLOCK)
    sweeper = Sweeper(sweeps, objects, slowly, settings.sweeping())
    return Archiver(
        catalog,
        objects,
        export.Exporter(catalog, objects, exporting, throttle, retention),
        verifier,
        Detacher(catalog, verifier, sessions),
        Restorer(catalog, verifier, sessions),
        Eraser(catalog, objects, verifier, sessions, recalls, sweeper, retention),
        sweeper,
        pacing,
        SYSTEM_CLOCK,
        JITTER,
        holder=process.holder(),
        retention=retention,
    )
