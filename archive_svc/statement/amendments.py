"""What was found out about orders after they had been archived, laid over them when they are read. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from archive_svc.statement.rows import Row


class Amendment(NamedTuple):
    """One of them. changes: fields of the order by name, with what they are now."""

    note: str
    changes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Amend:
    """A checked wish to amend an order. changes: as `Amendment`; a status among them is SUCCESS."""

    request_id: UUID
    user_id: str
    order_id: UUID
    note: str
    reason: str
    changes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Amended:
    """An order as it is told from now on. amendments: how many it has."""

    shard: str
    status: str
    amendments: int


def by_order(records: Iterable[Any]) -> dict[str, list[Amendment]]:
    """Amendments by the order that they are of, the oldest first, as they come."""
    found: dict[str, list[Amendment]] = {}
    for record in records:
        found.setdefault(record["order_id"], []).append(Amendment(record["note"], record["changes"]))
    return found


def amended(row: Row, amendments: Sequence[Amendment]) -> Row:
    """An order with its amendments, a later one on top; the notes say that there are some."""
    for amendment in amendments:
        changes = amendment.changes
        status = changes.get("status", row.status)
        row = row._replace(
            status=status,
            upstream_ref=changes.get("upstream_ref", row.upstream_ref),
            description=changes.get("description", row.description),
            failure_reason="" if status == "SUCCESS" else row.failure_reason,
        )
    return row._replace(note="; ".join(amendment.note for amendment in amendments))
