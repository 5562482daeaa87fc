"""Archiving rows: a segment written and proven per second, beside COPY of the same rows drained to nothing.

    python -m benchmarks.archive_codec [--orders 200000] [--no-write]

Starts a Postgres of its own, seeds one month and stops it at the end; takes about three minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from archive_svc.codec.proof import prove
from archive_svc.codec.writer import SegmentWriter
from archive_svc.columns import COPY_OPTIONS, SHAPES
from archive_svc.stretch import BLOCK_BYTES
from benchmarks import report
from ops import places, ports, seed
from ops.cli.calls import quietly
from ops.errors import OpsError
from ops.postgres import PostgresServer
from ops.seed import Plan
from ops.stack.databases import schema_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from archive_svc.columns import Shape
    from archive_svc.segment import Segment

RESULTS = Path(__file__).parent / "ARCHIVE.md"
SHARD = "s1"
ROUNDS = 5
"""Of each measurement, in turns; the quickest one counts, and the highest memory."""
STATUS = Path("/proc/self/status")
PEAK_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Cost:
    """What some rows took: seconds, CPU seconds of this process, and by how much its memory rose at most."""

    seconds: float
    cpu_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Line:
    """One measurement of one shape."""

    shape: str
    name: str
    rows: int
    cost: Cost
    of_copy: float


@asynccontextmanager
async def seeded(directory: Path, orders: int) -> AsyncIterator[Any]:
    """A session on a shard with that many orders of a month that is over."""
    postgres = PostgresServer(places.data_directory(directory, "bench"), ports.free_port())
    await postgres.start()
    try:
        await postgres.create_database(SHARD)
        for script in schema_of("shard"):
            await postgres.run_sql(SHARD, script.read_text(encoding="utf-8"))
        dsn = postgres.dsn(SHARD)
        session = await asyncpg.connect(dsn, server_settings={"search_path": "ordermesh, public"})
        try:
            await session.execute("SELECT ordermesh.identify_shard($1)", SHARD)
            await session.execute("SELECT ordermesh.own_buckets(0, 4095, $1)", SHARD)
            plan = Plan(users=max(1, orders // 20), orders=orders, months=1, heavy_share=0.1)
            await seed.run(plan, {SHARD: dsn}, {})
            await session.execute("VACUUM (ANALYZE) orders, order_journal")
            yield session
        finally:
            await session.close()
    finally:
        await postgres.stop()


async def copied(session: Any, shape: Shape, take: Callable[[bytes], Awaitable[None]]) -> None:
    """COPY every row of a table, in the order of a segment."""
    sql = f"SELECT {shape.select_list('t')} FROM {shape.table} AS t ORDER BY {shape.order_by('t')}"
    await session.copy_from_query(sql, output=take, **COPY_OPTIONS)


async def drained(session: Any, shape: Shape) -> list[bytes]:
    """The same, to nothing."""

    async def take(_: bytes) -> None:
        pass

    await copied(session, shape, take)
    return []


async def kept(session: Any, shape: Shape) -> list[bytes]:
    """The rows in blocks, for what is measured without Postgres."""
    blocks, block = [], bytearray()

    async def take(data: bytes) -> None:
        block.extend(data)
        if len(block) >= BLOCK_BYTES:
            blocks.append(bytes(block))
            block.clear()

    await copied(session, shape, take)
    return [*blocks, bytes(block)]


async def exported(session: Any, shape: Shape) -> Segment:
    """The rows as a segment, a block of them after the other, as the exporter does."""
    writer = SegmentWriter(shape, {"shard": SHARD})
    block = bytearray()

    async def take(data: bytes) -> None:
        block.extend(data)
        if len(block) >= BLOCK_BYTES:
            await asyncio.to_thread(writer.add, bytes(block))
            block.clear()

    await copied(session, shape, take)
    await asyncio.to_thread(writer.add, bytes(block))
    return await asyncio.to_thread(writer.close)


def encoded(shape: Shape, blocks: list[bytes]) -> Segment:
    """A segment of rows that are already here."""
    writer = SegmentWriter(shape, {"shard": SHARD})
    for block in blocks:
        writer.add(block)
    return writer.close()


async def cost(work: Callable[[], Awaitable[Any]]) -> Cost:
    """What some work takes."""
    if PEAK_RESET.exists():
        PEAK_RESET.write_text("5", encoding="ascii")
    before, started, used = own_bytes("VmRSS"), time.perf_counter(), time.process_time()
    await work()
    return Cost(time.perf_counter() - started, time.process_time() - used, own_bytes("VmHWM") - before)


def own_bytes(name: str) -> int:
    """What /proc says of this process's memory under a name, in bytes; 0 where there is none."""
    if not STATUS.exists():
        return 0
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


async def measured(session: Any, shape: Shape) -> tuple[list[Line], Segment]:
    """All figures of one shape."""

    async def export() -> Segment:
        return await exported(session, shape)

    async def export_and_prove() -> None:
        there = await exported(session, shape)
        await asyncio.to_thread(prove, shape, there.body, there.facts)

    with_copy = {
        "COPY, drained": lambda: drained(session, shape),
        "COPY into a segment": export,
        "COPY into a segment, then the proof": export_and_prove,
    }
    costs = await best(with_copy)
    blocks, segment = await kept(session, shape), await export()

    async def encode() -> None:
        encoded(shape, blocks)

    async def proof() -> None:
        prove(shape, segment.body, segment.facts)

    costs |= await best({"add and close, rows in memory": encode, "prove": proof})
    copy_s = costs["COPY, drained"].seconds
    rows = segment.facts.rows
    return [
        Line(shape.table, name, rows, each, copy_s / each.seconds) for name, each in costs.items()
    ], segment


async def best(works: Mapping[str, Callable[[], Awaitable[Any]]]) -> dict[str, Cost]:
    """What each takes: the quickest of some rounds in turns, and the highest memory of all of them."""
    rounds = [{name: await cost(work) for name, work in works.items()} for _ in range(ROUNDS)]
    return {
        name: replace(
            min((each[name] for each in rounds), key=lambda cost: cost.seconds),
            peak_bytes=max(each[name].peak_bytes for each in rounds),
        )
        for name in works
    }


def page(lines: list[Line], segments: dict[str, Segment], facts: dict[str, str]) -> str:
    """The whole of ARCHIVE.md."""
    text = [
        "# Archive",
        "",
        "Written by `python -m benchmarks.archive_codec`; method and caveats in [README.md](README.md).",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "## Rows into a segment, and the proof of one",
        "",
        "| rows of | what | rows/s | of COPY drained | CPU us a row, here | MiB above the start |",
        "|:--|:--|--:|--:|--:|--:|",
        *(_measured_row(line) for line in lines),
        "",
        "## Segments",
        "",
        "| rows of | rows | CSV bytes a row | bytes a row | row groups | KiB of a group | footer KiB |",
        "|:--|--:|--:|--:|--:|--:|--:|",
        *(_segment_row(name, segment) for name, segment in segments.items()),
    ]
    return "\n".join(text) + "\n"


def _measured_row(line: Line) -> str:
    cells = (
        line.shape,
        line.name,
        f"{line.rows / line.cost.seconds:.0f}",
        f"{line.of_copy:.2f}",
        f"{1e6 * line.cost.cpu_s / line.rows:.2f}",
        f"{line.cost.peak_bytes / 2**20:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _segment_row(name: str, segment: Segment) -> str:
    facts = segment.facts
    sizes = [group.size_bytes / 1024 for group in facts.groups]
    cells = (
        name,
        str(facts.rows),
        f"{facts.stream_bytes / facts.rows:.0f}",
        f"{facts.size_bytes / facts.rows:.1f}",
        str(len(sizes)),
        f"{min(sizes):.0f} to {max(sizes):.0f}",
        f"{facts.footer_bytes / 1024:.0f}",
    )
    return f"| {' | '.join(cells)} |"


async def measure(directory: Path, orders: int) -> str:
    """Every measurement, as a page."""
    async with seeded(directory, orders) as session:
        facts = report.machine(f"{await session.fetchval('SHOW server_version')}, fsync on")
        facts["pyarrow"] = version("pyarrow")
        lines: list[Line] = []
        segments: dict[str, Segment] = {}
        for shape in SHAPES.values():
            more, segments[shape.table] = await measured(session, shape)
            lines += more
    return page(lines, segments, facts)


def main() -> None:
    """Read the options, measure, write ARCHIVE.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--orders", type=int, default=200_000, help="orders of the month")
    parser.add_argument("--no-write", action="store_true", help="print instead of writing ARCHIVE.md")
    wanted = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=places.user_root()))
    directory.chmod(0o755)
    try:
        text = quietly(measure(directory, wanted.orders))
    except OpsError as failed:
        sys.exit(f"error: {failed}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if wanted.no_write:
        print(text)
    else:
        # Below it stands what `benchmarks.archive_statements` wrote.
        _, heading, below = RESULTS.read_text(encoding="utf-8").partition("\n## Statements\n")
        RESULTS.write_text(text + heading + below, encoding="utf-8")
        print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
