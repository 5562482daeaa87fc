"""What the projector keeps in a shard's database: watermarks, quarantine, catalog. One round trip each.

All methods raise what chassis.pg raises: Overloaded, Contended, ShardUnavailable, DeadlineExceeded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chassis import faults, pg
from chassis.errors import ShardUnavailable
from chassis.store_spans import traced
from history_svc.catalog import Catalog, catalog_of
from history_svc.events import StreamRange
from history_svc.position import Position
from history_svc.readmodel.port import IndexIdentity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date, datetime
    from uuid import UUID

    from history_svc.projector.domain import Draft

QUERIES = pg.queries("history_svc.projector")
REASON_CHARS_MAX = 512
BEFORE_MARK = faults.declare(
    "index.before_mark", "documents are searchable and no watermark says so; they are written again"
)
AFTER_MARK = faults.declare(
    "index.after_mark", "watermarks say what is searchable; the channel was not told and gives it again"
)


@dataclass(frozen=True, slots=True)
class Started:
    """Where a shard stands when somebody begins to index it.

    indexed_until: every change of the shard that was committed before it is searchable; None when not all
    partitions say so.
    """

    log_epoch: int
    streams: StreamRange
    watermarks: Mapping[int, Position]
    indexed_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """What a refresh has proved.

    watermarks: where each partition stands. as_of: every change committed before it is at or below that.
    catalog_version: by which the documents were written, the oldest one.
    refused:    drafts that the read model does not take, with its reason. written: orders and their
    versions that are searchable.
    """

    watermarks: Mapping[int, Position]
    as_of: Mapping[int, datetime]
    catalog_version: int
    refused: Sequence[tuple[Draft, str]]
    written: Mapping[UUID, int]


@dataclass(frozen=True, slots=True)
class Marked:
    """What came of a proof.

    is_full:   nothing was written, as too many orders would be in quarantine.
    is_behind: nothing was written, as the catalog is newer than the one that the documents were written by.
    indexed_until: as in Started, whoever moved the other watermarks.
    """

    is_full: bool
    is_behind: bool
    quarantined: int
    indexed_until: datetime | None = None


@traced
class ProjectionStore:
    """The projection's rows in one shard."""

    def __init__(self, shard: str, database: pg.Database) -> None:
        self.shard = shard
        self._db = database

    async def started(self) -> Started:
        """Where the shard stands.

        Raises: ShardUnavailable also when nobody named the shard.
        """
        row = await self._db.fetchrow(QUERIES.read_progress)
        if row is None:
            raise ShardUnavailable(shard=self.shard)
        return Started(
            row["log_epoch"],
            StreamRange(row["partition_base"], row["partition_count"]),
            {mark[0]: Position(mark[1], int(mark[2]), mark[3]) for mark in row["watermarks"]},
            row["indexed_until"],
        )

    async def mark(self, proof: Proof, *, quarantine_max: int) -> Marked:
        """Write down what is searchable, all of it or nothing. Idempotent: watermarks never go back."""
        await faults.point(BEFORE_MARK)
        partitions = list(proof.watermarks)
        positions = [proof.watermarks[partition] for partition in partitions]
        refused = [(draft, reason[:REASON_CHARS_MAX]) for draft, reason in proof.refused]
        events = [draft.record.event for draft, _ in refused]
        row = await self._db.fetchrow(
            QUERIES.move_watermarks,
            partitions,
            [str(position.xid) for position in positions],
            [position.seq for position in positions],
            [proof.as_of.get(partition) for partition in partitions],
            [position.log_epoch for position in positions],
            proof.catalog_version,
            [draft.order_id for draft, _ in refused],
            [event.created_at for event in events if event is not None],
            [event.user_id for event in events if event is not None],
            [draft.record.stream_partition for draft, _ in refused],
            [draft.version for draft, _ in refused],
            [reason for _, reason in refused],
            list(proof.written),
            list(proof.written.values()),
            quarantine_max,
        )
        assert row is not None, "room always has its row"
        await faults.point(AFTER_MARK)
        return Marked(row["is_full"], row["is_behind"], row["quarantined"], row["indexed_until"])

    async def quarantined_beside(self, orders: Iterable[UUID]) -> int:
        """How many orders are in quarantine, without these."""
        return int(await self._db.fetchval(QUERIES.room_in_quarantine, list(orders)))

    async def catalog(self) -> Catalog:
        """The catalog as it is now."""
        row = await self._db.fetchrow(QUERIES.read_catalog)
        assert row is not None, "the head of the catalog always has its row"
        return catalog_of(row["version"], row["indices"])

    async def add_index(self, month: date, identity: IndexIdentity) -> None:
        """Note the first index of a month. Idempotent; a month that is known stays as it is."""
        await self._db.execute(QUERIES.add_index, month, *identity)

    async def doubt_index(self, identity: IndexIdentity) -> None:
        """Let nobody read an index any more that is not the one that was made. Idempotent."""
        await self._db.execute(QUERIES.doubt_index, *identity)

    async def name_index(self, identity: IndexIdentity) -> None:
        """Note which index stands in the place of a doubted one. Idempotent."""
        await self._db.execute(QUERIES.name_index, *identity)
