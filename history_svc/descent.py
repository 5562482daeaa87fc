"""Searches the read model from a position down, month after month, until a page is full or the list ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from history_svc.catalog import spans
from history_svc.page import Page, Source, merge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from history_svc.page import Row, Window
    from history_svc.readmodel.port import Place
    from history_svc.search import Searcher

SEARCHES_MAX = 12
"""Searches for one page. Spans double, so that 27 months take four; the others are for rows that the overlay
replaced.
"""


@dataclass(frozen=True, slots=True)
class Descent:
    """A page as far as it was filled. searches: how many it took; none when no month can hold anything."""

    page: Page
    searches: int


async def descend(
    searcher: Searcher,
    months: Mapping[date, tuple[Place, ...]],
    window: Window,
    known: Sequence[Source],
    size: int,
    *,
    hits_max: int,
    end: float,
) -> Descent:
    """Fill a page with what is found below the window's position, merged with what is known already.

    months:   as catalog.months_in says.
    hits_max: of one search.
    end:      a monotonic instant by which the last search has to answer.
    Raises: ReadModelUnavailable.
    """
    # Documents are routed by the name that the order froze when it was made, which is the user's.
    routing = (window.user_id,) if window.user_id is not None else ()
    page = merge(known, size, window.filter)
    found: list[Row] = []
    older, searches = window, 0
    for places, floor in spans(months):
        is_full = True
        while is_full:
            left_s = max(0.001, end - time.monotonic())
            rows = await searcher.search(places, older, routing=routing, limit=hits_max, timeout_s=left_s)
            searches += 1
            found += rows
            is_full = len(rows) >= hits_max
            horizon = rows[-1].key if is_full else floor
            page = merge([*known, Source(found, horizon)], size, window.filter)
            if len(page.rows) >= size or searches >= SEARCHES_MAX:
                return Descent(page, searches)
            older = replace(older, before=rows[-1].key) if is_full else older
    return Descent(page, searches)
