"""Searches over all users: the read model alone, and how old it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chassis.errors import DeadlineExceeded, Overloaded, ShardUnavailable
from history_svc.catalog import months_in
from history_svc.descent import descend
from history_svc.reader import EVER, all_of, archived_to, oldest_of
from history_svc.store import Marks

if TYPE_CHECKING:
    from datetime import datetime

    from history_svc.page import Page, Window
    from history_svc.search import Searcher
    from history_svc.store import Shards


@dataclass(frozen=True, slots=True)
class Found:
    """A page of a search. until: every change before it is in the read model, as far as it is known.
    archived_to: as in reader.Served.
    """

    page: Page
    until: datetime | None
    unreachable: tuple[str, ...]
    archived_to: datetime | None


class Finder:
    """Searches the indices that serve."""

    def __init__(self, shards: Shards, searcher: Searcher) -> None:
        self._shards = shards
        self._searcher = searcher

    async def find(self, window: Window, size: int, *, timeout_s: float) -> Found:
        """One page of the newest orders that pass the window's filter.

        Of a shard that is away since before we knew it, nobody knows which index it reads: its orders are
        shown where the others read, or are left out; `unreachable` names it. As in a list, nothing is shown
        that is archived on any shard.
        Raises: ReadModelUnavailable, ShardUnavailable when no shard says which indices there are.
        """
        end = time.monotonic() + timeout_s
        said = await all_of([self._marks(shard, end) for shard in self._shards.names])
        away = [shard for shard, each in zip(self._shards.names, said, strict=True) if each is None]
        known = [each for each in said if each is not None]
        if not known:
            raise ShardUnavailable(shard=away[0] if away else "")
        floor = max(each.archived_to for each in known)
        shown = replace(window, not_before=max(window.not_before, floor))
        months = months_in([each.catalog for each in known], shown, EVER)
        found = await descend(self._searcher, months, shown, (), size, hits_max=size + 1, end=end)
        return Found(
            found.page,
            oldest_of([each.until for each in known]),
            tuple(f"shards/{shard}" for shard in away),
            archived_to(found.page, window, floor),
        )

    async def _marks(self, shard: str, end: float) -> Marks | None:
        try:
            return await self._shards.marks(shard, timeout_s=max(0.001, end - time.monotonic()))
        except (ShardUnavailable, DeadlineExceeded, Overloaded):
            last = self._shards.last_catalog(shard)
            return None if last is None else Marks(last, None, self._shards.last_archived_to(shard))
