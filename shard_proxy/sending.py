"""Single calls to a lane and their way back: slots, connection, cancellation, metadata, one message at a
time.

Everything here ends with the context it was opened in: a caller that goes away cancels its call at the lane.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from grpc import aio

from shard_proxy import headers, metrics
from shard_proxy.outcome import Ended, ended_calls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from chassis import rpc
    from shard_proxy.lanes import Lane, Link
    from shard_proxy.methods import Passed
    from shard_proxy.trip import Trip

    Context = aio.ServicerContext[Any, Any]
    Requests = AsyncIterator[bytes]


@asynccontextmanager
async def unary_call(lane: Lane, passed: Passed, raw: bytes, trip: Trip) -> AsyncIterator[Any]:
    """A running unary call that holds a slot of its lane; cancelled when the context ends before it."""
    async with (
        lane.slots.slot(trip.timeout_s()),
        _running(lane, lane.calls, "unary_unary", passed, trip, raw) as upstream,
    ):
        yield upstream


@asynccontextmanager
async def stream_call(lane: Lane, passed: Passed, trip: Trip, raw: bytes | None) -> AsyncIterator[Any]:
    """A running stream, over the lane's connection for streams."""
    incoming = "stream" if passed.method.client_streaming else "unary"
    outgoing = "stream" if passed.method.server_streaming else "unary"
    async with (
        lane.stream_slots.slot(trip.timeout_s()),
        _running(lane, lane.streams, f"{incoming}_{outgoing}", passed, trip, raw) as upstream,
    ):
        yield upstream


@asynccontextmanager
async def _running(
    lane: Lane, link: Link, arity: str, passed: Passed, trip: Trip, raw: bytes | None
) -> AsyncIterator[Any]:
    """A call to a lane that is counted, and cancelled when its context ends before it does."""
    await link.until_ready(trip.timeout_s())
    metadata = await trip.metadata()
    with ended_calls():
        upstream = link.call(arity, passed.method.path)(raw, timeout=trip.timeout_s(), metadata=metadata)
    code, started = "OK", time.perf_counter()
    try:
        yield upstream
    except Ended as ended:
        code = ended.status.code.name
        raise
    except asyncio.CancelledError:
        code = "CANCELLED"
        raise
    finally:
        upstream.cancel()
        metrics.LANE_CALLS.labels(lane.name, code).inc()
        if arity == "unary_unary":
            metrics.LANE_SECONDS.labels(lane.name).observe(time.perf_counter() - started)


@asynccontextmanager
async def pumped(first: list[bytes], requests: Requests, upstream: Any) -> AsyncIterator[None]:
    """Write the caller's requests to the lane while the body reads the lane's answers."""
    pump = asyncio.create_task(_pump(first, requests, upstream), name="requests")
    try:
        yield
    finally:
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


async def _pump(first: list[bytes], requests: Requests, upstream: Any) -> None:
    try:
        for message in first:
            await upstream.write(message)
        async for message in requests:
            await upstream.write(message)
        await upstream.done_writing()
    except (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError):
        # The call ended; how, is read from the call itself: a failed write would say INTERNAL.
        return


async def first_of(requests: Requests) -> AsyncIterator[bytes]:
    """The first request, if there is one; the others stay where they are."""
    async for message in requests:
        yield message
        return


class Back:
    """The way of a lane's stream to the caller, one message at a time: a slow caller slows the lane, not
    our memory.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.began = False

    async def forward(self, upstream: Any) -> None:
        """Pass on until the end. Raises: Ended."""
        while True:
            with ended_calls():
                message = await upstream.read()
            if message is aio.EOF:
                return
            if not self.began:
                await begin(upstream, self._context)
                self.began = True
            await self._context.write(message)


async def begin(upstream: Any, context: Context) -> None:
    """Pass on initial metadata, if a lane sends any; never before its first answer."""
    initial = headers.initial_of(await upstream.initial_metadata())
    if initial:
        await context.send_initial_metadata(initial)


async def finish(upstream: Any, lane: Lane, trip: Trip, call: rpc.Call, context: Context) -> None:
    """Pass on the trailers of an answered call, with our own; they may be bytes and may repeat a key."""
    trip.arrived(lane)
    trailers = headers.trailers_of(await upstream.trailing_metadata())
    context.set_trailing_metadata(trailers + tuple(call.trailers.items()))
    call.trailers.clear()
