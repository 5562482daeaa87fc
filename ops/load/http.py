"""HTTP/1.1 over kept connections, as little of it as a load generator needs.

httpx costs the machine that is measured more than the gateway does; this costs a tenth of a millisecond.
Owns its
sockets: at most `connections_max`, reused last in, first out. A connection that fails or is too slow is
closed, and the call raises ConnectionLost or TimeoutError: whether it was executed is then unknown.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import httptools

if TYPE_CHECKING:
    from types import TracebackType

BODY_BYTES_MAX = 1024 * 1024


class ConnectionLost(Exception):
    """The connection ended before the answer did."""


@dataclass(frozen=True, slots=True)
class Response:
    """One answer. headers: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Connection(asyncio.Protocol):
    """One socket; one request at a time. httptools calls the `on_*` methods."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Response] | None = None
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self.is_usable = True

    async def send(self, request: bytes) -> Response:
        if self._transport is None or not self.is_usable:
            raise ConnectionLost
        self._answer = asyncio.get_running_loop().create_future()
        self._headers, self._body = {}, bytearray()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.is_usable = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail()
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_usable = False
        self._fail()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.extend(body)
        if len(self._body) > BODY_BYTES_MAX:
            self._fail()
            self.close()

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.is_usable = False
        if self._answer is not None and not self._answer.done():
            status = self._parser.get_status_code()
            self._answer.set_result(Response(status, self._headers, bytes(self._body)))

    def _fail(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionLost())


@dataclass(slots=True)
class Http:
    """Calls to one server, as an async context manager."""

    base_url: str
    connections_max: int = 64
    _idle: list[_Connection] = field(default_factory=list, init=False)
    _slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.connections_max)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def post(self, path: str, headers: dict[str, str], body: bytes, *, timeout_s: float) -> Response:
        """Send a POST, as `send`."""
        return await self.send("POST", path, headers, body, timeout_s=timeout_s)

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b"", *, timeout_s: float
    ) -> Response:
        """Send one request and wait for its answer; waiting for a free connection counts.

        Raises: ConnectionLost; TimeoutError; OSError when nobody listens.
        """
        lines = [f"{method} {path} HTTP/1.1", f"host: {urlsplit(self.base_url).netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        request = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode("latin-1") + body
        async with asyncio.timeout(timeout_s), self._slots:
            connection = await self._free()
            try:
                answer = await connection.send(request)
            except BaseException:
                connection.close()
                raise
            if connection.is_usable:
                self._idle.append(connection)
            else:
                connection.close()
            return answer

    async def _free(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        place = urlsplit(self.base_url)
        _, made = await asyncio.get_running_loop().create_connection(
            _Connection, place.hostname or "", place.port or 80
        )
        return made
