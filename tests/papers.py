"""Statements in tests: who reads them, and what they have to say, taken before anything is archived."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from archive_svc.statement.fetching import Fetcher, Read
from archive_svc.statement.legs import SESSION, ShardReader
from archive_svc.statement.merge import merged
from archive_svc.statement.places import Places
from archive_svc.statement.plan import microseconds
from archive_svc.statement.rows import Row, select_list
from archive_svc.statement.wish import CSV, Wanted
from chassis import pg
from chassis.clock import SYSTEM_CLOCK, Clock, SystemClock
from chassis.ids import user_bucket
from chassis.placement import Held
from chassis.s3 import ObjectStore
from chassis.testing import eventually
from tests.archiving import Archive

AS_OF = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
SINCE, UNTIL = datetime(2023, 8, 1, tzinfo=UTC), datetime(2023, 11, 1, tzinfo=UTC)


def wanted(
    user_id: str,
    since: datetime = SINCE,
    until: datetime = UNTIL,
    *,
    zone: str = "UTC",
    placements: Places | None = None,
    locale: str = "en",
    formats: tuple[str, ...] = (CSV,),
) -> Wanted:
    """A wish for everything that a user ordered in a period."""
    return Wanted(
        statement_id=UUID(int=1),
        user_id=user_id,
        placements=placements or {"s1": (Held(user_bucket(user_id), 1),)},
        since=since,
        until=until,
        time_zone=zone,
        locale=locale,
        formats=formats,
        as_of=AS_OF,
    )


def reader(
    dsn: str,
    store: ObjectStore,
    *,
    shard: str = "s1",
    fetcher: Fetcher | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> ShardReader:
    """Who reads one shard, at its primary or at a replica, in sessions as the service has them."""
    settings = pg.PgSettings(dsn=dsn, session=SESSION, read_only=True)
    sessions = partial(pg.open_session, settings, name="statement")
    return ShardReader(shard, sessions, fetcher or Fetcher(store), clock)


class Impatient(SystemClock):
    """A clock of someone who waits no second time."""

    def __init__(self) -> None:
        self._slept_s = 0.0

    def monotonic(self) -> float:
        """Far on after each sleep."""
        return super().monotonic() + self._slept_s

    async def sleep(self, seconds: float) -> None:
        """Sleep, and be an hour later."""
        await super().sleep(seconds)
        self._slept_s += 3600


async def rows_of(
    readers: Sequence[ShardReader],
    wish: Wanted,
    *,
    read: Read | None = None,
    after_batch: Callable[[int], Awaitable[None]] | None = None,
) -> list[Row]:
    """All orders of a statement. after_batch: called with the number of each, from 1."""
    found: list[Row] = []
    number = 0
    told = Read() if read is None else read
    async with aclosing(merged([each.rows(wish, told) for each in readers])) as batches:
        async for batch in batches:
            found += batch
            number += 1
            if after_batch is not None:
                await after_batch(number)
    return found


async def known_rows(archive: Archive) -> dict[str, list[Row]]:
    """Every order that the tables have, by user, sorted as statements are."""
    found: dict[str, list[Row]] = {}
    for record in await archive.rows(
        f"SELECT o.user_id, {select_list('o')} FROM ordermesh.orders o ORDER BY o.created_at, o.order_id"
    ):
        user_id, *values = record
        found.setdefault(user_id, []).append(Row(*values))
    return found


def within(rows: Sequence[Row], since: datetime, until: datetime) -> list[Row]:
    """Those of a period."""
    first, end = microseconds(since), microseconds(until)
    return [row for row in rows if first <= row.created_us < end]


async def waits_or_ends(archive: Archive, work: asyncio.Task[Any]) -> None:
    """Return when what the archive does is over, or waits for a lock that somebody has."""

    async def is_still() -> bool:
        return work.done() or bool(
            await archive.value(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND datname = current_database() AND application_name = 'ordermesh-archive')"
            )
        )

    assert await eventually(is_still, within_s=30)
