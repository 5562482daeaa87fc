"""One claimed order: probe its upstream, report what was heard.

Owns the slots of each upstream. A claim is always reported, even when no probe was possible: an order that
was claimed and never reported looks like one that kills processes. What dies here leaves a lease that runs
out, and the order is claimed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from chassis import faults, logs, traces
from chassis.clock import Clock
from chassis.errors import DeadlineExceeded, Overloaded
from chassis.limits import Limiter
from ordermesh.order.v1 import order_pb2
from recovery_svc import metrics
from recovery_svc.clients import Mesh, Upstreams
from recovery_svc.domain import (
    WORTH_ANOTHER_TRY,
    Claim,
    Finding,
    ProbeClass,
    not_made,
    our_fault,
    probe_time_s,
    report_pause_s,
)
from recovery_svc.errors import CallFailed, ReportNotTaken
from recovery_svc.settings import RecoverySettings

log = structlog.get_logger("probe")
BEFORE_PROBE = faults.declare("probe.before_call", "the order is claimed; nobody asked the upstream")
AFTER_PROBE = faults.declare("probe.after_call", "the upstream answered; nobody knows but this process")
BEFORE_REPORT = faults.declare("report.before_call", "the finding is not reported; the lease runs out")
AFTER_REPORT = faults.declare("report.after_call", "the finding is journaled; the claim is done")


def _about(claim: Claim) -> dict[str, str]:
    return {"order_id": claim.order_id, "shard": claim.shard, "upstream": claim.upstream}


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of one claim: the finding and the order after it."""

    finding: Finding
    order: order_pb2.Order


class Prober:
    """Works on claims, each to its end. draw: a random number in [0, 1)."""

    def __init__(
        self,
        mesh: Mesh,
        upstreams: Upstreams,
        settings: RecoverySettings,
        *,
        clock: Clock,
        draw: Callable[[], float],
    ) -> None:
        self._mesh = mesh
        self._upstreams = upstreams
        self._settings = settings
        self._clock = clock
        self._draw = draw
        self._slots: Mapping[str, Limiter] = {
            name: Limiter(settings.slots_per_upstream, settings.queue_per_upstream, name=f"upstream:{name}")
            for name in upstreams.names
        }
        # One at a time: when a suspect kills the process, no other suspect dies with it.
        self._suspects = Limiter(1, settings.queue_per_upstream, name="suspects")

    @property
    def upstreams(self) -> frozenset[str]:
        """The upstreams that can be probed."""
        return self._upstreams.names

    def room(self) -> int:
        """Free slots of all upstreams together; a claim does not say whose orders it will bring."""
        return sum(slots.free for slots in self._slots.values())

    def lease_ends(self, began: float) -> float:
        """Until when to work on a claim that was asked for at `began`, both on the monotonic clock.

        Counted from before the call, so that a slow shard cannot stretch the lease.
        """
        return began + self._settings.lease_s - self._settings.lease_margin_s

    async def recover(self, claim: Claim, lease_ends: float) -> Recovered:
        """Probe one order and report what was found.

        If cancelled here: the lease runs out and the order is claimed again.
        Raises: ReportNotTaken.
        """
        with traces.linked_span("recover", [claim.traceparent], always=True, attributes=_about(claim)):
            logs.bind(order_id=claim.order_id, shard=claim.shard, upstream=claim.upstream)
            found = await self._find_out(claim, lease_ends)
            metrics.PROBES.labels(claim.upstream, found.probe_class, found.verdict).inc()
            await faults.point(BEFORE_REPORT)
            order = await self._report(claim, found, lease_ends)
            await faults.point(AFTER_REPORT)
            log.info("recovered", found=found.probe_class, verdict=found.verdict, detail=found.detail)
            return Recovered(found, order)

    async def _find_out(self, claim: Claim, lease_ends: float) -> Finding:
        slots = self._slots.get(claim.upstream)
        if slots is None:
            return our_fault(f"no address is configured for upstream {claim.upstream}")
        wait_s = self._settings.slot_wait_s
        try:
            if claim.is_suspect:
                # Patiently: a suspect that is reported unprobed would count as innocent again.
                async with self._suspects.slot(self._patience_s(lease_ends)), slots.slot(wait_s):
                    return await self._probe(claim, lease_ends)
            async with slots.slot(wait_s):
                return await self._probe(claim, lease_ends)
        except (Overloaded, DeadlineExceeded) as full:
            return not_made(f"no free slot of {full.facts['limiter']}")

    def _patience_s(self, lease_ends: float) -> float:
        """How long a claim may wait and still be probed and reported."""
        settings = self._settings
        needed_s = settings.slot_wait_s + settings.probe_timeout_s + settings.report_timeout_s
        return max(0.0, lease_ends - self._clock.monotonic() - needed_s)

    async def _probe(self, claim: Claim, lease_ends: float) -> Finding:
        settings = self._settings
        time_s = probe_time_s(
            lease_ends - self._clock.monotonic(),
            timeout_s=settings.probe_timeout_s,
            reserve_s=settings.report_timeout_s,
        )
        if time_s == 0:
            return not_made("the lease is nearly over")
        await faults.point(BEFORE_PROBE)
        started = time.perf_counter()
        with traces.client_span("probe", {"upstream": claim.upstream}) as span:
            found = await self._upstreams.probe(claim.upstream, claim.key, timeout_s=time_s)
            if found.probe_class is not ProbeClass.ANSWERED:
                traces.failed(span, found.code, found.code or found.probe_class.value)
        metrics.PROBE_SECONDS.labels(claim.upstream).observe(time.perf_counter() - started)
        await faults.point(AFTER_PROBE)
        return found

    async def _report(self, claim: Claim, found: Finding, lease_ends: float) -> order_pb2.Order:
        """Report until it is taken, refused for good, or the lease is over; always the same event."""
        settings = self._settings
        for tries in range(1, settings.report_tries_max + 1):
            try:
                order = await self._mesh.report(claim, found, timeout_s=settings.report_timeout_s)
            except CallFailed as failed:
                metrics.REPORTS.labels(claim.shard, failed.code.name).inc()
                pause_s = report_pause_s(tries, self._draw(), asked_s=failed.error.retry_after_s)
                hopeless = failed.code.name not in WORTH_ANOTHER_TRY
                if hopeless or self._clock.monotonic() + pause_s > lease_ends:
                    break
                await self._clock.sleep(pause_s)
            else:
                metrics.REPORTS.labels(claim.shard, "OK").inc()
                return order
        metrics.REPORTS_GIVEN_UP.labels(claim.shard).inc()
        raise ReportNotTaken(claim.order_id)
