"""What every process does first and last: logs, traces and fault points are set up, and spans that wait are
handed over.
"""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING
from uuid import uuid4

from chassis import faults, logs, metrics, traces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chassis.settings import ProcessSettings


@contextmanager
def started(service: str, settings: ProcessSettings, **facts: str) -> Iterator[None]:
    """A process of a service, as long as the context lives; entered first, so that it ends last.

    facts: what every line says, such as the shard.
    """
    is_local = settings.profile == "local"
    logs.configure(
        service,
        level=settings.log_level,
        facts=facts,
        hash_key=logs.hash_key_of(settings.user_hash_key.get_secret_value(), is_local=is_local),
        file=settings.log_file,
    )
    traces.configure(
        service,
        otlp_endpoint=settings.otlp_endpoint,
        ratio=settings.trace_ratio,
        facts=facts,
        export_every_s=settings.trace_export_s,
    )
    metrics.BUILD.labels(service, version("ordermesh")).set(1)
    faults.arm(settings.faults)
    try:
        yield
    finally:
        traces.flush()


def holder() -> str:
    """What somebody calls himself who holds a lease: where he runs, and what nobody else is called.

    In containers every process may have the same name and number; each would take any lease for its own.
    """
    return f"{socket.gethostname()}:{os.getpid()}:{uuid4()}"
