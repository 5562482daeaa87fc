"""What the erasure of a user would take out of the archive of a shard, before anything of it begins."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archive_svc.lifecycle import State

if TYPE_CHECKING:
    from datetime import date

    from archive_svc.catalog import Catalog
    from archive_svc.statement.legs import ShardReader

OBJECTS_OF_PART = 2
"""A segment of orders and one of their journal."""


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A month that would lose rows. objects: written anew and deleted, with the manifest.

    orders, objects: 0 of a month that is being copied: it is read from the tables still.
    note:            what the erasure would wait for; empty when for nothing.
    """

    month: date
    orders: int
    objects: int
    note: str


async def foreseen(catalog: Catalog, reader: ShardReader, user_id: str) -> list[Foreseen]:
    """The months that would lose rows of a user, the oldest first.

    Raises: as `ShardReader.rows`; what chassis.pg raises.
    """
    orders: Counter[date] = Counter()
    objects: Counter[date] = Counter()
    for (month, _), count in (await reader.archived_counts(user_id)).items():
        orders[month] += count
        objects[month] += OBJECTS_OF_PART
    found = [
        Foreseen(month, 0, 0, "it is being copied")
        for month in await catalog.frozen_with(user_id)
        if month not in orders
    ]
    states = {each.month: each.state for each in await catalog.months()}
    for month, count in orders.items():
        stands = "" if states[month] is State.DROPPED else "its tables are still there"
        note = stands or await catalog.legal_hold(month)
        found.append(Foreseen(month, count, objects[month] + 1, note))
    return sorted(found, key=lambda each: each.month)
