"""Wiring of statements: the service that is asked, and for each shard who makes, announces and forgets."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from archive_svc.statement.amending import Amender
from archive_svc.statement.deadmails import DeadMails
from archive_svc.statement.fetching import Fetcher
from archive_svc.statement.legs import SESSION, ShardReader
from archive_svc.statement.maker import StatementMaker
from archive_svc.statement.outbox import MailOutbox
from archive_svc.statement.postman import Postman
from archive_svc.statement.service import StatementService
from archive_svc.statement.standing import Standing
from archive_svc.statement.store import StatementStore
from archive_svc.statement.sweeper import Sweeper
from archive_svc.statement.wakes import Wakes
from archive_svc.statement.worker import Worker
from chassis import pg, process
from chassis.clock import SYSTEM_CLOCK
from chassis.looking import Looking
from chassis.tokens import PageTokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from archive_svc.settings import ArchiveSettings
    from archive_svc.statement.legs import Sessions
    from archive_svc.statement.places import Whereabouts
    from archive_svc.statement.wish import Maker
    from chassis.s3 import ObjectStore
    from chassis.supervise import Loop

SERVICE = "ordermesh.archive.v1.StatementService"
JITTER = random.SystemRandom().random
MARGIN_S = 600.0
"""After a turn's lease, until what it may still have stored in vain is looked for."""


@dataclass(frozen=True, slots=True)
class Statements:
    """What runs for statements."""

    service: StatementService
    loops: list[Loop]


def maker_of(settings: ArchiveSettings, objects: ObjectStore) -> Maker:
    """Who makes the statements of every shard; nothing connects before there is one to make."""
    fetcher = Fetcher(objects)
    readers = {
        shard: ShardReader(shard, sessions, fetcher)
        for shard, sessions in _sessions(settings, read_only=True).items()
    }
    wanted = settings.statements
    return StatementMaker(readers, wanted.work_dir, bom=wanted.csv_bom)


def amenders_of(settings: ArchiveSettings, objects: ObjectStore) -> dict[str, Amender]:
    """Who amends the archived orders of each shard; nothing connects before there is one to amend."""
    fetcher = Fetcher(objects)
    sessions = _sessions(settings, read_only=False)
    return {shard: Amender(shard, opened, fetcher, objects) for shard, opened in sessions.items()}


def _sessions(settings: ArchiveSettings, *, read_only: bool) -> dict[str, Sessions]:
    """How to open a session of a reader, by shard."""
    return {
        shard: partial(
            pg.open_session,
            pg.PgSettings(dsn=dsn.get_secret_value(), read_only=read_only, session=SESSION),
            name=f"statement-{shard}",
        )
        for shard, dsn in settings.shards.items()
    }


@asynccontextmanager
async def opened(
    settings: ArchiveSettings, objects: ObjectStore, maker: Maker, places: Whereabouts
) -> AsyncIterator[Statements]:
    """Statements of every shard; nothing connects before it is asked or runs."""
    wakes = Wakes()
    async with AsyncExitStack() as stack:
        stores: dict[str, StatementStore] = {}
        outboxes: dict[str, MailOutbox] = {}
        loops: list[Loop] = []
        for shard, dsn in settings.shards.items():
            wanted = pg.PgSettings(
                dsn=dsn.get_secret_value(),
                pool_size=settings.statements.pool_size,
                queue=settings.statements.pool_queue,
            )
            pool = await stack.enter_async_context(pg.open_database(wanted, name=f"statements-{shard}"))
            stores[shard] = StatementStore(shard, pool)
            outboxes[shard] = MailOutbox(shard, pool)
            loops += _loops(settings, stores[shard], outboxes[shard], objects, maker, places, wakes)
        tokens = PageTokens(*settings.token_keys())
        limits = settings.statements.limits()
        service = StatementService(
            stores, DeadMails(outboxes, wakes), objects, limits, tokens, wakes, SYSTEM_CLOCK
        )
        yield Statements(service, loops)


def _loops(
    settings: ArchiveSettings,
    store: StatementStore,
    outbox: MailOutbox,
    objects: ObjectStore,
    maker: Maker,
    places: Whereabouts,
    wakes: Wakes,
) -> Iterator[Loop]:
    """Who works on one shard's statements."""
    turns = settings.statements.turns()
    for only_small in settings.statements.lanes():
        yield Worker(
            store,
            objects,
            maker,
            turns,
            places,
            wakes,
            SYSTEM_CLOCK,
            JITTER,
            holder=process.holder(),
            only_small=only_small,
        )
    yield Looking(Standing(store, outbox), SYSTEM_CLOCK, JITTER)
    yield Sweeper(
        store,
        objects,
        SYSTEM_CLOCK,
        JITTER,
        after=turns.lease + timedelta(seconds=MARGIN_S),
        look_s=settings.statements.sweep_s,
    )
    if settings.mail is not None:
        yield Postman(
            outbox,
            settings.mail.transport(),
            settings.mail.stationery(),
            settings.mail.rounds(),
            wakes,
            SYSTEM_CLOCK,
            JITTER,
        )
