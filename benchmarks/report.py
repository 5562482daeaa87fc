"""RESULTS.md: the figures of one run on one machine, with what is needed to judge them."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.pgbench import CREATE_AND_SETTLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.sample import Sample

RESULTS = Path(__file__).parent / "RESULTS.md"
_PACKAGES = ("grpcio", "protobuf", "asyncpg", "fastapi", "uvicorn", "uvloop")
_COLUMNS = (
    *("clients", "path", "orders/s", "p50 ms", "p95 ms", "p99 ms", "failed"),
    *("CPU ms an order", "orders/s of pgbench's", "p50 times pgbench's"),
    "other work",
)


def machine(postgres: str) -> dict[str, str]:
    """What the figures depend on."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "cores": f"{os.cpu_count()} ({_processor()})",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "Postgres": postgres,
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
        "load before the run": f"{os.getloadavg()[0]:.2f} (1 min average of the machine)",
    }


def document(facts: dict[str, str], samples: Sequence[Sample], seconds: float) -> str:
    """The whole of RESULTS.md."""
    lines = [
        "# Results",
        "",
        "Written by `python -m benchmarks.create_settle`; method and caveats in [README.md](README.md).",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        f"## Create and settle, one shard, {seconds:g} s for each line",
        "",
        f"Ratios compare with `{CREATE_AND_SETTLE}` at the same number of clients.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|--:|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *_rows(samples),
    ]
    return "\n".join(lines) + "\n"


def _rows(samples: Sequence[Sample]) -> Iterator[str]:
    floor = {sample.clients: sample for sample in samples if sample.path == CREATE_AND_SETTLE}
    for one in samples:
        base = floor[one.clients]
        share = f"{one.per_s / base.per_s:.3f}" if base.per_s else "-"
        times = f"{one.p50_ms / base.p50_ms:.1f}" if base.p50_ms else "-"
        cells = (one.clients, one.path, f"{one.per_s:.0f}", one.p50_ms, one.p95_ms, one.p99_ms, one.failed)
        yield (
            "| "
            + " | ".join([*map(str, cells), f"{one.cpu_ms:.1f}", share, times, f"{one.others:.0%}"])
            + " |"
        )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return platform.processor() or "unknown"
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
