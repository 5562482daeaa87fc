"""Whether a page is right: held against what was promised and against the pages before it. Pure.

The pages of a walk share out the list between them. So each page answers for its own stretch: from the last
row of the page before down to its own last row, and when nothing follows to the very end, or to where it
says that the archive begins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from ops.audit.findings import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ops.load.walk.book import Book, Freshness

_ID_TIME_SHIFT: Final = 80
OVERLAY_MAX: Final = 500
"""Of so many changed orders a page shows those that it has room for, and ends there."""
KINDS: Final = {
    "w1_missing": "Every order acknowledged before a page was asked for is on the page of its place.",
    "w2_twice": "No walk shows an order twice.",
    "w3_order": "A walk is strictly descending by time and order id, over all its pages.",
    "w4_stale": "No row is older than what the reader was told, or than what was seen before by one who asks "
    "for the present.",
    "w5_foreign": "A list shows its user's orders and nobody else's.",
    "w6_short": "Every page but the last one is full.",
    "w7_content": "A version has the labels that its writer was told.",
    "w8_unasked": "Every order of a list was acknowledged, was there before, or was asked for.",
    "w9_refused": "A page token that the mesh gave is one that it takes.",
}
"""What is checked of every page."""


class Row(NamedTuple):
    """One order as a page shows it."""

    order_id: str
    user_id: str
    request_id: str
    created_us: int
    version: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Page:
    """One answer. token: of the page after it; empty on the last. lag_s: None when nobody knows. archived_us:
    what was created before it is archived, says the last page; 0 when nothing is.
    """

    rows: Sequence[Row]
    token: str
    served_by: str
    overlay: int
    lag_s: float | None
    unreachable: Sequence[str] = ()
    archived_us: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a page was asked to be. at: when, on the book's clock."""

    at: float
    size: int
    freshness: Freshness
    transport: str


class Verdict(NamedTuple):
    """One violation: which check it breaks, and how."""

    kind: str
    broken: Broken


@dataclass(slots=True)
class Walk:
    """One walk through a history, page by page."""

    user: str
    book: Book
    pages: int = 0
    rows: int = 0
    _last: Row | None = field(default=None, init=False)
    _shown: set[str] = field(default_factory=set, init=False)

    def judge(self, page: Page, asked: Asked) -> list[Verdict]:
        """What is wrong with the next page of the walk; in its order, and nothing twice."""
        where = f"{asked.transport} {asked.freshness.lower()} page {self.pages + 1}, {page.served_by}"
        found = [
            Verdict(kind, Broken(where, order_id or self.user, fact))
            for kind, order_id, fact in (
                *self._of_itself(page, asked),
                *self._of_promises(page, asked),
            )
        ]
        self.pages += 1
        self.rows += len(page.rows)
        self._shown.update(row.order_id for row in page.rows)
        if page.rows:
            self._last = page.rows[-1]
        return found

    def _of_itself(self, page: Page, asked: Asked) -> Iterator[tuple[str, str, str]]:
        """What a page and those before it say of each other."""
        before, shown = self._last, set(self._shown)
        for row in page.rows:
            if row.user_id != self.user:
                yield "w5_foreign", row.order_id, f"on {self.user}'s list, belongs to {row.user_id}"
            if row.order_id in shown:
                yield "w2_twice", row.order_id, f"shown again to {self.user}"
            elif before is not None and (row.created_us, row.order_id) >= (
                before.created_us,
                before.order_id,
            ):
                yield "w3_order", row.order_id, f"after the older {before.order_id}"
            shown.add(row.order_id)
            before = row
        if len(page.rows) > asked.size:
            yield "w6_short", "", f"{len(page.rows)} rows where at most {asked.size} were asked for"
        if page.token and len(page.rows) < asked.size and page.overlay < OVERLAY_MAX:
            yield "w6_short", "", f"{len(page.rows)} rows of {asked.size}, and more to come"

    def _of_promises(self, page: Page, asked: Asked) -> Iterator[tuple[str, str, str]]:
        """What a page says against what was promised for its stretch."""
        book, shown = self.book, {row.order_id: row for row in page.rows}
        low = min(shown, default="") if page.token else _first_id(page.archived_us)
        stretch = {"above": low, "below": self._last.order_id if self._last is not None else ""}
        for promise in book.promised(self.user, asked_at=asked.at, freshness=asked.freshness, **stretch):
            row = shown.get(promise.order_id)
            if row is None:
                if page.token and not shown:
                    continue  # An empty page in between answers for no stretch; it is short.
                yield "w1_missing", promise.order_id, f"version {promise.version} was promised to {self.user}"
            elif row.version < promise.version:
                fact = f"shown at version {row.version}, {promise.version} was promised"
                yield "w4_stale", promise.order_id, fact
        for row in page.rows:
            labels = book.labels(self.user, row.order_id, row.version)
            if labels is not None and dict(row.labels) != dict(labels):
                shows, was = _short(row.labels), _short(labels)
                yield "w7_content", row.order_id, f"version {row.version} shows {shows}, was told {was}"
            if row.user_id == self.user and not book.is_known(self.user, row.order_id, row.request_id):
                yield "w8_unasked", row.order_id, f"nobody asked for request {row.request_id}"


def refused(user: str, asked: Asked, page: int, why: str) -> Verdict:
    """The violation of a page that the mesh would not take back its own token for."""
    where = f"{asked.transport} {asked.freshness.lower()} page {page}"
    return Verdict("w9_refused", Broken(where, user, why))


def _short(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))[:120] or "no labels"


def _first_id(created_us: int) -> str:
    """Below every order id of an instant and later, at or above those before; empty for the beginning."""
    return str(UUID(int=created_us // 1000 << _ID_TIME_SHIFT)) if created_us else ""
