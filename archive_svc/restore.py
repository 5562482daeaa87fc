"""Brings the rows of a dropped month back from its segments, each proven as it is read.

A segment's rows and the note that they are back are one transaction, so a restore that was killed goes on
where it was. Nobody reads the tables until all rows are back and are, by the database's count and hash,
what was proven.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from archive_svc import metrics, points
from archive_svc.catalog import QUERIES
from archive_svc.columns import COPY_BACK_OPTIONS, SHAPES
from archive_svc.errors import LeaseLost
from chassis import faults

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from archive_svc.catalog import Catalog
    from archive_svc.columns import Shape
    from archive_svc.entries import CataloguedSegment
    from archive_svc.lifecycle import Month
    from archive_svc.verify import Verifier
    from chassis.pg import Session

log = structlog.get_logger("restore")
COPY_S_MAX = 1800.0


class Restorer:
    """Copies the months of one shard back. sessions: opens a session whose statements may take long."""

    def __init__(
        self,
        catalog: Catalog,
        verifier: Verifier,
        sessions: Callable[[], AbstractAsyncContextManager[Session]],
    ) -> None:
        self._catalog = catalog
        self._verifier = verifier
        self._sessions = sessions

    async def copy_back(self, month: Month, fence: int) -> None:
        """Bring back what is not yet. Idempotent; begins where an earlier one ended.

        Raises: SegmentDamaged; LeaseLost; S3Error; what chassis.pg raises.
        """
        tables = await self._catalog.tables_of(month)
        for segment in await self._catalog.segments(month.archive_id):
            if segment.restored_at is None:
                body = await self._verifier.read_back(segment)
                await self._copy(month, fence, segment, body, tables[segment.table])
                await faults.point(points.AFTER_COPY_BACK)

    async def _copy(
        self, month: Month, fence: int, segment: CataloguedSegment, body: bytes, table: str
    ) -> None:
        shape = SHAPES[segment.table]
        async with self._sessions() as session, session.transaction():
            await session.execute(QUERIES.make_copied.format(columns=shape.staging_columns()))
            await session.copy_in(
                "copied", _pieces(shape, body), options=COPY_BACK_OPTIONS, timeout_s=COPY_S_MAX
            )
            await session.execute(
                QUERIES.copy_back.format(
                    table=table, columns=shape.column_list(), values=shape.restore_list("c")
                ),
                timeout_s=COPY_S_MAX,
            )
            if not await session.fetchval(
                QUERIES.restored, fence, month.archive_id, segment.part, segment.table
            ):
                raise LeaseLost(shard=self._catalog.shard)
        metrics.RESTORED.labels(self._catalog.shard, segment.table).inc(segment.facts.rows)
        log.info(
            "segment_restored",
            shard=self._catalog.shard,
            month=month.name,
            part=segment.part,
            table=segment.table,
            rows=segment.facts.rows,
        )


async def _pieces(shape: Shape, body: bytes) -> AsyncIterator[bytes]:
    """A segment's rows as COPY reads them, a row group at a time, each made in a thread."""
    from archive_svc.codec.reading import csv_rows

    rows = csv_rows(shape, body)
    while (piece := await asyncio.to_thread(next, rows, None)) is not None:
        yield piece
