"""Walks over a shard's objects in S3, a page at a time, and finds strays: told always, deleted when wanted.
A walk that deletes goes on over uploads, and gives up what killed processes left: parts that no list of
objects shows.

Only the holder of the lease walks, between two steps of months. So no try at a month is under way meanwhile:
its own have ended, and one under an older fence can have nothing catalogued any more. What is a stray under
this fence is one for ever, for a frozen walker that comes back too: no name is given twice.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from archive_svc import metrics, points
from archive_svc.editions import all_below, pages_below
from archive_svc.errors import LeaseLost
from archive_svc.manifest import ManifestUnreadable, objects_of, parsed
from archive_svc.segment import Facts
from archive_svc.strays import Kind, Known, Standing, named, places_of, refusal, standings
from chassis import faults, pg
from chassis.s3 import ObjectChanged, ObjectCold, ObjectLocked, ObjectNotFound, S3Error
from chassis.store_spans import traced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from typing import Any
    from uuid import UUID

    from archive_svc.strays import Named, Place
    from archive_svc.throttle import Throttle
    from chassis.s3 import ObjectStore

log = structlog.get_logger("sweep")
QUERIES = pg.queries("archive_svc", "sweeps.sql")
ROUND_MAX = 200
"""Objects of one round; a step of a month that is due waits for no more than these. Or as many uploads."""
STATEMENT_UPLOAD_MAX = timedelta(days=1)
"""Longer than a statement may take; they are made without the lease, so that one may be under way."""
ACTOR = "archive_svc"


@dataclass(frozen=True, slots=True)
class Sweep:
    """A walk. refusal: why nothing was called a stray.

    place, after_key: how far it is; after the places of objects come the same of uploads, if it deletes.
    """

    sweep_id: UUID
    deletes: bool
    place: int
    after_key: str
    seen: int
    deleted: int
    refusal: str
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Stray:
    """An object that nothing needs. deleted_at: when it was deleted; None while it is there."""

    key: str
    kind: str
    size_bytes: int
    stored_at: datetime
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Totals:
    """What the last walk found, and when it ended; None before the first."""

    strays: int
    stray_bytes: int
    ended_at: datetime | None
    refusal: str


@dataclass(frozen=True, slots=True)
class Sweeping:
    """When walks begin by themselves.

    grace:   younger objects are no strays: longer than any try may take.
    every:   between two walks; None when each is asked for.
    deletes: whether those that begin by themselves delete.
    """

    grace: timedelta
    every: timedelta | None
    deletes: bool


@traced
class Sweeps:
    """The walks of one shard, as rows. Every method raises what chassis.pg raises."""

    def __init__(self, shard: str, database: pg.Database) -> None:
        self.shard = shard
        self._database = database

    def until(self, deadline: float) -> Sweeps:
        """The same for one call: nothing is waited for after its deadline."""
        return Sweeps(self.shard, self._database.until(deadline))

    async def want(self, sweep_id: UUID, actor: str, reason: str, *, deletes: bool) -> Sweep:
        """Ask for a walk; as it is now. Idempotent by its id."""
        row = await self._database.fetchrow(QUERIES.want_sweep, sweep_id, deletes, actor, reason)
        assert row is not None, "it was made now or before"
        return _sweep(row)

    async def due(self, fence: int, sweeping: Sweeping) -> Sweep | None:
        """The oldest walk that has not ended; one begins by itself when it is time."""
        row = await self._database.fetchrow(QUERIES.due_sweep)
        if row is None and sweeping.every is not None:
            begin = (fence, uuid4(), sweeping.deletes, ACTOR, sweeping.every)
            await self._database.execute(QUERIES.begin_sweep, *begin)
            row = await self._database.fetchrow(QUERIES.due_sweep)
        return None if row is None else _sweep(row)

    async def months(self) -> dict[str, Known]:
        """What the shard knows of months, by their names."""
        return {row["month"]: Known(**row) for row in await self._database.fetch(QUERIES.known_months)}

    async def not_catalogued(self, found: Sequence[Named]) -> list[Named]:
        """Those that nothing here names."""
        keys, statements = [each.found.key for each in found], [each.statement_id for each in found]
        rows = await self._database.fetch(QUERIES.not_catalogued, keys, statements)
        left = {row["key"] for row in rows}
        return [each for each in found if each.found.key in left]

    async def not_in_segments(self, found: Sequence[Named]) -> list[tuple[Named, UUID | None]]:
        """Those that are the segment of no month, with the erasure that left one behind and deletes it."""
        rows = await self._database.fetch(QUERIES.not_in_segments, [each.found.key for each in found])
        left = {row["key"]: row["erasure_id"] for row in rows}
        return [(each, left[each.found.key]) for each in found if each.found.key in left]

    async def note(self, fence: int, sweep: Sweep, strays: Sequence[Named]) -> list[Named]:
        """Note strays; those that are some in this very moment, and none under an older fence."""
        rows = await self._database.fetch(
            QUERIES.note_strays,
            *(fence, sweep.sweep_id, [each.found.key for each in strays], [each.kind for each in strays]),
            *([each.statement_id for each in strays], [each.found.size_bytes for each in strays]),
            [each.found.stored_at for each in strays],
        )
        noted = {row["key"] for row in rows}
        return [each for each in strays if each.found.key in noted]

    async def note_deleted(self, fence: int, sweep: Sweep, key: str) -> None:
        """Note that a stray is gone. Raises: LeaseLost."""
        self._must(await self._database.fetchval(QUERIES.stray_deleted, fence, sweep.sweep_id, key))

    async def go_on(self, fence: int, sweep: Sweep, place: int, after: str, *counts: int) -> None:
        """Note how far a walk is. counts: seen, deleted. Raises: LeaseLost."""
        self._must(await self._database.fetchval(QUERIES.go_on, fence, sweep.sweep_id, place, after, *counts))

    async def end(self, fence: int, sweep: Sweep, refused: str) -> None:
        """Note that a walk is over. Raises: LeaseLost."""
        self._must(await self._database.fetchval(QUERIES.end_sweep, fence, sweep.sweep_id, refused))

    async def totals(self) -> Totals:
        """What the last walk found."""
        row = await self._database.fetchrow(QUERIES.stray_totals)
        assert row is not None, "a count is always there"
        return Totals(row["strays"], row["stray_bytes"], row["ended_at"], row["refusal"] or "")

    async def strays_of(self, sweep_id: UUID, limit: int) -> list[Stray]:
        """The oldest that a walk met."""
        return [Stray(**row) for row in await self._database.fetch(QUERIES.strays_of, sweep_id, limit)]

    def _must(self, done: object) -> None:
        if not done:
            raise LeaseLost(shard=self.shard)


class Sweeper:
    """Walks over the objects of one shard. throttle: of objects, not bytes."""

    def __init__(self, sweeps: Sweeps, store: ObjectStore, throttle: Throttle, sweeping: Sweeping) -> None:
        self._sweeps = sweeps
        self._store = store
        self._throttle = throttle
        self._sweeping = sweeping
        self._places = places_of(sweeps.shard)

    async def sweep_some(self, fence: int, at: datetime) -> bool:
        """One round of the oldest walk; whether there was one. Goes on where it was.

        at: the shard's clock.
        Raises: LeaseLost; S3Error; what chassis.pg raises.
        """
        sweep = await self._sweeps.due(fence, self._sweeping)
        if sweep is None:
            return False
        if sweep.place >= len(self._places):
            await self._after_objects(fence, sweep, at)
            return True
        place = self._places[sweep.place]
        page = await self._store.list(place.prefix, after=sweep.after_key, limit=ROUND_MAX)
        await self._throttle.take(len(page.objects))
        months = await self._sweeps.months()
        manifests = await self._manifests()
        standing = standings(manifests, months)
        has_copies = bool(manifests or (page.objects and place.kind is Kind.SEGMENT))
        if refused := refusal(standing, months, has_copies=has_copies):
            await self._end(fence, sweep, refused)
            return True
        ours = [each for found in page.objects if (each := named(place, found)) is not None]
        free = [each for each in ours if not (each.month in months and months[each.month].is_held)]
        strays = await self._strays(free, manifests, standing, at)
        noted = await self._sweeps.note(fence, sweep, strays) if strays else []
        deleted = await self._delete(fence, sweep, noted) if sweep.deletes else 0
        where = (sweep.place, page.objects[-1].key) if page.more else (sweep.place + 1, "")
        await self._sweeps.go_on(fence, sweep, *where, len(page.objects), deleted)
        return True

    async def left_with(self, user_id: str, erasure_id: UUID) -> tuple[list[Named], set[str]]:
        """Segments that nothing reads and that may hold rows of a user: strays of any age; what keeps others.

        Only under the lease, between two steps of months. Of one that no manifest ever named nobody knows
        whose rows it has.
        Raises: S3Error; what chassis.pg raises.
        """
        months, manifests = await self._sweeps.months(), await self._manifests()
        standing, known = standings(manifests, months), Holders(self._store, manifests)
        refused = refusal(standing, months, has_copies=True)
        strays: list[Named] = []
        kept: set[str] = set()
        for place in self._places:
            if place.kind is not Kind.SEGMENT:
                continue
            async for page in pages_below(self._store, place.prefix):
                ours = [each for found in page if (each := named(place, found)) is not None]
                free = []
                for each, left_by in await self._sweeps.not_in_segments(ours) if ours else []:
                    if left_by == erasure_id or not await known.may_hold(each, user_id):
                        continue
                    if left_by is not None:
                        kept.add(f"what another erasure left behind of {each.month}")
                    elif refused or (each.month in months and months[each.month].is_held):
                        kept.add(refused or f"LEGAL_HOLD of {each.month}")
                    else:
                        free.append(each)
                found = await self._free(free, manifests, standing) if free else []
                strays += found
                kept |= {f"a copy of {each.month} that may count yet" for each in free if each not in found}
        return strays, kept

    async def _end(self, fence: int, sweep: Sweep, refused: str) -> None:
        await self._sweeps.end(fence, sweep, refused)
        shard, totals = self._sweeps.shard, await self._sweeps.totals()
        if refused:
            log.error("sweep_refused", shard=shard, because=refused)
        elif totals.strays:
            log.warning("strays_found", shard=shard, strays=totals.strays, size_bytes=totals.stray_bytes)

    async def _manifests(self) -> list[Named]:
        """Every manifest of the shard; a month has one or few."""
        place = next(each for each in self._places if each.kind is Kind.MANIFEST)
        listed = await all_below(self._store, place.prefix)
        return [each for found in listed if (each := named(place, found)) is not None]

    async def _strays(
        self,
        ours: Sequence[Named],
        manifests: Sequence[Named],
        standing: Mapping[str, Standing],
        at: datetime,
    ) -> list[Named]:
        old = [each for each in ours if at - each.found.stored_at >= self._sweeping.grace]
        return await self._free(old, manifests, standing) if old else []

    async def _free(
        self, ours: Sequence[Named], manifests: Sequence[Named], standing: Mapping[str, Standing]
    ) -> list[Named]:
        """Those, of whatever age, that neither a row nor a manifest speaks for."""
        unknown = await self._sweeps.not_catalogued(ours)
        strays: list[Named] = []
        protected: dict[str, frozenset[str] | None] = {}
        for each in unknown:
            if each.kind is Kind.MANIFEST and standing.get(each.found.key) is not Standing.SUPERSEDED:
                continue
            if each.kind is Kind.SEGMENT:
                if each.month not in protected:
                    protected[each.month] = await self._protected(each.month, manifests, standing)
                spoken_for = protected[each.month]
                if spoken_for is None or each.found.key in spoken_for:
                    continue
            strays.append(each)
        return strays

    async def _protected(
        self, month: str, manifests: Sequence[Named], standing: Mapping[str, Standing]
    ) -> frozenset[str] | None:
        """The segments that manifests of a month speak for; None, for all, when one cannot be read."""
        keys: set[str] = set()
        for each in manifests:
            if each.month != month or standing[each.found.key] is Standing.SUPERSEDED:
                continue
            try:
                body = await self._store.read(await self._store.head(each.found.key))
                keys |= {stored.key for stored in objects_of(parsed(body))}
            except (ManifestUnreadable, ObjectChanged, ObjectCold, ObjectNotFound) as wrong:
                log.warning("manifest_unreadable", shard=self._sweeps.shard, month=month, because=str(wrong))
                return None
        return frozenset(keys)

    async def _after_objects(self, fence: int, sweep: Sweep, at: datetime) -> None:
        """A round over uploads of a walk that deletes, place by place again; after the last it is over."""
        number = sweep.place - len(self._places)
        if not sweep.deletes or number >= len(self._places):
            await self._end(fence, sweep, "")
            return
        goes_on = await self._give_up_some(self._places[number], sweep.after_key, at)
        where = (sweep.place, goes_on) if goes_on else (sweep.place + 1, "")
        await self._sweeps.go_on(fence, sweep, *where, 0, 0)

    async def _give_up_some(self, place: Place, after: str, at: datetime) -> str:
        """Give up those of a page of uploads that were begun longer ago than any try takes; where to go on.

        A bucket that does not let us is told of; the walk goes on.
        """
        grace = self._sweeping.grace
        if place.kind is Kind.STATEMENT:
            grace = max(grace, STATEMENT_UPLOAD_MAX)
        try:
            page = await self._store.uploads(place.prefix, after=after, limit=ROUND_MAX)
            await self._throttle.take(len(page.uploads))
            for upload in page.uploads:
                if at - upload.begun_at < grace:
                    continue
                await self._store.abort(upload)
                metrics.UPLOADS_GIVEN_UP.labels(self._sweeps.shard).inc()
                log.info("upload_given_up", shard=self._sweeps.shard, key=upload.key)
        except S3Error as failed:
            log.warning(
                "uploads_not_given_up", shard=self._sweeps.shard, prefix=place.prefix, because=str(failed)
            )
            return ""
        return page.next

    async def _delete(self, fence: int, sweep: Sweep, strays: Sequence[Named]) -> int:
        """Delete what is still the object that was listed; how many went."""
        gone = 0
        for each in strays:
            await faults.point(points.BEFORE_SWEEP)
            key = each.found.key
            try:
                there = await self._store.head(key)
                if there.etag != each.found.etag:
                    continue
                await self._store.delete(there)
            except (ObjectLocked, ObjectChanged) as kept:
                log.info("stray_kept", shard=self._sweeps.shard, key=key, because=str(kept))
                continue
            except ObjectNotFound:
                pass
            await self._sweeps.note_deleted(fence, sweep, key)
            metrics.SWEPT.labels(self._sweeps.shard, each.kind.value).inc()
            log.info("stray_deleted", shard=self._sweeps.shard, key=key, size_bytes=each.found.size_bytes)
            gone += 1
        return gone


class Holders:
    """Whose rows segments have that nothing reads, as the manifests say that named them once."""

    def __init__(self, store: ObjectStore, manifests: Sequence[Named]) -> None:
        self._store = store
        self._manifests = manifests
        self._facts: dict[str, dict[str, Facts]] = {}

    async def may_hold(self, segment: Named, user_id: str) -> bool:
        """Whether a segment may have rows of a user; one that no manifest named may. Raises: S3Error."""
        if segment.month not in self._facts:
            self._facts[segment.month] = await self._read(segment.month)
        facts = self._facts[segment.month].get(segment.found.key)
        return facts is None or bool(facts.groups_of(user_id))

    async def _read(self, month: str) -> dict[str, Facts]:
        found: dict[str, Facts] = {}
        for each in self._manifests:
            if each.month == month:
                with suppress(ManifestUnreadable, ObjectChanged, ObjectCold, ObjectNotFound):
                    manifest = parsed(await self._store.read(await self._store.head(each.found.key)))
                    for told in manifest["segments"]:
                        found[told["key"]] = Facts.from_json(told["facts"])
        return found


def _sweep(row: Any) -> Sweep:
    return Sweep(
        sweep_id=row["sweep_id"],
        deletes=row["deletes"],
        place=row["place"],
        after_key=row["after_key"],
        seen=row["seen_count"],
        deleted=row["deleted_count"],
        refusal=row["refusal"],
        ended_at=row["ended_at"],
    )
