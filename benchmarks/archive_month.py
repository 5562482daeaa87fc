"""A month's way into the archive, beside COPY of the same rows to nothing: rows per second, and the memory.

    python -m benchmarks.archive_month [--orders 1000000] [--traffic [--seconds 20] [--per-s 100]]

Starts a Postgres and a SeaweedFS of its own, makes the rows in SQL, and stops both at the end. A million
orders take about three minutes, ten million half an hour and 12 GB of disk. Prints the table for README.md.
With --traffic: orders of today in the same shard, in turns with an archive that runs and without.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg

from archive_svc.ahead import ended
from archive_svc.catalog import Catalog
from archive_svc.columns import COPY_OPTIONS, SHAPES
from archive_svc.export import Exporter
from archive_svc.lifecycle import State
from archive_svc.settings import ArchiveSettings
from archive_svc.stretch import SESSION
from archive_svc.throttle import Throttle
from archive_svc.verify import Verifier
from benchmarks import cpu, pgbench, report
from benchmarks.archive_codec import cost, own_bytes
from chassis import pg
from chassis.clock import SYSTEM_CLOCK
from chassis.s3 import S3Settings, open_store
from chassis.s3.settings import MIB
from ops import places, ports
from ops.cli.calls import quietly
from ops.errors import OpsError
from ops.postgres import PostgresServer
from ops.seaweedfs import PORTS, SeaweedServer
from ops.stack.databases import schema_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from archive_svc.lifecycle import Month
    from benchmarks.sample import Sample

QUERIES = pg.queries("benchmarks", "archive_month.sql")
MONTH = date(2023, 8, 1)
FIRST_MS = int(datetime(2023, 8, 1, tzinfo=UTC).timestamp() * 1000)
ORDERS_A_USER = 20
MAKE_S_MAX = 3600.0
PATIENT = {"statement_timeout": "3600000", "lock_timeout": "60000"}
LEASE = timedelta(hours=2)
SHARD = "s1"
UNBOUNDED = 1e12
CLIENTS = 4
TURNS = 4
"""Of traffic without an archive, and as many with one."""


async def filled(session: Any, orders: int) -> int:
    """Make the month's rows; how many there are, in both tables."""
    for sql in (
        "SELECT ordermesh.identify_shard('s1')",
        "SELECT ordermesh.own_buckets(0, 4095, 's1')",
        "SELECT ordermesh.ensure_month('2023-08-15Z')",
        "SET session_replication_role = replica",
        *(f"ALTER TABLE ordermesh.{table}_2023_08 DISABLE TRIGGER ALL" for table in SHAPES),
    ):
        await session.execute(sql)
    users = max(1, orders // ORDERS_A_USER)
    await session.execute(QUERIES.orders, orders, users, FIRST_MS, timeout=MAKE_S_MAX)
    await session.execute(QUERIES.journal, timeout=MAKE_S_MAX)
    for table in SHAPES:
        await session.execute(f"ALTER TABLE ordermesh.{table}_2023_08 ENABLE ALWAYS TRIGGER fence")
        await session.execute(f"VACUUM (ANALYZE) ordermesh.{table}_2023_08", timeout=MAKE_S_MAX)
    return int(
        await session.fetchval(
            "SELECT (SELECT count(*) FROM ordermesh.orders_2023_08)"
            " + (SELECT count(*) FROM ordermesh.order_journal_2023_08)",
            timeout=MAKE_S_MAX,
        )
    )


async def to_nowhere(session: Any) -> None:
    """COPY both tables to a file that keeps nothing; no process but Postgres has a part in it."""
    for table in SHAPES:
        await session.execute(
            f"COPY ordermesh.{table}_2023_08 TO '/dev/null' (FORMAT csv)", timeout=MAKE_S_MAX
        )


async def drained(session: Any) -> None:
    """COPY the text that is archived of both tables, as they lie, to a client that throws it away."""

    async def take(_: bytes) -> None:
        pass

    for shape in SHAPES.values():
        sql = f"SELECT {shape.select_list('t')} FROM ordermesh.{shape.table}_2023_08 AS t"
        await session.copy_from_query(sql, output=take, timeout=MAKE_S_MAX, **COPY_OPTIONS)


class Way:
    """The steps of the month, one by one."""

    def __init__(
        self, catalog: Catalog, exporter: Exporter, verifier: Verifier, fence: int, session: Any
    ) -> None:
        self.catalog = catalog
        self.exporter = exporter
        self.verifier = verifier
        self.fence = fence
        self.session = session
        self.rounds = 0

    async def month(self) -> Month:
        """As it stands."""
        return (await self.catalog.months())[0]

    async def freeze_and_plan(self) -> None:
        """Freeze it and cut it into parts."""
        await self.catalog.want(MONTH, uuid4(), State.VERIFIED, "benchmark", "to be measured")
        found = await self.catalog.freeze(await self.month(), self.fence, datetime.now(UTC))
        assert not found, found
        await self.catalog.plan(await self.month(), self.fence, 128 * MIB)

    async def export(self) -> None:
        """Store every part."""
        month = await self.month()
        await self.exporter.export(month, self.fence)
        await self.catalog.move(month, self.fence, State.EXPORTED)

    async def verify(self) -> None:
        """Read all of it back, compare it, and prove the month."""
        month = await self.month()
        assert await self.verifier.verify(month, self.fence)
        found = await self.catalog.prove(month, self.fence)
        assert not found, found

    async def round_and_round(self) -> None:
        """Export and prove the month again and again; begins where an earlier call was cancelled."""
        while True:
            if (await self.month()).state is State.PLANNED:
                await self.export()
            await self.verify()
            await self.session.execute(QUERIES.forget)
            self.rounds += 1


@dataclass(frozen=True, slots=True)
class Bench:
    """A month in a Postgres, and an S3 to take it to. rows: in both tables."""

    postgres: PostgresServer
    session: Any
    way: Way
    rows: int

    async def spent(self, work: Callable[[], Awaitable[None]]) -> Spent:
        """What some work takes."""
        pid = self.postgres.pid
        assert pid is not None
        postgres_s, all_s = cpu.tree_s(pid), cpu.below_s(os.getpid())
        before = own_bytes("VmRSS")
        here = await cost(work)
        postgres_s, all_s = cpu.tree_s(pid) - postgres_s, cpu.below_s(os.getpid()) - all_s
        return Spent(here.seconds, here.cpu_s, postgres_s, all_s - postgres_s, before + here.peak_bytes)


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds, CPU seconds of each process, and the highest resident size of this one, all of it."""

    seconds: float
    here_s: float
    postgres_s: float
    s3_s: float
    resident_bytes: int

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all."""
        return self.here_s + self.postgres_s + self.s3_s

    def half(self) -> Spent:
        """Of what was done twice."""
        return Spent(
            self.seconds / 2, self.here_s / 2, self.postgres_s / 2, self.s3_s / 2, self.resident_bytes
        )

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.seconds + other.seconds,
            self.here_s + other.here_s,
            self.postgres_s + other.postgres_s,
            self.s3_s + other.s3_s,
            max(self.resident_bytes, other.resident_bytes),
        )


@asynccontextmanager
async def prepared(directory: Path, orders: int, bytes_per_s: float) -> AsyncIterator[Bench]:
    """Make the month. bytes_per_s: of the archive's throttle."""
    async with AsyncExitStack() as stack:
        postgres = PostgresServer(places.data_directory(directory, "bench"), ports.free_port())
        await postgres.start()
        stack.push_async_callback(postgres.stop)
        weed = SeaweedServer(
            places.data_directory(directory, "s3", kind="servers"), *(ports.free_port() for _ in PORTS)
        )
        await weed.start()
        stack.push_async_callback(weed.stop)
        await postgres.create_database(SHARD)
        for script in schema_of("shard"):
            await postgres.run_sql(SHARD, script.read_text(encoding="utf-8"))
        session = await asyncpg.connect(
            postgres.dsn(SHARD), server_settings={"search_path": "ordermesh, public"}
        )
        stack.push_async_callback(session.close)
        rows = await filled(session, orders)
        settings = pg.PgSettings(dsn=postgres.dsn(SHARD), session=PATIENT)
        database = await stack.enter_async_context(pg.open_database(settings, name="bench"))
        bucket = S3Settings.model_validate(
            {
                "bucket": "bench",
                "endpoint": weed.url,
                "access_key": weed.access_key,
                "secret_key": weed.secret_key,
            }
        )
        store = await stack.enter_async_context(open_store(bucket))
        await store.make_bucket()
        catalog, throttle = Catalog(SHARD, database), Throttle(bytes_per_s, SYSTEM_CLOCK)
        fence = await catalog.take_lease("benchmark", LEASE)
        assert fence is not None

        def sessions() -> Any:
            return pg.open_session(settings.model_copy(update={"session": SESSION}), name="bench")

        exporter = Exporter(catalog, store, sessions, throttle)
        verifier = Verifier(catalog, store, throttle, enough_for=timedelta(days=1))
        yield Bench(postgres, session, Way(catalog, exporter, verifier, fence, session), rows)


async def measure(directory: Path, orders: int) -> str:
    """The month's way, as a table."""
    async with prepared(directory, orders, UNBOUNDED) as bench:
        way, facts = bench.way, report.machine("")
        copies: dict[str, Callable[[], Awaitable[None]]] = {
            "a: COPY of both tables TO '/dev/null' CSV, in Postgres": partial(to_nowhere, bench.session),
            "b: COPY of what is archived to a client, thrown away": partial(drained, bench.session),
        }
        works: dict[str, Callable[[], Awaitable[None]]] = {
            "freeze and plan": way.freeze_and_plan,
            "export: COPY, Parquet, PUT": way.export,
            "read back and proven": way.verify,
        }
        # Before and after the rest, since the machine may be busier at one of these times.
        before = {name: await bench.spent(work) for name, work in copies.items()}
        steps = {name: await bench.spent(work) for name, work in works.items()}
        spent = {name: (before[name] + await bench.spent(work)).half() for name, work in copies.items()}
        spent |= steps
        parts = len(await way.catalog.parts((await way.month()).archive_id))
    heading = (
        f"{orders:,} orders, {bench.rows:,} rows in {parts} parts; {facts['date']}, {facts['cores']}, load: "
        f"{facts['load before the run']}"
    )
    return table(heading, bench.rows, spent)


def table(heading: str, rows: int, spent: Mapping[str, Spent]) -> str:
    """The figures for README.md."""
    nowhere, drain, *_, exported, proven = spent.values()
    lines = [
        *(heading, ""),
        "| what | s | rows/s | of a | of b | CPU us a row: here | Postgres | S3 | of b, a core | RSS MiB |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, each in {**spent, "export and proof together": exported + proven}.items():
        cells = (
            name,
            f"{each.seconds:.1f}",
            f"{rows / each.seconds:,.0f}",
            f"{nowhere.seconds / each.seconds:.2f}",
            f"{drain.seconds / each.seconds:.2f}",
            *(f"{1e6 * seconds / rows:.2f}" for seconds in (each.here_s, each.postgres_s, each.s3_s)),
            f"{drain.cpu_s / each.cpu_s:.2f}",
            f"{each.resident_bytes / 2**20:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


async def beside_traffic(directory: Path, orders: int, seconds: float, per_s: float) -> str:
    """What orders take that are created and settled at a steady rate, in turns without and with an archive
    that goes as fast as it does by default, as a table.
    """
    scratch = directory / "pgbench"
    scratch.mkdir()
    default = ArchiveSettings.model_fields["archive_bytes_per_s"].default
    async with prepared(directory, orders, default) as bench:
        await bench.session.execute("SELECT ordermesh.ensure_partitions()")
        await bench.way.freeze_and_plan()
        facts = report.machine("")

        async def turn() -> Sample:
            run = partial(pgbench.run, bench.postgres, SHARD, pgbench.CREATE_AND_SETTLE, CLIENTS, seconds)
            return await run(scratch, per_s=per_s)

        alone: list[Sample] = []
        beside: list[Sample] = []
        for _ in range(TURNS):
            alone.append(await turn())
            archiving = asyncio.create_task(bench.way.round_and_round(), name="archive")
            try:
                beside.append(await turn())
                assert not archiving.done(), "it goes on until it is ended"
            finally:
                await ended(archiving)
        rows = bench.way.rounds * bench.rows + await bench.session.fetchval(QUERIES.stored_rows)
    heading = (
        f"{per_s:g} orders a second for {seconds:g} s in each of {TURNS} turns, {orders:,} orders in the "
        f"month, of whose rows {rows:,} were stored; {facts['date']}, {facts['cores']}, load: "
        + facts["load before the run"]
    )
    return traffic_table(heading, {"nothing": alone, "a month that is exported and proven": beside})


def traffic_table(heading: str, turns: Mapping[str, Sequence[Sample]]) -> str:
    """The figures for README.md."""
    lines = [
        *(heading, ""),
        "| orders beside | p50 ms of each turn | p95 | p99 | median p99 | other work |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for name, samples in turns.items():
        cells = (
            name,
            *(
                ", ".join(f"{each:.1f}" for each in ms)
                for ms in zip(*((s.p50_ms, s.p95_ms, s.p99_ms) for s in samples), strict=True)
            ),
            f"{median(sample.p99_ms for sample in samples):.1f}",
            ", ".join(f"{sample.others:.0%}" for sample in samples),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--orders", type=int, default=1_000_000, help="orders of the month")
    parser.add_argument(
        "--traffic", action="store_true", help="measure orders of today beside a running archive instead"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn of traffic")
    parser.add_argument("--per-s", type=float, default=100.0, help="orders per second of traffic")
    wanted = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=places.user_root()))
    directory.chmod(0o755)
    try:
        if wanted.traffic:
            print(quietly(beside_traffic(directory, wanted.orders, wanted.seconds, wanted.per_s)))
        else:
            print(quietly(measure(directory, wanted.orders)))
    except OpsError as failed:
        sys.exit(f"error: {failed}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
