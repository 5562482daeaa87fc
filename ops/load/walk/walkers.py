"""Walkers: each reads one history after the other, page by page, until it is cancelled.

Size, freshness and transport are drawn anew for every page: the list must be the same whatever is asked.
A page that does not come is asked for again, a bounded number of times; then the walk is over, unanswered.
Bounded too is what one walk may find: a list that is wrong everywhere says so in a few pages.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ops.load.walk.book import Freshness
from ops.load.walk.judge import Asked, Walk, refused
from ops.load.walk.readers import NoAnswer, PageRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ops.load.walk.book import Book
    from ops.load.walk.figures import Walked
    from ops.load.walk.judge import Page
    from ops.load.walk.readers import Reader

PAGE_SIZE_MAX: Final = 100
SMALL_SHARE: Final = 0.05
"""Of the pages, those of one to five orders: most seams, least speed."""
SMALL_MAX: Final = 5
TRY_S: Final = 6.0
TRIES_MAX: Final = 12
BACKOFF_S: Final = 0.2
BACKOFF_S_MAX: Final = 3.0
PAGES_MAX: Final = 20_000
FOUND_MAX: Final = 20
PAUSE_S: Final = 0.05
"""Longest pause between two pages, as people have; without it walkers would only measure each other."""


@dataclass(slots=True)
class Walker:
    """One reader of histories."""

    book: Book
    readers: Sequence[Reader]
    walked: Walked
    draw: random.Random
    pause_s: float = PAUSE_S
    is_counted: bool = True
    """Whether its pages say what the walks were worth; what is wrong with them counts in any case."""

    async def run(self) -> None:
        """Walk one user's history after the other's, drawn at random, until cancelled."""
        users = self.book.users
        while True:
            await self.walk(self.draw.choice(users))

    async def walk(self, user: str, levels: Sequence[Freshness] = tuple(Freshness)) -> bool:
        """Walk one history to its end; whether it came there. levels: what pages may be asked to be."""
        walk, after, found = Walk(user, self.book), "", 0
        while walk.pages < PAGES_MAX and found < FOUND_MAX:
            reader = self.draw.choice(self.readers)
            size = self._size()
            freshness = self._freshness(user, [level for level in levels if level in reader.levels])
            try:
                page, asked = await self._page(walk, reader, size, freshness, after)
            except NoAnswer:
                self.walked.unanswered += self.is_counted
                return False
            except PageRefused as why:
                asked = Asked(time.monotonic(), size, freshness, reader.name)
                self.walked.find([refused(user, asked, walk.pages + 1, str(why))])
                return False
            verdicts = walk.judge(page, asked)
            found += len(verdicts)
            self.walked.find(verdicts)
            self._see(page, user)
            if not page.token:
                self.walked.finished += self.is_counted
                return True
            after = page.token
            await asyncio.sleep(self.draw.uniform(0, self.pause_s))
        return False

    def _see(self, page: Page, user: str) -> None:
        """Note what a page showed, for those who ask for the present after this."""
        now = time.monotonic()
        for row in page.rows:
            if row.user_id == user:
                self.book.see(user, row.order_id, row.version, at=now)

    def _size(self) -> int:
        """How many orders the next page is asked for: any number, larger ones more often than small ones."""
        if self.draw.random() < SMALL_SHARE:
            return self.draw.randint(1, SMALL_MAX)
        return max(self.draw.randint(1, PAGE_SIZE_MAX), self.draw.randint(1, PAGE_SIZE_MAX))

    def _freshness(self, user: str, levels: Sequence[Freshness]) -> Freshness:
        level = self.draw.choice(levels)
        # Whoever was told nothing has no token to show.
        return level if self.book.token(user) else Freshness.STRONG

    async def _page(
        self, walk: Walk, reader: Reader, size: int, freshness: Freshness, after: str
    ) -> tuple[Page, Asked]:
        """The next page, and as of when it was asked for.

        Raises: NoAnswer when it did not come in any of the tries; PageRefused.
        """
        tries = 0
        while True:
            tries += 1
            asked = Asked(time.monotonic(), size, freshness, reader.name)
            try:
                page = await reader.read(walk.user, asked, after, self.book.token(walk.user), timeout_s=TRY_S)
            except NoAnswer as failed:
                self.walked.failures[failed.why] += 1
                if tries >= TRIES_MAX:
                    raise
                self.walked.retries += 1
                ceiling_s = min(BACKOFF_S_MAX, BACKOFF_S * 2 ** (tries - 1))
                await asyncio.sleep(max(failed.retry_after_s, self.draw.uniform(0, ceiling_s)))
            else:
                if self.is_counted:
                    took_s = time.monotonic() - asked.at
                    self.walked.page(page, took_s, asked.freshness, asked.transport)
                return page, asked
