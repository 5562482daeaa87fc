"""Wiring and life of archive_svc, top to bottom; closed bottom to top. No shard waits for another."""

from __future__ import annotations

import os
import random
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from archive_svc.archiver import Archiver
from archive_svc.catalog import Catalog
from archive_svc.detach import Detacher
from archive_svc.export import Exporter
from archive_svc.keeper import Keeper
from archive_svc.restore import Restorer
from archive_svc.store import PartitionStore
from archive_svc.throttle import Throttle
from archive_svc.verify import Verifier
from chassis import admin, faults, pg, supervise, telemetry
from chassis.clock import SYSTEM_CLOCK
from chassis.s3 import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from archive_svc.settings import ArchiveSettings
    from chassis.s3 import ObjectStore

JITTER = random.SystemRandom().random
QUEUE_PER_CONNECTION = 3
PATIENT = {"statement_timeout": "1800000", "lock_timeout": "60000"}
"""For COPY and DETACH, each in a session of its own."""


async def serve(settings: ArchiveSettings) -> None:
    """Run archive_svc until SIGTERM or until one of its loops dies."""
    telemetry.configure(
        "archive_svc",
        log_level=settings.log_level,
        otlp_endpoint=settings.otlp_endpoint,
        trace_ratio=settings.trace_ratio,
    )
    faults.arm(settings.faults)
    async with AsyncExitStack() as stack:
        stack.callback(telemetry.flush)
        objects = await stack.enter_async_context(open_store(settings.s3)) if settings.s3 else None
        loops: list[supervise.Loop] = []
        for name in settings.shards:
            loops += await stack.enter_async_context(_shard(settings, name, objects))
        # Ready whatever a shard does: the others' partitions are kept all the same.
        readiness = admin.Readiness()
        await stack.enter_async_context(admin.serve(settings.admin_listen, readiness))
        await supervise.until_stopped(*loops, drain=(readiness.drain,))


@asynccontextmanager
async def _shard(
    settings: ArchiveSettings, name: str, objects: ObjectStore | None
) -> AsyncIterator[list[supervise.Loop]]:
    """One shard's connections, its keeper and, with an S3, its archiver; nothing connects before it runs."""
    wanted = pg.PgSettings(
        dsn=settings.shards[name].get_secret_value(),
        pool_size=settings.pool_size,
        queue=QUEUE_PER_CONNECTION * settings.pool_size,
    )
    async with pg.open_database(wanted, name=f"archive-{name}") as database:
        keeper = Keeper(
            PartitionStore(name, database),
            settings.ahead(),
            SYSTEM_CLOCK,
            JITTER,
            look_s=settings.look_s,
            again_s=settings.again_s,
        )
        yield [keeper] if objects is None else [keeper, _archiver(settings, wanted, database, name, objects)]


def _archiver(
    settings: ArchiveSettings, wanted: pg.PgSettings, database: pg.Database, name: str, objects: ObjectStore
) -> Archiver:
    catalog = Catalog(name, database)
    throttle = Throttle(settings.archive_bytes_per_s, SYSTEM_CLOCK)
    patient = wanted.model_copy(update={"session": PATIENT})
    sessions = partial(pg.open_session, patient, name=f"archive-{name}")
    verifier = Verifier(catalog, objects, throttle)
    return Archiver(
        catalog,
        objects,
        Exporter(catalog, objects, sessions, throttle),
        verifier,
        Detacher(catalog, verifier, sessions),
        Restorer(catalog, verifier, sessions),
        settings.pacing(),
        SYSTEM_CLOCK,
        JITTER,
        holder=f"{socket.gethostname()}:{os.getpid()}",
    )
