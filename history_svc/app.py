"""Wiring and life of history_svc, top to bottom; closed bottom to top."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from chassis import admin, auth, faults, rpc, supervise, telemetry
from chassis.clock import SYSTEM_CLOCK
from chassis.limits import Limiter
from chassis.tls import CertificateWatcher, ServerIdentity, TlsFiles
from chassis.tokens import PageTokens
from history_svc.service import HistoryService
from history_svc.store import Shards

if TYPE_CHECKING:
    from history_svc.settings import HistorySettings

SERVICE = "ordermesh.history.v1.HistoryService"


async def serve(settings: HistorySettings) -> None:
    """Run history_svc until SIGTERM or until one of its loops dies; then drain and close."""
    telemetry.configure(
        "history_svc",
        log_level=settings.log_level,
        otlp_endpoint=settings.otlp_endpoint,
        trace_ratio=settings.trace_ratio,
    )
    faults.arm(settings.faults)
    async with AsyncExitStack() as stack:
        stack.callback(telemetry.flush)
        shards = await stack.enter_async_context(Shards.open(settings))
        identity = ServerIdentity(TlsFiles(settings.tls_dir, "history_svc"))
        gate = rpc.Gate(
            auth.BehindProxy(auth.SubjectVerifier(settings.subject_dir)),
            Limiter(settings.calls_max, settings.calls_queue, name="history_calls"),
        )
        mount = rpc.Mount(SERVICE, HistoryService(shards, PageTokens(*settings.token_keys())))
        server = await stack.enter_async_context(rpc.serve(settings.listen, [mount], gate=gate, tls=identity))
        # Ready whatever a shard does: its users get UNAVAILABLE, those of the other shards their lists.
        readiness = admin.Readiness()
        await stack.enter_async_context(admin.serve(settings.admin_listen, readiness))
        await supervise.until_stopped(
            CertificateWatcher(identity, SYSTEM_CLOCK),
            drain=(readiness.drain, partial(server.stop, settings.drain_s)),
        )
