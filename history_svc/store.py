"""Reads of the shards' databases: one statement per shard and page, through small pools that open when first
needed.

Fails loudly: a shard that cannot be read, or that does not own what it is asked for, is an error and never an
empty answer.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from chassis import pg
from chassis.errors import ShardUnavailable, StaleRoute
from history_svc.metrics import READ_SECONDS, STALE
from history_svc.page import Key, Row, Source, Window, source_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence

    from history_svc.placement import Held
    from history_svc.settings import HistorySettings

QUERIES = pg.queries("history_svc")
SESSION = {"enable_sort": "off", "enable_seqscan": "off", "enable_bitmapscan": "off"}
"""A page walks the index from its newest entry and stops when it is full. The generic plan is made for the
average user, who has so few orders that sorting them all looks cheap; for the greatest user it is ruinous.
"""


class Shards:
    """The databases of all shards, by name."""

    def __init__(self, databases: Mapping[str, pg.Database], read_timeout_s: float) -> None:
        self._databases = databases
        self._read_timeout_s = read_timeout_s

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: HistorySettings) -> AsyncIterator[Shards]:
        """Pools to every shard of the settings; none connects before it is needed."""
        async with AsyncExitStack() as stack:
            databases = {}
            for shard, dsn in settings.shards.items():
                wanted = pg.PgSettings(
                    dsn=dsn.get_secret_value(),
                    pool_size=settings.pool_size,
                    queue=settings.pool_queue,
                    read_only=True,
                    session=SESSION,
                )
                databases[shard] = await stack.enter_async_context(
                    pg.open_database(wanted, name=f"history-{shard}")
                )
            yield cls(databases, settings.read_timeout_s)

    async def read(
        self, placement: Mapping[str, Sequence[Held]], window: Window, *, limit: int, timeout_s: float
    ) -> list[Source]:
        """What every shard of the placement has, each asked for at most `limit` orders, all at the same time.

        Raises: StaleRoute, ShardUnavailable, DeadlineExceeded, Overloaded: the first that happens ends the
        others.
        """
        timeout_s = min(timeout_s, self._read_timeout_s)
        reads = [self._read_one(shard, held, window, limit, timeout_s) for shard, held in placement.items()]
        return await _all(reads)

    async def _read_one(
        self, shard: str, held: Sequence[Held], window: Window, limit: int, timeout_s: float
    ) -> Source:
        database = self._databases.get(shard)
        if database is None:
            raise ShardUnavailable(shard=shard)
        started = time.perf_counter()
        try:
            records = await database.fetch(
                QUERIES.page_of_shard,
                [one.bucket for one in held],
                [one.epoch for one in held],
                window.user_id,
                window.not_before,
                window.before.created_at,
                window.before.order_id,
                window.filter.status,
                limit,
                timeout_s=timeout_s,
            )
        except ShardUnavailable as down:
            raise ShardUnavailable(shard=shard) from down
        READ_SECONDS.labels(shard).observe(time.perf_counter() - started)
        stale = records[0]["stale"]
        if stale is not None:
            STALE.labels(shard).inc()
            raise StaleRoute(**{name: value for name, value in stale.items() if value is not None})
        rows = [_row(record) for record in records if record["order_id"] is not None]
        return source_of(sorted(rows, key=lambda row: row.key, reverse=True), limit)


def _row(record: Any) -> Row:
    return Row(Key(record["created_at"], record["order_id"]), record["version"], record)


async def _all(reads: Sequence[Coroutine[Any, Any, Source]]) -> list[Source]:
    """Run reads together; when one fails the others are cancelled and awaited, so that no connection is left
    in use.
    """
    tasks = [asyncio.create_task(read, name="history-read") for read in reads]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
