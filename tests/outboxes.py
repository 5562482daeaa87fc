"""Outboxes with changes in them, written as order_svc writes them, but many at once and by hand where a test
needs two transactions to interleave.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from chassis import pg
from chassis.clock import SYSTEM_CLOCK
from history_svc.channel.leadership import Leadership
from history_svc.channel.log import SESSION, ShardLog
from history_svc.events import Record
from history_svc.position import Position
from tests.databases import Database

_PUT = (Path(__file__).parent / "outboxes.sql").read_text(encoding="utf-8")
COUNT = 8
"""Stream partitions of a shard."""


@dataclass(frozen=True, slots=True)
class Outbox:
    """A shard's database, named `shard`, with partitions from `base` on."""

    database: Database
    shard: str = "s1"
    base: int = 0

    @property
    def settings(self) -> pg.PgSettings:
        return pg.PgSettings(dsn=self.database.dsn, pool_size=4, queue=16, session=SESSION)

    async def prepare(self) -> Outbox:
        async with self.connected() as connection:
            await connection.execute("SELECT ordermesh.identify_shard($1, $2)", self.shard, self.base)
            await connection.execute("SELECT ordermesh.own_buckets(0, 4200, $1)", self.shard)
        return self

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Any]:
        """A session of its own."""
        connection = await asyncpg.connect(self.database.dsn, timeout=10, command_timeout=60)
        try:
            yield connection
        finally:
            await connection.close(timeout=5)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ShardLog]:
        """Its log, as the projector reads it."""
        async with pg.open_database(self.settings, name=self.shard) as database:
            yield ShardLog(self.shard, database)

    def leadership(self, shard_log: ShardLog, holder: str = "test") -> Leadership:
        return Leadership(shard_log, self.settings, holder=holder, clock=SYSTEM_CLOCK, jitter=lambda: 0.5)

    async def write(
        self, count: int, *, connection: Any = None, buckets: Sequence[int] = range(COUNT)
    ) -> list[UUID]:
        """Write changes of new orders, in one statement and over some buckets in turn; their event ids."""
        if connection is None:
            async with self.connected() as own:
                return await self.write(count, connection=own, buckets=buckets)
        return [row[0] for row in await connection.fetch(_PUT, count, list(buckets), self.base, COUNT)]

    async def positions(self) -> dict[UUID, Position]:
        """Where every change stands."""
        async with self.connected() as connection:
            rows = await connection.fetch("SELECT event_id, xid::text, seq FROM ordermesh.outbox")
        return {row[0]: Position(1, int(row[1]), row[2]) for row in rows}

    async def set_watermarks(self, watermarks: dict[int, Position]) -> None:
        """Say up to where everything is searchable."""
        async with self.connected() as connection:
            await connection.executemany(
                "INSERT INTO ordermesh.watermarks (stream_partition, log_epoch, xid, seq, updated_at)"
                " VALUES ($1, $2, $3::text::xid8, $4, now()) ON CONFLICT (stream_partition) DO UPDATE"
                " SET log_epoch = excluded.log_epoch, xid = excluded.xid, seq = excluded.seq",
                [(p, at.log_epoch, str(at.xid), at.seq) for p, at in watermarks.items()],
            )

    async def cursors(self) -> dict[int, tuple[int, Position]]:
        """Term and position of each cursor."""
        async with self.connected() as connection:
            rows = await connection.fetch(
                "SELECT stream_partition, term, log_epoch, xid::text, seq FROM ordermesh.relay_cursors"
            )
        return {row[0]: (row[1], Position(row[2], int(row[3]), row[4])) for row in rows}


class Follower:
    """Follows a source as an indexer does: knows what it has, sees gaps, and moves watermarks over whole
    prefixes.
    """

    def __init__(self) -> None:
        self.watermarks: dict[int, Position] = {}
        self.events: list[UUID] = []
        self.beats: dict[int, datetime] = {}
        self.gaps: list[Record] = []

    def take_in(self, records: Sequence[Record]) -> None:
        for record in records:
            self.take_one(record)

    def take_one(self, record: Record) -> None:
        here = self.watermarks.get(record.stream_partition, Position(0, 0, 0))
        assert record.prev < record.position
        if record.event is not None:
            self.events.append(record.event.event_id)
        if record.prev > here:
            self.gaps.append(record)
            return
        if record.event is None:
            self.beats[record.stream_partition] = record.at
        self.watermarks[record.stream_partition] = max(here, record.position)

    def has(self, wanted: Sequence[UUID]) -> bool:
        return set(wanted) <= set(self.events)


def an_event(record: Record, **changes: Any) -> Record:
    """A record whose event differs."""
    assert record.event is not None
    return replace(record, event=replace(record.event, **changes))
