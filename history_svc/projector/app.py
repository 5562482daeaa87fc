"""Wiring and life of the projector, top to bottom; closed bottom to top.

Each shard has loops and connections of its own, and every loop gets over a shard, a channel or a read model
that is away: nothing of one shard waits for another.
"""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from chassis import admin, auth, meters, pg, process, rpc, supervise
from chassis.clock import SYSTEM_CLOCK
from chassis.kafka import open_consumer
from chassis.limits import Limiter
from chassis.tls import CertificateWatcher, ServerIdentity, TlsFiles
from history_svc.care.caretaker import Caretaker
from history_svc.care.parts import Parts as CareParts
from history_svc.care.service import ProjectionService
from history_svc.care.store import CareStore
from history_svc.care.upkeep import Upkeep
from history_svc.channel.hub import Hub, Watching
from history_svc.channel.kafka import KafkaDeadLetters, KafkaPublisher
from history_svc.channel.leadership import Leadership
from history_svc.channel.log import SESSION, ShardLog
from history_svc.channel.outbox import LoggedDeadLetters, OutboxSource
from history_svc.projector import indexer
from history_svc.projector.relay import Parts, Relay
from history_svc.projector.retention import Retention
from history_svc.projector.store import ProjectionStore
from history_svc.readmodel.opening import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from chassis.supervise import Loop
    from history_svc.channel.port import DeadLetters, EventSource
    from history_svc.projector.settings import ProjectorSettings
    from history_svc.readmodel.port import ReadModel

SERVICE = "ordermesh.history.v1.ProjectionService"
JITTER = random.SystemRandom().random


@dataclass(frozen=True, slots=True)
class Shard:
    """What is there of one shard: its log, where its changes come from, and its loops."""

    name: str
    database: pg.Database
    log: ShardLog
    source: EventSource
    care: CareParts
    loops: tuple[Loop, ...]


@dataclass(frozen=True, slots=True)
class Channel:
    """What all shards share of the channel. hub: only with Kafka."""

    dead_letters: DeadLetters
    hub: Hub | None = None


async def serve(settings: ProjectorSettings) -> None:
    """Run the projector until SIGTERM or until one of its loops dies."""
    async with AsyncExitStack() as stack:
        stack.enter_context(process.started("projector", settings))
        meters.know(shard=settings.shards)
        channel = await stack.enter_async_context(_channel(settings))
        read_model = await stack.enter_async_context(opened(settings))
        shards = [
            await stack.enter_async_context(_shard(settings, channel, read_model, name))
            for name in settings.shards
        ]
        identity = ServerIdentity(TlsFiles(settings.tls_dir, "projector"))
        gate = rpc.Gate(
            auth.BehindProxy(auth.SubjectVerifier(settings.subject_dir)),
            Limiter(settings.calls_max, settings.calls_queue, name="projection_calls"),
        )
        mount = rpc.Mount(SERVICE, ProjectionService({shard.name: shard.care.care for shard in shards}))
        server = await stack.enter_async_context(rpc.serve(settings.listen, [mount], gate=gate, tls=identity))
        # Ready whatever a shard does: the others' changes are carried all the same.
        readiness = admin.Readiness(**({"kafka": channel.hub.ping} if channel.hub else {}))
        await stack.enter_async_context(admin.serve(settings.admin_listen, readiness))
        loops: list[Loop] = [loop for shard in shards for loop in shard.loops]
        loops.append(Upkeep({shard.name: shard.care for shard in shards}))
        if channel.hub is not None:
            loops.append(channel.hub)
        loops.append(CertificateWatcher(identity, SYSTEM_CLOCK))
        await supervise.until_stopped(*loops, drain=(readiness.drain, partial(server.stop, settings.drain_s)))


@asynccontextmanager
async def _channel(settings: ProjectorSettings) -> AsyncIterator[Channel]:
    """The channel of the settings; nothing connects before it is needed."""
    if settings.channel == "outbox":
        yield Channel(LoggedDeadLetters())
        return
    topics = settings.topics()
    hub = Hub(
        partial(topics.ensure_events, settings.topic_partitions),
        lambda rebalanced: open_consumer(
            topics.cluster,
            topics.events,
            group=settings.group,
            instance=settings.holder(),
            rebalanced=rebalanced,
        ),
        bytes_max=settings.inbox_mib * 1024 * 1024,
        clock=SYSTEM_CLOCK,
        jitter=JITTER,
        watching=Watching(stuck_s=settings.stuck_s),
    )
    async with KafkaDeadLetters.open(topics, f"{settings.holder()}.dead-letters") as letters:
        yield Channel(letters, hub)


@asynccontextmanager
async def _shard(
    settings: ProjectorSettings, channel: Channel, read_model: ReadModel, name: str
) -> AsyncIterator[Shard]:
    """One shard's connections and loops; nothing connects before a loop runs."""
    wanted = pg.PgSettings(
        dsn=settings.shards[name].get_secret_value(),
        pool_size=settings.pool_size,
        queue=settings.pool_queue,
        session=SESSION,
    )
    async with pg.open_database(wanted, name=f"projector-{name}") as database:
        shard_log = ShardLog(name, database)
        leadership = Leadership(
            shard_log, wanted, holder=settings.holder(), clock=SYSTEM_CLOCK, jitter=JITTER
        )
        retention = Retention(name, database, leadership, settings.keeping(), SYSTEM_CLOCK)
        loops: list[Loop] = [leadership, retention]
        if channel.hub is None:
            source: EventSource = OutboxSource(shard_log, leadership, clock=SYSTEM_CLOCK, jitter=JITTER)
        else:
            source = channel.hub.source(shard_log)
            parts = Parts(shard_log, channel.dead_letters, SYSTEM_CLOCK, JITTER, settings.batching())
            publisher = partial(KafkaPublisher.open, settings.topics(), f"{settings.holder()}.relay-{name}")
            loops.append(Relay(parts, leadership, publisher))
        store = ProjectionStore(name, database)
        care = CareParts(
            care=CareStore(name, database),
            projection=store,
            read_model=read_model,
            clock=SYSTEM_CLOCK,
            jitter=JITTER,
            pacing=settings.pacing(),
            quarantine_max=settings.quarantine_max,
        )
        loops.append(Caretaker(care, leadership))
        loops.append(
            indexer.Indexer(
                indexer.Parts(
                    source=source,
                    read_model=read_model,
                    store=store,
                    dead_letters=channel.dead_letters,
                    clock=SYSTEM_CLOCK,
                    jitter=JITTER,
                    tick_s=settings.tick_s,
                    bytes_max=settings.batch_mib * 1024 * 1024,
                    quarantine_max=settings.quarantine_max,
                )
            )
        )
        yield Shard(name, database, shard_log, source, care, tuple(loops))
