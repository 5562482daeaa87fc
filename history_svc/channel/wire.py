"""A record as a message of the topic, and back. Pure.

The value is the payload and nothing else; what a sink needs to route, order and trace it stands in headers of
ASCII. A beat has a header that says so, and no value.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from chassis.ids import id_bucket
from chassis.kafka import Entry
from history_svc.document import from_us, to_us
from history_svc.errors import EventTooLarge
from history_svc.events import EVENT_BYTES_MAX, Event, Record
from history_svc.position import parse_position

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chassis.kafka import Headers, Message

_CHANGE, _BEAT = b"change", b"beat"
_HEADERS_BYTES = 4096
"""More than the headers take without `tracestate`: their texts are bounded where orders are made."""


def encode(record: Record) -> Entry:
    """A record as a message; its key is the bucket.

    Raises: EventTooLarge.
    """
    event = record.event
    place = [
        ("x-pos", str(record.position).encode()),
        ("x-prev", str(record.prev).encode()),
        ("x-at", str(to_us(record.at)).encode()),
    ]
    if event is None:
        return Entry(None, b"", [("x-event", _BEAT), *place], _ms(record.at))
    if len(event.payload) + len(event.tracestate) > EVENT_BYTES_MAX - _HEADERS_BYTES:
        raise EventTooLarge(record, len(event.payload) + len(event.tracestate))
    return _message(record, event, [("x-event", _CHANGE), *place], event.payload)


def encode_dead(record: Record, reason: str) -> Entry:
    """A record as a dead letter: the same message with a reason; without its value when it is too large."""
    try:
        entry = encode(record)
    except EventTooLarge as large:
        assert record.event is not None
        entry = _message(record, record.event, [("x-size", str(large.size_bytes).encode())], b"")
    said = reason.encode("ascii", "backslashreplace")[:_HEADERS_BYTES]
    return entry._replace(headers=[*entry.headers, ("x-reason", said)])


def decode(message: Message, partition: int) -> Record:
    """A message as a record.

    Raises: ValueError when it is none of ours.
    """
    try:
        return _decoded(message, partition)
    except (AttributeError, KeyError, OverflowError, TypeError) as odd:
        raise ValueError(repr(odd)) from odd


def _decoded(message: Message, partition: int) -> Record:
    headers = dict(message.headers)
    position = parse_position(headers["x-pos"].decode())
    prev = parse_position(headers["x-prev"].decode())
    at = from_us(int(headers["x-at"]))
    if headers["x-event"] == _BEAT:
        return Record(partition, position, prev, at)
    return Record(partition, position, prev, at, _event(headers, message.value or b""))


def _message(record: Record, event: Event, first: list[tuple[str, bytes]], value: bytes) -> Entry:
    bucket = str(id_bucket(event.order_id)).encode()
    headers: Headers = [
        *first,
        ("ce_id", str(event.event_id).encode()),
        ("ce_subject", str(event.order_id).encode()),
        ("traceparent", event.traceparent.encode()),
        ("tracestate", event.tracestate.encode("ascii", "replace")),
        ("x-bucket", bucket),
        ("x-es-routing", event.read_routing.encode()),
        ("x-agg-version", str(event.version).encode()),
        ("x-created-us", str(to_us(event.created_at)).encode()),
        ("x-user", event.user_id.encode()),
        ("x-kind", event.kind.encode()),
        ("x-schema", str(event.schema_ver).encode()),
        ("x-origin", event.origin.encode()),
    ]
    return Entry(bucket, value, headers, _ms(record.at))


def _event(headers: Mapping[str, bytes], payload: bytes) -> Event:
    return Event(
        UUID(headers["ce_id"].decode()),
        UUID(headers["ce_subject"].decode()),
        from_us(int(headers["x-created-us"])),
        headers["x-user"].decode(),
        headers["x-es-routing"].decode(),
        int(headers["x-agg-version"]),
        headers["x-kind"].decode(),
        payload,
        int(headers["x-schema"]),
        headers["x-origin"].decode(),
        headers["traceparent"].decode(),
        headers["tracestate"].decode(),
    )


def _ms(at: datetime) -> int:
    return to_us(at) // 1000
