"""What the erasure of a user would take out of the archive of a shard, before anything of it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from archive_svc.erase import UNREAD
from archive_svc.lifecycle import State
from archive_svc.statement.legs import Unreadable

if TYPE_CHECKING:
    from datetime import date

    from archive_svc.catalog import Catalog
    from archive_svc.lifecycle import Month
    from archive_svc.statement.legs import ShardReader

OBJECTS_OF_PART = 2
"""A segment of orders and one of their journal."""
COPIED = "it is being copied"
QUARANTINED = "it is quarantined"
STANDS = "its tables are still there"
BACK = "nobody reads this copy: the month is in its tables, and they are not touched"
GIVEN_UP = "this copy is damaged, and would be given up: the month is in its tables, and they are not touched"
COLD = "some of it is in cold storage, and has to be restored from there first"
COLD_GIVEN_UP = "this copy is in cold storage, and would be given up: the month is in its tables"


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A month that would lose rows. objects: written anew and deleted, with the manifest.

    orders, objects: 0 where nothing is read for this: the month is being copied, and read from the tables
                     still; it is in quarantine; its copy would be given up, or is in cold storage.
    note:            what the erasure would wait for, or that nobody reads the copy; else empty.
    """

    month: date
    orders: int
    objects: int
    note: str


async def foreseen(catalog: Catalog, reader: ShardReader, user_id: str) -> list[Foreseen]:
    """The months that would lose rows of a user, the oldest first; those in quarantine that may have some.

    Raises: as `ShardReader.rows`; what chassis.pg raises.
    """
    copies = await reader.archived_counts(user_id)
    found = {month: Foreseen(month, 0, 0, COPIED) for month in await catalog.frozen_with(user_id)}
    months = {each.month: each for each in await catalog.months()}
    for month, counts in copies.items():
        why = counts if isinstance(counts, Unreadable) else None
        parts = {} if isinstance(counts, Unreadable) else counts
        note = await _note(catalog, months[month], why)
        found[month] = Foreseen(
            month, sum(parts.values()), 0 if why else len(parts) * OBJECTS_OF_PART + 1, note
        )
    apart = {each.archive_id: each.month for each in months.values() if each.quarantined}
    for archive_id, segment in await catalog.segments_of(user_id):
        if archive_id in apart and segment.facts.groups_of(user_id):
            found[apart[archive_id]] = Foreseen(apart[archive_id], 0, 0, QUARANTINED)
    return [found[month] for month in sorted(found)]


async def _note(catalog: Catalog, month: Month, why: Unreadable | None) -> str:
    """What is to be said of a month whose copy would lose rows. why: it cannot be read."""
    held = "" if month.state not in UNREAD else await catalog.legal_hold(month.month)
    if month.state not in UNREAD or held or month.state is State.DROPPED:
        waits = STANDS if month.state not in UNREAD else held
        return "; ".join(filter(None, (waits, COLD if why is Unreadable.COLD else "")))
    if why is None:
        return BACK
    return COLD_GIVEN_UP if why is Unreadable.COLD else GIVEN_UP
