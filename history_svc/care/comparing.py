"""What it means that a document differs from its order. Pure.

A shard and its index are never read at one instant, and the index is late by design. So a difference counts
only where it is proven: the shard is read first, then the watermark passes all that it showed, then the
index is read, then the shard once more. What the first reading had must be in the index; what the index has
must be in the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet
    from datetime import date

    from history_svc.readmodel.port import DaySum


class Difference(StrEnum):
    """How a document is wrong."""

    MISSING = "missing"
    STALE = "stale"
    AHEAD = "ahead"
    EXTRA = "extra"


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions by order id of a run of orders: in the shard before, in the index, in the shard after that."""

    before: Mapping[str, int]
    index: Mapping[str, int]
    after: Mapping[str, int]


def differing_days(ours: Iterable[DaySum], theirs: Iterable[DaySum]) -> list[tuple[int, date]]:
    """The days that are not summed up alike, as (stream partition, day)."""
    mine = {(each.stream_partition, each.day): each for each in ours}
    found = {(each.stream_partition, each.day): each for each in theirs}
    return sorted(place for place in mine.keys() | found.keys() if mine.get(place) != found.get(place))


def suspects(before: Mapping[str, int], index: Mapping[str, int]) -> list[str]:
    """Orders whose document may be wrong; the shard is asked for these once more."""
    return sorted(
        order_id for order_id in before.keys() | index.keys() if before.get(order_id) != index.get(order_id)
    )


def differences(seen: Versions, quarantined: AbstractSet[str]) -> dict[str, Difference]:
    """Which orders' documents are wrong, and how. Those in quarantine are known to be."""
    return {
        order_id: how
        for order_id in suspects(seen.before, seen.index)
        if order_id not in quarantined
        and (
            how := _difference(seen.before.get(order_id), seen.index.get(order_id), seen.after.get(order_id))
        )
    }


def _difference(before: int | None, index: int | None, after: int | None) -> Difference | None:
    if index is not None:
        if after is None:
            return Difference.EXTRA
        if index > after:
            return Difference.AHEAD
        return Difference.STALE if before is not None and index < before else None
    # An order that is gone from the shard by now needs no document.
    return Difference.MISSING if before is not None and after is not None else None
