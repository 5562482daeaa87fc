"""Reads every segment back and compares it: with the bytes that were stored, the rows that COPY wrote, and
what Postgres says of the same rows. Only then may a month be given to readers.

So no sample of users is read before a drop. Such a sample could find rows that differ: every row of every
user, made text again, has the SHA-256 of what COPY wrote. It could find rows that a reader is led past: the
keys with which each row group begins and ends and where it lies are recomputed from the bytes, keys rise from
row to row, and the parts' counts are those of the tables, as are these and the rows' hash at the drop. What
is left is the reader itself, which loses nothing; the twin that is never archived holds it to the tables.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from archive_svc import damage, metrics, points
from archive_svc.ahead import Ahead, ended, in_thread
from archive_svc.columns import SHAPES
from archive_svc.editions import newest_edition
from archive_svc.lifecycle import mismatches
from archive_svc.segment import SegmentDamaged, Step
from chassis import faults
from chassis.s3 import ObjectChanged, ObjectCold, ObjectDamaged, ObjectNotFound, stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, timedelta
    from uuid import UUID

    from archive_svc.catalog import Catalog
    from archive_svc.entries import CataloguedSegment
    from archive_svc.lifecycle import Month
    from archive_svc.segment import Sum
    from archive_svc.throttle import Throttle
    from chassis.s3 import ObjectStore, Stored

    Counted = Mapping[tuple[int, str], tuple[Sum, ...]]

log = structlog.get_logger("verify")
READ_AT_ONCE = 2
"""Segments that are in memory, whole: one is compared while the next is fetched."""
COLD_MAX = 10_000
"""Segments in cold storage that checks put last."""


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
        self._cold: set[str] = set()

    async def verify(self, month: Month, fence: int) -> bool:
        """Read back what was not yet, and note it; False when segments were damaged and are to be made anew.

        Idempotent; begins where an earlier one ended.
        Raises: Mismatch; LeaseLost; S3Error; what chassis.pg raises.
        """
        unread = [each for each in await self._catalog.segments(month.archive_id) if each.verified_at is None]
        is_whole = True
        read: list[CataloguedSegment] = []
        counting = asyncio.create_task(self._counted(month, unread), name="count")
        try:
            async with Ahead(
                (partial(self.read_back, each) for each in unread), at_once=READ_AT_ONCE
            ) as ahead:
                for segment in unread:
                    try:
                        await ahead.next()
                        read.append(segment)
                    except SegmentDamaged:
                        await self._catalog.forget_segment(fence, month.archive_id, segment)
                        is_whole = False
                    # Postgres reads all of the month, so it is not waited for at the first segment.
                    if counting.done():
                        await self._compare(month, fence, read, await counting)
                        read = []
            await self._compare(month, fence, read, await counting)
        finally:
            await ended(counting)
        return is_whole

    async def _counted(self, month: Month, segments: Sequence[CataloguedSegment]) -> Counted:
        """What Postgres says of the rows of these segments, by part and table. One table after the other."""
        parts = await self._catalog.parts(month.archive_id)
        found: dict[tuple[int, str], tuple[Sum, ...]] = {}
        for table in sorted({segment.table for segment in segments}):
            sums = await self._catalog.sums(parts, SHAPES[table])
            found |= {(part, table): each for part, each in sums.items()}
        return found

    async def _compare(
        self, month: Month, fence: int, segments: Sequence[CataloguedSegment], there: Counted
    ) -> None:
        """Hold segments that were read back against what Postgres says, and note it. Raises: Mismatch."""
        for segment in segments:
            sums = there[segment.part, segment.table]
            differs = mismatches(
                [
                    ("rows", segment.facts.rows, sum(each.rows for each in sums)),
                    ("sums", segment.facts.sums, sums),
                ]
            )
            if differs:
                raise Mismatch(f"part {segment.part} of {segment.table}: {differs}")
            await self._catalog.note_verified(fence, month.archive_id, segment, self._enough_for)
            await faults.point(points.AFTER_READ_BACK)

    async def read_back(self, segment: CataloguedSegment) -> bytes:
        """A whole segment, read and proven; damage is told here, whoever reads.

        Raises: SegmentDamaged; S3Error.
        """
        try:
            return await self._read_back(segment)
        except SegmentDamaged as damaged:
            self._tell(segment, damaged)
            raise

    async def _read_back(self, segment: CataloguedSegment) -> bytes:
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
        await in_thread(prove, SHAPES[segment.table], whole, segment.facts)
        metrics.READ_BACK_BYTES.labels(self._catalog.shard).inc(len(whole))
        return whole

    async def must_be_warm(self, segments: Sequence[CataloguedSegment]) -> None:
        """See that none lies in cold storage, before anything is stored because of them; nothing else.

        Raises: ObjectCold; S3Error.
        """
        for segment in segments:
            with suppress(ObjectDamaged, ObjectNotFound, ObjectChanged):  # Told by who reads it whole.
                await self._store.read(segment.stored, size_bytes=1)

    async def check_one(self, fence: int) -> tuple[date, str] | None:
        """Read the segment that is most due once more; the month and what is wrong, None when none was due.

        One in cold storage stays due, and is read again when all others were.
        Raises: LeaseLost; ObjectCold; S3Error; what chassis.pg raises.
        """
        for month, actor in await self._catalog.release(fence):
            log.info("month_released", shard=self._catalog.shard, month=f"{month:%Y-%m}", actor=actor)
        due = await self._catalog.due_check(last=self._cold)
        if due is None:
            return None
        month, archive_id, segment = due
        try:
            wrong = await self._wrong_with(fence, archive_id, segment)
        except ObjectCold:
            if segment.stored.key in self._cold or len(self._cold) >= COLD_MAX:
                self._cold.clear()  # No other is due: each of them has its turn again.
            self._cold.add(segment.stored.key)
            raise
        self._cold.discard(segment.stored.key)
        if wrong:
            return month, wrong
        await self._catalog.note_verified(fence, archive_id, segment, self._enough_for)
        metrics.CHECKED.labels(self._catalog.shard).inc()
        return month, ""

    async def _wrong_with(self, fence: int, archive_id: UUID, segment: CataloguedSegment) -> str:
        """What is wrong with a segment; empty when it is whole, or was put back as another version."""
        try:
            await self.read_back(segment)
        except SegmentDamaged as damaged:
            if not await self._was_put_back(fence, archive_id, segment):
                return f"{segment.stored.key}: {damaged}"
        return ""

    async def _was_put_back(self, fence: int, archive_id: UUID, segment: CataloguedSegment) -> bool:
        """Whether the object's newest version has the very bytes of one that is damaged; it counts then."""
        try:
            there = await self._store.head(segment.stored.key)
        except ObjectNotFound:
            return False
        if (there.version_id, there.etag) == (segment.stored.version_id, segment.stored.etag):
            return False
        other = replace(segment, stored=replace(there, sha256=segment.stored.sha256))
        try:
            await self._read_back(other)
        except SegmentDamaged:
            return False
        months = await self._catalog.months()
        month = next((each for each in months if each.archive_id == archive_id), None)
        if month is None or await newest_edition(self._store, self._catalog.shard, month) > month.edition:
            return False  # The catalog is older than S3 is, and may need a newer manifest instead.
        await self._catalog.put_back(fence, archive_id, other)
        log.warning("segment_put_back", shard=self._catalog.shard, key=there.key, version_id=there.version_id)
        return True

    async def look(self, segment: CataloguedSegment) -> None:
        """See that an object is as it was stored, by size and checksums; damage is told.

        Raises: SegmentDamaged; S3Error.
        """
        try:
            await must_be(self._store, segment.stored)
        except SegmentDamaged as damaged:
            self._tell(segment, damaged)
            raise

    def _tell(self, segment: CataloguedSegment, damaged: SegmentDamaged) -> None:
        damage.tell(
            self._catalog.shard,
            damaged.step,
            damaged.detail,
            month=segment.facts.about.get("month"),
            part=segment.part,
            table=segment.table,
            key=segment.stored.key,
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
