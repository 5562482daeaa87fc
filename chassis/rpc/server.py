"""A grpc.aio server with bounded defaults, serving plain handler objects through a gate."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from chassis.errors import MalformedRequest
from chassis.rpc import about
from chassis.rpc.gate import Gate, prepare, serve_call
from chassis.rpc.methods import BadContract, Method, methods_of
from chassis.rpc.options import server_options
from chassis.rpc.unknown import Unknown
from chassis.settings import is_loopback, split_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from chassis.rpc.call import Call
    from chassis.tls import ServerIdentity

RPCS_MAX = 1024
"""The last fence, refusing without our details; the limiters before it are far lower."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One service of the protos and the object that implements it: a coroutine or async generator per
    method, named alike.
    """

    service: str
    implementation: object


class PortTaken(Exception):
    """The address to listen on is in use or cannot be had."""


class RunningServer:
    """A listening server."""

    def __init__(self, server: grpc.aio.Server, port: int) -> None:
        self._server = server
        self.port = port

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, wait for those that run, cut them off after `grace_s`."""
        await self._server.stop(grace_s)


@asynccontextmanager
async def serve(
    listen: str,
    mounts: Sequence[Mount],
    *,
    gate: Gate,
    tls: ServerIdentity | None,
    handlers: Sequence[grpc.GenericRpcHandler] = (),
    register: Sequence[Callable[[grpc.aio.Server], None]] = (),
    streams_max: int = 256,
    connections_max: int = 500,
) -> AsyncIterator[RunningServer]:
    """Listen and serve until the context ends.

    tls: None is plain text and only possible on loopback. handlers, register: what is not mounted:
    pass-through, health, reflection.
    Raises: BadContract when a mounted service lacks an option or a handler; PortTaken.
    """
    if tls is None and not is_loopback(listen):
        raise BadContract(f"plain text on {listen}: only a loopback address may be served without TLS")
    server = grpc.aio.server(
        handlers=[*(_Service(mount, gate) for mount in mounts), *handlers],
        options=server_options(streams_max=streams_max, connections_max=connections_max),
        maximum_concurrent_rpcs=RPCS_MAX,
    )
    for add_to in register:
        add_to(server)
    server.add_generic_rpc_handlers((Unknown(gate),))
    port = _bind(server, listen, tls)
    await server.start()
    try:
        yield RunningServer(server, port)
    finally:
        await asyncio.shield(server.stop(0.5))


def _bind(server: grpc.aio.Server, listen: str, tls: ServerIdentity | None) -> int:
    host, _ = split_address(listen)
    try:
        port = (
            server.add_insecure_port(listen)
            if tls is None
            else server.add_secure_port(listen, tls.credentials())
        )
    except RuntimeError:
        port = 0
    if port == 0:
        raise PortTaken(
            f"cannot listen on {listen}: the port is in use or {host} is not an address of this machine"
        )
    return port


class _Service(grpc.GenericRpcHandler):
    """The handlers of one mounted service."""

    def __init__(self, mount: Mount, gate: Gate) -> None:
        methods = methods_of(mount.service)
        prepare(methods.values())
        self._handlers = {
            path: _handler(method, _behaviour(mount, method), gate) for path, method in methods.items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a path, or none."""
        return self._handlers.get(handler_call_details.method)


def _behaviour(mount: Mount, method: Method) -> Callable[..., Any]:
    behaviour = getattr(mount.implementation, method.name, None)
    wanted = inspect.isasyncgenfunction if method.server_streaming else inspect.iscoroutinefunction
    if behaviour is None or not wanted(behaviour):
        kind = "an async generator" if method.server_streaming else "a coroutine function"
        raise BadContract(f"{method.path} needs {kind} in {type(mount.implementation).__name__}")
    if method.client_streaming:
        raise BadContract(f"{method.path}: no service of the mesh takes streams of requests")
    return behaviour  # type: ignore[no-any-return]


def _handler(method: Method, behaviour: Callable[..., Any], gate: Gate) -> Any:
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(_stream_behaviour(method, behaviour, gate))
    return grpc.unary_unary_rpc_method_handler(_unary_behaviour(method, behaviour, gate))


def _unary_behaviour(method: Method, behaviour: Callable[..., Any], gate: Gate) -> Callable[..., Any]:
    async def answer(raw: bytes, context: Any) -> bytes | None:
        async def handle(call: Call) -> bytes:
            request = _decoded(method, raw)
            about.say_about(order_id=about.order_in(request))
            response = await behaviour(request, call)
            about.say_about(order_id=about.order_in(response))
            return response.SerializeToString()  # type: ignore[no-any-return]

        return await serve_call(gate, method, context, handle)

    return answer


def _stream_behaviour(method: Method, behaviour: Callable[..., Any], gate: Gate) -> Callable[..., Any]:
    async def answer(raw: bytes, context: Any) -> None:
        async def handle(call: Call) -> None:
            request = _decoded(method, raw)
            about.say_about(order_id=about.order_in(request))
            answers = behaviour(request, call)
            try:
                async for response in answers:
                    await context.write(response.SerializeToString())
            finally:
                await answers.aclose()

        await serve_call(gate, method, context, handle)

    return answer


def _decoded(method: Method, raw: bytes) -> Any:
    request = method.request_class()
    try:
        request.ParseFromString(raw)
    except DecodeError:
        raise MalformedRequest from None
    return request
