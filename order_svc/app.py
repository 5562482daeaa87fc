"""Wiring and life of order_svc. Opened top to bottom, closed bottom to top: the server drains before its
pool goes.
"""

from __future__ import annotations

import random
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from chassis import admin, meters, pg, process, rpc, supervise
from chassis.auth import BehindProxy, SubjectVerifier
from chassis.clock import SYSTEM_CLOCK
from chassis.ids import OrderIds
from chassis.limits import Limiter
from chassis.rpc.health import SERVICE as HEALTH
from chassis.rpc.health import Health
from chassis.rpc.reflection import Reflection
from chassis.supervise import OwnedTasks
from chassis.tls import CertificateWatcher, ServerIdentity, TlsFiles
from chassis.tokens import PageTokens
from order_svc import counting
from order_svc.bucket_store import BucketStore
from order_svc.buckets import BucketService
from order_svc.changes import Changes
from order_svc.clients import Upstreams
from order_svc.clocks import ShardClock
from order_svc.driver import LegDriver
from order_svc.errors import PartitionsMissing, UnknownShard
from order_svc.housekeeping import Housekeeping
from order_svc.poison import Poison
from order_svc.service import OrderService
from order_svc.store import OrderStore
from order_svc.unserved import Unserved

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from order_svc.order import Change, Order
    from order_svc.settings import OrderSettings

log = structlog.get_logger("orders")
SERVICE = "ordermesh.order.v1.OrderService"
BUCKETS = "ordermesh.order.v1.BucketService"


@dataclass(frozen=True, slots=True)
class Lane:
    """An order_svc that serves; whoever entered it runs the loops and drains."""

    port: int
    server: rpc.RunningServer
    readiness: admin.Readiness
    health: Health
    driver: LegDriver
    owned: OwnedTasks
    loops: tuple[supervise.Loop, ...]


@asynccontextmanager
async def running(settings: OrderSettings) -> AsyncIterator[Lane]:
    """Serve one shard while the context lives.

    Raises: ShardUnavailable when its database cannot be reached; UnknownShard when that is another shard.
    """
    clock, jitter = SYSTEM_CLOCK, random.SystemRandom().random
    tls = TlsFiles(settings.tls_dir, "order_svc")
    changes, owned, rules = Changes(settings.watchers_max), OwnedTasks(), settings.rules()

    def changed(change: Change, after: Order) -> None:
        _tell(change, after)
        changes.announce(after)

    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            pg.open_database(_database(settings), name=settings.shard, eager=True)
        )
        upstreams = await stack.enter_async_context(Upstreams.open(settings.upstream_targets, tls))
        meters.know(shard=[settings.shard], upstream=settings.upstream_targets, order_kind=settings.kinds)
        orders = OrderStore(database, changed)
        await _must_be(orders, settings.shard)
        await _must_have_room(orders)
        shard_clock = ShardClock(orders, clock)
        await shard_clock.sync()
        driver = LegDriver(
            orders,
            upstreams,
            rules,
            _slots(settings),
            owned,
            claimed_by=f"order_svc/{uuid4()}",
            lease=timedelta(seconds=settings.submit_lease_s),
            tick_s=settings.tick_s,
            begins_at_once=settings.pool_size,
            clock=clock,
            jitter=jitter,
            measure_clock=shard_clock.sync,
        )
        service = OrderService(
            shard=settings.shard,
            kinds=settings.kinds,
            rules=rules,
            orders=orders,
            driver=driver,
            changes=changes,
            poison=Poison(orders, rules, owned, jitter),
            order_ids=OrderIds(shard_clock.now_ms),
            owned=owned,
            tokens=PageTokens(*settings.token_keys()),
            jitter=jitter,
        )
        buckets = BucketService(settings.shard, BucketStore(database), owned)
        identity, health = ServerIdentity(tls), Health([SERVICE, BUCKETS])
        server = await stack.enter_async_context(_server(settings, service, buckets, identity, health))
        for name in ("", SERVICE, BUCKETS):
            health.set(name, serving=True)
        readiness = admin.Readiness(database=database.ping)
        await stack.enter_async_context(admin.serve(settings.admin_listen, readiness))
        unserved = Unserved(orders, rules, overdue_s=settings.unserved_s, clock=clock, jitter=jitter)
        keeping = (Housekeeping(orders, clock), CertificateWatcher(identity, clock))
        loops = (driver, unserved, shard_clock, *keeping)
        yield Lane(server.port, server, readiness, health, driver, owned, loops)


def _tell(change: Change, after: Order) -> None:
    """Count a change and log it with its trace, so that an order id leads to its logs."""
    counting.count(change, after)
    log.info(
        "order_changed",
        order_id=str(after.order_id),
        version=after.version,
        kind=change.entry.kind.value,
        status=after.status.value,
        stage=after.stage.value,
    )


def _database(settings: OrderSettings) -> pg.PgSettings:
    return pg.PgSettings(
        dsn=settings.dsn.get_secret_value(), pool_size=settings.pool_size, queue=settings.pool_queue
    )


def _slots(settings: OrderSettings) -> dict[str, Limiter]:
    """Submission slots: each upstream has its own, so a slow one takes nobody else's."""
    return {
        name: Limiter(settings.submits_per_upstream, settings.submit_queue, name=f"submit_{name}")
        for name in settings.upstream_targets
    }


def _server(
    settings: OrderSettings,
    service: OrderService,
    buckets: BucketService,
    identity: ServerIdentity,
    health: Health,
) -> AbstractAsyncContextManager[rpc.RunningServer]:
    """The gate has no limiter: a waiting call holds no slot; pool, submissions and watchers have theirs."""
    return rpc.serve(
        settings.listen,
        [rpc.Mount(SERVICE, service), rpc.Mount(BUCKETS, buckets)],
        gate=rpc.Gate(BehindProxy(SubjectVerifier(settings.subject_dir))),
        tls=identity,
        register=(health.register, Reflection([SERVICE, BUCKETS, HEALTH]).register),
    )


async def serve(settings: OrderSettings) -> None:
    """Run order_svc until SIGTERM or until one of its loops dies; submissions that run are finished first."""
    with process.started("order_svc", settings, shard=settings.shard):
        async with running(settings) as lane:
            drain = (
                lane.readiness.drain,
                lane.health.drain,
                lane.driver.stop,
                partial(lane.server.stop, settings.drain_s),
                partial(lane.owned.drain, settings.drain_s),
            )
            await supervise.until_stopped(*lane.loops, drain=drain)


async def _must_have_room(orders: OrderStore) -> None:
    """Refuse to serve a database whose tables would refuse every order.

    Raises: PartitionsMissing.
    """
    tables = await orders.tables_without_room()
    if tables:
        raise PartitionsMissing(tables=",".join(tables))


async def _must_be(orders: OrderStore, shard: str) -> None:
    """Refuse to serve a database that is another shard.

    Raises: UnknownShard.
    """
    identity = await orders.identity()
    if identity is None or identity.shard != shard:
        raise UnknownShard(shard=shard, here="nobody" if identity is None else identity.shard)
