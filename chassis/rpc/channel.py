"""Channels to other processes: mTLS, bounded, with the trace passed on, and rebuilt when the certificate is
renewed.

grpcio cannot renew a client's credentials, so a Channel stands before a real one and swaps it; calls that
run keep the old one until they end or the longest deadline has passed.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from chassis import logs, traces
from chassis.rpc.counts import Counts
from chassis.rpc.options import channel_options
from chassis.tls import TlsFiles, channel_credentials, dns_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from chassis.tls import Identity

log = structlog.get_logger("channel")
CHECK_EVERY_S = 5.0
RETIRE_AFTER_S = 60.0
"""How long calls on a replaced channel may go on; longer than any unary deadline of the service config."""


class _Rotating:
    """A multicallable that always calls on the current channel."""

    def __init__(self, channel: Channel, arity: str, path: str, arguments: dict[str, Any]) -> None:
        self._channel = channel
        self._arity = arity
        self._path = path
        self._arguments = arguments
        self._counts = Counts(path, arity)
        self._made_for: object = None
        self._callable: Callable[..., Any] | None = None

    def __call__(self, request: Any = None, **options: Any) -> Any:
        inner = self._channel.current()
        if self._callable is None or self._made_for is not inner:
            self._callable = getattr(inner, self._arity)(self._path, **self._arguments)
            self._made_for = inner
        options["metadata"] = _with_trace(options.get("metadata"))
        call = self._callable(request, **options)
        self._counts.begin(call)
        return call


def _with_trace(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    given = tuple(metadata or ())
    here = traces.traceparent()
    if not here or any(key == "traceparent" for key, _ in given):
        return given
    state = traces.tracestate()
    beside = (("tracestate", state),) if state else ()
    return (*given, ("traceparent", here), *beside)


class Channel(grpc.aio.Channel):
    """A channel to one service, as an async context manager; generated stubs take it as they take a
    grpc.aio.Channel.

    tls: whose certificate to show; None is plain text, for loopback. service: the name to find in the
    server's certificate.
    """

    def __init__(self, target: str, *, service: str, tls: TlsFiles | None) -> None:
        self.target = target
        self._service = service
        self._tls = tls
        self._identity: Identity | None = tls.read() if tls is not None else None
        self._current = self._open()
        self._checked_at = time.monotonic()
        self._retiring: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def current(self) -> grpc.aio.Channel:
        """The real channel, a fresh one when the certificate files changed."""
        now = time.monotonic()
        if self._tls is not None and now - self._checked_at > CHECK_EVERY_S:
            self._checked_at = now
            self._follow_files(self._tls)
        return self._current

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        """As of grpc.aio.Channel."""
        return self._multicallable("unary_unary", method, request_serializer, response_deserializer)

    def unary_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        """As of grpc.aio.Channel."""
        return self._multicallable("unary_stream", method, request_serializer, response_deserializer)

    def stream_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        """As of grpc.aio.Channel."""
        return self._multicallable("stream_unary", method, request_serializer, response_deserializer)

    def stream_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        """As of grpc.aio.Channel."""
        return self._multicallable("stream_stream", method, request_serializer, response_deserializer)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """As of grpc.aio.Channel."""
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """As of grpc.aio.Channel."""
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """As of grpc.aio.Channel."""
        await self.current().channel_ready()

    async def close(self, grace: float | None = 0.5) -> None:
        """Cut off what runs after `grace` seconds, and close."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._current.close(grace)

    def _multicallable(self, arity: str, path: str, serializer: Any, deserializer: Any) -> _Rotating:
        arguments = {"request_serializer": serializer, "response_deserializer": deserializer}
        return _Rotating(self, arity, path, arguments)

    def _open(self) -> grpc.aio.Channel:
        if self._identity is None:
            return grpc.aio.insecure_channel(self.target, options=channel_options())
        return grpc.aio.secure_channel(
            self.target, channel_credentials(self._identity), options=channel_options(dns_name(self._service))
        )

    def _follow_files(self, tls: TlsFiles) -> None:
        try:
            identity = tls.read()
        except OSError as missing:
            log.error("certificate_unreadable", **logs.of_our_file(missing))
            return
        unchanged = self._identity is not None and identity.digest == self._identity.digest
        if unchanged or not identity.is_pair:
            return
        old, self._identity = self._current, identity
        self._current = self._open()
        task = asyncio.get_running_loop().create_task(old.close(RETIRE_AFTER_S), name="retire-channel")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
