"""The simulator's handlers: what its callers ask of an upstream, and what operators ask of the simulator.

A verdict leaves only after the ledger has it. What faults do to the reply happens afterwards, here.
"""

from __future__ import annotations

from functools import partial

from chassis.clock import Clock
from chassis.rpc import Call
from ops.upstream import wire
from ops.upstream.clerk import Clerk
from ops.upstream.domain import Delivery
from ops.upstream.errors import NoAnswer
from ops.upstream.ledger import Ledger, Reaction
from ordermesh.upstream.v1 import simulator_service_pb2 as sim
from ordermesh.upstream.v1 import upstream_service_pb2 as pb

LATE_BY_S = 0.25
"""How far beyond the caller's deadline a late answer goes out."""
ROWS_MAX = 1000
"""What one look at the ledger returns at most."""


class UpstreamService:
    """Executes, probes and reverses by the ledger."""

    def __init__(self, clerk: Clerk, clock: Clock) -> None:
        self._clerk = clerk
        self._clock = clock

    async def Execute(self, request: pb.ExecuteRequest, call: Call) -> pb.ExecuteResponse:
        """Execute one leg.

        If cancelled here: what reached the ledger stays.
        """
        ask = wire.submission(request)
        reaction = await self._clerk.do(partial(Ledger.execute, ask=ask, at=self._clock.now()))
        return pb.ExecuteResponse(answer=await self._delivered(reaction, call))

    async def Probe(self, request: pb.ProbeRequest, call: Call) -> pb.ProbeResponse:
        """Say what became of a key."""
        key = wire.key(request.idempotency_key)
        reaction = await self._clerk.do(partial(Ledger.probe, key=key, at=self._clock.now()))
        return pb.ProbeResponse(answer=await self._delivered(reaction, call))

    async def Reverse(self, request: pb.ReverseRequest, call: Call) -> pb.ReverseResponse:
        """Take one execution back."""
        job = partial(
            Ledger.reverse,
            key=wire.key(request.idempotency_key),
            original_key=wire.key(request.original_key, field_name="original_key"),
            at=self._clock.now(),
        )
        return pb.ReverseResponse(answer=await self._delivered(await self._clerk.do(job), call))

    async def _delivered(self, reaction: Reaction, call: Call) -> pb.Answer:
        how = reaction.delivery
        await self._clock.sleep(_delay_s(how, call))
        if how.down or how.lost:
            raise NoAnswer
        return wire.answer(reaction.answer)


class SimulatorService:
    """Takes faults and shows the ledger."""

    def __init__(self, clerk: Clerk) -> None:
        self._clerk = clerk

    async def SetFault(self, request: sim.SetFaultRequest, _: Call) -> sim.SetFaultResponse:
        """Add one fault."""
        kept = await self._clerk.do(partial(Ledger.set_fault, fault=wire.fault(request)))
        return sim.SetFaultResponse(fault=wire.written_fault(kept))

    async def ClearFaults(self, request: sim.ClearFaultsRequest, _: Call) -> sim.ClearFaultsResponse:
        """Take one fault away, or all."""
        job = partial(Ledger.clear_faults, fault_id=wire.fault_id(request.fault_id))
        return sim.ClearFaultsResponse(cleared_count=await self._clerk.do(job))

    async def ListFaults(self, _: sim.ListFaultsRequest, __: Call) -> sim.ListFaultsResponse:
        """List the faults in force."""
        faults = await self._clerk.do(lambda ledger: ledger.faults)
        return sim.ListFaultsResponse(faults=[wire.written_fault(fault) for fault in faults])

    async def GetLedger(self, request: sim.GetLedgerRequest, _: Call) -> sim.GetLedgerResponse:
        """Show what was executed for one order or key."""
        order_id, key = wire.ledger_scope(request)
        return await self._clerk.do(partial(_page, order_id=order_id, key=key))


def _page(ledger: Ledger, order_id: str, key: str) -> sim.GetLedgerResponse:
    executions = ledger.executions(key=key, order_id=order_id)
    reversals = ledger.reversals(key=key, order_id=order_id)
    return sim.GetLedgerResponse(
        executions=[wire.execution(row) for row in executions[:ROWS_MAX]],
        reversals=[wire.reversal(row) for row in reversals[:ROWS_MAX]],
        pending_count=ledger.pending_count(key=key, order_id=order_id),
    )


def _delay_s(how: Delivery, call: Call) -> float:
    """How long a reply is kept back; a late one until its caller has given up."""
    return max(how.delay_s, call.time_remaining() + LATE_BY_S if how.late else 0.0)
