"""Spans on their way out of the process: a bounded queue, and a count of those that are lost.

Whoever takes them may be away, slow or full itself. A span that finds the queue full, and one of a batch that
nobody took in time, is lost and counted; the work that it tells of goes on, and its metrics and lines are
there.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from chassis import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan


class LeavingSpans(BatchSpanProcessor):
    """Hands sampled spans to an exporter, in batches, from a thread of its own.

    queue: so many wait at most. batch: so many are handed over at once. every_s: what waits is handed over
    after this at the latest.
    """

    def __init__(self, exporter: SpanExporter, *, queue: int, batch: int, every_s: float) -> None:
        self._room = _Room(queue)
        super().__init__(
            _Counted(exporter, self._room),
            max_queue_size=queue,
            max_export_batch_size=batch,
            schedule_delay_millis=every_s * 1000,
        )

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span. One that finds no room is lost, and not one that was there before."""
        if not (span.context and span.context.trace_flags.sampled):
            return
        if self._room.take():
            super().on_end(span)
        else:
            metrics.SPANS_LOST.labels("full").inc()


class _Room:
    """How many spans wait: never fewer than stand in the queue of the SDK, so that it finds none too many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting = 0
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            if self._waiting >= self._most:
                return False
            self._waiting += 1
            return True

    def leave(self, spans: int) -> None:
        with self._lock:
            self._waiting -= spans


class _Counted(SpanExporter):
    """An exporter of which is counted what it could not get rid of."""

    def __init__(self, exporter: SpanExporter, room: _Room) -> None:
        self._exporter = exporter
        self._room = room

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._room.leave(len(spans))
        taken = SpanExportResult.FAILURE
        try:
            taken = self._exporter.export(spans)
        finally:
            if taken is not SpanExportResult.SUCCESS:
                metrics.SPANS_LOST.labels("not_taken").inc(len(spans))
        return taken

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
