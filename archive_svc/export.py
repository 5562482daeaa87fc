"""Copies a frozen month into S3, part by part: COPY to Arrow to Parquet to one conditional PUT each.

While a segment is stored the next one is encoded; in memory are these two and some blocks of rows. What is
catalogued is not copied again; what was stored and not catalogued is found by nobody and stays behind under
a key of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from archive_svc import metrics, points
from archive_svc.ahead import ended, in_thread
from archive_svc.columns import JOURNAL, ORDERS
from archive_svc.lifecycle import data_key
from archive_svc.manifest import about
from archive_svc.retention import NOT_LOCKED
from archive_svc.stretch import ROW_BYTES, STRETCH_S_MAX, Rows, is_scan, stretches
from chassis import faults
from chassis.s3.store import PUT_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from archive_svc.catalog import Catalog
    from archive_svc.columns import Shape
    from archive_svc.entries import Part
    from archive_svc.lifecycle import Month
    from archive_svc.retention import Retention
    from archive_svc.segment import Segment
    from archive_svc.throttle import Throttle
    from chassis.pg import Session
    from chassis.s3 import ObjectStore, Stored

log = structlog.get_logger("export")
PARQUET = "application/vnd.apache.parquet"


class Exporter:
    """Exports the months of one shard.

    sessions: opens a session for COPY, with the settings of stretch.SESSION.
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
        """Store whatever is not catalogued yet, in the order of the parts. Idempotent; begins where an
        earlier one ended.

        Raises: LeaseLost; RowsRefused; S3Error; what chassis.pg raises.
        """
        segments = await self._catalog.segments(month.archive_id)
        there = {(segment.part, segment.table) for segment in segments}
        parts = await self._catalog.parts(month.archive_id)
        rows_max = STRETCH_S_MAX * self._throttle.bytes_per_s / ROW_BYTES
        wanted = stretches(parts, there, rows_max=rows_max)
        storing: asyncio.Task[None] | None = None
        try:
            async with Rows(self._sessions, self._throttle, wanted, scan=is_scan(wanted, len(parts))) as rows:
                for part in parts:
                    for shape in (ORDERS, JOURNAL):
                        if (part.number, shape.table) in there:
                            continue
                        segment = await self._encoded(month, part, shape, rows)
                        # One after the other, so that nothing is stored after what could not be catalogued.
                        if storing is not None:
                            await storing
                        storing = asyncio.create_task(self._keep(month, fence, part, segment), name="keep")
            if storing is not None:
                await storing
        finally:
            await ended(storing)

    async def _keep(self, month: Month, fence: int, part: Part, segment: Segment) -> None:
        """Store a segment and note it. Raises: LeaseLost; S3Error; what chassis.pg raises."""
        await faults.point(points.AFTER_ENCODE)
        shard, facts = self._catalog.shard, segment.facts
        key = data_key(shard, month.month, facts.table, part.number, uuid4().hex)
        stored = await store_whole(self._store, key, segment.body, self._retention)
        await self._catalog.add_segment(fence, month.archive_id, part.number, stored, facts)
        metrics.ROWS.labels(shard, facts.table).inc(facts.rows)
        metrics.STORED_BYTES.labels(shard, facts.table).inc(facts.size_bytes)
        log.info(
            "segment_stored",
            shard=shard,
            month=month.name,
            part=part.number,
            table=facts.table,
            rows=facts.rows,
            size_bytes=facts.size_bytes,
        )
        await faults.point(points.AFTER_SEGMENT)

    async def _encoded(self, month: Month, part: Part, shape: Shape, rows: Rows) -> Segment:
        # Imported here: pyarrow takes 70 MB, which a process that archives nothing does not need.
        from archive_svc.codec.writer import SegmentWriter

        writer = SegmentWriter(shape, about(self._catalog.shard, month.archive_id, month.name, part.number))
        await rows.fill(writer, part, shape)
        await faults.point(points.AFTER_LAST_CHUNK)
        return await in_thread(writer.close)


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
