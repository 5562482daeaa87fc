"""What a scrape costs: time and size of each process's metrics, before and after many users and orders.

    python -m benchmarks.scrapes [--users 10000] [--orders 100000]

Starts a local stack, reads every process's metrics in turns, has that many users make that many orders, and
reads again: the series must be the same. Prints; writes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import grpc
import httpx

from ops import mesh, places
from ops.cli.calls import quietly
from ops.stack import local
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_service_pb2 as pb

if TYPE_CHECKING:
    from ops.stack.endpoints import Endpoints

READS = 30
AT_ONCE = 24


async def read(endpoints: Endpoints) -> dict[str, tuple[int, list[float]]]:
    """Series and the milliseconds of each read, by process; processes in turns."""
    found: dict[str, tuple[int, list[float]]] = {}
    async with httpx.AsyncClient(timeout=10.0) as client:
        for _ in range(READS):
            for each in endpoints.services:
                if each.metrics_url is None:
                    continue
                began = time.perf_counter()
                text = (await client.get(each.metrics_url)).text
                took_ms = (time.perf_counter() - began) * 1000
                name = f"{each.name}.{each.shard}" if each.shard else each.name
                series = sum(not line.startswith("#") for line in text.splitlines())
                found[name] = (series, [*found.get(name, (0, []))[1], took_ms])
    return found


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


def show(before: dict[str, tuple[int, list[float]]], after: dict[str, tuple[int, list[float]]]) -> None:
    """One line for each process."""
    heads = ("series", "then", "p50 ms", "most ms", "then p50", "then most")
    print(f"{'process':24} " + " ".join(f"{head:>9}" for head in heads))
    for name, (series, first) in before.items():
        then, second = after[name]
        times = [value for each in (first, second) for value in (statistics.median(each), max(each))]
        print(f"{name:24} {series:9} {then:9} " + " ".join(f"{value:9.1f}" for value in times))


async def run(users: int, orders: int) -> None:
    with tempfile.TemporaryDirectory(prefix="scrapes-", dir=places.user_root()) as directory:
        Path(directory).chmod(0o755)
        async with local.running(Path(directory), port_base=0, durable=False) as stack:
            # What every process counts once it was used: the first orders make no users' series either.
            await make(stack.endpoints, 10, 200)
            before = await read(stack.endpoints)
            began = time.monotonic()
            made = await make(stack.endpoints, users, orders)
            print(f"{made} orders of {users} users in {time.monotonic() - began:.0f} s")
            show(before, await read(stack.endpoints))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--orders", type=int, default=100_000)
    asked = parser.parse_args()
    quietly(run(asked.users, asked.orders))


if __name__ == "__main__":
    main()
