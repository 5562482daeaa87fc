"""OTLP spans as lines of JSON, in the words of our logs, so that one search finds both. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

VALUE_CHARS_MAX = 1024
_KINDS = {
    Span.SPAN_KIND_SERVER: "server",
    Span.SPAN_KIND_CLIENT: "client",
    Span.SPAN_KIND_PRODUCER: "producer",
    Span.SPAN_KIND_CONSUMER: "consumer",
}
_OWN = frozenset({"order_id", "shard", "upstream", "error.type"})
"""Attributes that lines have too, under the same name."""
_FROM_RESOURCE = ("service.name", "shard")


def span_lines(export: ExportTraceServiceRequest) -> list[bytes]:
    """Every span of an export that has ids."""
    return [orjson.dumps(document) for document in _documents(export)]


def _documents(export: ExportTraceServiceRequest) -> Iterator[dict[str, Any]]:
    for resource_spans in export.resource_spans:
        resource = _plain(resource_spans.resource.attributes)
        facts = {name: resource[name] for name in _FROM_RESOURCE if name in resource}
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                if len(span.trace_id) == 16 and len(span.span_id) == 8:
                    yield _document(span, facts)


def _document(span: Span, facts: dict[str, Any]) -> dict[str, Any]:
    attributes = _plain(span.attributes)
    document: dict[str, Any] = {
        "@timestamp": _instant(span.start_time_unix_nano),
        "trace.id": span.trace_id.hex(),
        "span.id": span.span_id.hex(),
        "span.name": span.name[:VALUE_CHARS_MAX],
        "span.kind": _KINDS.get(span.kind, "internal"),
        "event.duration": max(0, span.end_time_unix_nano - span.start_time_unix_nano),
        "event.outcome": "failure" if span.status.code == Status.STATUS_CODE_ERROR else "success",
        **facts,
        **{name: str(attributes.pop(name)) for name in _OWN if name in attributes},
    }
    if span.parent_span_id:
        document["parent.id"] = span.parent_span_id.hex()
    if span.status.message:
        document["span.status"] = span.status.message[:VALUE_CHARS_MAX]
    if span.links:
        document["links"] = [
            {"trace.id": link.trace_id.hex(), "span.id": link.span_id.hex()} for link in span.links
        ]
    if attributes:
        document["attributes"] = attributes
    return document


def _plain(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {each.key[:128]: _value(each.value) for each in attributes}


def _value(value: AnyValue) -> str | int | float | bool:
    kind = value.WhichOneof("value")
    if kind == "int_value":
        return value.int_value
    if kind == "double_value":
        return value.double_value
    if kind == "bool_value":
        return value.bool_value
    return value.string_value[:VALUE_CHARS_MAX] if kind == "string_value" else f"<{kind}>"


def _instant(nanos: int) -> str:
    """Nanoseconds since 1970 in RFC 3339, none of them lost."""
    whole = datetime.fromtimestamp(nanos // 1_000_000_000, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{nanos % 1_000_000_000:09d}Z"
