"""The handlers of ProjectionService: proto -> the shards' operations -> proto.

Any projector answers: what is asked for is a row in each shard, and whoever leads the shard carries it on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from chassis.errors import DeadlineExceeded, Overloaded, ShardUnavailable
from history_svc.care import wire
from history_svc.care.operating import id_of
from history_svc.care.operation import State
from history_svc.errors import OperationNotFound, UnknownShard
from ordermesh.history.v1 import projection_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from chassis import rpc
    from history_svc.care.operation import Operation
    from history_svc.care.store import CareStore, Status

T = TypeVar("T")


class ProjectionService:
    """Implements ordermesh.history.v1.ProjectionService."""

    def __init__(self, stores: Mapping[str, CareStore]) -> None:
        self._stores = stores

    async def GetProjectionStatus(
        self, request: pb.GetProjectionStatusRequest, call: rpc.Call
    ) -> pb.GetProjectionStatusResponse:
        """Say how each shard's part of the read model is."""

        async def part(store: CareStore) -> tuple[Status, Sequence[Operation]]:
            newest = await store.operations(wire.OPEN_SHOWN_MAX)
            return await store.status(), [each for each in newest if each.state is State.OPEN]

        stores = self._of(request.shard)
        said = await _each([part(store) for store in stores], call)
        return pb.GetProjectionStatusResponse(
            shards=[wire.shard_part(*each) for each in said if each is not None],
            unreachable=_unreachable(stores, said),
        )

    async def StartOperation(
        self, request: pb.StartOperationRequest, call: rpc.Call
    ) -> pb.StartOperationResponse:
        """Note an operation in one shard or in all."""
        asked = wire.start(request)
        started = []
        for store in self._of(asked.shard):
            operation = await store.until(call.deadline).open(
                id_of(asked.request_id, store.shard),
                asked.kind,
                asked.month,
                repairs=asked.repairs,
                actor=call.subject.name,
                reason=asked.reason,
            )
            started.append(wire.operation(store.shard, operation))
        return pb.StartOperationResponse(operations=started)

    async def ListOperations(
        self, request: pb.ListOperationsRequest, call: rpc.Call
    ) -> pb.ListOperationsResponse:
        """List the newest operations."""
        size = wire.page_size(request.page_size)
        stores = self._of(request.shard)
        said = await _each([store.operations(size) for store in stores], call)
        found = [
            wire.operation(store.shard, each)
            for store, operations in zip(stores, said, strict=True)
            for each in operations or ()
        ]
        found.sort(key=lambda each: (each.state != pb.Operation.OPEN, -each.create_time.ToMicroseconds()))
        return pb.ListOperationsResponse(operations=found, unreachable=_unreachable(stores, said))

    async def CancelOperation(
        self, request: pb.CancelOperationRequest, call: rpc.Call
    ) -> pb.CancelOperationResponse:
        """End an open operation."""
        shard, operation_id, reason = wire.cancel(request)
        (store,) = self._of(shard)
        note = f"cancelled by {call.subject.name}: {reason}"
        operation = await store.until(call.deadline).cancel(operation_id, note)
        if operation is None:
            raise OperationNotFound(shard=shard)
        return pb.CancelOperationResponse(operation=wire.operation(shard, operation))

    def _of(self, shard: str) -> Sequence[CareStore]:
        """One shard, or all of them.

        Raises: UnknownShard.
        """
        if not shard:
            return list(self._stores.values())
        if shard not in self._stores:
            raise UnknownShard(shard=shard)
        return [self._stores[shard]]


async def _each(asked: Sequence[Coroutine[Any, Any, T]], call: rpc.Call) -> list[T | None]:
    """What each shard says; None for one that does not within the call's time."""

    async def one(said: Coroutine[Any, Any, T]) -> T | None:
        try:
            async with asyncio.timeout(call.time_remaining()):
                return await said
        except (ShardUnavailable, DeadlineExceeded, Overloaded, TimeoutError):
            return None

    return list(await asyncio.gather(*(one(said) for said in asked)))


def _unreachable(stores: Sequence[CareStore], said: Sequence[object]) -> list[str]:
    return [f"shards/{store.shard}" for store, each in zip(stores, said, strict=True) if each is None]
