"""What one cell of a benchmark measured, and closed-loop clients that measure it."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import cpu
from ops.load.tallies import percentile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


@dataclass(frozen=True, slots=True)
class Sample:
    """One path at one concurrency. failed: calls that brought no settled order, which no latency counts.
    cpu_ms: of services and Postgres, for each order.
    """

    path: str
    clients: int
    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    failed: int = 0
    cpu_ms: float = 0.0

    @classmethod
    def of(
        cls,
        path: str,
        clients: int,
        latencies_s: Sequence[float],
        elapsed_s: float,
        failed: int = 0,
        cpu_ms: float = 0.0,
    ) -> Sample:
        """The figures of what was measured in `elapsed_s`."""
        ordered = sorted(latencies_s)
        p50, p95, p99 = (round(1000 * percentile(ordered, share), 2) for share in (0.5, 0.95, 0.99))
        return cls(path, clients, round(len(ordered) / elapsed_s, 1), p50, p95, p99, failed, cpu_ms)


async def closed_loop(
    path: str, clients: int, seconds: float, warm_up_s: float, call: Callable[[], Awaitable[bool]]
) -> Sample:
    """So many clients, each calling again as soon as it was answered.

    call: one order from asking to settled; False when it did not come to that.
    """
    latencies: list[float] = []
    failed = done = 0
    cpu_s = cpu.below_s(os.getpid())
    begin = time.perf_counter() + warm_up_s
    end = begin + seconds

    async def client() -> None:
        nonlocal failed, done
        while (asked := time.perf_counter()) < end:
            settled = await call()
            answered = time.perf_counter()
            done += settled
            if begin <= answered < end:
                failed += not settled
                latencies.extend([answered - asked] if settled else [])

    await asyncio.gather(*(client() for _ in range(clients)))
    cpu_ms = 1000 * (cpu.below_s(os.getpid()) - cpu_s) / max(1, done)
    return Sample.of(path, clients, latencies, seconds, failed, round(cpu_ms, 2))
