"""The faults that the eyes must see: each does harm for as long as its context lives, and repairs it then."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import asyncpg
import grpc

from chassis.clock import SYSTEM_CLOCK
from chassis.testing import eventually
from ops import archive, mesh
from ordermesh.archive.v1.archive_service_pb2 import MoveMonthRequest
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.upstream.v1 import simulator_service_pb2 as sim
from tests.telemetry.rig import Rig, close_cases

Fault = Callable[[Rig], AbstractAsyncContextManager[None]]
KILL_EVERY_S = 4.0
LOOKS_WITHOUT_A_CASE = 5
"""One a second: longer than a call of the load takes."""
FLOOD_AT_ONCE = 40
FLOOD_EVERY_S = 0.5
"""Enough to be refused, and not so much that the machine has no time for others."""


@asynccontextmanager
async def stopped(rig: Rig, *units: str) -> AsyncIterator[None]:
    """Keep processes or servers of the stack down."""
    holds = [rig.world.places.hold / unit for unit in units]
    for hold in holds:
        hold.touch()
    try:
        yield
    finally:
        for hold in holds:
            hold.unlink(missing_ok=True)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do something all the while."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def upstream_down(rig: Rig) -> AsyncIterator[None]:
    """The upstream of payments refuses every call."""
    async with rig.world.fault("payments", kind=sim.Fault.DOWN):
        yield


@asynccontextmanager
async def upstream_lies(rig: Rig) -> AsyncIterator[None]:
    """It executes other amounts than it was asked to; then a person closes the cases, also those of
    calls that were under way.
    """
    async with rig.world.fault("payments", kind=sim.Fault.WRONG_AMOUNT):
        yield
    looks = 0

    async def are_closed() -> bool:
        nonlocal looks
        looks = 0 if await close_cases(rig.world) else looks + 1
        return looks >= LOOKS_WITHOUT_A_CASE

    await eventually(are_closed, within_s=150.0, every_s=1.0)


@asynccontextmanager
async def killed_again_and_again(rig: Rig) -> AsyncIterator[None]:
    """order_svc of shard s1 dies every few seconds."""

    async def kill() -> None:
        while True:
            pid = rig.world.service("order_svc", "s1").pid
            if pid:
                os.kill(pid, signal.SIGKILL)
            await SYSTEM_CLOCK.sleep(KILL_EVERY_S)

    async with beside(kill()):
        yield


@asynccontextmanager
async def replica_lags(rig: Rig) -> AsyncIterator[None]:
    """The replica of shard s1 replays nothing."""
    session = await asyncpg.connect(rig.world.endpoints.replica_dsns()["s1"])
    try:
        await session.execute("SELECT pg_wal_replay_pause()")
        yield
        await session.execute("SELECT pg_wal_replay_resume()")
    finally:
        await session.close(timeout=5)


@asynccontextmanager
async def one_noisy_user(rig: Rig) -> AsyncIterator[None]:
    """A user has more calls under way than it may."""

    async def call() -> None:
        with suppress(grpc.aio.AioRpcError):
            await rig.world.mesh.orders.CreateOrder(
                pb.CreateOrderRequest(
                    user_id="noisy",
                    request_id=str(uuid4()),
                    kind="payment",
                    amount=Money(currency_code="EUR", amount_minor=700),
                ),
                timeout=3.0,
            )

    async def waves() -> None:
        while True:
            await asyncio.gather(*(call() for _ in range(FLOOD_AT_ONCE)))
            await SYSTEM_CLOCK.sleep(FLOOD_EVERY_S)

    async with beside(waves()):
        yield


def held(*units: str) -> Fault:
    """Units of the stack are down."""
    return lambda rig: stopped(rig, *units)


@asynccontextmanager
async def elasticsearch_down(rig: Rig) -> AsyncIterator[None]:
    """Elasticsearch is away, of which lists were served."""
    await rig.until_searched()
    async with stopped(rig, "elasticsearch"):
        yield


@asynccontextmanager
async def archive_stuck(rig: Rig) -> AsyncIterator[None]:
    """The oldest month of shard s1 is to leave it, and S3 is away."""
    world = rig.world
    (shard,) = (await archive.listed(world.mesh, "s1")).shards
    request = MoveMonthRequest(
        shard="s1",
        month=archive.ready(shard)[0].month,
        reach=archive.Month.COMMITTED,
        reason="it is old enough",
        request_id=str(uuid4()),
    )
    async with stopped(rig, "s3"):
        await world.mesh.archive.MoveMonth(request, timeout=10.0, metadata=mesh.spoken_by("a-test"))
        yield
