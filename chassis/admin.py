"""The admin port of a process: /metrics, /healthz, /readyz, and fault points on loopback.

It shares the event loop with the work on purpose: a loop that is stuck answers no health check either. While
the port is open, the lag of the loop is measured.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import prometheus_client
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from chassis import faults, looplag
from chassis.rpc.server import PortTaken
from chassis.settings import split_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request

CHECK_TIMEOUT_S = 2.0
STOP_S = 1
"""How long a request may take to end at stop; one that never ends would keep the process for ever."""
SPECIFICATION_BYTES_MAX = 4096


class Readiness:
    """Whether the process should be given work: every check passes and it is not draining."""

    def __init__(self, **checks: Callable[[], Awaitable[object]]) -> None:
        self._checks = checks
        self.draining = False

    async def drain(self) -> None:
        """Say not ready from now on."""
        self.draining = True

    async def report(self) -> dict[str, str]:
        """What is wrong, by name of the check; empty when ready."""
        wrong = {"process": "draining"} if self.draining else {}
        for name, check in self._checks.items():
            try:
                async with asyncio.timeout(CHECK_TIMEOUT_S):
                    await check()
            except Exception as failed:  # noqa: BLE001 - a check may fail in any way; that is its answer
                wrong[name] = type(failed).__name__
        return wrong


@asynccontextmanager
async def serve(listen: str, readiness: Readiness) -> AsyncIterator[int]:
    """Serve the admin endpoints while the context lives; gives the port.

    Raises: PortTaken.
    """
    listening = _bind(listen)
    config = uvicorn.Config(
        _application(readiness),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=STOP_S,
    )
    server = uvicorn.Server(config)
    # Signals belong to chassis.supervise.
    server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(server.serve([listening]), name="admin")
    try:
        async with looplag.watched():
            yield int(listening.getsockname()[1])
    finally:
        server.should_exit = True
        await task


def _bind(listen: str) -> socket.socket:
    """Listen here and not in uvicorn, which ends the whole process without a word when it cannot."""
    host, port = split_address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as refused:
        raise PortTaken(f"cannot listen on {listen}: {refused.strerror or refused}") from None


def _application(readiness: Readiness) -> Starlette:
    async def metrics(request: Request) -> Response:
        encoder, content_type = prometheus_client.exposition.choose_encoder(request.headers.get("accept", ""))
        return Response(encoder(prometheus_client.REGISTRY), headers={"content-type": content_type})

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        wrong = await readiness.report()
        return JSONResponse({"ready": not wrong, "wrong": wrong}, status_code=503 if wrong else 200)

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/faults", _faults, methods=["GET", "PUT"]),
        ]
    )


async def _faults(request: Request) -> Response:
    """Show or arm fault points; only for this machine."""
    if request.client is None or not request.client.host.startswith(("127.", "::1")):
        return JSONResponse({"error": "only from loopback"}, status_code=403)
    if request.method == "PUT":
        body = await request.body()
        try:
            faults.arm(body[:SPECIFICATION_BYTES_MAX].decode())
        except ValueError as wrong:
            return JSONResponse({"error": str(wrong)}, status_code=400)
    return JSONResponse({"armed": list(faults.armed()), "declared": faults.declared()})
