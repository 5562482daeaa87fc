"""Documents as the projector makes them, of orders that nobody placed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

from history_svc.document import Document, document, to_us
from history_svc.page import NEWEST, OLDEST, Filter, Key, Window

SEPTEMBER = datetime(2026, 9, 14, 10, 0, 0, tzinfo=UTC)
_numbers = count(1)


def an_order_id(at: datetime = SEPTEMBER, bucket: int = 701) -> UUID:
    """An id of that millisecond; two of them differ."""
    at_ms = to_us(at) // 1000
    return UUID(int=at_ms << 80 | 7 << 76 | 2 << 62 | bucket << 46 | next(_numbers))


def a_row(at: datetime = SEPTEMBER, **changes: Any) -> dict[str, Any]:
    """A row of `orders` as JSON, as an event carries it."""
    user_id = changes.get("user_id", "alice")
    return {
        "order_id": str(an_order_id(at)),
        "created_at": at.isoformat(),
        "user_id": user_id,
        "bucket": 701,
        "route_epoch": 1,
        "read_routing": user_id,
        "version": 1,
        "status": "PENDING",
        "stage": "SUBMITTING",
        "kind": "payment",
        "legs": ["payments"],
        "leg": 0,
        "attempt": 1,
        "amount_minor": 1250,
        "currency_code": "EUR",
        "currency_exp": 2,
        "description": "a book",
        "labels": {"cart": "7"},
        "upstream_ref": "",
        "failure_reason": "",
        "basis": None,
        "request_id": str(UUID(int=next(_numbers))),
        "updated_at": (at + timedelta(seconds=1)).isoformat(),
        "settled_at": None,
        "erased_at": None,
        "traceparent": "",
        "schema_version": 1,
        **changes,
    }


def a_document(at: datetime = SEPTEMBER, *, stream_partition: int = 3, **changes: Any) -> Document:
    """A document of a new order of alice's."""
    deleted = changes.pop("deleted", False)
    return document(a_row(at, **changes), stream_partition) | {"deleted": deleted}


def payload(row: dict[str, Any]) -> bytes:
    """A row as an event carries it."""
    return json.dumps(row).encode()


def a_window(
    user_id: str | None = "alice",
    *,
    before: Key = NEWEST,
    not_before: datetime = OLDEST,
    filter: Filter = Filter(),  # noqa: A002, B008 - frozen, and named as in Window
) -> Window:
    return Window(user_id, before, not_before, filter)
