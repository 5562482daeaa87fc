"""The whole mesh for tests: one local stack per run, real processes and servers, found through
endpoints.json.

    async def test_something(world: World):
        order = await world.create("alice")
        ...

Tests of one run share it, so each makes orders of its own users and clears the faults it set.
"""

import os
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import grpc
import httpx
import pytest

from chassis import rpc
from chassis.testing import eventually
from ops import mesh
from ops.issuer import mint_token
from ops.stack import layout, local
from ops.stack.endpoints import Endpoints, Service
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.order.v1.order_pb2 import Order
from ordermesh.upstream.v1 import simulator_service_pb2 as sim
from tests import whereabouts

SETTLE_S_MAX = 60.0
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """A running stack and the ways a test reaches it."""

    stack: local.LocalStack
    mesh: mesh.Mesh
    state_dir: Path

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints.read(self.state_dir)

    @property
    def places(self) -> layout.Places:
        return layout.Places(self.state_dir)

    def service(self, name: str, shard: str | None = None) -> Service:
        return self.endpoints.service(name, shard)

    def token(self, user: str, *roles: str, age_s: float = 0.0) -> str:
        """A token of ten minutes that was made `age_s` ago."""
        return mint_token(self.places.issuer, user, roles or ("user",), 600, now=time.time() - age_s)

    def rest(self, user: str | None = None, *roles: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.token(user, *roles)}"} if user else {}
        return httpx.AsyncClient(base_url=self.endpoints.gateway, headers=headers, timeout=20.0)

    async def create(
        self, user: str, *, kind: str = "payment", amount_minor: int = 700, request_id: str | None = None
    ) -> Order:
        """Create an order as a well-behaved client does: with one key until it is acknowledged."""
        request = pb.CreateOrderRequest(
            user_id=user,
            request_id=request_id or str(uuid4()),
            kind=kind,
            amount=Money(currency_code="EUR", amount_minor=amount_minor),
        )
        made = await retried(lambda: self.mesh.orders.CreateOrder(request, timeout=5.0))
        return made.order

    async def get(self, order_id: str) -> Order:
        found = await retried(
            lambda: self.mesh.orders.GetOrder(pb.GetOrderRequest(order_id=order_id), timeout=5.0)
        )
        return found.order

    async def until_stage(self, order_id: str, *stages: "Order.Stage.ValueType") -> Order:
        """The order once it stands at one of these stages; a failure says where it stands and why."""

        async def look() -> Order | None:
            order = await self.get(order_id)
            return order if order.stage in stages else None

        try:
            return await eventually(look, within_s=SETTLE_S_MAX, every_s=0.1)
        except AssertionError as failed:
            names = [Order.Stage.Name(stage) for stage in stages]
            dsns = self.endpoints.shard_dsns()
            told = await whereabouts.in_mesh(dsns, self.mesh, self.places, order_id)
            raise AssertionError(f"{order_id} came to none of {names}: {failed}\n{told}") from failed

    async def until_settled(self, order_id: str) -> Order:
        return await self.until_stage(order_id, Order.DONE)

    async def journal(self, order_id: str) -> list[str]:
        request = pb.ListOrderEventsRequest(order_id=order_id, page_size=100)
        page = await retried(lambda: self.mesh.orders.ListOrderEvents(request, timeout=5.0))
        assert [event.version for event in page.events] == list(range(1, len(page.events) + 1))
        return [event.kind for event in page.events]

    async def executions(self, order_id: str) -> dict[int, int]:
        """How often each leg was executed, by the upstreams' own ledgers."""
        counts: dict[int, int] = {}
        for upstream in layout.UPSTREAMS:
            async with mesh.simulator(self.endpoints, upstream) as simulator:
                asked = sim.GetLedgerRequest(order_id=order_id)
                # The connection is new, and a busy machine may need more than one try to open it.
                ledger = await simulator.GetLedger(asked, timeout=15.0, wait_for_ready=True)
            for execution in ledger.executions:
                counts[execution.leg] = counts.get(execution.leg, 0) + (not execution.rejected)
        return counts

    @asynccontextmanager
    async def fault(self, upstream: str, **fault: object) -> AsyncIterator[None]:
        """Make an upstream misbehave for a while."""
        async with mesh.simulator(self.endpoints, upstream) as simulator:
            made = await simulator.SetFault(
                sim.SetFaultRequest(fault=sim.Fault(**fault)),  # type: ignore[arg-type]
                timeout=5.0,
            )
            try:
                yield
            finally:
                clear = sim.ClearFaultsRequest(fault_id=made.fault.fault_id)
                await simulator.ClearFaults(clear, timeout=5.0)

    async def arm(self, name: str, shard: str | None, specification: str) -> int:
        """Arm fault points of one process through its admin port; gives the pid that will feel it."""
        service = self.service(name, shard)
        assert service.metrics_url is not None
        async with httpx.AsyncClient(timeout=5.0) as http:
            url = service.metrics_url.removesuffix("/metrics") + "/faults"
            answer = await http.put(url, content=specification)
        assert answer.status_code == httpx.codes.OK, answer.text
        return service.pid

    def fired(self, pid: int) -> list[str]:
        """Fault points that fired in one process."""
        if not self.places.faults_fired.exists():
            return []
        lines = self.places.faults_fired.read_text().splitlines()
        return [line.split("=")[0] for line in lines if line.endswith(f"pid={pid}")]

    async def kill(self, name: str, shard: str | None = None) -> None:
        """SIGKILL one process."""
        os.kill(self.service(name, shard).pid, signal.SIGKILL)

    async def until_back(self, name: str, shard: str | None, old_pid: int) -> Service:
        async def look() -> Service | None:
            service = self.service(name, shard)
            return service if service.pid not in (0, old_pid) else None

        return await eventually(look, within_s=10.0)


async def retried(call: Callable[[], Awaitable[T]], *, within_s: float = 20.0) -> T:
    """Call until an answer comes, as clients do after UNAVAILABLE or a lost connection."""
    codes = (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )

    refusals: deque[grpc.aio.AioRpcError] = deque(maxlen=1)

    async def attempt() -> T | None:
        try:
            return await call()
        except grpc.aio.AioRpcError as failed:
            if failed.code() not in codes:
                raise
            refusals.append(failed)
            return None

    try:
        return await eventually(attempt, within_s=within_s, every_s=0.1)
    except AssertionError as unanswered:
        if not refusals:
            raise
        last = refusals.pop()
        said = f"{last.code().name} {reason_of(last)} {last.details()}"
        raise AssertionError(f"{unanswered}; it was refused with {said}") from last


def reason_of(failed: grpc.aio.AioRpcError) -> str:
    return rpc.error_of(failed).reason


@asynccontextmanager
async def ready(state_dir: Path, *, full: bool = False) -> AsyncIterator[World]:
    """A mesh, ready; without fsync, as the machine is not what dies in tests."""
    async with (
        local.running(state_dir, port_base=0, durable=False, full=full) as stack,
        mesh.connect(stack.endpoints) as stubs,
    ):
        yield World(stack, stubs, state_dir)


@pytest.fixture(scope="session")
async def world(server_dir: Path) -> AsyncIterator[World]:
    """The mesh that the tests of a process share."""
    async with ready(server_dir / "stack") as opened:
        yield opened
