"""Makes statements: reads every order once, writes the CSV as they come, then the PDF and the summary."""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from zoneinfo import ZoneInfo

from archive_svc.errors import UnknownShard
from archive_svc.statement import csv_file
from archive_svc.statement.bundle import BundleFile
from archive_svc.statement.fetching import Read
from archive_svc.statement.legs import READ_S_MAX
from archive_svc.statement.merge import Tally, merged
from archive_svc.statement.paper import paper, summary
from archive_svc.statement.plan import microseconds, pieces
from archive_svc.statement.rendering import pdf_of
from archive_svc.statement.wish import PDF, Bundle, Progress
from archive_svc.statement.words import WORDS
from chassis.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from archive_svc.statement.legs import ShardReader
    from archive_svc.statement.rows import Row
    from archive_svc.statement.wish import Wanted

    Tell = Callable[[Progress], Awaitable[None]]

T = TypeVar("T")
PDF_ROWS_MAX = 2000
CSV_NAME, PDF_NAME, SUMMARY_NAME = "orders.csv", "statement.pdf", "summary.txt"
LEFT_S = 86_400.0
"""A file that is older was left by a process that died."""


class StatementMaker:
    """Implements `wish.Maker`. readers: by shard.

    directory: where files are made, on a disk: the largest statement has gigabytes.
    bom:       whether the CSV begins with one.
    """

    def __init__(
        self, readers: Mapping[str, ShardReader], directory: Path | None = None, *, bom: bool = True
    ) -> None:
        self._readers = readers
        self._directory = directory or Path(tempfile.gettempdir())
        self._bom = bom

    async def make(self, wanted: Wanted, tell: Tell) -> Bundle:
        """As `wish.Maker`.

        Raises: StatementIncomplete when what was read does not add up; StorageUnavailable; OrdersMoved;
        OrdersUnsettled; StaleRoute; DeadlineExceeded; UnknownShard; what chassis.pg raises; OSError when the
        disk is full.
        """
        for shard in wanted.placements:
            if shard not in self._readers:
                raise UnknownShard(shard=shard)
        path = self._directory / f"statement-{wanted.statement_id}-{os.getpid()}-{os.urandom(4).hex()}.zip"
        file = BundleFile(path, wanted.as_of)
        try:
            await asyncio.to_thread(_sweep, path)
            return await _Making(wanted, file, tell).make(self._readers, bom=self._bom)
        except BaseException:
            file.discard()
            raise


class _Making:
    """One statement that is being made."""

    def __init__(self, wanted: Wanted, file: BundleFile, tell: Tell) -> None:
        self._wanted = wanted
        self._file = file
        self._tell = tell
        self._read = Read()
        self._tally = Tally()
        self._kept: list[Row] = []
        """For the PDF; none when there are too many."""
        self._ends = [microseconds(p.until) for p in pieces(wanted.since, wanted.until, ())]
        self._months = 0

    async def make(self, readers: Mapping[str, ShardReader], *, bom: bool) -> Bundle:
        wanted, tally, read = self._wanted, self._tally, self._read
        await self._progress()
        try:
            async with asyncio.timeout(READ_S_MAX):
                await self._orders(readers, bom=bom)
        except TimeoutError as late:
            raise DeadlineExceeded(limiter="statement") from late
        too_many = PDF in wanted.formats and tally.orders > PDF_ROWS_MAX
        note = WORDS[wanted.locale].too_many.format(most=f"{PDF_ROWS_MAX:,}") if too_many else ""
        said = paper(
            wanted,
            tally,
            self._kept,
            archived_rows=read.archived_rows,
            archived=read.archived,
            note=note,
        )
        if PDF in wanted.formats:
            await _in_thread(self._file.add, PDF_NAME, await pdf_of(said))
        text = summary(said, self._file.sha256, locale=wanted.locale)
        await _in_thread(self._file.add, SUMMARY_NAME, text.encode())
        size, sha256 = await _in_thread(self._file.close)
        return Bundle(self._file.path, size, sha256, tally.orders, tally.totals(), note)

    async def _orders(self, readers: Mapping[str, ShardReader], *, bom: bool) -> None:
        """Write the CSV while orders are read."""
        zone = ZoneInfo(self._wanted.time_zone)
        streams = [readers[shard].rows(self._wanted, self._read) for shard in self._wanted.placements]
        with self._file.entry(CSV_NAME) as write:
            write((csv_file.BOM if bom else b"") + csv_file.header())
            async with aclosing(merged(streams)) as batches:
                async for batch in batches:
                    await _in_thread(self._take, batch, zone, write)
                    await self._progress(batch[-1].created_us)
        await self._progress(self._ends[-1])

    def _take(self, batch: list[Row], zone: ZoneInfo, write: Callable[[bytes], None]) -> None:
        write(csv_file.lines(batch, zone))
        self._tally.add(batch)
        if PDF not in self._wanted.formats or self._tally.orders > PDF_ROWS_MAX:
            self._kept = []
        else:
            self._kept += batch

    async def _progress(self, at_us: int | None = None) -> None:
        """Say how far it is: every month that ends by then is read."""
        if at_us is not None:
            self._months = sum(1 for end in self._ends if end <= at_us)
        read = self._read
        await self._tell(Progress(self._months, len(self._ends), read.rows, read.archive_bytes))


async def _in_thread(work: Callable[..., T], *args: object) -> T:
    """What a thread makes of this. If cancelled here: it has ended before, so that nobody writes any more."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _sweep(mine: Path) -> None:
    """Remove what processes that died left beside a file that was just made."""
    newest = mine.stat().st_mtime
    for other in mine.parent.glob("statement-*.zip"):
        with suppress(FileNotFoundError, PermissionError):
            if other != mine and newest - other.stat().st_mtime > LEFT_S:
                other.unlink()
