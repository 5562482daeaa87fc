"""What the shards hold of the users who are walked: read before the load, and again when all is quiet. Reads
only.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from ops.audit.shards import fetch
from ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ops.load.walk.book import Book

ORDERS_MIN: Final = 100
"""Of a user older than `AGE_MIN`: enough for several pages below every hot window."""
ORDERS_MAX: Final = 5000
"""A walk of more pages than that is no walk but a search."""
LOOK_EVERY_S: Final = 0.5
AGE_MIN: Final = timedelta(days=60)
_SEEDED = """
SELECT user_id, count(*) AS orders
  FROM orders
 WHERE user_id >= 'seed.' AND user_id < 'seed/' AND created_at < ordermesh.clock() - $1::interval
   AND created_at >= ordermesh.archive_floor()
 GROUP BY user_id HAVING count(*) BETWEEN $2 AND $3
 ORDER BY user_id"""
_HELD = """
SELECT order_id::text, user_id, version, labels::text AS labels, created_at, stage
  FROM orders WHERE user_id = ANY ($1::text[]) AND created_at >= ordermesh.archive_floor()"""
_UNSERVED = """
SELECT DISTINCT to_char(month, 'YYYY-MM') AS month FROM projection_index p
 WHERE state = 'BUILDING'
   AND NOT EXISTS (SELECT FROM projection_index s WHERE s.month = p.month AND s.state = 'SERVING')
   AND NOT is_archived(p.month)
 ORDER BY 1"""


class NoGround(OpsError):
    """There is no history to walk; the message says how to get one."""


@dataclass(frozen=True, slots=True)
class Held:
    """One order as its shard holds it."""

    order_id: str
    user_id: str
    version: int
    labels: Mapping[str, str]
    created_at: datetime
    stage: str


async def served(dsns: Mapping[str, str], within_s: float) -> None:
    """Wait until the read model has every month that was seeded.

    Raises: NoGround when it does not get there; StoreUnreadable.
    """
    end = time.monotonic() + within_s
    while unserved := {
        row["month"] for shard, dsn in dsns.items() for row in await fetch(shard, dsn, _UNSERVED)
    }:
        if time.monotonic() > end:
            months = " ".join(f"--month {month}" for month in sorted(unserved))
            raise NoGround(
                "--walk: the read model does not have every seeded month, so no page would be merged; "
                f"build them with `ordermesh index rebuild {months} --reason seeded`."
            )
        await asyncio.sleep(LOOK_EVERY_S)


async def seeded_users(dsns: Mapping[str, str], wanted: int) -> list[str]:
    """Users with a seeded history of two months ago and more, those of each shard in turn.

    Raises: NoGround when there is none; StoreUnreadable.
    """
    by_shard: list[list[str]] = []
    for shard, dsn in dsns.items():
        found = await fetch(shard, dsn, _SEEDED, AGE_MIN, ORDERS_MIN, ORDERS_MAX)
        by_shard.append([row["user_id"] for row in found])
    longest = max(map(len, by_shard), default=0)
    users = [names[turn] for turn in range(longest) for names in by_shard if turn < len(names)][:wanted]
    if not users:
        raise NoGround(
            f"--walk: nobody has {ORDERS_MIN} orders of two months ago; make some with "
            "`ordermesh seed --users 8 --orders 4000 --months 4`."
        )
    return users


async def held(dsns: Mapping[str, str], users: Sequence[str]) -> list[Held]:
    """Every order of some users, on every shard.

    Raises: StoreUnreadable.
    """
    found: list[Held] = []
    for shard, dsn in dsns.items():
        rows = await fetch(shard, dsn, _HELD, list(users))
        found += [Held(**{**row, "labels": json.loads(row["labels"] or "{}")}) for row in rows]
    return found


def enter(book: Book, orders: Sequence[Held], at: float) -> None:
    """Promise everything that the shards hold."""
    for order in orders:
        book.tell(order.user_id, order.order_id, order.version, at=at, labels=order.labels)
