"""Copies a frozen month into S3, part by part: COPY to Arrow to Parquet to one conditional PUT each.

In memory are one block of rows and one segment. What is catalogued is not copied again; what was stored and
not catalogued is found by nobody and stays behind under a key of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from archive_svc import metrics, points
from archive_svc.catalog import QUERIES
from archive_svc.columns import COPY_OPTIONS, JOURNAL, ORDERS
from archive_svc.lifecycle import data_key
from archive_svc.manifest import about
from archive_svc.retention import NOT_LOCKED
from chassis import faults
from chassis.s3.store import PUT_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from archive_svc.catalog import Catalog, Part
    from archive_svc.codec.writer import SegmentWriter
    from archive_svc.columns import Shape
    from archive_svc.lifecycle import Month
    from archive_svc.retention import Retention
    from archive_svc.segment import Segment
    from archive_svc.throttle import Throttle
    from chassis.pg import Session
    from chassis.s3 import ObjectStore, Stored

log = structlog.get_logger("export")
BLOCK_BYTES = 4 * 1024 * 1024
COPY_S_MAX = 1800.0
SESSION = {
    "statement_timeout": "1800000",
    "lock_timeout": "60000",
    # A part is read by the index that has its order, and the journal by its key: whatever the statistics say,
    # no plan may read all of a month for each part, nor take more than one core from those who order.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}
"""Of the sessions that export."""
PARQUET = "application/vnd.apache.parquet"


def rows_of(shape: Shape, part: Part) -> str:
    """The statement that gives a part's rows of a table, in the order of its key. $1 to $6: after, until."""
    if shape is ORDERS:
        template: str = QUERIES.orders_of_part
        return template.format(orders=part.orders_table, columns=shape.select_list("o"))
    template = QUERIES.journal_of_part
    return template.format(
        orders=part.orders_table, journal=part.journal_table, columns=shape.select_list("j")
    )


class Exporter:
    """Exports the months of one shard.

    sessions: opens a session for COPY, with the settings of SESSION.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: ObjectStore,
        sessions: Callable[[], AbstractAsyncContextManager[Session]],
        throttle: Throttle,
        retention: Retention = NOT_LOCKED,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._sessions = sessions
        self._throttle = throttle
        self._retention = retention

    async def export(self, month: Month, fence: int) -> None:
        """Store whatever is not catalogued yet. Idempotent; begins where an earlier one ended.

        Raises: LeaseLost; S3Error; what chassis.pg raises.
        """
        segments = await self._catalog.segments(month.archive_id)
        there = {(segment.part, segment.table) for segment in segments}
        for part in await self._catalog.parts(month.archive_id):
            for shape in (ORDERS, JOURNAL):
                if (part.number, shape.table) not in there:
                    await self._export(month, fence, part, shape)

    async def _export(self, month: Month, fence: int, part: Part, shape: Shape) -> None:
        segment = await self._encoded(month, part, shape)
        await faults.point(points.AFTER_ENCODE)
        shard = self._catalog.shard
        key = data_key(shard, month.month, shape.table, part.number, uuid4().hex)
        stored = await store_whole(self._store, key, segment.body, self._retention)
        await self._catalog.add_segment(fence, month.archive_id, part.number, stored, segment.facts)
        metrics.ROWS.labels(shard, shape.table).inc(segment.facts.rows)
        metrics.STORED_BYTES.labels(shard, shape.table).inc(segment.facts.size_bytes)
        log.info(
            "segment_stored",
            shard=shard,
            month=month.name,
            part=part.number,
            table=shape.table,
            rows=segment.facts.rows,
            size_bytes=segment.facts.size_bytes,
        )
        await faults.point(points.AFTER_SEGMENT)

    async def _encoded(self, month: Month, part: Part, shape: Shape) -> Segment:
        # Imported here: pyarrow takes 70 MB, which a process that archives nothing does not need.
        from archive_svc.codec.writer import SegmentWriter

        writer = SegmentWriter(shape, about(self._catalog.shard, month.archive_id, month.name, part.number))
        blocks = _Blocks(writer, self._throttle)
        after, until = part.after, part.until
        try:
            async with self._sessions() as session:
                await session.copy_out(
                    rows_of(shape, part),
                    *(after.user_id, after.created_at, after.order_id),
                    *(until.user_id, until.created_at, until.order_id),
                    sink=blocks.take,
                    options=COPY_OPTIONS,
                    timeout_s=COPY_S_MAX,
                )
            await blocks.flush()
        finally:
            await blocks.leave()
        await faults.point(points.AFTER_LAST_CHUNK)
        return await asyncio.to_thread(writer.close)


class _Blocks:
    """Collects COPY's chunks into blocks worth a thread; one is encoded while the next one is read."""

    def __init__(self, writer: SegmentWriter, throttle: Throttle) -> None:
        self._writer = writer
        self._throttle = throttle
        self._block = bytearray()
        self._encoding: asyncio.Task[None] | None = None

    async def take(self, chunk: bytes) -> None:
        """Take what COPY gave."""
        await faults.point(points.AFTER_FIRST_CHUNK)
        self._block += chunk
        if len(self._block) >= BLOCK_BYTES:
            await self._hand_over()

    async def flush(self) -> None:
        """See everything encoded. Raises: RowsRefused."""
        await self._hand_over()
        await self._encoded()

    async def leave(self) -> None:
        """Wait for what is being encoded, however it ends: the thread goes on in any case."""
        if self._encoding is not None:
            await asyncio.gather(self._encoding, return_exceptions=True)

    async def _hand_over(self) -> None:
        block, self._block = bytes(self._block), bytearray()
        await self._throttle.take(len(block))
        await self._encoded()
        encoding = asyncio.to_thread(self._writer.add, block)
        self._encoding = asyncio.create_task(encoding, name="encode")

    async def _encoded(self) -> None:
        if self._encoding is not None:
            # Shielded: a thread cannot be cancelled, and nobody else may use the writer before it ends.
            await asyncio.shield(self._encoding)
            self._encoding = None


async def store_whole(store: ObjectStore, key: str, body: bytes, retention: Retention) -> Stored:
    """Store an object in one request when it is small enough, else in parts; locked as long as that says."""
    until = retention.until()
    if len(body) <= PUT_BYTES_MAX:
        return await store.create(key, body, content_type=PARQUET, retain_until=until)

    async def chunks() -> AsyncIterator[bytes]:
        step = store.settings.part_bytes
        for at in range(0, len(body), step):
            yield body[at : at + step]

    return await store.upload(key, chunks, content_type=PARQUET, retain_until=until)
