"""Waits, before the orders of a period are read, until those that a shard is just writing are there.

An order is written below an id that was made before; who reads up to this moment may miss one that has not
reached the shard, or whose transaction is about to commit. The shard takes no order whose id is older than
`ordermesh.arrives_within()`. So whoever reads takes a transaction id when the period has been over for so
long, and opens the snapshot when every transaction with a smaller one has ended. Only who writes has such an
id: a session that reads, for hours even, holds up nobody.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from archive_svc.errors import OrdersUnsettled
from chassis import pg

if TYPE_CHECKING:
    from archive_svc.statement.wish import Wanted
    from chassis.clock import Clock
    from chassis.pg import Session

QUERIES = pg.queries("archive_svc.statement", "settling.sql")
LATE = timedelta(hours=1)
"""How much later than its id an order may be written; partitions are kept as much longer. Of the wish and not
of now: a later turn at a statement has to wait like the first one."""
PATIENCE_S = 15.0
"""Until nothing arrives any more, and then twice as long as a statement of order_svc may take."""
LOOK_S = 0.02


async def settled(session: Session, shard: str, wanted: Wanted, clock: Clock) -> None:
    """Return when a snapshot that is taken now has every order of the period that was being written.

    session: in no transaction, at the primary; at a replica nobody can tell, so that it is always too early.
    If cancelled here: nothing is held.
    Raises: OrdersUnsettled after `PATIENCE_S`; what chassis.pg raises.
    """
    if wanted.until < wanted.as_of - LATE:
        return
    until = clock.monotonic() + PATIENCE_S
    newer: int | None = None
    while True:
        if newer is None:
            newer = await session.fetchval(QUERIES.newer, wanted.until)
        if newer is not None and await session.fetchval(QUERIES.are_over, newer):
            return
        if clock.monotonic() >= until:
            raise OrdersUnsettled(shard=shard)
        await clock.sleep(LOOK_S)
