"""A user's orders out of segments: the footer and his row groups by one ranged request each, no byte more.

What is fetched is compared with what the catalog says of it before it is used; damage on the way is asked
for once more, damage at rest ends the statement.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict, deque
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from archive_svc import metrics
from archive_svc.errors import ArchiveCold, StatementIncomplete, StorageUnavailable
from archive_svc.segment import Range, ReadOutsidePlan, SegmentDamaged, Step
from archive_svc.statement.merge import Tally
from archive_svc.statement.plan import microseconds
from archive_svc.statement.rows import COLUMNS, Row
from chassis.s3 import ObjectChanged, ObjectCold, ObjectDamaged, ObjectNotFound, S3Error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence
    from datetime import date

    from archive_svc.segment import Facts
    from archive_svc.statement.plan import Piece
    from chassis.s3 import ObjectStore, Stored

AT_ONCE = 8
"""Requests of one process, and how many groups one shard's reader is ahead: 4 MiB."""
FOOTERS_MAX = 64
"""Footers that are kept: 5 MiB."""
TRIES = 2


@dataclass(slots=True)
class Read:
    """What was read for one statement so far.

    archive_reads: requests. archived: shards and months of which orders came from the archive.
    """

    rows: int = 0
    archived_rows: int = 0
    archive_bytes: int = 0
    archive_reads: int = 0
    archived: set[tuple[str, date]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Leg:
    """What to read of one segment. groups: the row groups that may hold orders of the user."""

    shard: str
    piece: Piece
    stored: Stored
    facts: Facts
    groups: range


class SegmentGone(Exception):
    """A segment that the catalog named is not in S3 as it was; another may have taken its place since."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f"{key}: {what}")
        self.key = key
        self.what = what


class _Wanted(NamedTuple):
    """One request. group: None for the footer."""

    leg: Leg
    group: int | None
    range: Range
    sha256: str


class Fetcher:
    """Reads segments for every statement of a process. at_once: requests."""

    def __init__(self, store: ObjectStore, *, at_once: int = AT_ONCE, footers_max: int = FOOTERS_MAX) -> None:
        self._store = store
        self._ahead = at_once
        self._slots = asyncio.Semaphore(at_once)
        self._footers: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._footers_max = footers_max

    async def rows(self, user_id: str, legs: Sequence[Leg], read: Read) -> AsyncGenerator[list[Row], None]:
        """His orders in these legs, a row group at a time, in the order of the legs.

        Raises: StatementIncomplete when a segment is not what was proven; SegmentGone; ArchiveCold;
        StorageUnavailable.
        """
        wanted = [each for leg in legs if leg.groups for each in _requests(leg)]
        footer = b""
        tally = Tally()
        async with aclosing(self._fetched(wanted, read)) as bodies:
            async for (leg, group, place, _), body in bodies:
                if group is None:
                    footer, tally = body, Tally()
                    continue
                parts = {leg.facts.footer.offset: footer, place.offset: body}
                found = await asyncio.to_thread(_decoded, user_id, leg, group, parts)
                tally.add(found)
                if group == leg.groups[-1]:
                    _must_add_up(user_id, leg, tally)
                since, until = microseconds(leg.piece.since), microseconds(leg.piece.until)
                kept = [row for row in found if since <= row.created_us < until]
                if kept:
                    read.archived_rows += len(kept)
                    read.archived.add((leg.shard, leg.piece.month))
                    yield kept

    async def _fetched(
        self, wanted: Sequence[_Wanted], read: Read
    ) -> AsyncGenerator[tuple[_Wanted, bytes], None]:
        """What these requests bring, in their order; some are ahead of the one that is looked at."""
        under_way: deque[tuple[_Wanted, asyncio.Task[bytes]]] = deque()
        try:
            for each in wanted:
                task = asyncio.create_task(self._fetch(each, read), name=f"fetch {each.leg.stored.key}")
                under_way.append((each, task))
                if len(under_way) >= self._ahead:
                    yield await self._next(under_way)
            while under_way:
                yield await self._next(under_way)
        finally:
            tasks = [task for _, task in under_way]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _next(self, under_way: deque[tuple[_Wanted, asyncio.Task[bytes]]]) -> tuple[_Wanted, bytes]:
        each, task = under_way[0]
        body = await task
        under_way.popleft()
        return each, body

    async def _fetch(self, wanted: _Wanted, read: Read) -> bytes:
        stored = wanted.leg.stored
        name = (stored.key, stored.version_id)
        if wanted.group is None and name in self._footers:
            self._footers.move_to_end(name)
            return self._footers[name]
        for _ in range(TRIES):
            async with self._slots:
                body = await self._asked(stored, wanted.range)
            read.archive_bytes += len(body)
            read.archive_reads += 1
            metrics.STATEMENT_READ_BYTES.labels(wanted.leg.shard).inc(len(body))
            if hashlib.sha256(body).hexdigest() == wanted.sha256:
                break
        else:
            raise StatementIncomplete(Step.BYTES, shard=wanted.leg.shard, key=stored.key, what="SHA-256")
        if wanted.group is None:
            self._footers[name] = body
            while len(self._footers) > self._footers_max:
                self._footers.popitem(last=False)
        return body

    async def _asked(self, stored: Stored, place: Range) -> bytes:
        try:
            return await self._store.read(stored, first_byte=place.offset, size_bytes=place.size_bytes)
        except (ObjectNotFound, ObjectChanged) as gone:
            raise SegmentGone(stored.key, type(gone).__name__) from gone
        except ObjectDamaged as damaged:
            raise StatementIncomplete(Step.BYTES, key=stored.key, what=type(damaged).__name__) from damaged
        except ObjectCold as cold:
            raise ArchiveCold(key=stored.key) from cold
        except S3Error as failed:
            raise StorageUnavailable from failed


def _requests(leg: Leg) -> Iterator[_Wanted]:
    facts = leg.facts
    yield _Wanted(leg, None, facts.footer, facts.footer_sha256)
    for number in leg.groups:
        group = facts.groups[number]
        yield _Wanted(leg, number, Range(group.offset, group.size_bytes), group.sha256)


def _decoded(user_id: str, leg: Leg, group: int, parts: dict[int, bytes]) -> list[Row]:
    from archive_svc.codec.reading import SparseFile, user_rows

    file = SparseFile(leg.facts.size_bytes, parts)
    try:
        found = user_rows(leg.facts, file, group, user_id=user_id, columns=COLUMNS)
    except (SegmentDamaged, ReadOutsidePlan) as damaged:
        step = damaged.step if isinstance(damaged, SegmentDamaged) else Step.GROUPS
        raise StatementIncomplete(
            step, shard=leg.shard, key=leg.stored.key, what=type(damaged).__name__
        ) from damaged
    said = leg.facts.groups[group]
    if said.first_user == said.last_user == user_id and said.rows != len(found):
        raise StatementIncomplete(Step.ROWS, shard=leg.shard, key=leg.stored.key, what="rows of a group")
    return [Row(*values) for values in found]


def _must_add_up(user_id: str, leg: Leg, tally: Tally) -> None:
    """Hold a segment that is all of one user against what was proven of it."""
    first, last = leg.facts.first, leg.facts.last
    if first is None or last is None or not first.user_id == last.user_id == user_id:
        return
    said = {each.by: (each.rows, each.total) for each in leg.facts.sums}
    found = {(t.currency, t.status): (t.orders, t.amount_minor) for t in tally.totals()}
    if said != found:
        raise StatementIncomplete(Step.SUMS, shard=leg.shard, key=leg.stored.key, what="sums")
