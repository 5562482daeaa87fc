"""Wiring and life of history_svc, top to bottom; closed bottom to top."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from chassis import admin, auth, meters, process, rpc, supervise
from chassis.clock import SYSTEM_CLOCK
from chassis.limits import Limiter
from chassis.tls import CertificateWatcher, ServerIdentity, TlsFiles
from chassis.tokens import PageTokens
from history_svc.explain import Explainer
from history_svc.finder import Finder
from history_svc.lookback import Lookback
from history_svc.reader import Reader
from history_svc.readmodel.opening import opened
from history_svc.search import Searcher
from history_svc.service import HistoryService
from history_svc.store import Shards

if TYPE_CHECKING:
    from history_svc.readmodel.port import ReadModel
    from history_svc.settings import HistorySettings

SERVICE = "ordermesh.history.v1.HistoryService"


def service(settings: HistorySettings, shards: Shards, read_model: ReadModel) -> HistoryService:
    """The handlers over these stores."""
    hot_window = timedelta(seconds=settings.hot_window_s)
    searcher = Searcher(read_model, settings.search_timeout_s)
    reader = Reader(shards, searcher, hot_window)
    return HistoryService(
        reader,
        Finder(shards, searcher),
        Explainer(shards, searcher, reader, hot_window),
        PageTokens(*settings.token_keys()),
        SYSTEM_CLOCK,
    )


def lookbacks(settings: HistorySettings, shards: Shards) -> list[Lookback]:
    """What sets the business gauges, one for each shard."""
    jitter = random.SystemRandom().random
    return [
        Lookback(name, shards.onlooker(name), SYSTEM_CLOCK, jitter, every_s=settings.lookback_s)
        for name in shards.names
    ]


async def serve(settings: HistorySettings) -> None:
    """Run history_svc until SIGTERM or until one of its loops dies; then drain and close."""
    async with AsyncExitStack() as stack:
        stack.enter_context(process.started("history_svc", settings))
        meters.know(shard=settings.shards)
        shards = await stack.enter_async_context(Shards.open(settings))
        identity = ServerIdentity(TlsFiles(settings.tls_dir, "history_svc"))
        gate = rpc.Gate(
            auth.BehindProxy(auth.SubjectVerifier(settings.subject_dir)),
            Limiter(settings.calls_max, settings.calls_queue, name="history_calls"),
        )
        read_model = await stack.enter_async_context(opened(settings))
        mount = rpc.Mount(SERVICE, service(settings, shards, read_model))
        server = await stack.enter_async_context(rpc.serve(settings.listen, [mount], gate=gate, tls=identity))
        # Ready whatever a shard does: its users get UNAVAILABLE, those of the other shards their lists.
        readiness = admin.Readiness()
        await stack.enter_async_context(admin.serve(settings.admin_listen, readiness))
        await supervise.until_stopped(
            CertificateWatcher(identity, SYSTEM_CLOCK),
            *lookbacks(settings, shards),
            drain=(readiness.drain, partial(server.stop, settings.drain_s)),
        )
