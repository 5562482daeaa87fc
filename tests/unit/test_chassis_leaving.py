"""Spans leave the process, or are lost and counted; whoever ended them never waits and is told nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Tracer
from prometheus_client import REGISTRY

from chassis.leaving import LeavingSpans

WITHIN_S = 10.0
NEVER_S = 3600.0


class Taker(SpanExporter):
    """Takes spans when it is let, and answers as it is told."""

    def __init__(self, answer: Callable[[], SpanExportResult] = lambda: SpanExportResult.SUCCESS) -> None:
        self._answer = answer
        self.came, self.may = threading.Event(), threading.Event()
        self.taken: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.came.set()
        assert self.may.wait(WITHIN_S)
        self.taken += [span.name for span in spans]
        return self._answer()


def lost() -> tuple[float, float]:
    """How many were lost as the queue was full, and as nobody took them."""
    full, not_taken = (
        REGISTRY.get_sample_value("ordermesh_spans_lost_total", {"cause": cause})
        for cause in ("full", "not_taken")
    )
    assert full is not None, "there before the first one"
    assert not_taken is not None
    return full, not_taken


@contextmanager
def leaving(taker: Taker, *, queue: int, batch: int) -> Iterator[tuple[Tracer, LeavingSpans]]:
    provider = TracerProvider()
    spans = LeavingSpans(taker, queue=queue, batch=batch, every_s=NEVER_S)
    provider.add_span_processor(spans)
    try:
        yield provider.get_tracer("test"), spans
    finally:
        taker.may.set()
        provider.shutdown()


def ended(tracer: Tracer, *names: str) -> None:
    for name in names:
        tracer.start_span(name).end()


def test_a_span_that_finds_the_queue_full_is_lost_and_counted_and_those_before_it_leave() -> None:
    full, not_taken = lost()
    taker = Taker()
    with leaving(taker, queue=4, batch=2) as (tracer, spans):
        ended(tracer, "1", "2")
        assert taker.came.wait(WITHIN_S), "two are on their way, and the queue is empty"
        ended(tracer, "3", "4", "5", "6")
        assert lost() == (full, not_taken)
        ended(tracer, "7", "8", "9")
        assert lost() == (full + 3, not_taken)
        taker.may.set()
        assert spans.force_flush()
        ended(tracer, "10")
        assert spans.force_flush()
    assert taker.taken == ["1", "2", "3", "4", "5", "6", "10"]
    assert lost() == (full + 3, not_taken)


def _raises() -> SpanExportResult:
    raise ConnectionResetError


@pytest.mark.parametrize("answer", [lambda: SpanExportResult.FAILURE, _raises], ids=["refused", "broken"])
def test_spans_that_nobody_takes_are_lost_and_counted(answer: Callable[[], SpanExportResult]) -> None:
    full, not_taken = lost()
    taker = Taker(answer)
    taker.may.set()
    with leaving(taker, queue=4, batch=4) as (tracer, spans):
        ended(tracer, "1", "2", "3")
        spans.force_flush()
        assert lost() == (full, not_taken + 3)
        ended(tracer, "4", "5", "6", "7")
        spans.force_flush()
    assert lost() == (full, not_taken + 7), "there was room for as many as before"


PROCESS = """
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from chassis import metrics, traces

class Refuses(SpanExporter):
    def export(self, spans):
        return SpanExportResult.FAILURE

traces.configure("order_svc", exporter=Refuses(), ratio=1.0)
with traces.server_span("/s/m", {}):
    pass
traces.flush()
print(metrics.SPANS_LOST.labels("not_taken")._value.get())
"""


def test_a_process_counts_what_its_spans_are_lost_for() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROCESS], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.split() == ["1.0"]
