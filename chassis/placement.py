"""Where a user's orders may be: every bucket the user ever had, with its shard and epoch, as the proxy says
it. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chassis.errors import PlacementMissing
from chassis.ids import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Mapping

PLACEMENT_HEADER = "x-ordermesh-placement"
BUCKETS_MAX = 64
"""A user has a hashed bucket and, as a salted VIP, up to 16 dedicated ones; a few more were left behind by
moves.
"""
_ENTRY = re.compile(r"(\d{1,5}):([a-z][a-z0-9_-]{0,31}):(\d{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Held:
    """One bucket of a user on one shard, at the epoch the proxy knows."""

    bucket: int
    epoch: int


def placement_of(metadata: Mapping[str, str]) -> dict[str, tuple[Held, ...]]:
    """The buckets to read, by shard; never empty.

    Raises: PlacementMissing when the header is not there or not `bucket:shard:epoch[,...]`.
    """
    entries = metadata.get(PLACEMENT_HEADER, "").split(",")
    if len(entries) > BUCKETS_MAX:
        raise PlacementMissing
    placed: dict[str, tuple[Held, ...]] = {}
    for entry in entries:
        match = _ENTRY.fullmatch(entry)
        if match is None or int(match[1]) >= BUCKETS:
            raise PlacementMissing
        held = Held(int(match[1]), int(match[3]))
        placed[match[2]] = (*placed.get(match[2], ()), held)
    return placed
