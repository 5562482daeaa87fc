"""What every process does first and last: logs, traces and fault points are set up, and spans that wait are
handed over.
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from chassis import faults, metrics, telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chassis.settings import ProcessSettings


@contextmanager
def started(service: str, settings: ProcessSettings, **facts: str) -> Iterator[None]:
    """A process of a service, as long as the context lives; entered first, so that it ends last.

    facts: what every line says, such as the shard.
    """
    telemetry.configure(
        service,
        log_level=settings.log_level,
        otlp_endpoint=settings.otlp_endpoint,
        trace_ratio=settings.trace_ratio,
        facts=facts,
    )
    metrics.BUILD.labels(service, version("ordermesh")).set(1)
    faults.arm(settings.faults)
    try:
        yield
    finally:
        telemetry.flush()
