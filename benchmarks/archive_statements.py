"""Statements of twelve archived months: of an ordinary user, and of one who has 70 % of the shard.

    python -m benchmarks.archive_statements [--orders 600000] [--no-write]
    python -m benchmarks.archive_statements --of-one 5000000

Starts a Postgres and an S3 of its own, writes twelve months, archives them and stops both at the end. Each
statement is made by a process of its own, whose memory is told; takes about ten minutes. With `--of-one` all
orders are one user's, whose statement is made once of the tables and once of the archive, and printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from archive_svc.archiver import Archiver, Pacing
from archive_svc.catalog import Catalog
from archive_svc.detach import Detacher
from archive_svc.erase import Eraser
from archive_svc.export import Exporter
from archive_svc.lifecycle import State
from archive_svc.recall import Recalls
from archive_svc.restore import Restorer
from archive_svc.statement.fetching import Fetcher
from archive_svc.statement.legs import SESSION, ShardReader
from archive_svc.statement.maker import StatementMaker
from archive_svc.statement.plan import month_after
from archive_svc.statement.wish import CSV, PDF, Progress, Wanted
from archive_svc.sweep import Sweeper, Sweeping, Sweeps
from archive_svc.throttle import Throttle
from archive_svc.verify import Verifier
from benchmarks import report
from chassis import pg
from chassis.clock import SYSTEM_CLOCK
from chassis.ids import user_bucket
from chassis.placement import Held
from chassis.s3 import S3Settings, open_store
from ops import places, ports
from ops.cli.calls import quietly
from ops.errors import OpsError
from ops.postgres import PostgresServer
from ops.seaweedfs import PORTS, SeaweedServer
from ops.stack.databases import schema_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from chassis.s3 import ObjectStore

RESULTS = Path(__file__).parent / "ARCHIVE.md"
HEADING = "## Statements"
SHARD = "s1"
MONTHS = 12
FIRST = datetime(2023, 1, 1, tzinfo=UTC)
LARGE, ORDINARY = "vip.1", "user.777"
USERS = 1000
SHARE = 7
"""Of ten orders, the large user's."""
ROUNDS = 3
"""Of each statement, each by a process that has read nothing yet; the quickest one counts."""
PATIENT = {"statement_timeout": "1800000", "lock_timeout": "60000"}
WRITE_S_MAX = 1800.0
MIB = 1024**2
PACING = Pacing(
    months_min=24,
    days_min=7,
    settle=timedelta(0),
    grace=timedelta(0),
    reach=None,
    lease=timedelta(minutes=10),
    look_s=0.5,
    enough_for=timedelta(days=365),
    part_bytes=128 * MIB,
)
# Seven of ten orders are the large user's; labels as random as those of shops.
WRITE = """
INSERT INTO ordermesh.orders (order_id, created_at, user_id, bucket, route_epoch, read_routing, version,
    status, stage, kind, legs, leg, attempt, amount_minor, currency_code, currency_exp, description, labels,
    upstream_ref, failure_reason, basis, request_id, updated_at, settled_at)
SELECT id, ordermesh.id_time(id), user_id, bucket, 1, user_id, 2, status, 'DONE', 'payment', '{payments}',
       0, 1,
       1 + (random() * 100000)::bigint, 'INR', 2, 'order ' || n,
       jsonb_build_object('cart', (random() * 1e6)::int), 'ref-' || md5(n::text),
       CASE status WHEN 'FAILED' THEN 'DECLINED' ELSE '' END, 'UPSTREAM', gen_random_uuid(),
       ordermesh.id_time(id) + interval '2 seconds', ordermesh.id_time(id) + interval '2 seconds'
  FROM (SELECT n, user_id, bucket, CASE WHEN n % 10 = 9 THEN 'FAILED' ELSE 'SUCCESS' END AS status,
               (lpad(to_hex($1 + (random() * 27 * 86400000)::bigint), 12, '0') || '7'
                || lpad(to_hex(n & 4095), 3, '0')
                || to_hex((-9223372036854775808)::bigint | (bucket::bigint << 46)
                          | (random() * (2 ^ 46 - 1))::bigint))::uuid AS id
          FROM (SELECT n, user_id, ordermesh.user_bucket(user_id) AS bucket
                  FROM (SELECT n, CASE WHEN n % 10 < $5 THEN $3 ELSE 'user.' || n % $4 END AS user_id
                          FROM generate_series(1, $2) n) u) b) i
"""


@dataclass(frozen=True, slots=True)
class Made:
    """What one statement took. peak_bytes: of the whole process, the interpreter and Arrow included."""

    user_id: str
    formats: str
    orders: int
    reads: int
    read_bytes: int
    seconds: float
    cpu_s: float
    peak_bytes: int
    file_bytes: int


@asynccontextmanager
async def servers(directory: Path) -> AsyncIterator[tuple[PostgresServer, S3Settings]]:
    """A Postgres and an S3, empty."""
    postgres = PostgresServer(places.data_directory(directory, "bench"), ports.free_port())
    await postgres.start()
    try:
        seaweed = await SeaweedServer.started(
            places.data_directory(directory, "bench", kind="s3"), *(ports.free_port() for _ in PORTS)
        )
        try:
            yield (
                postgres,
                S3Settings.model_validate(
                    {
                        "bucket": "archive",
                        "endpoint": seaweed.url,
                        "access_key": seaweed.access_key,
                        "secret_key": seaweed.secret_key,
                    }
                ),
            )
        finally:
            await seaweed.stop()
    finally:
        await postgres.stop()


async def prepared(postgres: PostgresServer, orders: int, share: int) -> str:
    """A shard with that many orders in twelve months; its address. share: of ten, the large user's."""
    await postgres.create_database(SHARD)
    for script in schema_of("shard"):
        await postgres.run_sql(SHARD, script.read_text(encoding="utf-8"))
    dsn = postgres.dsn(SHARD)
    async with pg.open_session(pg.PgSettings(dsn=dsn, session=PATIENT), name="bench") as session:
        await session.execute("SELECT ordermesh.identify_shard($1)", SHARD)
        await session.execute("SELECT ordermesh.own_buckets(0, 4095, $1)", SHARD)
        await session.execute("SELECT ordermesh.ensure_partitions()")
        begins = FIRST
        for _ in range(MONTHS):
            await session.execute("SELECT ordermesh.ensure_month($1)", begins)
            at_ms = int(begins.timestamp() * 1000)
            await session.execute(WRITE, at_ms, orders // MONTHS, LARGE, USERS, share, timeout_s=WRITE_S_MAX)
            begins = month_after(begins.date())
        await session.execute("VACUUM (ANALYZE) ordermesh.orders", timeout_s=WRITE_S_MAX)
        await session.execute(
            "INSERT INTO ordermesh.watermarks (stream_partition, log_epoch, xid, seq, updated_at, source_at) "
            "SELECT n, 1, '3', 0, clock_timestamp(), clock_timestamp() + interval '1 day' "
            "FROM generate_series(0, 7) n"
        )
    return dsn


async def archived(dsn: str, store: ObjectStore) -> None:
    """Take every month out of the shard."""
    async with pg.open_database(pg.PgSettings(dsn=dsn, pool_size=4), name="bench") as database:
        catalog, throttle = Catalog(SHARD, database), Throttle(1e12, SYSTEM_CLOCK)
        sessions = partial(pg.open_session, pg.PgSettings(dsn=dsn, session=PATIENT), name="bench")
        verifier = Verifier(catalog, store, throttle, enough_for=PACING.enough_for)
        sweeping = Sweeping(timedelta(0), None, deletes=False)
        sweeper = Sweeper(Sweeps(SHARD, database), store, throttle, sweeping)
        archiver = Archiver(
            catalog,
            store,
            Exporter(catalog, store, sessions, throttle),
            verifier,
            Detacher(catalog, verifier, sessions),
            Restorer(catalog, verifier, sessions),
            Eraser(catalog, store, verifier, sessions, Recalls({SHARD: database}), sweeper),
            sweeper,
            PACING,
            SYSTEM_CLOCK,
            lambda: 0.0,
            holder="bench",
        )
        fence = await catalog.take_lease("bench", PACING.lease)
        assert fence is not None, "nobody else archives it"
        begins = FIRST
        for _ in range(MONTHS):
            await catalog.want(begins.date(), uuid4(), State.DROPPED, "bench", "a benchmark")
            begins = month_after(begins.date())
        while await archiver.once(fence):
            await catalog.renew_lease(fence, PACING.lease)
        left = [month.name for month in await catalog.months() if month.state is not State.DROPPED]
        if left:
            raise OpsError(f"these months did not leave: {', '.join(left)}")


async def made(dsn: str, settings: S3Settings, user_id: str, formats: tuple[str, ...], folder: Path) -> Made:
    """Make one statement in this process, which has read nothing yet."""
    wanted = Wanted(
        statement_id=UUID(int=1),
        user_id=user_id,
        placements={SHARD: (Held(user_bucket(user_id), 1),)},
        since=FIRST,
        until=FIRST.replace(year=FIRST.year + 1),
        time_zone="Asia/Kolkata",
        locale="en",
        formats=formats,
        as_of=FIRST.replace(year=FIRST.year + 3),
    )
    told: list[Progress] = []

    async def tell(so_far: Progress) -> None:
        told[:] = [so_far]

    async with open_store(settings) as store:
        sessions = partial(pg.open_session, pg.PgSettings(dsn=dsn, session=SESSION), name="bench")
        fetcher = Counted(store)
        maker = StatementMaker({SHARD: ShardReader(SHARD, sessions, fetcher)}, folder)
        started, used = time.perf_counter(), time.process_time()
        bundle = await maker.make(wanted, tell)
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - used
    return Made(
        user_id,
        "+".join(formats),
        bundle.orders,
        fetcher.reads,
        told[0].archive_bytes,
        seconds,
        cpu_s,
        _peak_bytes(),
        bundle.size_bytes,
    )


class Counted(Fetcher):
    """Tells how many requests there were."""

    reads = 0

    async def rows(self, user_id: Any, legs: Any, read: Any) -> Any:
        async for batch in super().rows(user_id, legs, read):
            yield batch
        self.reads = read.archive_reads


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


async def made_apart(
    dsn: str,
    settings: S3Settings,
    user_id: str,
    formats: tuple[str, ...],
    folder: Path,
    rounds: int = ROUNDS,
) -> Made:
    """The quickest of some processes that make the same statement."""
    given = {
        "dsn": dsn,
        "s3": settings.model_dump(mode="json")
        | {
            "access_key": settings.access_key,
            "secret_key": settings.secret_key.get_secret_value(),
        },
        "user_id": user_id,
        "formats": formats,
        "folder": str(folder),
    }
    found = []
    for _ in range(rounds):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "benchmarks.archive_statements", "--one"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate(json.dumps(given).encode())
        if process.returncode:
            raise OpsError(f"a statement of {user_id} was not made")
        found.append(Made(**json.loads(said.splitlines()[-1])))
    return min(found, key=lambda each: each.seconds)


def one() -> None:
    """Make the statement that standard input tells, in this process, and say what it took."""
    told = json.load(sys.stdin)
    work = made(
        told["dsn"],
        S3Settings.model_validate(told["s3"]),
        told["user_id"],
        tuple(told["formats"]),
        Path(told["folder"]),
    )
    print(json.dumps(asdict(asyncio.run(work))))


def section(orders: int, found: list[Made], facts: dict[str, str]) -> str:
    """The part of ARCHIVE.md that is about statements."""
    text = [
        HEADING,
        "",
        "Written by `python -m benchmarks.archive_statements`; method and caveats in [README.md](README.md).",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        f"Twelve months with {orders:,} orders, of which `{LARGE}` has 70 %; all of them are in S3 only.",
        "",
        "| user | files | orders | reads | KiB read | s | CPU us an order | orders/s | peak MiB | zip KiB |",
        "|:--|:--|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(_row(each) for each in found),
    ]
    return "\n".join(text) + "\n"


def _row(each: Made) -> str:
    cells = (
        each.user_id,
        each.formats,
        f"{each.orders:,}",
        str(each.reads),
        f"{each.read_bytes / 1024:,.0f}",
        f"{each.seconds:.2f}",
        f"{1e6 * each.cpu_s / each.orders:.1f}",
        f"{each.orders / each.seconds:,.0f}",
        f"{each.peak_bytes / MIB:.0f}",
        f"{each.file_bytes / 1024:,.0f}",
    )
    return f"| {' | '.join(cells)} |"


async def measure(directory: Path, orders: int) -> str:
    """Every measurement, as a section."""
    async with AsyncExitStack() as stack:
        postgres, settings = await stack.enter_async_context(servers(directory))
        dsn = await prepared(postgres, orders, SHARE)
        store = await stack.enter_async_context(open_store(settings))
        await store.make_bucket()
        await archived(dsn, store)
        async with pg.open_session(pg.PgSettings(dsn=dsn), name="bench") as session:
            facts = report.machine(f"{await session.fetchval('SHOW server_version')}, fsync on")
        folder = directory / "files"
        folder.mkdir()
        found = [
            await made_apart(dsn, settings, user_id, formats, folder)
            for user_id, formats in ((ORDINARY, (CSV,)), (ORDINARY, (CSV, PDF)), (LARGE, (CSV,)))
        ]
    return section(orders, found, facts)


async def measure_one(directory: Path, orders: int) -> str:
    """A user who has all of the orders: the statement made of the tables, and of the archive."""
    async with AsyncExitStack() as stack:
        postgres, settings = await stack.enter_async_context(servers(directory))
        started = time.perf_counter()
        dsn = await prepared(postgres, orders, 10)
        filled_s = time.perf_counter() - started
        store = await stack.enter_async_context(open_store(settings))
        await store.make_bucket()
        folder = directory / "files"
        folder.mkdir()
        of_tables = await made_apart(dsn, settings, LARGE, (CSV,), folder, rounds=1)
        started = time.perf_counter()
        await archived(dsn, store)
        archived_s = time.perf_counter() - started
        of_archive = await made_apart(dsn, settings, LARGE, (CSV,), folder, rounds=1)
    lines = [
        f"written in {filled_s:.0f} s, archived in {archived_s:.0f} s; of the tables, then of the archive:",
        *(_row(each) for each in (of_tables, of_archive)),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Read the options, measure, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--orders", type=int, default=600_000, help="orders of the twelve months")
    parser.add_argument("--no-write", action="store_true", help="print instead of writing ARCHIVE.md")
    parser.add_argument("--of-one", type=int, default=0, help="orders of one user, who has them all")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one:
        one()
        return
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=places.user_root()))
    directory.chmod(0o755)
    try:
        if wanted.of_one:
            print(quietly(measure_one(directory, wanted.of_one)))
            return
        text = quietly(measure(directory, wanted.orders))
    except OpsError as failed:
        sys.exit(f"error: {failed}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if wanted.no_write:
        print(text)
    else:
        before, _, _ = RESULTS.read_text(encoding="utf-8").partition(f"\n{HEADING}\n")
        RESULTS.write_text(f"{before.rstrip()}\n\n{text}", encoding="utf-8")
        print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
