"""What the projector decides: which records follow each other, which version of an order is worth writing,
and how far that moves the watermarks. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from history_svc.position import BEGINNING, Position

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import date, datetime
    from uuid import UUID

    from history_svc.catalog import Catalog, Index
    from history_svc.document import Document
    from history_svc.events import Record


@dataclass(slots=True)
class Progress:
    """How far each stream partition of a shard is written, beyond what its watermark says.

    ends:   the last position of the unbroken run. as_of: every change committed before it is at or below the
    end.
    holes:  partitions whose next record does not follow, and the position that was missed.
    """

    ends: dict[int, Position]
    as_of: dict[int, datetime] = field(default_factory=dict)
    holes: dict[int, Position] = field(default_factory=dict)

    def end(self, partition: int) -> Position:
        """Where a partition stands."""
        return self.ends.get(partition, BEGINNING)

    def follow(self, records: Iterable[Record]) -> list[Record]:
        """Those changes that are new and follow without a gap; moves on over them and over beats.

        A partition with a gap stands still, and what comes after the gap is left out, since it will come
        again.
        """
        fresh: list[Record] = []
        for record in records:
            partition = record.stream_partition
            if partition in self.holes or record.position <= self.end(partition):
                continue
            if record.prev > self.end(partition):
                self.holes[partition] = record.prev
                continue
            self.ends[partition] = record.position
            if record.event is not None:
                fresh.append(record)
            else:
                self.as_of[partition] = record.at
        return fresh

    def step_back(self, records: Iterable[Record]) -> None:
        """Take back what could not be used: each partition stands before its first such record again."""
        for record in records:
            partition = record.stream_partition
            if partition not in self.holes or record.prev < self.end(partition):
                self.ends[partition] = min(self.end(partition), record.prev)
                self.holes[partition] = record.position
                self.as_of.pop(partition, None)


@dataclass(frozen=True, slots=True)
class Draft:
    """The document of one order in the newest version of a batch, and the record it came from."""

    record: Record
    document: Document

    @property
    def order_id(self) -> UUID:
        """Whose document."""
        assert self.record.event is not None
        return self.record.event.order_id

    @property
    def created_at(self) -> datetime:
        """When the order was made, which says the month of its document."""
        assert self.record.event is not None
        return self.record.event.created_at

    @property
    def version(self) -> int:
        """In which version."""
        assert self.record.event is not None
        return self.record.event.version


def newest(records: Iterable[Record]) -> list[Record]:
    """One record for each order: that of its greatest version. The others are done when that one is."""
    found: dict[UUID, Record] = {}
    for record in records:
        assert record.event is not None
        seen = found.get(record.event.order_id)
        if seen is None or seen.event is None or seen.event.version < record.event.version:
            found[record.event.order_id] = record
    return list(found.values())


def written_to(catalog: Catalog, month: date) -> tuple[Index, ...]:
    """The indices that a document of a month is written to: every generation that is not retired."""
    return tuple(index for index in catalog.indices if index.month == month and index.state != "RETIRED")


def added(older: Catalog, newer: Catalog) -> set[str]:
    """Names of the indices that a newer catalog has written to and an older one does not know."""

    def names(catalog: Catalog) -> set[str]:
        return {index.identity.name for index in catalog.indices if index.state != "RETIRED"}

    return names(newer) - names(older)


def moved(ends: Mapping[int, Position], stored: Mapping[int, Position]) -> dict[int, Position]:
    """The watermarks that go forward."""
    return {partition: end for partition, end in ends.items() if end > stored.get(partition, BEGINNING)}
