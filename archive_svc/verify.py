"""Reads every segment back and compares it: with the bytes that were stored, the rows that COPY wrote, and
what Postgres says of the same rows. Only then may a month be given to readers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from archive_svc import metrics, points
from archive_svc.columns import ORDERS, SHAPES
from archive_svc.lifecycle import mismatches
from archive_svc.segment import SegmentDamaged, Step
from chassis import faults
from chassis.s3 import ObjectChanged, ObjectDamaged, ObjectNotFound, stream

if TYPE_CHECKING:
    from datetime import date, timedelta

    from archive_svc.catalog import Catalog, CataloguedSegment
    from archive_svc.lifecycle import Month
    from archive_svc.throttle import Throttle
    from chassis.s3 import ObjectStore, Stored

log = structlog.get_logger("verify")


class Mismatch(Exception):
    """A copy is whole and is not what Postgres has: a person has to look before anything more is done."""


class Verifier:
    """Proves the segments of one shard. enough_for: how long a proof is believed."""

    def __init__(
        self, catalog: Catalog, store: ObjectStore, throttle: Throttle, *, enough_for: timedelta
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._throttle = throttle
        self._enough_for = enough_for

    async def verify(self, month: Month, fence: int) -> bool:
        """Read back what was not yet, and note it; False when segments were damaged and are to be made anew.

        Idempotent; begins where an earlier one ended.
        Raises: Mismatch; LeaseLost; S3Error; what chassis.pg raises.
        """
        is_whole = True
        segments = await self._catalog.segments(month.archive_id)
        journals = {each.part: each for each in segments if each.table != ORDERS.table}
        for segment in segments:
            if segment.verified_at is not None:
                continue
            try:
                await self.read_back(segment)
            except SegmentDamaged as damaged:
                self._tell(month.name, segment, damaged)
                await self._catalog.forget_segment(fence, month.archive_id, segment)
                is_whole = False
                continue
            if segment.table == ORDERS.table:
                await self._compare(month, segment, journals[segment.part])
            await self._catalog.note_verified(fence, month.archive_id, segment, self._enough_for)
            await faults.point(points.AFTER_READ_BACK)
        return is_whole

    async def read_back(self, segment: CataloguedSegment) -> bytes:
        """A whole segment, read and proven. Raises: SegmentDamaged; S3Error."""
        from archive_svc.codec.proof import prove

        try:
            body = bytearray()
            async for piece in stream(self._store, segment.stored):
                await self._throttle.take(len(piece))
                body += piece
        except ObjectDamaged as damaged:
            raise SegmentDamaged(Step.BYTES, str(damaged)) from damaged
        except (ObjectNotFound, ObjectChanged) as gone:
            raise SegmentDamaged(Step.BYTES, "it is not there as it was stored") from gone
        whole = bytes(body)
        await asyncio.to_thread(prove, SHAPES[segment.table], whole, segment.facts)
        metrics.READ_BACK_BYTES.labels(self._catalog.shard).inc(len(whole))
        return whole

    async def check_one(self, fence: int) -> tuple[date, str] | None:
        """Read the segment that is most due once more; the month and what is wrong, None when none was due.

        Raises: LeaseLost; S3Error; what chassis.pg raises.
        """
        due = await self._catalog.due_check()
        if due is None:
            return None
        month, archive_id, segment = due
        try:
            await self.read_back(segment)
        except SegmentDamaged as damaged:
            self._tell(f"{month:%Y-%m}", segment, damaged)
            return month, f"{segment.stored.key}: {damaged}"
        await self._catalog.note_verified(fence, archive_id, segment, self._enough_for)
        metrics.CHECKED.labels(self._catalog.shard).inc()
        return month, ""

    async def look(self, segment: CataloguedSegment) -> None:
        """See that an object is as it was stored, by size and checksums. Raises: SegmentDamaged; S3Error."""
        await must_be(self._store, segment.stored)

    async def _compare(self, month: Month, orders: CataloguedSegment, journal: CataloguedSegment) -> None:
        there = await self._catalog.part_facts(month.archive_id, orders.part)
        copied = tuple((*each.by, each.rows, each.total) for each in orders.facts.sums)
        differs = mismatches(
            [
                ("orders", orders.facts.rows, there.order_count),
                ("journal entries", journal.facts.rows, there.journal_count),
                ("sums", copied, there.sums),
            ]
        )
        if differs:
            raise Mismatch(f"part {orders.part}: {differs}")

    def _tell(self, month: str, segment: CataloguedSegment, damaged: SegmentDamaged) -> None:
        metrics.DAMAGES.labels(self._catalog.shard, damaged.step.value).inc()
        log.error(
            "segment_damaged",
            shard=self._catalog.shard,
            month=month,
            part=segment.part,
            table=segment.table,
            key=segment.stored.key,
            step=damaged.step.value,
            detail=damaged.detail,
        )


async def must_be(store: ObjectStore, meant: Stored) -> None:
    """See that an object is as it was stored, by what S3 says of it. Raises: SegmentDamaged; S3Error."""
    try:
        seen = await store.head(meant.key, version_id=meant.version_id)
    except (ObjectNotFound, ObjectChanged) as gone:
        raise SegmentDamaged(Step.BYTES, "it is not there as it was stored") from gone
    is_same = (seen.size_bytes, seen.etag) == (meant.size_bytes, meant.etag)
    if not is_same or seen.sha256 not in ("", meant.sha256):
        raise SegmentDamaged(Step.BYTES, "S3 says another size or checksum")
