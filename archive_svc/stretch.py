"""Rows of many parts out of one COPY, which sorts them once: a part by itself costs a page read for each row.

A COPY sorts on the server's disk, and while it runs, no row that died in the shard can be vacuumed: both
are what bounds a stretch. The next one sorts while this one's rows are encoded, so that nobody waits for it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple, Self

from archive_svc import points
from archive_svc.ahead import ended, in_thread
from archive_svc.catalog import QUERIES
from archive_svc.columns import COPY_OPTIONS, JOURNAL, ORDERS
from archive_svc.segment import RowsRefused
from chassis import faults

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from archive_svc.codec.writer import SegmentWriter
    from archive_svc.columns import Shape
    from archive_svc.entries import Part
    from archive_svc.throttle import Throttle
    from chassis.pg import Session

BLOCK_BYTES = 1024 * 1024
"""Of CSV; so much is encoded at once, while it lies in the caches of the processor."""
BLOCKS_AHEAD = 2
"""Of each COPY, beside the one that is being filled."""
COPY_S_MAX = 1800.0
SESSION = {
    "statement_timeout": "1800000",
    "lock_timeout": "60000",
    # Whatever the statistics say: orders are found by their index, and a journal's rows by their key, unless
    # a statement leaves no way but to read all of it. No plan takes a second core from those who order.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    # More makes sorting slower, since it leaves the caches of the processor; less would merge twice.
    "work_mem": "16MB",
}
"""Of the sessions that export."""
PARTS_MAX = 8
"""Of a stretch: a GiB of rows where a part is 128 MiB."""
SCANS_MAX = 4
"""So often the whole journal of a month is read; with more stretches it is quicker to look its rows up."""
STRETCH_S_MAX = 300.0
"""A stretch that would take longer, as the throttle lets rows pass, is a shorter one."""
ROW_BYTES = 400
"""About so many has a row in CSV."""
_BEGUN = 3
"""Stretches of which COPY runs: the one of the orders, of their journal, and the next one."""


class Stretch(NamedTuple):
    """Parts that follow each other, of whose rows in one table there is no segment yet."""

    shape: Shape
    parts: tuple[Part, ...]


def stretches(parts: Sequence[Part], there: Collection[tuple[int, str]], *, rows_max: float) -> list[Stretch]:
    """What to copy at once, in the order in which it is needed when part goes after part, orders first.

    there: (number, table) of what is not to be copied. rows_max: of a stretch, unless it is one part.
    """
    found: list[Stretch] = []
    for window in _windows(parts, rows_max):
        runs = [Stretch(shape, run) for shape in (ORDERS, JOURNAL) for run in _runs(shape, window, there)]
        found += sorted(runs, key=lambda each: (each.parts[0].number, each.shape is JOURNAL))
    return found


def is_scan(wanted: Sequence[Stretch], parts: int) -> bool:
    """Whether reading the whole journal for each of these stretches is quicker than looking its rows up.

    parts: of the month.
    """
    journals = [each for each in wanted if each.shape is JOURNAL]
    return len(journals) * parts <= SCANS_MAX * sum(len(each.parts) for each in journals)


def _runs(
    shape: Shape, window: Sequence[Part], there: Collection[tuple[int, str]]
) -> Iterator[tuple[Part, ...]]:
    run: list[Part] = []
    for part in window:
        if (part.number, shape.table) not in there:
            run.append(part)
        elif run:
            yield tuple(run)
            run = []
    if run:
        yield tuple(run)


def _windows(parts: Sequence[Part], rows_max: float) -> list[list[Part]]:
    windows: list[list[Part]] = []
    rows = 0
    for part in parts:
        rows += part.order_count + part.journal_count
        if not windows or len(windows[-1]) == PARTS_MAX or rows > rows_max:
            windows.append([])
            rows = part.order_count + part.journal_count
        windows[-1].append(part)
    return windows


def rows_of(stretch: Stretch, *, scan: bool) -> str:
    """The statement that gives the rows of a stretch, in the order of their key. $1 to $6: after, until.

    scan: read a journal from one end to the other instead of looking up the rows of each order.
    """
    shape, (part, *_) = stretch
    template: str = QUERIES.orders_of_parts
    if shape is JOURNAL:
        template = QUERIES.journal_of_parts if scan else QUERIES.journal_of_orders
    alias = "o" if shape is ORDERS else "j"
    return template.format(
        orders=part.orders_table,
        journal=part.journal_table,
        columns=shape.select_list(alias),
        order=shape.order_by(alias),
    )


class Rows:
    """Gives out the rows of stretches, part by part, in their order. An async context; for one task.

    sessions: opens a session for COPY, with the settings of SESSION. scan: as `rows_of` takes it.
    """

    def __init__(
        self,
        sessions: Callable[[], AbstractAsyncContextManager[Session]],
        throttle: Throttle,
        wanted: Sequence[Stretch],
        *,
        scan: bool,
    ) -> None:
        self._throttle = throttle
        self._copies: list[_Copy] = []
        for each in wanted:
            before = self._copies[-1] if self._copies else None
            self._copies.append(_Copy(each, rows_of(each, scan=scan), sessions, before))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await ended(*(copy.task for copy in self._copies))

    async def fill(self, writer: SegmentWriter, part: Part, shape: Shape) -> None:
        """Write all rows of a part. Raises: RowsRefused; what chassis.pg raises."""
        place, copy = next(
            (place, copy)
            for place, copy in enumerate(self._copies)
            if copy.stretch.shape is shape and part in copy.stretch.parts
        )
        for each in self._copies[place : place + _BEGUN]:
            each.begin()
        await copy.fill(writer, part, self._throttle)


class _Copy:
    """One COPY. before: the one that has to have sorted its rows before this one begins to."""

    def __init__(
        self,
        stretch: Stretch,
        statement: str,
        sessions: Callable[[], AbstractAsyncContextManager[Session]],
        before: _Copy | None,
    ) -> None:
        self.stretch = stretch
        self.task: asyncio.Task[None] | None = None
        self._statement = statement
        self._sessions = sessions
        self._before = before
        self._has_sorted = asyncio.Event()
        self._blocks: asyncio.Queue[bytes] = asyncio.Queue(BLOCKS_AHEAD)
        self._block = bytearray()
        self._rest = b""
        self._is_over = False

    def begin(self) -> None:
        """Let it run, once."""
        if self.task is None:
            self.task = asyncio.create_task(self._copy(), name=f"copy.{self.stretch.shape.table}")

    async def fill(self, writer: SegmentWriter, part: Part, throttle: Throttle) -> None:
        """Write the rows of its next part."""
        block, self._rest = self._rest, b""
        while block or (block := await self._next(throttle)):
            if rest := await in_thread(writer.add, block, part.until):
                self._rest = rest
                break
            block = b""
        if self._rest and part == self.stretch.parts[-1]:
            raise RowsRefused(f"rows of {self.stretch.shape.table} lie beyond the last part")

    async def _next(self, throttle: Throttle) -> bytes:
        """The next block of whole rows; nothing from their end on. Raises: what COPY raised."""
        assert self.task is not None
        if self._is_over:
            return b""
        taking = asyncio.create_task(self._blocks.get(), name="take")
        try:
            await asyncio.wait((taking, self.task), return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                await self.task
            block = await taking
        finally:
            await ended(taking)
        self._is_over = not block
        await throttle.take(len(block))
        return block

    async def _copy(self) -> None:
        if self._before is not None:
            await self._before.has_sorted()
        parts = self.stretch.parts
        after, until = parts[0].after, parts[-1].until
        try:
            async with self._sessions() as session:
                await session.copy_out(
                    self._statement,
                    *(after.user_id, after.created_at, after.order_id),
                    *(until.user_id, until.created_at, until.order_id),
                    sink=self._take,
                    options=COPY_OPTIONS,
                    timeout_s=COPY_S_MAX,
                )
        finally:
            self._has_sorted.set()
        if self._block:
            await self._blocks.put(bytes(self._block))
        await self._blocks.put(b"")

    async def has_sorted(self) -> None:
        """Return when it gives rows, or will give none."""
        await self._has_sorted.wait()

    async def _take(self, chunk: bytes) -> None:
        await faults.point(points.AFTER_FIRST_CHUNK)
        self._has_sorted.set()
        self._block += chunk
        if len(self._block) >= BLOCK_BYTES:
            block, self._block = bytes(self._block), bytearray()
            await self._blocks.put(block)
