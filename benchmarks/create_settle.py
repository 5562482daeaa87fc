"""Create+settle throughput and latency, by concurrency and by path, beside pgbench with the same statements.

    python -m benchmarks.create_settle [--seconds 8] [--clients 1,4,16,64] [--state-dir DIR] [--no-write]

Starts a stack of its own in a temporary state directory and stops it at the end; takes about four minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from benchmarks import paths, pgbench, report
from benchmarks.sample import closed_loop
from ops import places
from ops.cli.calls import quietly
from ops.errors import OpsError
from ops.ports import PortBook
from ops.postgres import PostgresServer
from ops.stack import layout, local

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.sample import Sample
    from ops.stack.local import LocalStack

WARM_UP_S = 1.5
PAUSE_S = 1.0
"""Between two cells, for what the one before it left: probes, checkpoints, closing connections."""

_POSTGRES = """
SELECT format('%s, fsync %s, synchronous_commit %s', current_setting('server_version'),
              current_setting('fsync'), current_setting('synchronous_commit'))"""


async def measure(state_dir: Path, clients: Sequence[int], seconds: float) -> str:
    """Measure every cell on a new stack; the text of RESULTS.md."""
    samples: list[Sample] = []
    async with local.running(state_dir, port_base=0) as stack:
        facts = report.machine(await _postgres_version(stack))
        server = _shards_server(state_dir)
        scratch = state_dir / "pgbench"
        scratch.mkdir()
        async with paths.opened(stack.endpoints, layout.Places(state_dir)) as calls:
            for count in clients:
                for script in (pgbench.CREATE, pgbench.CREATE_AND_SETTLE):
                    samples.append(await pgbench.run(server, paths.SHARD, script, count, seconds, scratch))
                    await _told(samples[-1])
                for path, call in calls.items():
                    samples.append(await closed_loop(path, count, seconds, WARM_UP_S, call))
                    await _told(samples[-1])
    return report.document(facts, samples, seconds)


async def _told(sample: Sample) -> None:
    sys.stderr.write(
        f"{sample.clients:3d} clients  {sample.path:22s} {sample.per_s:8.0f} orders/s  p50 {sample.p50_ms} ms"
        f"  p99 {sample.p99_ms} ms  {sample.failed} failed\n"
    )
    await asyncio.sleep(PAUSE_S)


async def _postgres_version(stack: LocalStack) -> str:
    session = await asyncpg.connect(stack.endpoints.shard_dsns()[paths.SHARD])
    try:
        return str(await session.fetchval(_POSTGRES))
    finally:
        await session.close()


def _shards_server(state_dir: Path) -> PostgresServer:
    """The stack's server of shards, to reach it; never started or stopped from here."""
    port = PortBook.open(state_dir).port_of("postgres.shards")
    return PostgresServer(places.data_directory(state_dir, "shards"), port)


def main() -> None:
    """Read the options, measure, write RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each cell")
    parser.add_argument("--clients", default="1,4,16,64", help="concurrencies, comma-separated")
    parser.add_argument("--state-dir", type=Path, help="kept afterwards; a temporary one otherwise")
    parser.add_argument("--no-write", action="store_true", help="print instead of writing RESULTS.md")
    wanted = parser.parse_args()
    state_dir = wanted.state_dir or Path(tempfile.mkdtemp(prefix="bench-", dir=places.user_root()))
    state_dir.mkdir(mode=0o755, exist_ok=True)
    state_dir.chmod(0o755)
    try:
        clients = [int(count) for count in wanted.clients.split(",")]
        text = quietly(measure(state_dir, clients, wanted.seconds))
    except OpsError as failed:
        sys.exit(f"error: {failed}")
    finally:
        if wanted.state_dir is None:
            shutil.rmtree(state_dir, ignore_errors=True)
    if wanted.no_write:
        print(text)
    else:
        report.RESULTS.write_text(text, encoding="utf-8")
        print(f"wrote {report.RESULTS}")


if __name__ == "__main__":
    main()
