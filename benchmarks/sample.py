"""What one cell of a benchmark measured, and closed-loop clients that measure it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.cpu import Meter
from ops.load.tallies import percentile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


@dataclass(frozen=True, slots=True)
class Sample:
    """One path at one concurrency.

    failed: calls that brought no settled order, which no latency counts. cpu_ms: of services and Postgres,
    for each order. others: share of the machine that somebody else used meanwhile.
    """

    path: str
    clients: int
    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    failed: int = 0
    cpu_ms: float = 0.0
    others: float = 0.0

    @classmethod
    def of(
        cls,
        path: str,
        clients: int,
        latencies_s: Sequence[float],
        elapsed_s: float,
        meter: Meter,
        *,
        orders: int | None = None,
        failed: int = 0,
    ) -> Sample:
        """The figures of what was measured in `elapsed_s`. orders: all that were made, if more than were
        timed.
        """
        ordered = sorted(latencies_s)
        p50, p95, p99 = (round(1000 * percentile(ordered, share), 2) for share in (0.5, 0.95, 0.99))
        cpu_ms = 1000 * meter.stack_s() / max(1, orders or len(ordered))
        per_s = round(len(ordered) / elapsed_s, 1)
        return cls(path, clients, per_s, p50, p95, p99, failed, round(cpu_ms, 2), meter.others_share())


async def closed_loop(
    path: str, clients: int, seconds: float, warm_up_s: float, call: Callable[[], Awaitable[bool]]
) -> Sample:
    """So many clients, each calling again as soon as it was answered.

    call: one order from asking to settled; False when it did not come to that.
    """
    latencies: list[float] = []
    failed = done = 0
    meter = Meter()
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
    return Sample.of(path, clients, latencies, seconds, meter, orders=done, failed=failed)
