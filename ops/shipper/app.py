"""Wiring and life of the shipper."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import AsyncExitStack, nullcontext
from typing import TYPE_CHECKING

import httpx
import structlog
import uvicorn

from chassis import admin, logs, supervise
from chassis.settings import split_address
from ops.shipper import intake, streams
from ops.shipper.bulk import BulkWriter, DeadFile
from ops.shipper.documents import LineDocuments, span_of
from ops.shipper.shipping import Route, Shipping
from ops.shipper.spool import Spool
from ops.shipper.tail import Tail

if TYPE_CHECKING:
    from ops.shipper.settings import ShipperSettings

log = structlog.get_logger("shipper")
ANSWER_S = 10.0
INSTALL_AGAIN_S = 1.0
CONNECTIONS_MAX = 64


_OUR_LOG = re.compile(r"(?!dev\.).+\.log(\.\d+)?")


def is_our_log(name: str) -> bool:
    """Whether a name in the directory of logs is that of a process; `dev.log` is for people."""
    return _OUR_LOG.fullmatch(name) is not None


class Installing:
    """Makes the data streams before anything is written to them, as soon as Elasticsearch answers."""

    name = "installing"

    def __init__(self, http: httpx.AsyncClient, installed: asyncio.Event) -> None:
        self._http = http
        self._installed = installed

    async def run(self) -> None:
        """Try until it is done, then rest. Raises: OpsError when a template is refused."""
        while not self._installed.is_set():
            if await self.once():
                self._installed.set()
            else:
                await asyncio.sleep(INSTALL_AGAIN_S * random.uniform(0.5, 1))
        await asyncio.Event().wait()

    async def once(self) -> bool:
        """Try once; whether it is done."""
        try:
            await streams.install(self._http)
        except httpx.HTTPError as away:
            log.info("elasticsearch_waited_for", error=type(away).__name__)
            return False
        return True


class Intake:
    """The server of spans as a loop."""

    name = "intake"

    def __init__(self, listen: str, spool: Spool) -> None:
        host, port = split_address(listen)
        config = uvicorn.Config(
            intake.application(spool),
            host=host,
            port=port,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        # Signals belong to chassis.supervise.
        self._server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]

    async def run(self) -> None:
        """Serve until asked to stop."""
        await self._server.serve()

    async def stop(self) -> None:
        """Take no more."""
        self._server.should_exit = True


def elasticsearch(settings: ShipperSettings) -> httpx.AsyncClient:
    """Calls Elasticsearch as the settings say."""
    key = settings.elasticsearch_api_key.get_secret_value()
    headers = {"authorization": f"ApiKey {key}"} if key else {}
    return httpx.AsyncClient(base_url=settings.elasticsearch, timeout=ANSWER_S, headers=headers)


async def serve(settings: ShipperSettings) -> None:
    """Run the shipper until SIGTERM; then ship what is there, for a moment, and leave the rest on disk."""
    logs.configure("shipper")
    where = settings.shipper_dir
    where.mkdir(parents=True, exist_ok=True)
    spool = Spool(where / "spans", bytes_max=settings.spool_bytes_max)
    spans = Tail(where / "spans", where / "spans.json", wanted=Spool.wanted)
    routes = [(spans, Route(streams.TRACES, span_of, lambda: spool.clear(spans.is_at_end_of)))]
    if settings.logs_dir is not None:
        lines = Tail(settings.logs_dir, where / "lines.json", wanted=is_our_log)
        routes.append((lines, Route(streams.LOGS, LineDocuments().of, lambda: None)))
    installed = asyncio.Event()
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(elasticsearch(settings))
        installing = Installing(http, installed)
        writer = BulkWriter(http, DeadFile(where / "dead.ndjson"), again=installing.once)
        shipped = [Shipping(tail, writer, route, installed) for tail, route in routes]
        for tail, _ in routes:
            stack.callback(tail.close)
        taken = Intake(settings.listen, spool)
        readiness = admin.Readiness()
        await stack.enter_async_context(admin.serve(settings.admin_listen, readiness))
        await supervise.until_stopped(
            installing,
            taken,
            *shipped,
            drain=(readiness.drain, *(each.finish for each in shipped)),
        )
