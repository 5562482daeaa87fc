"""How a command reaches the mesh: one channel, a deadline on every call, and nothing on stdout but the
answer.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, TypeVar

import structlog

from ops.mesh import TIMEOUT_S, Mesh, connect
from ops.stack.endpoints import Endpoints

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path
    from typing import Any

    from ordermesh.routing.v1.routing_service_pb2 import Shard

__all__ = ["TIMEOUT_S", "ask", "quietly", "shards_of"]

T = TypeVar("T")
_CRITICAL = 50


def ask(state_dir: Path, work: Callable[[Mesh], Awaitable[T]]) -> T:
    """Do some work on the mesh of a running stack.

    Raises: StackDown when none runs; AioRpcError, which the edge explains.
    """
    endpoints = Endpoints.read(state_dir)

    async def connected() -> T:
        async with connect(endpoints) as mesh:
            return await work(mesh)

    return quietly(connected())


def quietly(work: Coroutine[Any, Any, T]) -> T:
    """Run it, with the logs of our own client code kept out of the way of the answer."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(_CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    return asyncio.run(work)


async def shards_of(mesh: Mesh) -> list[Shard]:
    """All shards, by name."""
    from ordermesh.routing.v1 import routing_service_pb2 as routing

    answer = await mesh.routing.ListShards(routing.ListShardsRequest(), timeout=TIMEOUT_S)
    return list(answer.shards)
