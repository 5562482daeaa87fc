"""RecoveryService: shows hanging orders, probes one now, pauses and resumes; holds are kept in the shards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from chassis.clock import Clock
from chassis.rpc import Call
from chassis.supervise import OwnedTasks
from ordermesh.order.v1 import order_service_pb2
from ordermesh.recovery.v1 import recovery_service_pb2 as pb
from recovery_svc import wire
from recovery_svc.clients import Mesh
from recovery_svc.domain import UNREACHABLE, hold_reason, hold_scope, page_size
from recovery_svc.errors import CallFailed
from recovery_svc.probe import Prober, Recovered
from recovery_svc.settings import RecoverySettings
from recovery_svc.sweep import Sweeps

T = TypeVar("T")
ANSWER_S = 0.2
"""Kept back from the caller's deadline, so that the answer about slow shards arrives."""
SHARDS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Scattered(Generic[T]):
    """The answers of the shards that answered, and the names of the others."""

    answers: dict[str, T]
    unreachable: list[str]


class RecoveryService:
    """The handlers."""

    def __init__(
        self,
        mesh: Mesh,
        prober: Prober,
        sweeps: Sweeps,
        owned: OwnedTasks,
        settings: RecoverySettings,
        clock: Clock,
    ) -> None:
        self._mesh = mesh
        self._prober = prober
        self._sweeps = sweeps
        self._owned = owned
        self._settings = settings
        self._clock = clock

    async def ListHangingOrders(
        self, request: pb.ListHangingOrdersRequest, call: Call
    ) -> pb.ListHangingOrdersResponse:
        """List orders that are past their time, the most overdue first."""
        size = page_size(request.page_size)
        pages = await self._scatter(request.shard, call, partial(self._mesh.overdue, size=size))
        due = wire.most_overdue_first(pages.answers.values(), size)
        return pb.ListHangingOrdersResponse(due_orders=due, unreachable=pages.unreachable)

    async def ProbeOrder(self, request: pb.ProbeOrderRequest, call: Call) -> pb.ProbeOrderResponse:
        """Probe one order now.

        If cancelled here: what was begun is reported all the same.
        """
        order_id = wire.order_id(request)
        recovered = await self._owned.run(self._probe_now(order_id), name=f"probe {order_id}")
        if recovered is not None:
            return pb.ProbeOrderResponse(order=recovered.order, report=wire.report(recovered.finding))
        return pb.ProbeOrderResponse(order=await self._mesh.order(order_id, timeout_s=_time_s(call)))

    async def PauseRecovery(self, request: pb.PauseRecoveryRequest, call: Call) -> pb.PauseRecoveryResponse:
        """Put a hold on one shard or on all."""
        hold = order_service_pb2.PutHoldRequest(
            request_id=str(wire.request_id(request.request_id)),
            scope=hold_scope(request.upstream, self._prober.upstreams),
            reason=hold_reason(request.reason, call.subject.name),
            until_time=wire.until(request, self._clock.now()),
        )
        held = await self._scatter(request.shard, call, partial(self._put_hold, hold))
        return pb.PauseRecoveryResponse(shards=sorted(held.answers), unreachable=held.unreachable)

    async def ResumeRecovery(
        self, request: pb.ResumeRecoveryRequest, call: Call
    ) -> pb.ResumeRecoveryResponse:
        """Lift a hold from one shard or from all."""
        hold = order_service_pb2.LiftHoldRequest(
            request_id=str(wire.request_id(request.request_id)),
            scope=hold_scope(request.upstream, self._prober.upstreams),
            reason=hold_reason(request.reason, call.subject.name),
        )
        lifted = await self._scatter(request.shard, call, partial(self._lift_hold, hold))
        shards = sorted(shard for shard, was_held in lifted.answers.items() if was_held)
        return pb.ResumeRecoveryResponse(shards=shards, unreachable=lifted.unreachable)

    async def GetRecoveryStatus(
        self, _: pb.GetRecoveryStatusRequest, call: Call
    ) -> pb.GetRecoveryStatusResponse:
        """Say how recovery does on each shard."""
        found = await self._scatter("", call, self._mesh.status)
        return pb.GetRecoveryStatusResponse(
            shards=[
                self._shard_recovery(shard, found.answers.get(shard))
                for shard in sorted([*found.answers, *found.unreachable])
            ]
        )

    async def _probe_now(self, order_id: str) -> Recovered | None:
        """Claim one order and work on it; None when there is nothing to claim."""
        settings = self._settings
        shard = await self._mesh.shard_of(order_id)
        began = self._clock.monotonic()
        claims = await self._mesh.claim(
            shard, limit=1, lease_s=settings.lease_s, timeout_s=settings.claim_timeout_s, order_id=order_id
        )
        if not claims:
            return None
        return await self._prober.recover(claims[0], self._prober.lease_ends(began))

    async def _put_hold(
        self, hold: order_service_pb2.PutHoldRequest, shard: str, *, timeout_s: float
    ) -> None:
        asked = order_service_pb2.PutHoldRequest(shard=shard)
        asked.MergeFrom(hold)
        await self._mesh.put_hold(asked, timeout_s=timeout_s)

    async def _lift_hold(
        self, hold: order_service_pb2.LiftHoldRequest, shard: str, *, timeout_s: float
    ) -> bool:
        asked = order_service_pb2.LiftHoldRequest(shard=shard)
        asked.MergeFrom(hold)
        return await self._mesh.lift_hold(asked, timeout_s=timeout_s)

    def _shard_recovery(
        self, shard: str, status: order_service_pb2.GetShardStatusResponse | None
    ) -> pb.ShardRecovery:
        sweep = self._sweeps.sweeps.get(shard)
        if sweep is None:
            return wire.shard_recovery(shard, status, last_sweep=None, probe_count=0)
        return wire.shard_recovery(shard, status, last_sweep=sweep.last_sweep, probe_count=sweep.probe_count)

    async def _scatter(self, shard: str, call: Call, ask: Callable[..., Awaitable[T]]) -> Scattered[T]:
        """Ask one shard or all, each with a deadline of its own.

        Raises: CallFailed when a shard refuses for another reason than being out of reach.
        """
        shards = frozenset({shard}) if shard else await self._mesh.shards()
        time_s = min(self._settings.scatter_timeout_s, _time_s(call))
        return await scatter(shards, partial(ask, timeout_s=time_s))


async def scatter(shards: Iterable[str], ask: Callable[[str], Awaitable[T]]) -> Scattered[T]:
    """Ask all shards, a bounded number at a time.

    Raises: CallFailed when one refuses for another reason than being out of reach.
    """
    at_once = asyncio.Semaphore(SHARDS_AT_ONCE)
    answers: dict[str, T] = {}
    unreachable: list[str] = []
    refused: list[CallFailed] = []

    async def ask_one(shard: str) -> None:
        try:
            async with at_once:
                answers[shard] = await ask(shard)
        except CallFailed as failed:
            if failed.code.name in UNREACHABLE:
                unreachable.append(shard)
            else:
                refused.append(failed)

    await asyncio.gather(*(ask_one(shard) for shard in shards))
    if refused:
        raise refused[0]
    return Scattered(answers, sorted(unreachable))


def _time_s(call: Call) -> float:
    return max(0.0, call.time_remaining() - ANSWER_S)
