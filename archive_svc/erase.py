"""Takes one user's rows out of the archive: every segment that holds some is written anew without them.

The new segment is read back and compared before it takes the old one's place, in one transaction that also
notes who asked, why, and how many rows went; then the month's manifest is written anew, and the old objects
are deleted. Only of months that are in S3 alone, and of copies that nobody reads since their month came back:
while a month leaves, or comes back, its rows are in both places, so it is waited for; one in quarantine, too.
A copy that nobody reads and that is damaged, or lies in cold storage, is given up, as its month is in the
tables; one that is read is waited for, and holds up no other part. What nothing names
any more, of copies before and of tries that were killed, goes as well if it may hold such rows, however young
it is. Amendments go at once, whatever else there is to wait for; those of a month below a legal hold go when
it is lifted. What went is recalled from the user's statements, on every shard (see `recall`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from archive_svc import metrics, points
from archive_svc.amendment import key_below, prefix_of
from archive_svc.catalog import QUERIES
from archive_svc.columns import COPY_BACK_OPTIONS, SHAPES
from archive_svc.editions import newest_edition, store_manifest
from archive_svc.errors import LeaseLost, LegalHold
from archive_svc.export import store_whole
from archive_svc.lifecycle import State, data_key, month_in
from archive_svc.manifest import about
from archive_svc.retention import NOT_LOCKED
from archive_svc.segment import SegmentDamaged
from chassis import faults
from chassis.errors import OrdermeshError
from chassis.s3 import ObjectCold, ObjectLocked, ObjectNotFound, S3Error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from uuid import UUID

    from archive_svc.catalog import Catalog
    from archive_svc.columns import Shape
    from archive_svc.entries import CataloguedSegment, Erasure
    from archive_svc.lifecycle import Month
    from archive_svc.recall import Recalls
    from archive_svc.retention import Retention
    from archive_svc.sweep import Sweeper
    from archive_svc.verify import Verifier
    from chassis.pg import Session
    from chassis.s3 import ObjectStore

log = structlog.get_logger("erase")
COPY_S_MAX = 600.0
VERSIONS_MAX = 100
"""Of one object, deleted in one go."""
AGAIN = timedelta(minutes=10)
"""Between two looks at a month whose tables still stand, or an object that is still locked."""


UNREAD = frozenset({State.DROPPED, State.RESTORED, State.WANTED})
"""States in which a copy may be written anew: the month's rows are in it alone, or nobody reads it."""


@dataclass(frozen=True, slots=True)
class _Swap:
    """A segment, and what is to take its place. gone: the rows that go, as COPY reads them."""

    old: CataloguedSegment
    new: CataloguedSegment
    gone: bytes

    @property
    def rows(self) -> int:
        """How many go."""
        return self.old.facts.rows - self.new.facts.rows


class Eraser:
    """Erases users from the archive of one shard. sessions: opens one whose statements may take long."""

    def __init__(
        self,
        catalog: Catalog,
        store: ObjectStore,
        verifier: Verifier,
        sessions: Callable[[], AbstractAsyncContextManager[Session]],
        recalls: Recalls,
        sweeper: Sweeper,
        retention: Retention = NOT_LOCKED,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._verifier = verifier
        self._sessions = sessions
        self._recalls = recalls
        self._sweeper = sweeper
        self._retention = retention

    async def erase_one(self, fence: int) -> bool:
        """Carry the oldest wish out that can be; whether there was one. Idempotent, goes on where it was.

        One that fails waits, so that it holds up nobody.
        Raises: SegmentDamaged; LeaseLost; S3Error; what chassis.pg raises.
        """
        erasure = await self._catalog.due_erasure()
        if erasure is None:
            return False
        try:
            await self._carry_out(erasure, fence)
        except (OrdermeshError, S3Error, SegmentDamaged) as failed:
            if not isinstance(failed, LeaseLost):
                # Some of it may have gone before one failed, and that may fail for long.
                await self._recall(erasure)
                await self._catalog.defer_erasure(fence, erasure, AGAIN, f"{type(failed).__name__}: {failed}")
            raise
        return True

    async def _carry_out(self, erasure: Erasure, fence: int) -> None:
        months = {month.archive_id: month for month in await self._catalog.months()}
        if held := await self._catalog.legal_hold(user_id=erasure.user_id):
            await self._catalog.defer_erasure(fence, erasure, AGAIN, held)
            return
        waits = await self._delete_amendments(erasure, fence)
        waits |= await self._rewrite_all(months, erasure, fence)
        touched = set(await self._catalog.erased_months(erasure.erasure_id))
        for month in await self._catalog.months():  # Read again: their counts and hashes are others by now.
            if month.archive_id in touched and month.manifest_key:
                await self._renew_manifest(month, erasure, fence)
        await faults.point(points.BEFORE_RECALL)
        waits |= await self._recall(erasure)
        waits |= await self._leave_strays(erasure, fence)
        waits |= await self._delete_left_behind(erasure, fence)
        if not waits:  # Once more: one that was under way when it was asked for may have come since.
            waits = await self._delete_amendments(erasure, fence)
        if not waits:
            waits = await self._recall(erasure, is_last=True)
        if waits:
            await self._catalog.defer_erasure(fence, erasure, AGAIN, f"waits for {', '.join(sorted(waits))}")
            return
        await self._catalog.end_erasure(fence, erasure)
        await self._recalls.end(erasure)
        log.info("user_erased", shard=self._catalog.shard, erasure_id=str(erasure.erasure_id))

    async def _rewrite_all(self, months: Mapping[UUID, Month], erasure: Erasure, fence: int) -> set[str]:
        """Write every segment with rows of the user anew; what keeps those that stay for now."""
        # Before the segments are looked for: one that is committed in between is among these.
        waits = {f"{month:%Y-%m}" for month in await self._catalog.frozen_with(erasure.user_id)}
        parts: dict[UUID, dict[int, list[CataloguedSegment]]] = defaultdict(lambda: defaultdict(list))
        for archive_id, segment in await self._catalog.segments_of(erasure.user_id):
            if segment.facts.groups_of(erasure.user_id):
                parts[archive_id][segment.part].append(segment)
        for archive_id, copy in parts.items():
            if why := await self._kept(months.get(archive_id)):
                waits.add(why)
            else:
                waits |= await self._rewrite_month(months[archive_id], copy, erasure, fence)
        return waits

    async def _rewrite_month(
        self, month: Month, parts: Mapping[int, Sequence[CataloguedSegment]], erasure: Erasure, fence: int
    ) -> set[str]:
        """Write parts of a copy anew. One that is damaged, or in cold storage, is waited for, and holds up no
        other; where nobody reads the copy, this is given up instead.
        """
        waits: set[str] = set()
        for part, segments in parts.items():
            try:
                await self._rewrite(month, segments, erasure, fence)
            except (SegmentDamaged, ObjectCold) as failed:
                is_cold = isinstance(failed, ObjectCold)
                what = f"part {part} is {'in cold storage' if is_cold else 'damaged'} ({failed})"
                if await self._gave_up(month, what, erasure, fence):
                    return set()
                metrics.FAILED.labels(self._catalog.shard, "ERASE").inc()
                waits.add(f"{month.name}, of which {what}")
        return waits

    async def _gave_up(self, month: Month, why: str, erasure: Erasure, fence: int) -> bool:
        """Give the copy of a month up that is in its tables; what it had are strays from then on."""
        given_up = await self._catalog.give_up_copy(
            fence, erasure, month.archive_id, f"its copy was given up: {why}"
        )
        if given_up:
            about_it = {"month": month.name, "erasure_id": str(erasure.erasure_id), "because": why}
            log.warning("copy_given_up", shard=self._catalog.shard, **about_it)
        return given_up

    async def _recall(self, erasure: Erasure, *, is_last: bool = False) -> set[str]:
        """Recall the user's statements; the shards that are to be told yet.

        is_last: also those that were made since something went, up to now; or up to when this was done first,
        if nothing went since.
        """
        shard = self._catalog.shard
        until = await self._catalog.erased_until(erasure.erasure_id)
        if is_last:
            before = await self._recalls.recalled_until(shard, erasure)
            until = before if before and before > until else (await self._catalog.control()).at
        silent = await self._recalls.recall(shard, erasure, until, is_last=is_last)
        return {f"statements on {shard}" for shard in silent}

    async def _kept(self, month: Month | None) -> str:
        """Why nothing is taken out of a month for now; empty when nothing keeps it."""
        if month is None:
            return "a month that was asked for just now"
        if month.quarantined:
            return f"{month.name}, which is quarantined"
        if month.state not in UNREAD:
            return month.name
        if await newest_edition(self._store, self._catalog.shard, month) > month.edition:
            # What would be numbered now would hide what is newer, and is needed to make the catalog again.
            return f"CATALOG_BEHIND of {month.name}"
        return await self._catalog.legal_hold(month.month)

    async def _rewrite(
        self, month: Month, segments: Sequence[CataloguedSegment], erasure: Erasure, fence: int
    ) -> None:
        """Write the segments of one part anew; they count at once: orders never go without their journal.

        Raises: SegmentDamaged; ObjectCold; LegalHold; LeaseLost; S3Error; what chassis.pg raises.
        """
        await self._verifier.must_be_warm(segments)
        swaps = [swap for each in segments if (swap := await self._without(month, each, erasure)) is not None]
        if not swaps:
            return
        await faults.point(points.BEFORE_SWAP)
        await self._swap(month.archive_id, swaps, erasure, fence)
        shard = self._catalog.shard
        for swap in swaps:
            metrics.ERASED.labels(shard, swap.old.table).inc(swap.rows)
            about_it = {"part": swap.old.part, "table": swap.old.table, "rows": swap.rows}
            log.info("rows_erased", shard=shard, month=month.name, **about_it)
        await faults.point(points.AFTER_SWAP)

    async def _without(self, month: Month, old: CataloguedSegment, erasure: Erasure) -> _Swap | None:
        """Store a segment without the user's rows, read back; None without any.

        Raises: SegmentDamaged; S3Error.
        """
        from archive_svc.codec.erasing import without

        shape, shard = SHAPES[old.table], self._catalog.shard
        body = await self._verifier.read_back(old)
        told = about(shard, month.archive_id, month.name, old.part)
        segment, gone = await asyncio.to_thread(without, shape, body, erasure.user_id, told)
        if segment.facts.rows == old.facts.rows:
            return None
        key = data_key(shard, month.month, shape.table, old.part, uuid4().hex)
        stored = await store_whole(self._store, key, segment.body, self._retention)
        new = replace(old, stored=replace(stored, sha256=segment.facts.sha256), facts=segment.facts)
        await self._verifier.read_back(new)
        return _Swap(old, new, gone)

    async def _swap(self, archive_id: UUID, swaps: Sequence[_Swap], erasure: Erasure, fence: int) -> None:
        """Let new segments take the old ones' places; the month's counts and hashes lose the rows."""
        async with self._sessions() as session, session.transaction():
            for swap in swaps:
                shape = SHAPES[swap.old.table]
                await session.execute(QUERIES.make_copied.format(columns=shape.staging_columns()))
                gone = _whole(swap.gone)
                await session.copy_in("copied", gone, options=COPY_BACK_OPTIONS, timeout_s=COPY_S_MAX)
                await session.execute(_rows_again(shape), timeout_s=COPY_S_MAX)
                await session.execute(QUERIES.drop_copied)
            # After all that takes long: the lease is locked from here on.
            for swap in swaps:
                old, new = swap.old, swap.new
                swapped = await session.fetchval(
                    QUERIES.swap_segment,
                    *(fence, erasure.erasure_id, archive_id, old.part, old.table, old.stored.key),
                    *(new.stored.key, new.stored.version_id, new.stored.etag, new.stored.size_bytes),
                    *(new.facts.sha256, new.facts.rows, new.facts.as_json()),
                    timeout_s=COPY_S_MAX,
                )
                if swapped is None:
                    raise LegalHold(shard=self._catalog.shard)
                if not swapped:
                    raise LeaseLost(shard=self._catalog.shard)
                await session.execute(QUERIES.segment_locked, new.stored.key, new.stored.locked_until)

    async def _renew_manifest(self, month: Month, erasure: Erasure, fence: int) -> None:
        """Write the manifest of a month as its catalog is now; the old one is left behind and deleted."""
        await self._catalog.unname_bounds(fence, erasure, month.archive_id)
        stored = await store_manifest(self._catalog, self._store, self._retention, month, fence)
        await self._catalog.renew_manifest(fence, erasure, month.archive_id, stored)

    async def _leave_strays(self, erasure: Erasure, fence: int) -> set[str]:
        """Let go with this erasure what nothing reads and may hold the user's rows; what keeps the rest."""
        strays, kept = await self._sweeper.left_with(erasure.user_id, erasure.erasure_id)
        for each in strays:
            with suppress(ObjectNotFound):
                there = await self._store.head(each.found.key)
                await self._catalog.leave_behind(fence, erasure, there, each.month)
        return kept

    async def _delete_left_behind(self, erasure: Erasure, fence: int) -> set[str]:
        """Delete the objects that others took the place of; what keeps those that stay for now."""
        kept: set[str] = set()
        for key, version_id in await self._catalog.left_behind(erasure.erasure_id):
            # Asked for each: a hold that is set now keeps what is still there.
            if held := await self._catalog.legal_hold(month_in(key), erasure.user_id):
                kept.add(held)
                continue
            await faults.point(points.BEFORE_DELETE)
            if lock := await self._delete(key, version_id):
                kept.add(lock)
            else:
                await self._catalog.note_deleted(fence, erasure, key)
        return kept

    async def _delete(self, key: str, version_id: str) -> str:
        """Delete an object, and what shows of it then: a version that was damaged, and put back as another.

        What keeps it; empty when nothing does.
        """
        locked_until = None
        for each in (version_id, *[""] * VERSIONS_MAX):
            try:
                there = await self._store.head(key, version_id=each)
                locked_until = there.locked_until
                await self._store.delete(there, bypass_lock=self._retention.bypasses)
            except ObjectLocked:
                return f"the lock of {key} until {locked_until}"
            except ObjectNotFound:
                if not each:
                    return ""
        return f"older versions of {key}"

    async def _delete_amendments(self, erasure: Erasure, fence: int) -> set[str]:
        """Delete what was noted about the user's orders, also what no row names; what keeps it for now."""
        kept = await self._catalog.erase_amendments(fence, erasure.user_id)
        prefix, after = prefix_of(self._catalog.shard, erasure.user_id), ""
        stays = {key_below(prefix, amendment_id) for amendment_id in kept}
        while True:
            page = await self._store.list(prefix, after=after)
            for each in page.objects:
                if each.key in stays:
                    continue
                if held := await self._catalog.legal_hold(user_id=erasure.user_id):
                    return {held}
                with suppress(ObjectNotFound):
                    await self._store.delete(await self._store.head(each.key))
            if not page.more:
                return set(kept.values())
            after = page.objects[-1].key


def _rows_again(shape: Shape) -> str:
    template: str = QUERIES.rows_again
    return template.format(table=shape.table, values=shape.restore_list("c"))


async def _whole(piece: bytes) -> AsyncIterator[bytes]:
    yield piece
