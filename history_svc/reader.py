"""One page: what the shards say, then what the read model has below, merged.

The order matters. Each shard's watermarks are read in the same statement as the changes after them, and the
read model is searched after that: so whatever the search does not see yet is among the changes. A page never
depends on where the hot window begins or how far the index lags; both only decide who serves it.

A list ends where the archive of any of its shards begins, as the same statement says: at the greatest of
their floors. What is below is not shown, wherever it may still be found: in a table that was not detached
yet, among the changes, in the index, or on a shard that has not archived the month.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from chassis.errors import DeadlineExceeded, Overloaded, ShardUnavailable
from history_svc.catalog import is_unserved, months_in
from history_svc.descent import descend
from history_svc.errors import ReadModelUnavailable
from history_svc.metrics import OVERLAY_ROWS
from history_svc.page import OLDEST, Key, Source, merge, source_of
from history_svc.parts import OVERLAY_MAX
from history_svc.store import Reading

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from chassis.placement import Held
    from history_svc.catalog import ShardCatalog
    from history_svc.page import Page, Window
    from history_svc.parts import ShardPart
    from history_svc.search import Searcher
    from history_svc.store import Shards

FALLBACK_SCAN_MAX = 2000
"""Rows of each shard that such a page looks through for those that pass its filter."""
EVER = datetime(9999, 12, 31, tzinfo=UTC)
T = TypeVar("T")


class ServedBy(StrEnum):
    """Who served a page; names as in the proto."""

    SQL = "SQL"
    READ_MODEL = "READ_MODEL"
    MERGED = "MERGED"
    SQL_FALLBACK = "SQL_FALLBACK"
    READ_MODEL_ONLY = "READ_MODEL_ONLY"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a page is asked to be.

    replica, lag_max, tokens: as in store.Reading. partial: whether a shard that is away may be left out.
    """

    window: Window
    size: int
    replica: bool = False
    lag_max: timedelta | None = None
    tokens: Mapping[str, tuple[int, int]] | None = None
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """A page and where it came from.

    parts: what the shards said. unreachable: names of stores that could not be asked. archived_to: the list
    ends here since what was created before it is archived; none while it goes on, or where nothing is.
    """

    page: Page
    served_by: ServedBy
    parts: tuple[ShardPart, ...]
    unreachable: tuple[str, ...]
    overlay: int
    asked_read_model: bool
    as_of: datetime | None
    indexed_until: datetime | None
    archived_to: datetime | None


class Reader:
    """Makes pages. hot_window: orders younger than this are read from the shards."""

    def __init__(self, shards: Shards, searcher: Searcher, hot_window: timedelta) -> None:
        self._shards = shards
        self._searcher = searcher
        self._hot_window = hot_window

    async def read(
        self, placement: Mapping[str, Sequence[Held]], wish: Wish, *, now: datetime, timeout_s: float
    ) -> Served:
        """One page.

        now: an aware instant, only to place the hot window.
        Raises: StaleRoute, ShardUnavailable, DeadlineExceeded, Overloaded; ReadModelUnavailable when only the
        read model could answer.
        """
        end = time.monotonic() + timeout_s
        # A filtered list is the read model's business all the way: a rare status would scan a VIP's two days.
        since = now - self._hot_window if wish.window.filter.is_plain else EVER
        # Every changed row is shown where nothing is filtered, so what lies below a page's worth of them is
        # below the page.
        overlay_max = wish.size + 1 if wish.window.filter.is_plain else OVERLAY_MAX
        parts, away = await self._parts(placement, wish, since, wish.size + 1, end, overlay_max=overlay_max)
        floor = max([floor_of(parts), *(self._shards.last_archived_to(shard) for shard in away)])
        shown, parts = _above(floor, wish, parts)
        hot = _hot_page(parts, shown, since)
        if hot is not None and not away:
            return _served(hot, ServedBy.SQL, parts, wish, floor)
        unreliable = next((why for part in parts if (why := part.why_unreliable())), "")
        try:
            if unreliable:
                raise ReadModelUnavailable(because=unreliable)
            page, searches = await self._merged(parts, away, shown, EVER if away else since, end)
        except ReadModelUnavailable:
            if away:
                raise ShardUnavailable(shard=away[0]) from None
            return await self._fallen_back(placement, wish, end)
        overlay = sum(len(part.changed) for part in parts)
        OVERLAY_ROWS.observe(overlay)
        made = _served(page, _merged_by(parts, searches), parts, wish, floor, away)
        return replace(made, overlay=overlay, asked_read_model=searches > 0)

    async def parts(
        self, placement: Mapping[str, Sequence[Held]], wish: Wish, *, now: datetime, timeout_s: float
    ) -> tuple[ShardPart, ...]:
        """What the shards say for a page; for explanations.

        Raises: as `read`.
        """
        end = time.monotonic() + timeout_s
        parts, _ = await self._parts(placement, wish, now - self._hot_window, wish.size + 1, end)
        return parts

    async def _parts(
        self,
        placement: Mapping[str, Sequence[Held]],
        wish: Wish,
        since: datetime,
        limit: int,
        end: float,
        *,
        changes: bool = True,
        overlay_max: int = OVERLAY_MAX,
    ) -> tuple[tuple[ShardPart, ...], tuple[str, ...]]:
        """What every shard says, and which ones were away, where that is allowed."""
        ask = Reading(
            wish.window, since, limit, changes, overlay_max, wish.replica, wish.lag_max, wish.tokens
        )
        left_s = end - time.monotonic()
        reads = [
            self._shards.read(shard, held, ask, timeout_s=max(0.001, left_s))
            for shard, held in placement.items()
        ]
        if not wish.partial:
            return tuple(await all_of(reads)), ()
        said = await all_of([_or_away(read) for read in reads])
        away = tuple(shard for shard, part in zip(placement, said, strict=True) if part is None)
        return tuple(part for part in said if part is not None), away

    async def _merged(
        self, parts: Sequence[ShardPart], away: Sequence[str], wish: Wish, since: datetime, end: float
    ) -> tuple[Page, int]:
        """The shards' rows over the read model's, and how many searches that took. since: the read model is
        searched below it.
        """
        catalogs = self._catalogs(parts, away)
        if is_unserved(catalogs, wish.window, since):
            raise ReadModelUnavailable(because="a month is being built")
        known = [source_of(part.recent, wish.size + 1) for part in parts]
        known += [Source(part.changed, part.changed_down_to) for part in parts]
        older = replace(wish.window, before=min(wish.window.before, Key(since, UUID(int=0))))
        # Without a filter a changed row stands in its hit's place; with one it may hide the hit.
        hits_max = wish.size + 1 if wish.window.filter.is_plain else hits_wanted(wish.size, parts)
        months = months_in(catalogs, older, since)
        found = await descend(self._searcher, months, older, known, wish.size, hits_max=hits_max, end=end)
        return found.page, found.searches

    def _catalogs(self, parts: Sequence[ShardPart], away: Sequence[str]) -> list[ShardCatalog]:
        known = [part.catalog for part in parts]
        for shard in away:
            catalog = self._shards.last_catalog(shard)
            if catalog is None:
                raise ShardUnavailable(shard=shard)
            known.append(catalog)
        return known

    async def _fallen_back(self, placement: Mapping[str, Sequence[Held]], wish: Wish, end: float) -> Served:
        """The page from the shards alone, within a bulkhead. With words to find there is none.

        A filtered page looks through a bounded number of rows; it may be shorter than asked for and go on
        after its token, but it leaves nothing out.
        """
        wanted = wish.window.filter
        if wanted.asked:
            raise ReadModelUnavailable(because="words are found by the read model only")
        limit = wish.size + 1 if wanted.is_plain else FALLBACK_SCAN_MAX
        async with self._shards.fallback.slot(max(0.001, end - time.monotonic())):
            parts, _ = await self._parts(
                placement, replace(wish, partial=False), OLDEST, limit, end, changes=False
            )
        floor = floor_of(parts)
        _, parts = _above(floor, wish, parts)
        page = merge([source_of(part.recent, limit) for part in parts], wish.size, wanted)
        made = _served(page, ServedBy.SQL_FALLBACK, parts, wish, floor)
        return replace(made, unreachable=("read-model",))


def hits_wanted(size: int, parts: Sequence[ShardPart]) -> int:
    """How many hits to search for with a filter: the overlay may hide as many of them as it has rows."""
    return size + 1 + sum(len(part.changed) for part in parts)


def _hot_page(parts: Sequence[ShardPart], wish: Wish, since: datetime) -> Page | None:
    """The page if the hot window fills it, or if it may show nothing older than that."""
    if not wish.window.filter.is_plain:
        return None
    page = merge([source_of(part.recent, wish.size + 1) for part in parts], wish.size)
    if len(page.rows) >= wish.size and page.next_after is not None:
        return page
    return page if wish.window.not_before >= since else None


def floor_of(parts: Sequence[ShardPart]) -> datetime:
    """What was created before it is archived on one of the shards at least; OLDEST when nothing is."""
    return max((part.archived_to for part in parts), default=OLDEST)


def _above(floor: datetime, wish: Wish, parts: Sequence[ShardPart]) -> tuple[Wish, tuple[ShardPart, ...]]:
    """What is wished for and what was said, without what was created before `floor`."""
    window = replace(wish.window, not_before=max(wish.window.not_before, floor))
    return replace(wish, window=window), tuple(part.above(floor) for part in parts)


def _merged_by(parts: Sequence[ShardPart], searches: int) -> ServedBy:
    """Who served a page that is not of the shards alone from the beginning."""
    if not parts:
        return ServedBy.READ_MODEL_ONLY
    if not searches:
        return ServedBy.SQL
    return ServedBy.MERGED if any(part.changed or part.recent for part in parts) else ServedBy.READ_MODEL


def _served(
    page: Page,
    served_by: ServedBy,
    parts: Sequence[ShardPart],
    wish: Wish,
    floor: datetime,
    away: Sequence[str] = (),
) -> Served:
    indexed = [part.indexed_until for part in parts]
    return Served(
        page=page,
        served_by=served_by,
        parts=tuple(parts),
        unreachable=tuple(f"shards/{shard}" for shard in away),
        overlay=0,
        asked_read_model=False,
        as_of=None if away else min((part.as_of for part in parts), default=None),
        indexed_until=oldest_of(indexed),
        archived_to=archived_to(page, wish.window, floor),
    )


def archived_to(page: Page, window: Window, floor: datetime) -> datetime | None:
    """The floor, where a list ends at it and not where it was asked to end, or began."""
    return floor if page.next_after is None and floor > window.not_before else None


def oldest_of(instants: Sequence[datetime | None]) -> datetime | None:
    """The oldest of some instants, if all of them are known."""
    known = [each for each in instants if each is not None]
    return min(known) if known and len(known) == len(instants) else None


async def _or_away(read: Coroutine[Any, Any, T]) -> T | None:
    """A read's result, or none when its shard is away or has no time for us."""
    try:
        return await read
    except (ShardUnavailable, DeadlineExceeded, Overloaded):
        return None


async def all_of(reads: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
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
