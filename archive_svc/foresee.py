"""What the erasure of a user would take out of the archive of a shard, before anything of it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from archive_svc.erase import UNREAD
from archive_svc.lifecycle import State

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


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A month that would lose rows. objects: written anew and deleted, with the manifest.

    orders, objects: 0 where nothing is read for this: the month is being copied, and read from the tables
                     still; it is in quarantine; its copy would be given up.
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
        objects = 0 if counts is None else len(counts) * OBJECTS_OF_PART + 1
        note = await _note(catalog, months[month], is_damaged=counts is None)
        found[month] = Foreseen(month, sum((counts or {}).values()), objects, note)
    apart = {each.archive_id: each.month for each in months.values() if each.quarantined}
    for archive_id, segment in await catalog.segments_of(user_id):
        if archive_id in apart and segment.facts.groups_of(user_id):
            found[apart[archive_id]] = Foreseen(apart[archive_id], 0, 0, QUARANTINED)
    return [found[month] for month in sorted(found)]


async def _note(catalog: Catalog, month: Month, *, is_damaged: bool) -> str:
    """What is to be said of a month whose copy would lose rows."""
    if month.state not in UNREAD:
        return STANDS
    if held := await catalog.legal_hold(month.month):
        return held
    if month.state is State.DROPPED:
        return ""
    return GIVEN_UP if is_damaged else BACK
