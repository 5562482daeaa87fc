"""Histories to measure with: orders of one shard as the rules leave them, in bulk, and their documents."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg

from chassis.ids import user_bucket
from history_svc.document import document, index_name, month_of, month_start
from history_svc.readmodel.port import Write

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from history_svc.readmodel.port import ReadModel

SHARD = "s1"
BATCH = 5000
_ORDERS = """
INSERT INTO orders (order_id, created_at, user_id, bucket, read_routing, version, status, stage, kind, legs,
                    leg, attempt, amount_minor, currency_code, currency_exp, description, labels,
                    upstream_ref, basis, request_id, updated_at, settled_at)
SELECT id, ordermesh.id_time(id), u, ordermesh.id_bucket(id), u, 2, 'SUCCESS', 'DONE', 'payment',
       '{payments}', 0, 1, 1250, 'EUR', 2, 'a red book for ' || u, '{"cart": "7"}',
       'ref-' || left(id::text, 8), 'UPSTREAM', r, ordermesh.id_time(id), ordermesh.id_time(id)
  FROM unnest($1::uuid[], $2::text[], $3::uuid[]) AS a (id, u, r)
"""
_EVENTS = """
INSERT INTO outbox (event_id, order_id, created_at, user_id, bucket, route_epoch, stream_partition,
                    read_routing, version, kind, occurred_at, payload)
SELECT gen_random_uuid(), o.order_id, o.created_at, o.user_id, o.bucket, o.route_epoch,
       i.partition_base + o.bucket % i.partition_count, o.read_routing, o.version, 'SETTLED',
       clock_timestamp(), to_jsonb(o)
  FROM orders o, shard_identity i
 WHERE o.order_id = ANY ($1::uuid[]) AND o.created_at >= $2
"""
_MARKS = """
INSERT INTO watermarks (stream_partition, log_epoch, xid, seq, updated_at, source_at)
SELECT p, 1, pg_snapshot_xmin(pg_current_snapshot()), 0, clock_timestamp(), clock_timestamp()
  FROM generate_series(0, 7) p
ON CONFLICT (stream_partition) DO UPDATE SET xid = excluded.xid, seq = 0, source_at = excluded.source_at
"""
_ENDS = """
SELECT DISTINCT ON (stream_partition) stream_partition, xid::text::bigint AS xid, seq
  FROM outbox ORDER BY stream_partition, outbox.xid DESC, seq DESC
"""
_STANDS = "SELECT stream_partition, xid::text::bigint AS xid, seq FROM watermarks"
_INDEX = """
INSERT INTO projection_index (month, generation, index_name, cluster_uuid, index_uuid, state, catalog_version,
                              created_at)
VALUES ($1, 1, $2, $3, $4, 'SERVING', 0, clock_timestamp()) ON CONFLICT DO NOTHING
"""
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Bench:
    """One shard's database."""

    dsn: str

    async def connect(self) -> Any:
        return await asyncpg.connect(self.dsn, server_settings={"search_path": "ordermesh, public"})

    async def prepare(self) -> None:
        connection = await self.connect()
        try:
            await connection.execute("SELECT ordermesh.identify_shard($1)", SHARD)
            await connection.execute("SELECT ordermesh.own_buckets(0, 4095, $1)", SHARD)
            await connection.execute("SELECT ordermesh.ensure_partitions()")
        finally:
            await connection.close()

    async def orders(self, user_id: str, count: int, months: int) -> list[UUID]:
        """Settled orders of one user, spread over some months until three days ago; ids, oldest first."""
        draw = random.Random(count)
        until = datetime.now(UTC) - timedelta(days=3)
        times = sorted(until - timedelta(days=draw.uniform(0, 30.0 * months)) for _ in range(count))
        ids = [order_id(at, user_bucket(user_id)) for at in times]
        connection = await self.connect()
        try:
            for month in {month_of(at) for at in times}:
                await connection.execute("SELECT ordermesh.ensure_month($1)", month_start(month))
            for batch in batches(ids):
                await connection.execute(
                    _ORDERS, batch, [user_id] * len(batch), [uuid4() for _ in batch], timeout=120
                )
        finally:
            await connection.close()
        return ids

    async def change(self, ids: Sequence[UUID]) -> None:
        """Write an event of some orders, as every change does; all of them in one commit."""
        connection = await self.connect()
        try:
            async with connection.transaction():
                for batch in batches(ids):
                    await connection.execute(_EVENTS, batch, datetime(2000, 1, 1, tzinfo=UTC), timeout=120)
        finally:
            await connection.close()

    async def ends(self) -> dict[int, tuple[int, int]]:
        """Where the last change of each stream partition stands."""
        connection = await self.connect()
        try:
            return await _positions(connection, _ENDS)
        finally:
            await connection.close()

    async def reached(self, ends: Mapping[int, tuple[int, int]], *, every_s: float, within_s: float) -> bool:
        """Wait until every watermark stands at such an end, or beyond; false when that takes too long."""
        last = time.monotonic() + within_s
        connection = await self.connect()
        try:
            while time.monotonic() < last:
                marks = await _positions(connection, _STANDS)
                if all(marks.get(partition, (0, 0)) >= end for partition, end in ends.items()):
                    return True
                await asyncio.sleep(every_s)
            return False
        finally:
            await connection.close()

    async def documents(self, read_model: ReadModel, user_id: str) -> list[Write]:
        """What a projector would write of a user's orders; the indices are made and served."""
        connection = await self.connect()
        try:
            rows = await connection.fetch(
                "SELECT created_at, bucket, to_jsonb(o)::text AS row FROM orders o WHERE user_id = $1",
                user_id,
            )
            for month in {month_of(row["created_at"]) for row in rows}:
                identity = await read_model.create(index_name(month, 1))
                await connection.execute(_INDEX, month, *identity)
        finally:
            await connection.close()
        return [
            Write(
                index_name(month_of(row["created_at"]), 1),
                document(json.loads(row["row"]), row["bucket"] % 8),
            )
            for row in rows
        ]

    async def mark(self) -> None:
        """Say that everything committed is searchable."""
        connection = await self.connect()
        try:
            await connection.execute(_MARKS)
        finally:
            await connection.close()


async def _positions(connection: Any, sql: str) -> dict[int, tuple[int, int]]:
    rows = await connection.fetch(sql, timeout=120)
    return {row["stream_partition"]: (row["xid"], row["seq"]) for row in rows}


def order_id(at: datetime, bucket: int) -> UUID:
    """An id of an instant and a bucket."""
    at_ms = int(at.timestamp() * 1000)
    return UUID(int=at_ms << 80 | 7 << 76 | 2 << 62 | bucket << 46 | next(_numbers))


def batches(ids: Sequence[UUID]) -> Iterable[Sequence[UUID]]:
    """Runs of at most BATCH."""
    return (ids[start : start + BATCH] for start in range(0, len(ids), BATCH))


async def store(read_model: ReadModel, writes: Sequence[Write]) -> None:
    """Put documents into the read model and make them searchable."""
    for start in range(0, len(writes), 1000):
        await read_model.write(writes[start : start + 1000], timeout_s=30)
    await read_model.refresh(sorted({write.index for write in writes}))
