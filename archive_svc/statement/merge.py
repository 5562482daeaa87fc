"""One stream of orders out of several, each order once, and what they amount to."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from contextlib import AsyncExitStack, aclosing
from operator import itemgetter
from typing import TYPE_CHECKING

from archive_svc.errors import StatementIncomplete
from archive_svc.statement.wish import Total

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from archive_svc.statement.rows import Row

_PLACE = itemgetter(0, 1)
_PLACE_AND_VERSION = itemgetter(0, 1, 2)


async def merged(streams: Sequence[AsyncGenerator[list[Row], None]]) -> AsyncGenerator[list[Row], None]:
    """The orders of all streams by (created_at, order_id), in batches that are not empty.

    streams: each rises strictly; closed when this is. An order that two shards have, because its bucket was
    moved between them, is told once, by its higher version.

    Raises: StatementIncomplete when a stream does not rise, or two shards tell one version differently.
    """
    async with AsyncExitStack() as stack:
        heads = [_Head(await stack.enter_async_context(aclosing(stream))) for stream in streams]
        await _all_filled(heads)
        while live := [head for head in heads if head.rows]:
            until = min(_PLACE(head.rows[-1]) for head in live)
            taken = [head.take(until) for head in live]
            if len(live) == 1:
                yield taken[0]
            else:
                rows = sorted((row for part in taken for row in part), key=_PLACE_AND_VERSION)
                yield _once(rows)
            for head in live:
                await head.fill()


async def _all_filled(heads: Iterable[_Head]) -> None:
    """Fill them at once. Also when one fails, none is at work afterwards: only such can be closed."""
    filling = [asyncio.ensure_future(head.fill()) for head in heads]
    try:
        await asyncio.gather(*filling)
    finally:
        for each in filling:
            each.cancel()
        await asyncio.gather(*filling, return_exceptions=True)


class _Head:
    """The rows of a stream that come next; none when it is over."""

    def __init__(self, stream: AsyncGenerator[list[Row], None]) -> None:
        self._stream = stream
        self._last: tuple[int, str] | None = None
        self.rows: list[Row] = []

    async def fill(self) -> None:
        while not self.rows:
            batch = await anext(self._stream, None)
            if batch is None:
                return
            before = self._last
            for row in batch:
                place = _PLACE(row)
                if before is not None and not before < place:
                    raise StatementIncomplete(what="the order of the rows")
                before = place
            self._last = before
            self.rows = batch

    def take(self, until: tuple[int, str]) -> list[Row]:
        """Those up to and with a place."""
        count = bisect_right(self.rows, until, key=_PLACE)
        taken, self.rows = self.rows[:count], self.rows[count:]
        return taken


def _once(rows: Iterable[Row]) -> list[Row]:
    kept: list[Row] = []
    for row in rows:
        if not kept or kept[-1].order_id != row.order_id:
            kept.append(row)
        elif kept[-1].version == row.version and kept[-1]._replace(note="") != row._replace(note=""):
            raise StatementIncomplete(what="two tellings of one order")
        elif kept[-1].version < row.version or row.note:
            kept[-1] = row
    return kept


class Tally:
    """Counts orders and sums their amounts up, exactly, by currency and status."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[int]] = {}
        self._exponents: dict[str, int] = {}

    def add(self, rows: Iterable[Row]) -> None:
        """Count these, too. Raises: StatementIncomplete when a currency has two smallest units."""
        for row in rows:
            found = self._found.get((row.currency_code, row.status))
            if found is None:
                found = self._found[row.currency_code, row.status] = [0, 0]
            found[0] += 1
            found[1] += row.amount_minor
            if self._exponents.setdefault(row.currency_code, row.currency_exp) != row.currency_exp:
                raise StatementIncomplete(what=f"the smallest unit of {row.currency_code}")

    @property
    def orders(self) -> int:
        """How many there are."""
        return sum(orders for orders, _ in self._found.values())

    def exponent(self, currency: str) -> int:
        """How many digits the amounts of a currency have after the point."""
        return self._exponents[currency]

    def totals(self) -> tuple[Total, ...]:
        """What was counted, sorted by currency and status."""
        return tuple(
            Total(currency, status, orders, amount)
            for (currency, status), (orders, amount) in sorted(self._found.items())
        )
