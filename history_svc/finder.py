"""Searches over all users: the read model alone, and how old it is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chassis.errors import DeadlineExceeded, Overloaded, ShardUnavailable
from history_svc.catalog import months_in
from history_svc.descent import descend
from history_svc.page import Page
from history_svc.reader import EVER, all_of, oldest_of

if TYPE_CHECKING:
    from datetime import datetime

    from history_svc.catalog import ShardCatalog
    from history_svc.page import Window
    from history_svc.search import Searcher
    from history_svc.store import Shards


@dataclass(frozen=True, slots=True)
class Found:
    """A page of a search. until: every change before it is in the read model, as far as it is known."""

    page: Page
    until: datetime | None
    unreachable: tuple[str, ...]


class Finder:
    """Searches the indices that serve."""

    def __init__(self, shards: Shards, searcher: Searcher) -> None:
        self._shards = shards
        self._searcher = searcher

    async def find(self, window: Window, size: int, *, timeout_s: float) -> Found:
        """One page of the newest orders that pass the window's filter.

        Of a shard that is away since before we knew it, nobody knows which index it reads: its orders are
        shown where the others read, or are left out; `unreachable` names it.
        Raises: ReadModelUnavailable, ShardUnavailable when no shard says which indices there are.
        """
        end = time.monotonic() + timeout_s
        catalogs, untils, away = await self._catalogs(end)
        if not catalogs:
            raise ShardUnavailable(shard=away[0] if away else "")
        months = months_in(catalogs, window, EVER)
        found = await descend(self._searcher, months, window, (), size, hits_max=size + 1, end=end)
        return Found(found.page, oldest_of(untils), away)

    async def _catalogs(
        self, end: float
    ) -> tuple[list[ShardCatalog], list[datetime | None], tuple[str, ...]]:
        said = await all_of([self._catalog(shard, end) for shard in self._shards.names])
        catalogs = [each[0] for each in said if each is not None]
        untils = [each[1] for each in said if each is not None]
        pairs = zip(self._shards.names, said, strict=True)
        return catalogs, untils, tuple(f"shards/{shard}" for shard, each in pairs if each is None)

    async def _catalog(self, shard: str, end: float) -> tuple[ShardCatalog, datetime | None] | None:
        try:
            return await self._shards.catalog(shard, timeout_s=max(0.001, end - time.monotonic()))
        except (ShardUnavailable, DeadlineExceeded, Overloaded):
            last = self._shards.last_catalog(shard)
            return None if last is None else (last, None)
