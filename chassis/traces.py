"""Spans: who called whom for one order, across processes and days.

W3C trace context travels in metadata and Kafka headers, and an order carries the trace it was made in. What
is called for an order is a child of that trace; what works on it later, or on many orders at once, is a
trace of its own and linked to the order's. The spans are our own thin layer on the OpenTelemetry API: the
contributed instrumentation for grpc.aio reports a failed call as fine, and those for Postgres and Kafka make
a span of every BEGIN and none of the work. Where nothing is sampled, next to nothing is done.
"""

from __future__ import annotations

import random
import re
import time
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context, attach, create_key, detach, set_value
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from contextvars import Token

    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

    Attributes = Mapping[str, str | int | float | bool]

LINKS_MAX = 1024
"""More than a batch of the relay or the indexer holds, so that every order of it is linked."""
HEADERS = ("traceparent", "tracestate")
TRACESTATE_CHARS_MAX = 512
_LONG_ENTRY_CHARS = 128
DEBUG_HEADER = "x-ordermesh-debug"
"""With the value 1: sample this call, whatever the ratio."""
DEBUGS_PER_S = 5.0
DEBUGS_BURST = 20
SAMPLED = create_key("ordermesh-sampled")
"""In a context: this span is sampled, whatever the ratio and the caller say."""
_QUEUE_SPANS = 8192
_EXPORT_SPANS = 512
_propagator = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("ordermesh")
_SAMPLED_FLAGS = ("-01", "-03")
_UNSAMPLED = re.compile("00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(00|02)")
_NO_SPAN = nullcontext(INVALID_SPAN)


def configure(
    service: str,
    *,
    otlp_endpoint: str = "",
    ratio: float = 0.05,
    exporter: SpanExporter | None = None,
    facts: Mapping[str, str] | None = None,
    export_every_s: float = 5.0,
) -> None:
    """Set up the spans of this process, once, at start. Without an endpoint there are only trace ids.

    ratio: share of calls that is sampled where no caller decided. facts: what every span says, such as the
    shard. exporter: where spans go instead of OTLP; tests give one in memory.
    """
    # The SDK takes 0.2 s to import, which commands and tests that never come here need not pay.
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider

    from chassis.leaving import LeavingSpans
    from chassis.sampling import Wanted

    if otlp_endpoint and exporter is None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=otlp_endpoint)
    provider = TracerProvider(
        resource=Resource.create({"service.name": service, **(facts or {})}),
        sampler=Wanted(ratio, exported=exporter is not None),
        span_limits=SpanLimits(max_links=LINKS_MAX),
    )
    if exporter is not None:
        provider.add_span_processor(
            LeavingSpans(exporter, queue=_QUEUE_SPANS, batch=_EXPORT_SPANS, every_s=export_every_s)
        )
    trace.set_tracer_provider(provider)


def flush(timeout_s: float = 5.0) -> None:
    """Hand over spans that are still waiting; called last at stop."""
    force_flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if force_flush is not None:
        force_flush(int(timeout_s * 1000))


def traceparent() -> str:
    """The W3C trace context of the work that runs now, or an empty string."""
    return traceparent_of(trace.get_current_span())


def tracestate() -> str:
    """What the vendors of a caller's traces keep in the context of the work that runs now; mostly empty.

    Of more than TRACESTATE_CHARS_MAX characters whole entries are left out, as W3C wants it: long ones first,
    then the last.
    """
    state = trace.get_current_span().get_span_context().trace_state
    return _bounded([f"{key}={value}" for key, value in state.items()]) if state else ""


def _bounded(entries: list[str]) -> str:
    if len(",".join(entries)) > TRACESTATE_CHARS_MAX:
        entries = [entry for entry in entries if len(entry) <= _LONG_ENTRY_CHARS]
    while len(",".join(entries)) > TRACESTATE_CHARS_MAX:
        entries.pop()
    return ",".join(entries)


def traceparent_of(span: Span) -> str:
    """The W3C trace context of a span, or an empty string."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def trace_id() -> str:
    """The trace id of the work that runs now, 32 hex digits, or an empty string."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def exemplar(span: Span) -> dict[str, str] | None:
    """What a histogram keeps beside a value: the trace in which it took so long, if that is sampled."""
    context = span.get_span_context()
    return {"trace_id": trace.format_trace_id(context.trace_id)} if context.trace_flags.sampled else None


def server_span(
    name: str, metadata: Mapping[str, str], *, always: bool = False
) -> AbstractContextManager[Span]:
    """The span of a served call, child of the caller's when `traceparent` came along.

    always: sample it even when neither the ratio nor the caller would have it. Nearly all calls come
    unsampled, and have none of the SDK's detours.
    """
    parent, state = metadata.get("traceparent", ""), metadata.get("tracestate", "")
    unsampled = None if always or state else _UNSAMPLED.fullmatch(parent)
    if unsampled is not None:
        return _Within(_unrecorded(unsampled[1], unsampled[2]))
    return _span(name.strip("/"), SpanKind.SERVER, _parent(parent, state), always)


def client_span(name: str, attributes: Attributes | None = None) -> AbstractContextManager[Span]:
    """The span of a call to somebody else, or to a database, within the span that runs now.

    When that one is not recorded, neither is this: the call then carries the context that there is.
    """
    if not trace.get_current_span().is_recording():
        return _NO_SPAN
    return _span(name.strip("/"), SpanKind.CLIENT, None, attributes=attributes)


def work_span(
    name: str, parent: str = "", attributes: Attributes | None = None
) -> AbstractContextManager[Span]:
    """The span of background work that goes on with what a caller began, in the trace of `parent`."""
    return last(begun_work(name, parent, attributes))


@contextmanager
def linked_span(
    name: str,
    traceparents: Iterable[str],
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    always: bool = False,
    attributes: Attributes | None = None,
) -> Iterator[Span]:
    """The span of work that comes later than what it works on, or is for many orders at once.

    It belongs to none of their traces and is linked to those that are sampled, `LINKS_MAX` at most; without
    any it is not sampled itself. always: sampled all the same, and linked to the others too.
    """
    links = _links(traceparents, always=always)
    with _span(name, kind, Context(), always or bool(links), links, attributes) as span:
        yield span


def begun_span(
    name: str,
    traceparents: Iterable[str],
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    always: bool = False,
    attributes: Attributes | None = None,
) -> Span:
    """As `linked_span`, of work that goes on when its block has ended: `within` it, then `end` it.

    One that is never ended is never shown.
    """
    links = _links(traceparents, always=always)
    context = set_value(SAMPLED, value=True, context=Context()) if always or links else Context()
    return _tracer.start_span(name, context=context, kind=kind, links=links, attributes=attributes)


def begun_work(name: str, parent: str = "", attributes: Attributes | None = None) -> Span:
    """As `work_span`, of work that is begun before its block: until its `last` one, or `end`."""
    unsampled = _UNSAMPLED.fullmatch(parent)
    if unsampled is not None:
        return _unrecorded(unsampled[1], unsampled[2])
    return _tracer.start_span(name, context=_parent(parent), attributes=attributes)


def within(span: Span) -> AbstractContextManager[Span]:
    """Let a span that was begun be the one of what runs now; it goes on after that, whatever was raised."""
    return _Within(span)


def last(span: Span) -> AbstractContextManager[Span]:
    """Let a span that was begun be the one of what runs now, and end it with that."""
    return _Within(span, ends=True)


def end(span: Span, raised: BaseException | None = None) -> None:
    """End a span that was begun, failed when something was raised. Once: what comes later changes nothing."""
    if not span.is_recording():
        return
    if raised is not None:
        _note(span, raised)
    span.end()


def _links(traceparents: Iterable[str], *, always: bool) -> list[Link]:
    wanted = dict.fromkeys(
        parent for parent in traceparents if parent and (always or parent.endswith(_SAMPLED_FLAGS))
    )
    contexts = (trace.get_current_span(_parent(parent)).get_span_context() for parent in wanted)
    return [Link(context) for context in islice((each for each in contexts if each.is_valid), LINKS_MAX)]


def _unrecorded(trace_id: str, flags: str) -> Span:
    """Goes on with an unsampled trace: a span with an id of its own, and nothing to record."""
    span_id = random.getrandbits(64) or 1
    return NonRecordingSpan(
        SpanContext(int(trace_id, 16), span_id, is_remote=False, trace_flags=TraceFlags(int(flags)))
    )


class _Within:
    """A span for a `with`; lighter than what OpenTelemetry has for it. ends: the span, with the block."""

    __slots__ = ("_ends", "_span", "_token")

    def __init__(self, span: Span, *, ends: bool = False) -> None:
        self._span = span
        self._ends = ends
        self._token: Token[Context] | None = None

    def __enter__(self) -> Span:
        self._token = attach(trace.set_span_in_context(self._span))
        return self._span

    def __exit__(self, _: object, raised: BaseException | None, __: object) -> None:
        if self._token is not None:
            detach(self._token)
        if self._ends:
            end(self._span, raised)


@contextmanager
def _span(
    name: str,
    kind: SpanKind,
    context: Context | None,
    always: bool = False,
    links: list[Link] | None = None,
    attributes: Attributes | None = None,
) -> Iterator[Span]:
    if always:
        context = set_value(SAMPLED, value=True, context=context)
    with _tracer.start_as_current_span(
        name,
        context=context,
        kind=kind,
        links=links,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as raised:
            _note(span, raised)
            raise


def _note(span: Span, raised: BaseException) -> None:
    """Mark a span that an exception leaves, unless somebody said more; never with the exception's text."""
    if span.is_recording() and getattr(span, "status", None) is not None and span.status.is_unset:  # type: ignore[attr-defined]
        span.set_attribute("error.type", type(raised).__name__)
        span.set_status(StatusCode.ERROR, type(raised).__name__)


def _parent(text: str, state: str = "") -> Context:
    carrier = {"traceparent": text} | ({"tracestate": state} if state else {})
    return _propagator.extract(carrier, context=Context())


def failed(span: Span, code: str, error_type: str = "") -> None:
    """Mark a span as failed with a gRPC code's name, and the reason that was given.

    code: empty where no status says so, as with an answer that makes no sense; then the reason stands alone.
    """
    if code:
        span.set_attribute("rpc.response.status_code", code)
    span.set_attribute("error.type", error_type or code)
    span.set_status(StatusCode.ERROR, code or error_type)


def fine(span: Span) -> None:
    """Mark a span as no failure, whatever exception leaves it."""
    span.set_status(StatusCode.OK)


def describe(**attributes: Any) -> None:
    """Say something about the work that runs now: `order_id="..."`; nothing when it is not recorded."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attributes({name: value for name, value in attributes.items() if value})


class DebugAllowance:
    """How many calls may ask to be sampled; one bucket for a process, so that nobody can flood it."""

    def __init__(self, per_s: float = DEBUGS_PER_S, burst: int = DEBUGS_BURST) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._left = self._burst
        self._at = time.monotonic()

    def take(self) -> bool:
        """Whether one more is allowed."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


debugs = DebugAllowance()
