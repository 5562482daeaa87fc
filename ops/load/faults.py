"""Upstreams that misbehave for the time of the load: set through their control interface, counted and
cleared at the end.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.duration_pb2 import Duration

from ops import mesh
from ops.errors import OpsError
from ordermesh.upstream.v1 import simulator_service_pb2 as sim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from ops.load.plan import UpstreamFault
    from ops.stack.endpoints import Endpoints
    from ordermesh.upstream.v1.simulator_service_pb2_grpc import SimulatorServiceAsyncStub

T = TypeVar("T")
CALL_S = 2.0
RETRY_S = 10.0
"""A simulator that was killed is back sooner; a fault that cannot be cleared must not stay by accident."""


@dataclass(slots=True)
class Struck:
    """One fault at one upstream; strikes is filled when it is cleared."""

    fault: str
    upstream: str
    fault_id: str
    strikes: int = 0


@asynccontextmanager
async def misbehaving(
    endpoints: Endpoints, faults: Sequence[UpstreamFault], seed: int
) -> AsyncIterator[list[Struck]]:
    """Every upstream misbehaves while the context lives; then only these faults are cleared.

    Raises: OpsError when a simulator does not answer.
    """
    struck: list[Struck] = []
    try:
        for upstream in endpoints.upstreams if faults else ():
            async with mesh.simulator(endpoints, upstream.name) as control:
                for fault in faults:
                    # One by one: what was set before something failed is cleared all the same.
                    struck.append(await _set(control, upstream.name, fault, seed))  # noqa: PERF401
        yield struck
    finally:
        for name in dict.fromkeys(each.upstream for each in struck):
            async with mesh.simulator(endpoints, name) as control:
                await _clear(control, [each for each in struck if each.upstream == name])


async def _set(control: SimulatorServiceAsyncStub, upstream: str, fault: UpstreamFault, seed: int) -> Struck:
    wanted = sim.Fault(
        kind=sim.Fault.Kind.Value(fault.kind),
        probability=fault.probability,
        seed=seed,
        duration=_duration(fault.duration_s) if fault.duration_s else None,
    )
    answer = await _answered(lambda: control.SetFault(sim.SetFaultRequest(fault=wanted), timeout=CALL_S))
    return Struck(fault.label, upstream, answer.fault.fault_id)


async def _clear(control: SimulatorServiceAsyncStub, struck: Sequence[Struck]) -> None:
    listed = await _answered(lambda: control.ListFaults(sim.ListFaultsRequest(), timeout=CALL_S))
    counts = {fault.fault_id: fault.strike_count for fault in listed.faults}
    for each in struck:
        each.strikes = counts.get(each.fault_id, 0)
        request = sim.ClearFaultsRequest(fault_id=each.fault_id)
        await _answered(lambda request=request: control.ClearFaults(request, timeout=CALL_S))  # type: ignore[misc]


async def _answered(call: Callable[[], Awaitable[T]]) -> T:
    """The answer of a simulator that may be starting again."""
    end = time.monotonic() + RETRY_S
    while True:
        try:
            return await call()
        except mesh.CallFailed as failed:
            if time.monotonic() > end or failed.code().name not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                raise OpsError(f"an upstream's simulator refused: {failed.details()}") from failed
        await asyncio.sleep(0.2)


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
