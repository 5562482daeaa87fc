"""What a scrape costs: time and size of each process's metrics, before and after many users and orders.

    python -m benchmarks.scrapes [--users 10000] [--orders 100000]

Starts a local stack, has a few users make orders until no process gets a series any more, reads the metrics
of each process in turns, has that many users make that many orders, and reads again. Prints; writes nothing.

Exit code 1 when a series has come that is not of a new code alone: of a metric whose label sets the registry
calls too many to prepare, with a code or reason of its list that had not occurred before, beside others of
the same call. Of these there are as many as codes, whoever calls however often.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import grpc
import httpx
from prometheus_client.parser import text_string_to_metric_families

from ops import mesh, places
from ops.cli.calls import quietly
from ops.stack import local
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_service_pb2 as pb
from telemetry import registry

if TYPE_CHECKING:
    from ops.stack.endpoints import Endpoints
    from telemetry.registry import Metric

Series = tuple[str, frozenset[tuple[str, str]]]
"""A name with its labels."""
READS = 30
AT_ONCE = 24
SETTLED_S = 30.0
"""No process got a series for so long: longer than any loop sleeps that sets a gauge."""
SETTLES_WITHIN_S = 300.0


@dataclass
class Read:
    """A process's metrics. took_ms: of each read."""

    series: set[Series] = field(default_factory=set)
    took_ms: list[float] = field(default_factory=list)


def series_of(text: str) -> set[Series]:
    """The series of an exposition."""
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@cache
def _registered() -> dict[str, Metric]:
    return {
        f"{metric.name}{end}": metric
        for metric in registry.metrics()
        for end in (("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",))
    }


def is_of_a_new_code(came: Series, before: set[Series]) -> bool:
    """Whether a series differs from one that was there only in what the registry lists for its labels."""
    name, labels = came
    metric = _registered().get(name)
    if metric is None or not metric.sparse:
        return False
    listed = {label: vocabulary.values for label, vocabulary in metric.labels.items() if vocabulary.values}
    said = {label: value for label, value in labels if label in listed}
    if not said or any(value not in listed[label] for label, value in said.items()):
        return False
    others = {pair for pair in labels if pair[0] not in listed}
    return not others or any(name == known and others <= pairs for known, pairs in before)


def grown(before: set[Series], after: set[Series]) -> list[Series]:
    """Series that have come and should not have."""
    return sorted(
        (came for came in after - before if not is_of_a_new_code(came, before)),
        key=lambda came: (came[0], sorted(came[1])),
    )


async def read(endpoints: Endpoints, reads: int = READS) -> dict[str, Read]:
    """What each process shows, by its name; processes in turns."""
    found: dict[str, Read] = {}
    # A process closes a connection that nobody used for five seconds, also in the moment of its next use.
    limits = httpx.Limits(keepalive_expiry=2.0)
    async with httpx.AsyncClient(timeout=10.0, limits=limits) as client:
        for _ in range(reads):
            for each in endpoints.services:
                if each.metrics_url is None:
                    continue
                began = time.perf_counter()
                text = (await client.get(each.metrics_url)).text
                took_ms = (time.perf_counter() - began) * 1000
                of = found.setdefault(f"{each.name}.{each.shard}" if each.shard else each.name, Read())
                of.took_ms.append(took_ms)
                of.series = series_of(text)
    return found


async def settle(endpoints: Endpoints) -> None:
    """Make some orders, again and again, until nothing new is counted. Raises: TimeoutError."""
    seen: set[Series] = set()
    since = time.monotonic()
    async with asyncio.timeout(SETTLES_WITHIN_S):
        while time.monotonic() - since < SETTLED_S:
            await make(endpoints, 10, 200)
            shown = {one for each in (await read(endpoints, 1)).values() for one in each.series}
            if shown - seen:
                seen |= shown
                since = time.monotonic()


async def make(endpoints: Endpoints, users: int, orders: int) -> int:
    """Orders of many users; how many were acknowledged."""
    numbers = iter(range(orders))
    made = 0

    async def some(stubs: mesh.Mesh) -> None:
        nonlocal made
        for number in numbers:
            request = pb.CreateOrderRequest(
                user_id=f"scraped-{number % users}",
                request_id=str(uuid4()),
                kind="payment",
                amount=Money(currency_code="EUR", amount_minor=700),
            )
            try:
                await stubs.orders.CreateOrder(request, timeout=10.0)
            except grpc.aio.AioRpcError:
                continue
            made += 1

    async with mesh.connect(endpoints) as stubs:
        await asyncio.gather(*(some(stubs) for _ in range(AT_ONCE)))
    return made


def show(before: dict[str, Read], after: dict[str, Read]) -> None:
    """One line for each process."""
    heads = ("series", "then", "p50 ms", "most ms", "then p50", "then most")
    print(f"{'process':24} " + " ".join(f"{head:>9}" for head in heads))
    for name, first in before.items():
        then = after[name]
        times = [
            value for each in (first, then) for value in (statistics.median(each.took_ms), max(each.took_ms))
        ]
        print(
            f"{name:24} {len(first.series):9} {len(then.series):9} "
            + " ".join(f"{value:9.1f}" for value in times)
        )


def tell(before: dict[str, Read], after: dict[str, Read]) -> bool:
    """Print each series that has come; whether all may."""
    well = True
    for name, first in before.items():
        wrong = grown(first.series, after[name].series)
        well = well and not wrong
        for came in sorted(after[name].series - first.series, key=str):
            labels = ", ".join(f'{label}="{value}"' for label, value in sorted(came[1]))
            print(f"{'GREW' if came in wrong else 'a code'}: {name}: {came[0]}{{{labels}}}")
    return well


async def run(users: int, orders: int) -> bool:
    """Whether the series are those of before."""
    with tempfile.TemporaryDirectory(prefix="scrapes-", dir=places.user_root()) as directory:
        Path(directory).chmod(0o755)
        async with local.running(Path(directory), port_base=0, durable=False) as stack:
            await settle(stack.endpoints)
            before = await read(stack.endpoints)
            began = time.monotonic()
            made = await make(stack.endpoints, users, orders)
            print(f"{made} orders of {users} users in {time.monotonic() - began:.0f} s")
            after = await read(stack.endpoints)
            show(before, after)
            return tell(before, after)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--orders", type=int, default=100_000)
    asked = parser.parse_args()
    if not quietly(run(asked.users, asked.orders)):
        sys.exit(1)


if __name__ == "__main__":
    main()
