"""Wiring and life of archive_svc, top to bottom; closed bottom to top. No shard waits for another."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from archive_svc.keeper import Keeper
from archive_svc.store import PartitionStore
from chassis import admin, faults, pg, supervise, telemetry
from chassis.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from archive_svc.settings import ArchiveSettings

JITTER = random.SystemRandom().random
QUEUE_PER_CONNECTION = 3


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
        keepers = [await stack.enter_async_context(_keeper(settings, name)) for name in settings.shards]
        # Ready whatever a shard does: the others' partitions are kept all the same.
        readiness = admin.Readiness()
        await stack.enter_async_context(admin.serve(settings.admin_listen, readiness))
        await supervise.until_stopped(*keepers, drain=(readiness.drain,))


@asynccontextmanager
async def _keeper(settings: ArchiveSettings, name: str) -> AsyncIterator[Keeper]:
    """One shard's connections and keeper; nothing connects before it runs."""
    wanted = pg.PgSettings(
        dsn=settings.shards[name].get_secret_value(),
        pool_size=settings.pool_size,
        queue=QUEUE_PER_CONNECTION * settings.pool_size,
    )
    async with pg.open_database(wanted, name=f"archive-{name}") as database:
        yield Keeper(
            PartitionStore(name, database),
            settings.ahead(),
            SYSTEM_CLOCK,
            JITTER,
            look_s=settings.look_s,
            again_s=settings.again_s,
        )
