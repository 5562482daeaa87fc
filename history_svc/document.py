"""A document of the read model: one order as it was after one change. Pure.

Documents hold JSON values only: times are microseconds since 1970 as integers, since Elasticsearch's dates
would drop what separates two orders of a millisecond; money is in minor units. An order's document stands in
the index of the month it was created in, for ever.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from history_svc.text import terms

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Document = dict[str, Any]
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_COPIED = (
    "user_id",
    "bucket",
    "read_routing",
    "version",
    "status",
    "stage",
    "kind",
    "legs",
    "leg",
    "attempt",
    "amount_minor",
    "currency_code",
    "currency_exp",
    "upstream_ref",
    "failure_reason",
    "basis",
    "traceparent",
    "labels",
    "description",
)
_TIMES = {"created_at": "created_us", "updated_at": "updated_us", "settled_at": "settled_us"}


def document(row: Mapping[str, Any], stream_partition: int) -> Document:
    """The document of a row of `orders` as `to_jsonb` writes it.

    Raises: KeyError, ValueError, TypeError when it is no such row.
    """
    made: Document = {name: row[name] for name in _COPIED}
    made["order_id"] = order_id = _canonical(row["order_id"])
    made["request_id"] = _canonical(row["request_id"])
    for time, name in _TIMES.items():
        made[name] = None if row[time] is None else to_us(datetime.fromisoformat(row[time]))
    made["terms"] = terms(row["description"])
    made["stream_partition"] = stream_partition
    made["h32"] = h32(order_id, row["version"])
    made["deleted"] = False
    return made


def _canonical(uuid: str) -> str:
    """An id as Postgres writes it. Raises: ValueError, TypeError, AttributeError."""
    return uuid if _UUID.fullmatch(uuid) else str(UUID(uuid))


def columns(found: Document) -> dict[str, Any]:
    """A document as the columns of the order's row, as the shards' statements return them."""
    row: dict[str, Any] = {name: found[name] for name in _COPIED}
    row["order_id"] = UUID(found["order_id"])
    row["request_id"] = UUID(found["request_id"])
    for time, name in _TIMES.items():
        row[time] = None if found[name] is None else from_us(found[name])
    return row


def h32(order_id: str, version: int) -> int:
    """A check number of an order in one version, 0..2^32-1; sums of them are compared between the stores.

    The same in SQL: `ordermesh.h32`.
    """
    return int.from_bytes(hashlib.sha256(f"{order_id}:{version}".encode()).digest()[:4], "big")


def to_us(instant: datetime) -> int:
    """Microseconds since 1970."""
    return (instant - _EPOCH) // _US


def from_us(us: int) -> datetime:
    """The instant, aware UTC."""
    return _EPOCH + us * _US


def month_of(instant: datetime) -> date:
    """The first day of an instant's month in UTC: the same months as the partitions of `orders`."""
    at = instant.astimezone(UTC)
    return date(at.year, at.month, 1)


def next_month(month: date) -> date:
    """The month after."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def month_start(month: date) -> datetime:
    """Where a month begins, UTC."""
    return datetime(month.year, month.month, 1, tzinfo=UTC)


def index_name(month: date, generation: int) -> str:
    """The name of the index of a month, the same in every store: `orders-v1-2026.09`."""
    return f"orders-v{generation}-{month:%Y.%m}"


def matches_words(description: str, asked: Iterable[str]) -> bool:
    """Whether a description is found by all of these words; the same as a search in the documents' terms."""
    found = set(terms(description))
    return all(word in found for word in asked)
