"""The page: a merge of what several stores know about one user's orders. Pure: no I/O, no clock.

Every source returns rows newest first and says how far down it is complete. Nothing is emitted below the
point down to which all sources are complete, so a page is never short of a row that a slower or smaller
source would have had in between.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from chassis.errors import PageTokenInvalid
from history_svc.document import matches_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PAGE_SIZE_DEFAULT = 20
PAGE_SIZE_MAX = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_POSITION = struct.Struct(">q16s")
_CREATED_US_MAX = 253_402_300_799_999_999
"""The last microsecond of the year 9999, where datetime ends."""


class Key(NamedTuple):
    """Where an order stands in a user's list; a greater key is newer and comes first."""

    created_at: datetime
    order_id: UUID


NEWEST = Key(datetime(9999, 12, 31, tzinfo=UTC), UUID(int=(1 << 128) - 1))
"""Above every order."""
OLDEST = _EPOCH
"""Below every order: ids carry unix milliseconds."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which orders a list shows; what is None or empty excludes nothing.

    amount_min, amount_max: minor units, both included, together with a currency. asked: words, as
    `text.words` makes them.
    """

    status: str | None = None
    kind: str | None = None
    currency_code: str | None = None
    amount_min: int | None = None
    amount_max: int | None = None
    asked: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether every order passes."""
        return self == EVERY_ORDER

    def shows(self, columns: Any) -> bool:
        """Whether an order's row passes; the same answer as the read model's search gives."""
        if self.status is not None and columns["status"] != self.status:
            return False
        if self.kind is not None and columns["kind"] != self.kind:
            return False
        if self.currency_code is not None and columns["currency_code"] != self.currency_code:
            return False
        if self.amount_min is not None and columns["amount_minor"] < self.amount_min:
            return False
        if self.amount_max is not None and columns["amount_minor"] > self.amount_max:
            return False
        return not self.asked or matches_words(columns["description"], self.asked)


EVERY_ORDER = Filter()


@dataclass(frozen=True, slots=True)
class Window:
    """Which orders a page may show: below `before`, not older than `not_before`, those that pass the filter.

    user_id: whose; None for everybody's.
    """

    user_id: str | None
    before: Key
    not_before: datetime
    filter: Filter = EVERY_ORDER


@dataclass(frozen=True, slots=True)
class Row:
    """One order as one source has it."""

    key: Key
    version: int
    columns: Any


@dataclass(frozen=True, slots=True)
class Source:
    """What one store answered.

    rows: newest first, all below the position that was asked for. horizon: the source has every order down to
    and including this key; None when it has no more at all.
    """

    rows: Sequence[Row]
    horizon: Key | None


@dataclass(frozen=True, slots=True)
class Page:
    """Rows to show, newest first, and where the next page begins; None at the end of the list."""

    rows: tuple[Row, ...]
    next_after: Key | None


def effective_page_size(asked: int) -> int:
    """The size of a page: the default when none is asked for, never more than the maximum."""
    return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def source_of(rows: Sequence[Row], limit: int) -> Source:
    """What a store knows that was asked for at most `limit` rows: a full answer ends at its last row, a
    shorter one is all there is.
    """
    return Source(rows, rows[-1].key if len(rows) >= limit else None)


def merge(sources: Iterable[Source], size: int, wanted: Filter = EVERY_ORDER) -> Page:
    """Merge sources into one page.

    Of an order that several sources have, the greatest version is shown: the read model may be behind a
    shard, and during a move of a bucket two shards may hold it. Whether it passes the filter is decided on
    that version alone. With sources that were asked for enough rows, the page holds `size` rows unless the
    list ends.
    """
    sources = list(sources)
    horizon = max((source.horizon for source in sources if source.horizon is not None), default=None)
    newest: dict[Key, Row] = {}
    for row in (row for source in sources for row in source.rows):
        seen = newest.get(row.key)
        if (horizon is None or row.key >= horizon) and (seen is None or row.version > seen.version):
            newest[row.key] = row
    passing = (row for row in newest.values() if wanted.is_plain or wanted.shows(row.columns))
    ordered = sorted(passing, key=lambda row: row.key, reverse=True)
    shown = tuple(ordered[:size])
    return Page(shown, _next_after(shown, len(ordered) > size, horizon))


def _next_after(shown: tuple[Row, ...], cut: bool, horizon: Key | None) -> Key | None:
    if cut:
        return shown[-1].key
    return horizon


def pack(key: Key) -> bytes:
    """A position as the 24 bytes that a page token carries."""
    return _POSITION.pack((key.created_at - _EPOCH) // timedelta(microseconds=1), key.order_id.bytes)


def unpack(position: bytes) -> Key:
    """The position in a page token.

    Raises: PageTokenInvalid when it is none.
    """
    if len(position) != _POSITION.size:
        raise PageTokenInvalid
    created_us, raw = _POSITION.unpack(position)
    if not 0 <= created_us <= _CREATED_US_MAX:
        raise PageTokenInvalid
    return Key(_EPOCH + timedelta(microseconds=created_us), UUID(bytes=raw))
