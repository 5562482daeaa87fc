"""What travels from a shard's outbox to the read model: changes, and beats where nothing changed. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from history_svc.position import Position

STREAM = "ordermesh.order-events.v1"
"""What the stream of changes is called in traces, whatever carries it."""
EVENT_BYTES_MAX = 128 * 1024
"""A record with its headers; the outbox holds payloads to 64 KiB. One that is too large ruins a producer for
good.
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one order: its whole state after it.

    payload: the row of `orders` as JSON, as `to_jsonb` writes it.
    """

    event_id: UUID
    order_id: UUID
    created_at: datetime
    user_id: str
    read_routing: str
    version: int
    kind: str
    payload: bytes
    schema_ver: int = 1
    origin: str = "order_svc"
    traceparent: str = ""
    tracestate: str = ""


def stream_facts(shard: str, changes: int) -> dict[str, str | int]:
    """What spans say that send or process a batch of the stream."""
    return {
        "messaging.destination.name": STREAM,
        "messaging.batch.message_count": changes,
        "shard": shard,
    }


@dataclass(frozen=True, slots=True)
class Record:
    """One step of a stream partition.

    position: where the partition is after it.
    prev:     where it was before it: nothing of this partition stands in between. Whoever is not at `prev` or
              beyond misses something.
    at:       every change that was committed before this instant stands at or below `position`, for a beat;
              for a change, when it happened.
    event:    the change; None for a beat.
    """

    stream_partition: int
    position: Position
    prev: Position
    at: datetime
    event: Event | None = None

    @property
    def size(self) -> int:
        """Bytes it takes in a queue, about."""
        return 200 + (len(self.event.payload) if self.event is not None else 0)


@dataclass(frozen=True, slots=True)
class StreamRange:
    """A shard's part of the stream: `count` partitions from `base` on."""

    base: int
    count: int

    @property
    def partitions(self) -> range:
        """The numbers of the partitions."""
        return range(self.base, self.base + self.count)
