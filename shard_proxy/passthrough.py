"""Passes calls on as raw bytes, with their real arity: deadline, cancellation, metadata, trailers and status
details go through as they came.

What the proxy adds is the placement, the signed subject, and the trailers that say where the call went. A
call is sent again only when nothing happened (route refused, lane not reached) or when a repeat does no
harm. Nothing is sent to the caller before the lane said something, so an error always arrives as trailers
only.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from chassis import rpc
from shard_proxy import headers
from shard_proxy.domain import By, Key
from shard_proxy.errors import RoutingKeyMismatch, RoutingKeyMissing
from shard_proxy.journey import Journey
from shard_proxy.outcome import Ended, ended_calls
from shard_proxy.scatter import gather
from shard_proxy.sending import Back, begin, finish, first_of, pumped, stream_call, unary_call
from shard_proxy.trip import Trip

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from shard_proxy.book import RouteBook
    from shard_proxy.fairness import InFlight
    from shard_proxy.lanes import Lane, Lanes
    from shard_proxy.methods import Passed
    from shard_proxy.sending import Context, Requests


class Relay:
    """Sends calls to lanes and their answers back; one method for each arity."""

    def __init__(self, book: RouteBook, lanes: Lanes, calls: InFlight, streams: InFlight) -> None:
        self._book = book
        self._lanes = lanes
        self._calls = calls
        self._streams = streams

    async def unary(self, passed: Passed, raw: bytes, call: rpc.Call, context: Context) -> bytes:
        """One request, one answer."""
        key = checked_key(passed, raw, call)
        with self._counted(self._calls, passed, key, call):
            if passed.by is By.SCATTER:
                return await gather(self._book, self._lanes, passed, raw, key, call, _inbound(context))
            trip = self._trip(passed, key, call, context)
            while True:
                lane = await trip.lane()
                try:
                    async with unary_call(lane, passed, raw, trip) as upstream:
                        with ended_calls():
                            answer: bytes = await upstream
                        await begin(upstream, context)
                        await finish(upstream, lane, trip, call, context)
                        return answer
                except Ended as ended:
                    await trip.again(ended, lane)

    async def out_stream(self, passed: Passed, raw: bytes, call: rpc.Call, context: Context) -> None:
        """One request, many answers. Not sent again once an answer went out: the caller knows where to
        resume.
        """
        key = checked_key(passed, raw, call)
        with self._counted(self._streams, passed, key, call):
            trip = self._trip(passed, key, call, context)
            while True:
                lane = await trip.lane()
                back = Back(context)
                try:
                    async with stream_call(lane, passed, trip, raw) as upstream:
                        await back.forward(upstream)
                        await finish(upstream, lane, trip, call, context)
                        return
                except Ended as ended:
                    if back.began:
                        raise ended.spoken(lane.name) from None
                    await trip.again(ended, lane)

    async def in_stream(self, passed: Passed, requests: Requests, call: rpc.Call, context: Context) -> bytes:
        """Many requests, one answer. The first one routes; requests that are gone cannot be sent again."""
        async with self._conversation(passed, requests, call, context) as (upstream, lane, trip):
            with ended_calls():
                answer: bytes = await upstream
            await begin(upstream, context)
            await finish(upstream, lane, trip, call, context)
            return answer

    async def both_streams(
        self, passed: Passed, requests: Requests, call: rpc.Call, context: Context
    ) -> None:
        """Many requests, many answers, as they come. The first request routes."""
        async with self._conversation(passed, requests, call, context) as (upstream, lane, trip):
            await Back(context).forward(upstream)
            await finish(upstream, lane, trip, call, context)

    @asynccontextmanager
    async def _conversation(
        self, passed: Passed, requests: Requests, call: rpc.Call, context: Context
    ) -> AsyncIterator[tuple[Any, Lane, Trip]]:
        """A call that is sent to its lane while its requests come in."""
        first = [message async for message in first_of(requests)]
        if passed.view is not None and not first:
            raise RoutingKeyMissing
        key = checked_key(passed, first[0] if first else b"", call)
        with self._counted(self._streams, passed, key, call):
            trip = self._trip(passed, key, call, context)
            lane = await trip.lane()
            try:
                async with (
                    stream_call(lane, passed, trip, None) as upstream,
                    pumped(first, requests, upstream),
                ):
                    yield upstream, lane, trip
            except Ended as ended:
                await trip.lesson(ended)
                raise ended.spoken(lane.name) from None

    def _trip(self, passed: Passed, key: Key, call: rpc.Call, context: Context) -> Trip:
        return Trip(passed, call, _inbound(context), Journey(self._book, passed.by, key), self._lanes)

    @contextmanager
    def _counted(self, bound: InFlight, passed: Passed, key: Key, call: rpc.Call) -> Iterator[None]:
        """Count the call against the user it is for; what nobody in particular asked for is not counted."""
        user = call.subject.name if call.subject.is_only_user else ""
        if not user and passed.by is By.USER:
            user = key.one
        with bound.one_of(user, vip=user in self._book.map.vips):
            yield


class Passthrough(grpc.GenericRpcHandler):
    """The handlers of every method behind the proxy."""

    def __init__(self, passed: Mapping[str, Passed], gate: rpc.Gate, relay: Relay) -> None:
        self._handlers = {path: _handler(each, gate, relay) for path, each in passed.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a path, or none."""
        return self._handlers.get(handler_call_details.method)


def checked_key(passed: Passed, raw: bytes, call: rpc.Call) -> Key:
    """The routing key of a request, which must be the caller's to use.

    Raises: MalformedRequest, RoutingKeyMissing, RoutingKeyMismatch, NotYourOrder.
    """
    if passed.view is None:
        return Key(())
    key = passed.view.read(raw)
    if passed.by is By.ORDER:
        rpc.say_about(order_id=key.one)
    if passed.by is By.USER:
        said = call.metadata.get(headers.USER_HEADER)
        if said is not None and said != key.one:
            raise RoutingKeyMismatch
        call.subject.must_own(key.one)
    return key


def _handler(passed: Passed, gate: rpc.Gate, relay: Relay) -> Any:
    """The gRPC handler of a method: its arity as in the proto, bytes in and bytes out, behind the gate."""
    method = passed.method
    make: Any
    behaviour: Any
    make, behaviour = {
        (False, False): (grpc.unary_unary_rpc_method_handler, relay.unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, relay.out_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, relay.in_stream),
        (True, True): (grpc.stream_stream_rpc_method_handler, relay.both_streams),
    }[method.client_streaming, method.server_streaming]
    return make(_behind_gate(passed, gate, behaviour))


def _behind_gate(passed: Passed, gate: rpc.Gate, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    rpc.prepare([passed.method])

    async def answer(request: Any, context: Context) -> bytes | None:
        async def handle(call: rpc.Call) -> bytes | None:
            return await behaviour(passed, request, call, context)  # type: ignore[no-any-return]

        return await rpc.serve_call(gate, passed.method, context, handle)

    return answer


def _inbound(context: Context) -> headers.Metadata:
    return headers.passed_on(context.invocation_metadata() or ())
