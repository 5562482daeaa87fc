"""A month's way into the archive, beside COPY of the same rows to nothing: rows per second, and the memory.

    python -m benchmarks.archive_month [--orders 1000000]

Starts a Postgres and a SeaweedFS of its own, makes the rows in SQL, and stops both at the end. A million
orders take about three minutes, ten million half an hour and 12 GB of disk. Prints the table for README.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from contextlib import AsyncExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg

from archive_svc.catalog import Catalog
from archive_svc.columns import COPY_OPTIONS, SHAPES
from archive_svc.export import Exporter
from archive_svc.lifecycle import State
from archive_svc.stretch import SESSION
from archive_svc.throttle import Throttle
from archive_svc.verify import Verifier
from benchmarks import report
from benchmarks.archive_codec import Cost, cost
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
    from archive_svc.lifecycle import Month

QUERIES = pg.queries("benchmarks", "archive_month.sql")
MONTH = date(2023, 8, 1)
FIRST_MS = int(datetime(2023, 8, 1, tzinfo=UTC).timestamp() * 1000)
ORDERS_A_USER = 20
MAKE_S_MAX = 3600.0
PATIENT = {"statement_timeout": "3600000", "lock_timeout": "60000"}
LEASE = timedelta(hours=2)


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


async def drained(session: Any) -> None:
    """COPY both tables as they are, to nothing."""

    async def take(_: bytes) -> None:
        pass

    for shape in SHAPES.values():
        sql = f"SELECT {shape.select_list('t')} FROM ordermesh.{shape.table}_2023_08 AS t"
        await session.copy_from_query(sql, output=take, timeout=MAKE_S_MAX, **COPY_OPTIONS)


class Way:
    """The steps of the month, one by one."""

    def __init__(self, catalog: Catalog, exporter: Exporter, verifier: Verifier, fence: int) -> None:
        self.catalog = catalog
        self.exporter = exporter
        self.verifier = verifier
        self.fence = fence

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


async def measure(directory: Path, orders: int) -> str:
    """Every measurement, as a table."""
    async with AsyncExitStack() as stack:
        postgres = PostgresServer(places.data_directory(directory, "bench"), ports.free_port())
        await postgres.start()
        stack.push_async_callback(postgres.stop)
        weed = SeaweedServer(
            places.data_directory(directory, "s3", kind="servers"), *(ports.free_port() for _ in PORTS)
        )
        await weed.start()
        stack.push_async_callback(weed.stop)
        await postgres.create_database("s1")
        for script in schema_of("shard"):
            await postgres.run_sql("s1", script.read_text(encoding="utf-8"))
        session = await asyncpg.connect(
            postgres.dsn("s1"), server_settings={"search_path": "ordermesh, public"}
        )
        stack.push_async_callback(session.close)
        rows = await filled(session, orders)
        settings = pg.PgSettings(dsn=postgres.dsn("s1"), session=PATIENT)
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
        catalog, throttle = Catalog("s1", database), Throttle(1e12, SYSTEM_CLOCK)
        fence = await catalog.take_lease("benchmark", LEASE)
        assert fence is not None

        def sessions() -> Any:
            return pg.open_session(settings.model_copy(update={"session": SESSION}), name="bench")

        way = Way(
            catalog,
            Exporter(catalog, store, sessions, throttle),
            Verifier(catalog, store, throttle, enough_for=timedelta(days=1)),
            fence,
        )
        costs = {"COPY of both tables, to nothing": await cost(lambda: drained(session))}
        costs["freeze and plan"] = await cost(way.freeze_and_plan)
        costs["export: COPY, Parquet, PUT"] = await cost(way.export)
        costs["read back and proven"] = await cost(way.verify)
        parts = len(await catalog.parts((await way.month()).archive_id))
        facts = report.machine(f"{await session.fetchval('SHOW server_version')}, fsync on")
    return table(facts, orders, rows, parts, costs)


def table(facts: dict[str, str], orders: int, rows: int, parts: int, costs: dict[str, Cost]) -> str:
    """The figures for README.md."""
    copied, *_, exported, proven = costs.values()
    lines = [
        f"{orders:,} orders, {rows:,} rows in {parts} parts; {facts['date']}, {facts['cores']}, load before: "
        + facts["load before the run"],
        "",
        "| what | s | rows/s | of COPY | CPU us a row, here | MiB above the start |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    together = Cost(
        exported.seconds + proven.seconds,
        exported.cpu_s + proven.cpu_s,
        max(exported.peak_bytes, proven.peak_bytes),
    )
    for name, each in {**costs, "export and proof together": together}.items():
        cells = (
            name,
            f"{each.seconds:.1f}",
            f"{rows / each.seconds:,.0f}",
            f"{copied.seconds / each.seconds:.2f}",
            f"{1e6 * each.cpu_s / rows:.2f}",
            f"{each.peak_bytes / 2**20:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--orders", type=int, default=1_000_000, help="orders of the month")
    wanted = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=places.user_root()))
    directory.chmod(0o755)
    try:
        print(quietly(measure(directory, wanted.orders)))
    except OpsError as failed:
        sys.exit(f"error: {failed}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
