"""What was found out about orders after they had been archived, laid over what their segments say. Pure.

A segment says what an order was when it left; an amendment that is younger says what it is. What a table says
is so: nothing is laid over it, or lists and `GetOrder`, which read the tables, would tell something else. A
month that came back and left again takes the amendments along, but for orders that changed while it was back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from archive_svc.statement.rows import Row


class Amendment(NamedTuple):
    """One of them. changes: fields of the order by name, with what they are now. amended_us: as of a row."""

    note: str
    changes: Mapping[str, str]
    amended_us: int


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


@dataclass(frozen=True, slots=True)
class Amendments:
    """How many amendments of a user's orders there are. newest: when the last was made; None without one."""

    amendments: int = 0
    newest: datetime | None = None

    @classmethod
    def of_all(cls, shards: Iterable[Amendments]) -> Amendments:
        """Those of several shards."""
        some = [(each.amendments, each.newest) for each in shards if each.newest is not None]
        return cls(sum(count for count, _ in some), max((newest for _, newest in some), default=None))

    def mark(self) -> str | None:
        """What is another one after each amendment; None without any."""
        return None if self.newest is None else f"{self.amendments} until {self.newest.isoformat()}"


def by_order(records: Iterable[Any]) -> dict[str, list[Amendment]]:
    """Amendments by the order that they are of, the oldest first, as they come."""
    found: dict[str, list[Amendment]] = {}
    for record in records:
        found.setdefault(record["order_id"], []).append(
            Amendment(*(record[name] for name in Amendment._fields))
        )
    return found


def amended(row: Row, amendments: Sequence[Amendment]) -> Row:
    """An archived order with its amendments, a later one on top; the notes say that there are some.

    Those from before the order last changed are out of date: who changed it knew better.
    """
    some = [amendment for amendment in amendments if amendment.amended_us > row.updated_us]
    for amendment in some:
        changes = amendment.changes
        status = changes.get("status", row.status)
        row = row._replace(
            status=status,
            upstream_ref=changes.get("upstream_ref", row.upstream_ref),
            description=changes.get("description", row.description),
            failure_reason="" if status == "SUCCESS" else row.failure_reason,
        )
    return row._replace(note="; ".join(amendment.note for amendment in some))
