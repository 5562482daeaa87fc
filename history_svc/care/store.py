"""The statements of the care for one shard's part of the projection. One round trip each.

All methods raise what chassis.pg raises: Overloaded, Contended, ShardUnavailable, DeadlineExceeded.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from chassis import pg
from chassis.errors import ShardUnavailable
from chassis.ids import id_time
from chassis.store_spans import traced
from history_svc.care.operation import Findings, Kind, Operation, Phase, State
from history_svc.catalog import Catalog, catalog_of
from history_svc.document import to_us
from history_svc.projector.store import REASON_CHARS_MAX
from history_svc.readmodel.port import DaySum, Entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from history_svc.readmodel.port import IndexIdentity

QUERIES = pg.queries("history_svc.care")
SCAN_S = 60.0
"""Of statements that look at a whole day or month."""
EXPECTED_MAX = 1_000_000
"""A month's orders are counted so far, for the progress only."""
_ID_TIME_SHIFT = 80
_FIRST = UUID(int=0)


class OrderRow(NamedTuple):
    """One order as its document is made of it; payload: the row as JSON."""

    order_id: UUID
    created_at: datetime
    user_id: str
    version: int
    stream_partition: int
    payload: bytes


class Quarantined(NamedTuple):
    """An order in quarantine, with the version that was refused."""

    order_id: UUID
    created_at: datetime
    version: int


@dataclass(frozen=True, slots=True)
class Needs:
    """What a shard's part of the projection lacks.

    is_lost:    changes were dropped, or are of another epoch, that its watermarks never passed.
    months_unserved: how many months are read from the shard although they have an index.
    unserved:   those of them that nobody builds. unverified: months that nobody compared for long.
    open:       operations that are not over.
    """

    is_lost: bool
    months_unserved: int
    unserved: Sequence[date]
    unverified: Sequence[date]
    open: int


@dataclass(frozen=True, slots=True)
class Status:
    """How a shard's part of the projection is.

    indexed_until: every change before it is searchable; None when that is not known. archived_to: what was
    created before it is archived; None when nothing is. at: when it was read.
    """

    shard: str
    catalog: Catalog
    quarantined: int
    indexed_until: datetime | None
    archived_to: datetime | None
    at: datetime


@traced
class CareStore:
    """The projection's rows of one shard, as its care needs them."""

    def __init__(self, shard: str, database: pg.Database) -> None:
        self.shard = shard
        self._db = database

    def until(self, deadline: float) -> CareStore:
        """The same store for one call: nothing begins after its deadline, on the monotonic clock."""
        return CareStore(self.shard, self._db.begun_by(deadline))

    # Operations.

    async def open(
        self, operation_id: UUID, kind: Kind, month: date | None, *, repairs: bool, actor: str, reason: str
    ) -> Operation:
        """Note what is to be done. Idempotent; one that is open already is returned instead."""
        row = await self._db.fetchrow(
            QUERIES.open_operation, operation_id, kind.value, month, repairs, actor, reason
        )
        assert row is not None, "one of them is there"
        return _operation(row)

    async def next(self) -> Operation | None:
        """What is carried on next."""
        row = await self._db.fetchrow(QUERIES.next_operation)
        return _operation(row) if row is not None else None

    async def keep(self, operation: Operation, term: int) -> bool:
        """Keep where an operation stands; False when it is not ours to carry on any more."""
        found = operation.findings
        kept: bool = await self._db.fetchval(
            QUERIES.keep_operation,
            operation.operation_id,
            term,
            operation.state.value,
            operation.phase.value,
            operation.generation,
            operation.index_name,
            operation.index_uuid,
            operation.catalog_version,
            operation.copied_to,
            operation.orders,
            operation.expected,
            *(getattr(found, each.name) for each in fields(Findings)),
            operation.passes,
            operation.note[:REASON_CHARS_MAX],
            operation.repairs,
        )
        return kept

    async def defer(
        self, operation_id: UUID, term: int, note: str, *, first: timedelta, most: timedelta
    ) -> None:
        """Let an operation whose step failed wait, twice as long each time."""
        note = note[:REASON_CHARS_MAX]
        await self._db.execute(QUERIES.defer_operation, operation_id, term, note, first, most)

    async def cancel(self, operation_id: UUID, note: str) -> Operation | None:
        """End an open operation; how it is then, None when there is none. Idempotent."""
        row = await self._db.fetchrow(QUERIES.cancel_operation, operation_id, note[:REASON_CHARS_MAX])
        return _operation(row) if row is not None else None

    async def given_up(self) -> list[date]:
        """Months with a generation that nobody builds any more, beside an older one that serves."""
        return [row["month"] for row in await self._db.fetch(QUERIES.list_given_up)]

    async def give_up(self, month: date) -> None:
        """Have nobody write such a generation of a month any more. Idempotent."""
        await self._db.execute(QUERIES.give_up_building, month)

    async def operations(self, limit: int) -> list[Operation]:
        """The newest ones, those that are open first."""
        return [_operation(row) for row in await self._db.fetch(QUERIES.list_operations, limit)]

    async def status(self) -> Status:
        """How the shard's part is.

        Raises: ShardUnavailable also when nobody named the shard.
        """
        row = await self._db.fetchrow(QUERIES.read_status)
        if row is None:
            raise ShardUnavailable(shard=self.shard)
        is_whole = row["partitions_indexed"] == row["partition_count"]
        return Status(
            self.shard,
            catalog_of(row["catalog_version"], row["catalog"]),
            row["quarantined"],
            row["indexed_until"] if is_whole else None,
            row["archived_to"],
            row["at"],
        )

    async def needs(self, *, again_after: timedelta, verify_every: timedelta) -> Needs:
        """What the shard's part lacks; nothing that failed within `again_after`.

        Raises: ShardUnavailable also when nobody named the shard.
        """
        row = await self._db.fetchrow(QUERIES.read_needs, again_after, verify_every)
        if row is None:
            raise ShardUnavailable(shard=self.shard)
        return Needs(
            row["is_lost"],
            row["months_unserved"],
            (row["unserved"]),
            sorted(row["unverified"]),
            row["open"],
        )

    async def forget_operations(self) -> None:
        """Forget what ended long ago."""
        await self._db.execute(QUERIES.forget_operations)

    # The catalog.

    async def plan(self, month: date, *, hides: bool, fresh: bool) -> tuple[int, str]:
        """Generation and name of the index in which a month is to be built, as its catalog says from now on.

        hides: nobody reads the month from the read model until then. fresh: into one that holds nothing yet.
        """
        row = await self._db.fetchrow(QUERIES.plan_index, month, hides, fresh)
        assert row is not None, "a function returns a row"
        return row["generation"], row["index_name"]

    async def serve(self, month: date, generation: int, index_uuid: str) -> bool:
        """Let readers have a month from an index; False when a newer one is planned, or it was replaced."""
        served: bool = await self._db.fetchval(QUERIES.serve_index, month, generation, index_uuid)
        return served

    async def reset(self, operation_id: UUID, term: int) -> int | None:
        """Begin anew; how many months have to be built. None when the operation is not ours to carry out."""
        planned: int | None = await self._db.fetchval(
            QUERIES.reset_projection, operation_id, term, timeout_s=SCAN_S
        )
        return planned

    async def may_rebuild(self, month: date, *, again_after: timedelta) -> bool:
        """Whether a month is neither being built nor was given up within a time."""
        return bool(await self._db.fetchval(QUERIES.may_rebuild, month, again_after))

    async def plant(self, month: date, generation: int, identity: IndexIdentity) -> None:
        """A month that the shard knows nothing of begins with this generation. Idempotent."""
        await self._db.execute(QUERIES.plant_index, month, generation, *identity)

    async def retire(self, month: date, below: int) -> None:
        """Stop writing a month's generations below one. Idempotent."""
        await self._db.execute(QUERIES.retire_indices, month, below)

    async def is_archived(self, month: date) -> bool:
        """Whether no list shows a month any more, as it is archived."""
        return bool(await self._db.fetchval(QUERIES.is_archived, month))

    async def left(self, months: Sequence[date]) -> dict[date, bool]:
        """Those of some months that need no index here: True when it is archived, False when it has no table
        and never was in the archive.
        """
        return {row["month"]: row["is_archived"] for row in await self._db.fetch(QUERIES.list_left, months)}

    async def leave(self, month: date) -> None:
        """Neither read nor write any index of a month that is archived, or never was here. Idempotent."""
        await self._db.execute(QUERIES.retire_archived, month)
        await self._db.execute(QUERIES.forget_month, month)

    async def retired(self, grace: timedelta) -> set[str]:
        """Names of the indices that have been retired for so long."""
        return {row["index_name"] for row in await self._db.fetch(QUERIES.list_retired, grace)}

    async def forget(self, name: str) -> None:
        """Forget a retired index that is gone; that there was one stays with a month's last. Idempotent."""
        if not await self._db.fetchval(QUERIES.forget_index, name):
            await self._db.execute(QUERIES.leave_index, name)

    # How far the projection is.

    async def knows(self, catalog_version: int) -> bool:
        """Whether everybody who moves a watermark writes by the catalog at this version, or a later one."""
        return bool(await self._db.fetchval(QUERIES.read_knowledge, catalog_version))

    async def fence(self) -> int:
        """A transaction that is beyond all that was read here before."""
        return int(await self._db.fetchval(QUERIES.read_fence))

    async def is_past(self, fence: int) -> bool:
        """Whether every change below a fence is searchable, or in quarantine."""
        return bool(await self._db.fetchval(QUERIES.is_past, str(fence)))

    # Orders.

    async def count(self, start: datetime, end: datetime) -> int:
        """How many orders were created in a span of time, about."""
        counted: int = await self._db.fetchval(
            QUERIES.count_orders, start, end, first_id(start), first_id(end), EXPECTED_MAX, timeout_s=SCAN_S
        )
        return counted

    async def orders(self, start: datetime, end: datetime, after: UUID | None, limit: int) -> list[OrderRow]:
        """Orders created in a span of time, by id, after one of them."""
        rows = await self._db.fetch(
            QUERIES.read_orders, start, end, after or first_id(start), first_id(end), limit
        )
        return [OrderRow(*row.values()) for row in rows]

    async def orders_of(self, order_ids: Sequence[UUID]) -> list[OrderRow]:
        """Some orders as they are now; without those that are gone."""
        rows = await self._db.fetch(
            QUERIES.read_orders_of, order_ids, [id_time(order_id) for order_id in order_ids]
        )
        return [OrderRow(*row.values()) for row in rows]

    async def add_up(self, day: date) -> list[DaySum]:
        """One day of creation summed up by stream partition."""
        start, end = _bounds(day)
        rows = await self._db.fetch(
            QUERIES.add_up_day, start, end, first_id(start), first_id(end), timeout_s=SCAN_S
        )
        return [DaySum(row[0], day, row[1], row[2], row[3]) for row in rows]

    async def versions(self, partition: int, day: date, after: str, limit: int) -> list[Entry]:
        """Orders of one stream partition and day with their versions, by id, after one of them."""
        start, end = _bounds(day)
        since = UUID(after) if after else first_id(start)
        rows = await self._db.fetch(
            QUERIES.read_versions, start, end, since, first_id(end), partition, limit, timeout_s=SCAN_S
        )
        return [Entry(row["order_id"], row["version"]) for row in rows]

    # Quarantine.

    async def quarantined(self, order_ids: Sequence[UUID]) -> set[str]:
        """Which of some orders are in quarantine."""
        return {row["order_id"] for row in await self._db.fetch(QUERIES.read_quarantined, order_ids)}

    async def quarantine(self, after: UUID | None, limit: int) -> list[Quarantined]:
        """Orders in quarantine by id, after one of them."""
        rows = await self._db.fetch(QUERIES.list_quarantine, after or _FIRST, limit)
        return [Quarantined(*row.values()) for row in rows]

    async def note_refused(self, refused: Sequence[tuple[OrderRow, str]], *, most: int) -> int:
        """Have lists take orders from the shard; how many are in quarantine then. If that would be over
        `most`, nothing was noted.
        """
        noted: int = await self._db.fetchval(
            QUERIES.note_refused,
            [row.order_id for row, _ in refused],
            [row.created_at for row, _ in refused],
            [row.user_id for row, _ in refused],
            [row.stream_partition for row, _ in refused],
            [row.version for row, _ in refused],
            [reason[:REASON_CHARS_MAX] for _, reason in refused],
            most,
        )
        return noted

    async def free(self, written: Sequence[tuple[UUID, int]]) -> None:
        """Let orders leave quarantine whose document is searchable in this version."""
        await self._db.execute(
            QUERIES.free_written,
            [order_id for order_id, _ in written],
            [version for _, version in written],
        )


def first_id(at: datetime) -> UUID:
    """Below every order id of an instant and later, at or above those before; ids begin with their ms."""
    return UUID(int=(to_us(at) // 1000) << _ID_TIME_SHIFT)


def _bounds(day: date) -> tuple[datetime, datetime]:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return start, start + timedelta(days=1)


def _operation(row: Any) -> Operation:
    return Operation(
        operation_id=row["operation_id"],
        kind=Kind(row["kind"]),
        month=row["month"],
        repairs=row["repairs"],
        state=State(row["state"]),
        phase=Phase(row["phase"]),
        generation=row["generation"],
        index_name=row["index_name"],
        index_uuid=row["index_uuid"],
        catalog_version=row["catalog_version"],
        copied_to=row["copied_to"],
        orders=row["orders"],
        expected=row["orders_expected"],
        findings=Findings(*(row[each.name] for each in fields(Findings))),
        passes=row["passes"],
        note=row["note"],
        actor=row["actor"],
        reason=row["reason"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        ended_at=row["ended_at"],
    )
