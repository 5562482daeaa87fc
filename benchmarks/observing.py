"""What lines and spans cost: CPU and throughput of the same orders with and without them, in one run.

    python -m benchmarks.observing [--rounds 40] [--seconds 1.5] [--clients 8] [--no-write]

Starts a stack for each way of observing, and measures them in turns; takes about seven minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import socket
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import paths, report
from benchmarks.sample import closed_loop
from ops import places
from ops.cli.calls import quietly
from ops.shipper.app import Intake
from ops.shipper.spool import Spool
from ops.stack import layout, local, plan
from ops.stack.units import Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from ops.stack.local import LocalStack

OBSERVED = ("gateway", "shard_proxy", "order_svc.s1", "order_svc.s2", "order_svc.v1")
WARM_UP_S = 0.3
SPOOL_BYTES = 4 * 1024**3
HERE = Path(__file__).parent
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Way:
    """One way of observing. settings: of the observed. has_spans: False takes the code of spans out."""

    name: str
    settings: Mapping[str, str]
    has_spans: bool = True


@dataclass(slots=True)
class Measured:
    """What one way cost, a figure for each round. cpu_ms: of the observed processes, an order."""

    per_s: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    failed: int = 0


def ways(endpoint: str) -> list[Way]:
    """All of them, the cheapest first."""
    off = {"TRACE_RATIO": "0"}
    sampled = {"OTLP_ENDPOINT": endpoint, "TRACE_EXPORT_S": "5"}
    return [
        Way("no lines, no spans", {**off, "LOG_LEVEL": "error"}, has_spans=False),
        Way("no spans", off, has_spans=False),
        Way("tracing off", off),
        Way("5 % sampled", {**sampled, "TRACE_RATIO": "0.05"}),
        Way("100 % sampled", {**sampled, "TRACE_RATIO": "1"}),
    ]


@dataclass(slots=True)
class Untraced(Process):
    """A service that runs through `benchmarks.untraced`."""

    def __post_init__(self) -> None:
        self.environment = {**self.environment, "BENCH_MODULE": self.module}
        self.module = "benchmarks.untraced"


@contextmanager
def started_as(way: Way) -> Iterator[None]:
    """Processes that are planned meanwhile have spans or not."""
    vars(plan)["Process"] = Process if way.has_spans else Untraced
    try:
        yield
    finally:
        vars(plan)["Process"] = Process


@asynccontextmanager
async def collector(directory: Path) -> AsyncIterator[str]:
    """Takes spans and keeps them in files: its CPU is not that of the observed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    intake = Intake(f"127.0.0.1:{port}", Spool(directory, bytes_max=SPOOL_BYTES))
    serving = asyncio.create_task(intake.run())
    try:
        yield f"http://127.0.0.1:{port}/v1/traces"
    finally:
        await intake.stop()
        await serving


def cpu_s(stack: LocalStack) -> float:
    """CPU seconds that the observed processes used so far."""
    pids = [
        each.pid
        for each in stack.endpoints.services
        if (f"{each.name}.{each.shard}" if each.shard else each.name) in OBSERVED
    ]
    return sum(_used(pid) for pid in pids) / _TICKS_PER_S


def _used(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def measure(root: Path, *, rounds: int, seconds: float, clients: int) -> str:
    """Measure every way in turns; the text of OBSERVING.md."""
    measured: dict[str, Measured] = {}
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(collector(root / "spans"))
        stacks: dict[str, LocalStack] = {}
        running: dict[str, tuple[LocalStack, Callable[[], Awaitable[bool]]]] = {}
        for number, way in enumerate(ways(endpoint)):
            state_dir = root / f"stack-{number}"
            with started_as(way):
                extra = {name: dict(way.settings) for name in OBSERVED}
                opened = await stack.enter_async_context(
                    local.running(state_dir, port_base=0, durable=False, extra=extra)
                )
            stacks[way.name] = opened
        # After all of them: gRPC's threads and a fork do not go together.
        for number, (name, opened) in enumerate(stacks.items()):
            where = layout.Places(root / f"stack-{number}")
            calls = await stack.enter_async_context(paths.opened(opened.endpoints, where))
            running[name], measured[name] = (opened, calls["gateway"]), Measured()
        for number in range(rounds):
            for name in random.sample(list(running), len(running)):
                opened, call = running[name]
                await one(measured[name], opened, call, seconds=seconds, clients=clients)
            sys.stderr.write(f"round {number + 1} of {rounds}\n")
    return document(measured, rounds=rounds, seconds=seconds, clients=clients)


async def one(
    measured: Measured,
    stack: LocalStack,
    call: Callable[[], Awaitable[bool]],
    *,
    seconds: float,
    clients: int,
) -> None:
    """One round of one way."""
    await closed_loop("warm", clients, WARM_UP_S, 0.0, call)
    before, began = cpu_s(stack), time.perf_counter()
    sample = await closed_loop("gateway", clients, seconds, 0.0, call)
    orders = sample.per_s * seconds
    measured.per_s.append(orders / (time.perf_counter() - began))
    measured.cpu_ms.append(1000 * (cpu_s(stack) - before) / max(1.0, orders))
    measured.failed += sample.failed


def document(measured: Mapping[str, Measured], *, rounds: int, seconds: float, clients: int) -> str:
    """OBSERVING.md. A ratio is the median over rounds, each compared with what it is compared with in it."""
    base_lines, base_spans = measured["no lines, no spans"], measured["no spans"]
    rows = [
        _row(name, each, base_lines if each in (base_lines, base_spans) else base_spans)
        for name, each in measured.items()
    ]
    facts = report.machine("as shipped, without fsync")
    table = [
        "| | orders/s | CPU ms an order | CPU, of what it is compared with | orders/s, of that |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ]
    return "\n".join(
        [
            "# What lines and spans cost",
            "",
            "Printed by `python -m benchmarks.observing`; [README.md](README.md) says how it is measured.",
            "",
            *(f"- {name}: {value}" for name, value in facts.items()),
            f"- {rounds} rounds of {seconds:g} s with {clients} clients, in turns; medians",
            "",
            *table,
            "",
        ]
    )


def _row(name: str, each: Measured, base: Measured) -> str:
    cpu = statistics.median(mine / theirs for mine, theirs in zip(each.cpu_ms, base.cpu_ms, strict=True))
    speed = statistics.median(mine / theirs for mine, theirs in zip(each.per_s, base.per_s, strict=True))
    compared = ("-", "-") if each is base else (f"{100 * cpu:.1f} %", f"{100 * speed:.1f} %")
    medians = statistics.median(each.per_s), statistics.median(each.cpu_ms)
    return f"| {name} | {medians[0]:.0f} | {medians[1]:.2f} | {compared[0]} | {compared[1]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--no-write", action="store_true")
    asked: Any = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="bench-", dir=places.user_root()))
    root.chmod(0o755)
    try:
        text = quietly(measure(root, rounds=asked.rounds, seconds=asked.seconds, clients=asked.clients))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    sys.stdout.write(text)
    if not asked.no_write:
        (HERE / "OBSERVING.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
