"""A simulated upstream in the test's own process: the real gRPC server with mTLS and its real ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
from google.protobuf.duration_pb2 import Duration

from chassis import rpc
from chassis.tls import TlsFiles
from ops import ca
from ops.upstream import app
from ops.upstream.ledger import Execution, Ledger
from ops.upstream.settings import UpstreamSettings
from ordermesh.money.v1 import money_pb2
from ordermesh.upstream.v1 import simulator_service_pb2 as sim
from ordermesh.upstream.v1 import simulator_service_pb2_grpc as sim_grpc
from ordermesh.upstream.v1 import upstream_service_pb2 as pb
from ordermesh.upstream.v1 import upstream_service_pb2_grpc as pb_grpc

CALL_S = 5.0


@dataclass(frozen=True, slots=True)
class Upstream:
    """What a test may ask of an upstream: as its caller, as an operator, and of its ledger's file."""

    target: str
    path: Path
    calls: pb_grpc.UpstreamServiceAsyncStub
    control: sim_grpc.SimulatorServiceAsyncStub

    async def execute(
        self, order_id: str, *, leg: int = 0, user_id: str = "alice", **options: float
    ) -> pb.Answer:
        """Execute one leg over the wire; `attempt`, `amount_minor` and `timeout` may be given."""
        request = pb.ExecuteRequest(
            idempotency_key=f"{order_id}/{leg}",
            order_id=order_id,
            leg=leg,
            attempt=int(options.get("attempt", 1)),
            user_id=user_id,
            amount=money_pb2.Money(currency_code="EUR", amount_minor=int(options.get("amount_minor", 1250))),
        )
        return (await self.calls.Execute(request, timeout=options.get("timeout", CALL_S))).answer

    async def probe(self, key: str, *, timeout_s: float = CALL_S) -> pb.Answer:
        """Ask what became of a key."""
        return (await self.calls.Probe(pb.ProbeRequest(idempotency_key=key), timeout=timeout_s)).answer

    async def misbehave(self, kind: str, *, duration_s: float = 0, **fields: object) -> sim.Fault:
        """Set a fault by the name of its kind; the other fields are those of the proto."""
        fault = sim.Fault(kind=sim.Fault.Kind.Value(kind), **fields)  # type: ignore[arg-type]
        if duration_s:
            fault.duration.CopyFrom(Duration(seconds=int(duration_s), nanos=int(duration_s % 1 * 1e9)))
        return (await self.control.SetFault(sim.SetFaultRequest(fault=fault), timeout=CALL_S)).fault

    async def behave(self) -> None:
        """Clear all faults."""
        await self.control.ClearFaults(sim.ClearFaultsRequest(), timeout=CALL_S)

    def executions(self, key: str = "") -> list[Execution]:
        """What stands in the file, read past the process."""
        with Ledger.open(self.path) as ledger:
            return ledger.executions(key=key)


def identities(directory: Path) -> Path:
    """Issue every service's certificate into a directory."""
    ca.renew_due(directory)
    return directory


@asynccontextmanager
async def simulated(
    directory: Path,
    tls_dir: Path,
    *,
    name: str = "payments",
    idempotent: bool = False,
    caller: str = "order_svc",
) -> AsyncIterator[Upstream]:
    """Serve an upstream in this process; a later one finds its ledger again in `directory`."""
    path = directory / f"{name}.db"
    settings = UpstreamSettings(
        upstream_name=name, ledger=path, idempotent=idempotent, tls_dir=tls_dir, subject_dir=tls_dir
    )
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(app.running(settings))
        for loop in served.loops:
            task = asyncio.create_task(loop.run(), name=loop.name)
            stack.callback(task.cancel)
        yield await reached(stack, f"127.0.0.1:{served.port}", path, tls_dir, caller)


async def reached(stack: AsyncExitStack, target: str, path: Path, tls_dir: Path, caller: str) -> Upstream:
    """Open channels to an upstream as `caller` and as an operator."""

    async def channel(identity: str) -> grpc.aio.Channel:
        opened = rpc.Channel(target, service="upstream", tls=TlsFiles(tls_dir, identity))
        return cast("grpc.aio.Channel", await stack.enter_async_context(opened))

    calls = pb_grpc.UpstreamServiceStub(await channel(caller))
    return Upstream(target, path, calls, sim_grpc.SimulatorServiceStub(await channel("ops")))
