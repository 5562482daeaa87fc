"""Following the read model's operations until they are over."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from ops.mesh import TIMEOUT_S, CallFailed
from ordermesh.history.v1 import projection_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ops.mesh import Mesh

    Tell = Callable[[Sequence[pb.Operation]], None]

LOOK_EVERY_S = 0.3
NEWEST_MAX = 100
Operation = pb.Operation


async def started(
    mesh: Mesh, requests: Sequence[pb.StartOperationRequest], who: tuple[tuple[str, str], ...]
) -> list[Operation]:
    """The operations of some requests. who: the metadata that says which person asks.

    Raises: CallFailed.
    """
    found: list[Operation] = []
    for request in requests:
        answer = await mesh.projection.StartOperation(request, timeout=TIMEOUT_S, metadata=who)
        found += answer.operations
    return found


async def followed(mesh: Mesh, begun: Collection[Operation], *, wait_s: float, tell: Tell) -> list[Operation]:
    """Operations as they are when they are over, or when the time is; told what is open again and again.

    A mesh that does not answer meanwhile is asked again.
    """
    known: dict[str, Operation] = {each.operation_id: each for each in begun}
    end = time.monotonic() + wait_s
    while time.monotonic() < end and any(each.state == Operation.OPEN for each in known.values()):
        known |= {each.operation_id: each for each in await _newest(mesh, end) if each.operation_id in known}
        tell(list(known.values()))
        await asyncio.sleep(LOOK_EVERY_S)
    return list(known.values())


def shown_months(part: pb.GetProjectionStatusResponse.ShardPart) -> set[str]:
    """A shard's months that lists show: those that are not archived."""
    months = {index.month for index in part.indices}
    return {month for month in months if not is_archived(part, month)}


def is_archived(part: pb.GetProjectionStatusResponse.ShardPart, month: str) -> bool:
    """Whether a month, `2026-09`, is archived on a shard. The archive ends where a month begins."""
    if not part.HasField("archived_before_time"):
        return False
    return month < f"{part.archived_before_time.ToDatetime():%Y-%m}"


async def unserved(mesh: Mesh, shard: str = "") -> tuple[set[tuple[str, str]], list[Operation], list[str]]:
    """Months that their shard serves itself, as (shard, month), with the operations that are open, and shards
    that do not answer. Nobody serves an archived month.

    Raises: CallFailed.
    """
    request = pb.GetProjectionStatusRequest(shard=shard)
    answer = await mesh.projection.GetProjectionStatus(request, timeout=TIMEOUT_S)
    known, serving = set(), set()
    for part in answer.shards:
        known |= {(part.shard, month) for month in shown_months(part)}
        serving |= {(part.shard, index.month) for index in part.indices if index.state == "SERVING"}
    opened = [operation for part in answer.shards for operation in part.operations]
    return known - serving, opened, list(answer.unreachable)


async def until_served(mesh: Mesh, *, wait_s: float, tell: Tell, shard: str = "") -> bool:
    """Wait until an index serves every month of every shard, or of one; False when that is not known to be so
    when the time is over.
    """
    end = time.monotonic() + wait_s
    while True:
        try:
            left, opened, away = await unserved(mesh, shard)
        except CallFailed:
            left, opened, away = set(), [], ["the mesh"]
        tell(opened)
        if not left and not away:
            return True
        if time.monotonic() > end:
            return False
        await asyncio.sleep(LOOK_EVERY_S)


async def _newest(mesh: Mesh, end: float) -> Sequence[Operation]:
    request = pb.ListOperationsRequest(page_size=NEWEST_MAX)
    try:
        answer = await mesh.projection.ListOperations(
            request, timeout=max(0.1, min(TIMEOUT_S, end - time.monotonic()))
        )
    except CallFailed:
        return []
    return list(answer.operations)
