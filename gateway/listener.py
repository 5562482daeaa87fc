"""The REST listener: uvicorn with a bound on connections and on the time a request may take to arrive.

TLS ends in front of it. uvicorn's own `limit_concurrency` is not used: it counts what is alive, not who holds
it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from chassis.errors import Overloaded
from chassis.rpc import PortTaken
from chassis.settings import split_address
from gateway import problems
from gateway.edge import HEAD_BYTES_MAX
from gateway.errors import MalformedJson, ReceiptTimeout
from gateway.metrics import CONNECTIONS, CONNECTIONS_REFUSED, RECEIPT_TIMEOUTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator

    from starlette.types import ASGIApp

    from chassis.errors import OrdermeshError
    from gateway.settings import GatewaySettings

BACKLOG = 1024
_ARRIVING = (h11.IDLE, h11.SEND_BODY)
"""States of a client whose request is not complete."""


class Door:
    """Counts connections: in all, and of each address."""

    def __init__(self, most: int, per_address: int) -> None:
        self._most = most
        self._per_address = per_address
        self._open: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Let one more connection in, or not."""
        if self._open.total() >= self._most or self._open[address] >= self._per_address:
            CONNECTIONS_REFUSED.labels("all" if self._open.total() >= self._most else "address").inc()
            return False
        self._open[address] += 1
        CONNECTIONS.inc()
        return True

    def leave(self, address: str) -> None:
        """A connection has ended."""
        CONNECTIONS.dec()
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


def protocol_class(door: Door, receipt_s: float) -> type[H11Protocol]:
    """A protocol for uvicorn that goes through a door and gives each request `receipt_s` to arrive as a
    whole.
    """

    class BoundedProtocol(H11Protocol):
        """One connection."""

        _address = ""
        _arrival: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            address = self.client[0] if self.client else ""
            if not door.enter(address):
                self._refuse(Overloaded(limiter="connections"))
                return
            self._address = address
            self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            self._arrived()
            if self._address:
                door.leave(self._address)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.conn.their_state in _ARRIVING and not self.transport.is_closing():
                self._expect()
            else:
                self._arrived()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.IDLE:
                self._arrived()  # Between requests the keep-alive timeout counts.

        def send_400_response(self, msg: str) -> None:
            self._refuse(MalformedJson(expected="a well-formed request"))

        def _expect(self) -> None:
            if self._arrival is None:
                self._arrival = self.loop.call_later(receipt_s, self._too_late)

        def _arrived(self) -> None:
            if self._arrival is not None:
                self._arrival.cancel()
                self._arrival = None

        def _too_late(self) -> None:
            RECEIPT_TIMEOUTS.inc()
            self._refuse(ReceiptTimeout(), status=408)

        def _refuse(self, error: OrdermeshError, *, status: int | None = None) -> None:
            """Say why, unless an answer has begun, and hang up."""
            cycle: RequestResponseCycle | None = self.cycle
            if cycle is None or cycle.response_complete or not cycle.response_started:
                self.transport.write(_raw(error, status))
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()
            self.transport.close()

    return BoundedProtocol


def _raw(error: OrdermeshError, status: int | None) -> bytes:
    """An answer to what never became a request: there is no path to name, and no request id."""
    problem = problems.of_error(error, problems.Occasion("", "", ""))
    problem = problem.model_copy(update={"status": status or problem.status})
    body = problems.body_of(problem)
    headers = {
        **problems.headers_of(problem),
        "content-length": str(len(body)),
        "connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {problem.status} {problem.title}\r\n{head}\r\n".encode() + body


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it has started and leaves signals to chassis.supervise."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.has_started = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.has_started.set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Listener:
    """A listening REST server. A loop of chassis.supervise: its end ends the process."""

    name = "rest"

    def __init__(self, server: _Server, bound: socket.socket) -> None:
        self._server = server
        self._bound = bound
        self._task: asyncio.Task[None] | None = None
        self.port: int = bound.getsockname()[1]

    async def start(self) -> None:
        """Serve; ready when this returns."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._bound]), name=self.name)
        started = asyncio.create_task(self._server.has_started.wait(), name="rest-started")
        await asyncio.wait([started, self._task], return_when=asyncio.FIRST_COMPLETED)
        started.cancel()

    async def run(self) -> None:
        """Until the server ends."""
        assert self._task is not None, "start first"
        await asyncio.shield(self._task)

    async def stop(self) -> None:
        """Take no more connections and let running requests end, as long as the drain time allows.
        Idempotent.

        If cancelled here: running requests are not waited for any more, now or by a later stop.
        """
        self._server.should_exit = True
        if self._task is None:
            return
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            self._server.force_exit = True
            raise


@asynccontextmanager
async def serve(app: ASGIApp, settings: GatewaySettings) -> AsyncIterator[Listener]:
    """Serve an application until the context ends.

    Raises: PortTaken.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    door = Door(settings.connections_max, settings.connections_per_address_max)
    options: dict[str, Any] = {
        "http": protocol_class(door, settings.receipt_s),
        "ws": "none",
        "lifespan": "off",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": settings.trusted_proxies or None,
        "timeout_keep_alive": settings.keep_alive_s,
        "timeout_graceful_shutdown": max(1, int(settings.drain_s)),
        "h11_max_incomplete_event_size": HEAD_BYTES_MAX,
    }
    server = _Server(uvicorn.Config(app, **options))
    listener = Listener(server, _bound(settings.listen))
    await listener.start()
    try:
        yield listener
    finally:
        await listener.stop()


def _bound(listen: str) -> socket.socket:
    host, port = split_address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError:
        raise PortTaken(
            f"cannot listen on {listen}: the port is in use or {host} is not an address of this machine"
        ) from None
