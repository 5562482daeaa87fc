"""The standard health service: who serves, now and as it changes.

Everything starts as NOT_SERVING and is said to serve when it does. Each watcher has a queue of its own that
keeps only the latest state, so that a slow one delays nobody. At drain the watches end: whoever watches
reconnects elsewhere. Calls need no identity and no deadline; how many may watch is bounded.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2 as pb  # type: ignore[import-untyped]

from chassis.errors import MalformedRequest, Overloaded, Stopping
from chassis.rpc.status import to_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SERVICE = "grpc.health.v1.Health"
WATCHERS_MAX = 256
LISTED_MAX = 100
_SERVING = pb.HealthCheckResponse.SERVING
_NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """The health of one process by service name; the empty name is the process itself."""

    def __init__(self, services: Iterable[str] = ()) -> None:
        self._states: dict[str, int] = dict.fromkeys(("", *services), _NOT_SERVING)
        self._watchers: set[asyncio.Event] = set()
        self._draining = False

    def set(self, service: str, *, serving: bool) -> None:
        """Say whether a service serves; ignored once the process drains."""
        self._change(service, _SERVING if serving else _NOT_SERVING)

    def forget(self, service: str) -> None:
        """A service is no longer part of this process."""
        self._change(service, None)

    def serving(self, service: str = "") -> bool:
        """What was said last."""
        return bool(self._states.get(service) == _SERVING)

    async def drain(self) -> None:
        """Nothing serves any more; every watch hears it and ends."""
        for service in self._states:
            self._change(service, _NOT_SERVING)
        self._draining = True
        self._wake()

    def register(self, server: grpc.aio.Server) -> None:
        """Serve it."""
        server.add_generic_rpc_handlers((_Handlers(self),))

    def check(self, service: str) -> int | None:
        """The state of a service; None for one that nobody knows."""
        return self._states.get(service)

    def listed(self) -> dict[str, int]:
        """Every state, the process first; at most a hundred."""
        return dict(list(self._states.items())[:LISTED_MAX])

    async def watch(self, service: str, tell: Callable[[int], Any]) -> None:
        """Tell the state now and after every change, until the process drains.

        Raises: Overloaded when too many watch; Stopping at drain.
        """
        if len(self._watchers) >= WATCHERS_MAX:
            raise Overloaded(limiter="health_watchers")
        changed = asyncio.Event()
        self._watchers.add(changed)
        told = None
        try:
            while True:
                changed.clear()
                state = self._states.get(service, _UNKNOWN)
                if state != told:
                    await tell(state)
                    told = state
                elif self._draining:
                    raise Stopping
                else:
                    await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _change(self, service: str, state: int | None) -> None:
        if self._draining or self._states.get(service) == state:
            return
        if state is None:
            del self._states[service]
        else:
            self._states[service] = state
        self._wake()

    def _wake(self) -> None:
        for changed in self._watchers:
            changed.set()


class _Handlers(grpc.GenericRpcHandler):
    """Check, List and Watch on raw bytes, so that decoding is refused like everywhere else."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._handlers: dict[str, Any] = {
            f"/{SERVICE}/Check": grpc.unary_unary_rpc_method_handler(self._check),
            f"/{SERVICE}/List": grpc.unary_unary_rpc_method_handler(self._list),
            f"/{SERVICE}/Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a path, or none."""
        return self._handlers.get(handler_call_details.method)

    async def _check(self, raw: bytes, context: Any) -> bytes:
        state = self._health.check(await _asked(raw, context))
        if state is None:
            # The protocol says so; the message is the only detail it has.
            await context.abort(grpc.StatusCode.NOT_FOUND, "No such service here.")
        return bytes(pb.HealthCheckResponse(status=state).SerializeToString())

    async def _list(self, raw: bytes, context: Any) -> bytes:
        states = {name: pb.HealthCheckResponse(status=state) for name, state in self._health.listed().items()}
        return bytes(pb.HealthListResponse(statuses=states).SerializeToString())

    async def _watch(self, raw: bytes, context: Any) -> None:
        async def tell(state: int) -> None:
            await context.write(pb.HealthCheckResponse(status=state).SerializeToString())

        service = await _asked(raw, context)
        try:
            await self._health.watch(service, tell)
        except (Overloaded, Stopping) as refused:
            await context.abort(*to_status(refused))


async def _asked(raw: bytes, context: Any) -> str:
    """The service that is asked for; a request that is no message ends the call."""
    request = pb.HealthCheckRequest()
    try:
        request.ParseFromString(raw)
    except DecodeError:
        await context.abort(*to_status(MalformedRequest()))
    return str(request.service)
