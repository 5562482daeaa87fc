"""Logs, traces and the registry of metrics: every line and span of one order leads to all others.

Logs are ECS JSON on standard output with `trace.id`; traces follow W3C trace context through metadata.
Spans are made by our own thin layer on the OpenTelemetry API, since the contributed instrumentation for
grpc.aio reports a failed call as fine.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import ecs_logging
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, MutableMapping

    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

LINKS_MAX = 32
_propagator = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("ordermesh")


def configure(
    service: str,
    *,
    log_level: str = "info",
    otlp_endpoint: str = "",
    trace_ratio: float = 0.05,
    exporter: SpanExporter | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Set up logs and traces of this process, once, at start.

    facts: what every line says, such as the shard. exporter: where spans go instead of OTLP; tests give one
    in memory.
    """
    # The SDK takes 0.2 s to import, which commands and tests that never come here need not pay.
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    _configure_logs(service, log_level, facts or {})
    provider = TracerProvider(
        resource=Resource.create({"service.name": service}),
        sampler=ParentBased(TraceIdRatioBased(trace_ratio)),
    )
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=otlp_endpoint)
    if exporter is not None:
        provider.add_span_processor(
            BatchSpanProcessor(exporter, max_export_batch_size=512, schedule_delay_millis=5000)
        )
    trace.set_tracer_provider(provider)


def flush(timeout_s: float = 5.0) -> None:
    """Hand over spans that are still waiting; called last at stop."""
    force_flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if force_flush is not None:
        force_flush(int(timeout_s * 1000))


def _configure_logs(service: str, log_level: str, facts: Mapping[str, str]) -> None:
    static = {"service.name": service, **facts}

    def add_facts(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for name, value in static.items():
            event.setdefault(name, value)
        return event

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _add_trace,
            add_facts,
            cast("structlog.types.Processor", ecs_logging.StructlogFormatter()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stdout, format='{"message":"%(name)s: %(message)s"}', force=True
    )


def _add_trace(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace.id"] = trace.format_trace_id(context.trace_id)
        event["span.id"] = trace.format_span_id(context.span_id)
    return event


def bind(**facts: object) -> None:
    """Say these facts on every following log line of this call or task."""
    structlog.contextvars.bind_contextvars(**facts)


def traceparent() -> str:
    """The W3C trace context of the work that runs now, or an empty string."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """The trace id of the work that runs now, 32 hex digits, or an empty string."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


@contextmanager
def server_span(method: str, metadata: Mapping[str, str]) -> Iterator[Span]:
    """The span of a served call, child of the caller's when `traceparent` came along."""
    with _span(method.strip("/"), SpanKind.SERVER, {"traceparent": metadata.get("traceparent", "")}) as span:
        yield span


@contextmanager
def client_span(method: str) -> Iterator[Span]:
    """The span of a call to somebody else."""
    with _tracer.start_as_current_span(
        method.strip("/"), kind=SpanKind.CLIENT, record_exception=False, set_status_on_exception=False
    ) as span:
        yield span


@contextmanager
def work_span(name: str, parent: str = "") -> Iterator[Span]:
    """The span of background work, continuing the trace that an order carries in `traceparent`."""
    with _span(name, SpanKind.INTERNAL, {"traceparent": parent}) as span:
        yield span


@contextmanager
def linked_span(name: str, traceparents: Iterable[str]) -> Iterator[Span]:
    """The span of work on many orders at once: it belongs to none of their traces and is linked to those that
    are sampled, `LINKS_MAX` at most.
    """
    sampled = (parent for parent in dict.fromkeys(traceparents) if parent.endswith(("-01", "-03")))
    contexts = (
        trace.get_current_span(_propagator.extract({"traceparent": parent})).get_span_context()
        for parent in islice(sampled, LINKS_MAX)
    )
    links = [Link(context) for context in contexts if context.is_valid]
    with _tracer.start_as_current_span(
        name,
        context=Context(),
        kind=SpanKind.INTERNAL,
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


@contextmanager
def _span(name: str, kind: SpanKind, carrier: Mapping[str, str]) -> Iterator[Span]:
    parent = _propagator.extract(carrier)
    with _tracer.start_as_current_span(
        name, context=parent, kind=kind, record_exception=False, set_status_on_exception=False
    ) as span:
        yield span


def failed(span: Span, code: str) -> None:
    """Mark a span as failed with a gRPC code's name."""
    span.set_attribute("rpc.response.status_code", code)
    span.set_status(StatusCode.ERROR, code)
