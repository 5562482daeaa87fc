"""What stands in the archive's catalog: months, parts, segments, wishes to erase; and how rows say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archive_svc.columns import ORDERS
from archive_svc.lifecycle import Month, State
from archive_svc.segment import Facts, Key
from chassis.s3 import Stored

if TYPE_CHECKING:
    from datetime import date, datetime
    from uuid import UUID

    from archive_svc.columns import Shape


@dataclass(frozen=True, slots=True)
class Control:
    """Who archives the shard, by which fence; whether tables may be changed. at: the shard's clock."""

    fence: int
    holder: str
    lease_until: datetime
    is_halted: bool
    actor: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class MonthView:
    """A month as operators see it. state, reach: None when nobody asked for it.

    orders: about, while it is only in the tables; exactly, when they were counted. row_bytes: of its tables,
            while they are attached, without indexes.
    parts, segments, verified, restored: how many are planned, stored, read back, copied back.
    verified_at: since then every segment was read back. due: how many wait to be read once more;
                 in quarantine 0, but until somebody's wish for it has an answer.
    locked_until: until when S3 keeps some of it locked.
    legal_hold:   why it may not be given up; empty when it may.
    """

    month: date
    state: State | None
    reach: State | None
    quarantined: str
    note: str
    orders: int
    table_bytes: int
    row_bytes: int
    stored_bytes: int
    parts: int
    segments: int
    verified: int
    restored: int
    verified_at: datetime | None
    due: int
    committed_at: datetime | None
    detach_from: datetime | None
    drop_from: datetime | None
    actor: str
    reason: str
    blockers: tuple[str, ...]
    locked_until: datetime | None = None
    legal_hold: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a month: the orders after one key, up to and with another.

    orders_table, journal_table: where the rows are, as SQL writes it.
    """

    number: int
    after: Key
    until: Key
    order_count: int
    journal_count: int
    orders_table: str
    journal_table: str

    def table(self, shape: Shape) -> str:
        """Where its rows of a shape are, as SQL writes it."""
        return self.orders_table if shape is ORDERS else self.journal_table


@dataclass(frozen=True, slots=True)
class CataloguedSegment:
    """One segment: which object it is, and what proves it."""

    part: int
    table: str
    stored: Stored
    facts: Facts
    verified_at: datetime | None
    seen_at: datetime | None
    restored_at: datetime | None


@dataclass(frozen=True, slots=True)
class Erasure:
    """A wish to take a user's rows out. orders: that went so far. ended_at: when all had gone."""

    erasure_id: UUID
    user_id: str
    orders: int
    note: str
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Hanging:
    """A table that still hangs on its parent. is_pending: a detach of it was begun and cut off."""

    table: str
    parent: str
    is_pending: bool


def month_of(row: Any) -> Month:
    """A month as its row has it."""
    names = (
        *("month", "archive_id", "quarantined", "begins_at", "ends_at", "orders_oid", "journal_oid"),
        *("frozen_at", "detach_from", "drop_from", "failures", "damages", "not_before", "edition"),
        "manifest_key",
    )
    return Month(
        state=State(row["state"]),
        reach=State(row["reach"]),
        orders_hash=None if row["orders_hash"] is None else int(row["orders_hash"]),
        journal_hash=None if row["journal_hash"] is None else int(row["journal_hash"]),
        **{name: row[name] for name in names},
    )


def view_of(row: Any) -> MonthView:
    """A month as its overview has it."""
    return MonthView(
        month=row["month"],
        state=State(row["state"]) if row["state"] else None,
        reach=State(row["reach"]) if row["reach"] else None,
        quarantined=row["quarantined"],
        note=row["note"],
        orders=row["order_count"],
        table_bytes=row["table_bytes"],
        row_bytes=row["row_bytes"],
        stored_bytes=row["stored_bytes"] or 0,
        parts=row["parts"] or 0,
        segments=row["segments"] or 0,
        verified=row["verified"] or 0,
        restored=row["restored"] or 0,
        verified_at=row["verified_at"],
        due=row["due"] or 0,
        committed_at=row["committed_at"],
        detach_from=row["detach_from"],
        drop_from=row["drop_from"],
        actor=row["actor"],
        reason=row["reason"],
        blockers=tuple(row["blockers"]),
        locked_until=row["locked_until"],
        legal_hold=row["legal_hold"],
    )


def erasure_of(row: Any) -> Erasure:
    """A wish as its row has it."""
    return Erasure(row["erasure_id"], row["user_id"], row["row_count"], row["note"], row["ended_at"])


def part_of(row: Any) -> Part:
    """A part as its row has it."""
    return Part(
        number=row["part"],
        after=Key(row["after_user"], row["after_created_at"], row["after_order"]),
        until=Key(row["until_user"], row["until_created_at"], row["until_order"]),
        order_count=row["order_count"],
        journal_count=row["journal_count"],
        orders_table=row["orders_table"],
        journal_table=row["journal_table"],
    )


def segment_of(row: Any) -> CataloguedSegment:
    """A segment as its row has it."""
    facts = Facts.from_json(row["facts"])
    stored = Stored(
        row["key"], row["size_bytes"], row["etag"], version_id=row["version_id"], sha256=row["sha256"]
    )
    return CataloguedSegment(
        row["part"], row["of_table"], stored, facts, row["verified_at"], row["seen_at"], row["restored_at"]
    )
