"""Rows for tests of the archive, as COPY writes them, without a database."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from archive_svc.codec.writer import GROUP_BYTES, SegmentWriter
from archive_svc.columns import JOURNAL, ORDERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from archive_svc.columns import Shape
    from archive_svc.segment import Segment

ABOUT = {"shard": "s1", "month": "2023-08", "part": "0"}
BEGINS = datetime(2023, 8, 1, tzinfo=UTC)
Row = dict[str, Any]


def micros(at: datetime) -> int:
    """An instant as a segment's CSV has it."""
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def order(number: int, *, user_id: str = "alice", **columns: Any) -> Row:
    """One row of orders, the same for the same number; a higher number is later."""
    dice = random.Random(number)
    at = micros(BEGINS + timedelta(seconds=number))
    row = {
        "order_id": UUID(int=(at // 1000) << 80 | 7 << 76 | 2 << 62 | number),
        "created_at": at,
        "user_id": user_id,
        "bucket": 701,
        "route_epoch": 1,
        "read_routing": user_id,
        "version": 3,
        "status": "SUCCESS",
        "stage": "DONE",
        "kind": "payment",
        "legs": '["payments"]',
        "leg": 0,
        "attempt": 1,
        "amount_minor": 100 + number,
        "currency_code": "EUR",
        "currency_exp": 2,
        "description": "",
        "labels": f'{{"cart": "{dice.randrange(10**6)}"}}',
        "upstream_ref": f"ref-{dice.getrandbits(64):016x}",
        "failure_reason": "",
        "basis": "UPSTREAM",
        "request_id": UUID(int=dice.getrandbits(128), version=4),
        "updated_at": at + 1_500_001,
        "settled_at": at + 1_500_001,
        "erased_at": None,
        "traceparent": "",
        "schema_version": 1,
    }
    assert tuple(row) == ORDERS.names
    return row | columns


def entry(number: int, version: int, *, user_id: str = "alice", **columns: Any) -> Row:
    """One row of the journal of that order."""
    parent = order(number, user_id=user_id)
    row = {
        "order_id": parent["order_id"],
        "created_at": parent["created_at"],
        "user_id": user_id,
        "bucket": 701,
        "route_epoch": 1,
        "version": version,
        "event_id": UUID(int=random.Random(f"{number}.{version}").getrandbits(128), version=4),
        "kind": "CREATED" if version == 1 else "SETTLED",
        "from_status": None if version == 1 else "PENDING",
        "to_status": "PENDING" if version == 1 else "SUCCESS",
        "from_stage": None if version == 1 else "SUBMITTING",
        "to_stage": "SUBMITTING" if version == 1 else "DONE",
        "leg": 0,
        "attempt": version - 1,
        "actor": "order_svc",
        "proof": None if version == 1 else "UPSTREAM_SUCCEEDED",
        "evidence": "{}",
        "traceparent": "",
        "at": parent["created_at"] + version,
    }
    assert tuple(row) == JOURNAL.names
    return row | columns


def csv(*rows: Row) -> bytes:
    """These rows as COPY writes them with FORCE_QUOTE and an empty NULL."""
    return "".join(",".join(map(_field, row.values())) + "\n" for row in rows).encode()


def _field(value: object) -> str:
    return "" if value is None else '"' + str(value).replace('"', '""') + '"'


def written(
    shape: Shape,
    blocks: Iterable[bytes],
    about: Mapping[str, str] = ABOUT,
    *,
    group_bytes: int = GROUP_BYTES,
) -> Segment:
    """A segment of these blocks."""
    writer = SegmentWriter(shape, about, group_bytes=group_bytes)
    for block in blocks:
        writer.add(block)
    return writer.close()
