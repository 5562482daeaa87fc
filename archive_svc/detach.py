"""Takes a committed month's tables off their parents and, when their time has come, gives them up.

DETACH ... CONCURRENTLY is two transactions, so where it stands is read from Postgres and never remembered: a
table hangs, hangs with a detach that was cut off, or stands alone. Whoever does it holds a lock that lives as
long as his session and has looked at the lease below it; one who was replaced while he was frozen loses the
session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from archive_svc import points
from archive_svc.catalog import QUERIES
from archive_svc.errors import LeaseLost
from archive_svc.lifecycle import State
from archive_svc.verify import Mismatch
from chassis import faults
from chassis.errors import Contended

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from datetime import timedelta

    from archive_svc.catalog import Catalog
    from archive_svc.entries import Hanging
    from archive_svc.lifecycle import Month
    from archive_svc.verify import Verifier
    from chassis.pg import Session

log = structlog.get_logger("detach")
DETACH_S_MAX = 60.0
"""For one try. It waits for those who read the parent when it began; who comes later does not wait for it."""
FINALIZE_S_MAX = 600.0


class Detacher:
    """Detaches and drops the months of one shard.

    sessions: opens a session that may wait as long as these statements do.
    """

    def __init__(
        self,
        catalog: Catalog,
        verifier: Verifier,
        sessions: Callable[[], AbstractAsyncContextManager[Session]],
    ) -> None:
        self._catalog = catalog
        self._verifier = verifier
        self._sessions = sessions

    async def detach(self, month: Month, fence: int, grace: timedelta) -> str:
        """Take what still hangs off, and note that it stands alone; why not, or nothing. Idempotent, also
        after a kill.

        What was decided since the first table went keeps the second where it is; a detach that was cut off is
        ended all the same. A legal hold keeps no month from coming back. Tables that stand alone are compared
        with what was proven before anything waits for their drop, and once more by whatever drops them or
        attaches them again.
        Raises: Mismatch; LeaseLost; Contended, DeadlineExceeded when it has to be tried again; what
        chassis.pg raises.
        """
        async with self._sessions() as session:
            await self._lock(session, month, fence)
            await faults.point(points.BEFORE_DETACH)
            for number, hanging in enumerate(await self._catalog.hanging(month)):
                if number:
                    await faults.point(points.BETWEEN_DETACHES)
                if not hanging.is_pending:
                    if held := await self._held(month):
                        return held
                    await self._must_be_allowed(session, month, fence)
                await _take_off(session, hanging)
                log.info("table_detached", shard=self._catalog.shard, month=month.name, table=hanging.table)
            await faults.point(points.AFTER_DETACH)
            if month.reach is not State.RESTORED and await self._catalog.has_drifted(month):
                raise Mismatch("the tables are not what was proven any more")
            await self._catalog.part_with(month, fence, grace)
        return ""

    async def drop(self, month: Month, fence: int) -> tuple[str, ...]:
        """See every segment in S3, then give the tables up behind the database's guard; why not, or nothing.

        Raises: SegmentDamaged; LeaseLost; S3Error; what chassis.pg raises.
        """
        for segment in await self._catalog.segments(month.archive_id):
            await self._verifier.look(segment)
            await self._catalog.note_seen(fence, month.archive_id, segment)
        await faults.point(points.BEFORE_DROP)
        return await self._catalog.drop(month, fence)

    async def _lock(self, session: Session, month: Month, fence: int) -> None:
        if not await session.fetchval(QUERIES.lock_tables):
            # The fence is ours, so whoever has the lock is frozen or does not know yet that he lost it.
            await session.fetchval(QUERIES.end_lock_holder)
            if not await session.fetchval(QUERIES.lock_tables):
                raise Contended(shard=self._catalog.shard)
        await self._must_be_allowed(session, month, fence)

    async def _must_be_allowed(self, session: Session, month: Month, fence: int) -> None:
        """Raises: LeaseLost, also when the shard is halted."""
        if not await session.fetchval(QUERIES.may_detach, month.month, fence):
            raise LeaseLost(shard=self._catalog.shard)

    async def _held(self, month: Month) -> str:
        """The legal hold that keeps a month's tables where they are; empty when none does."""
        return "" if month.reach is State.RESTORED else await self._catalog.legal_hold(month.month)


async def _take_off(session: Session, hanging: Hanging) -> None:
    """Detach one table, or end the detach of it that was cut off."""
    how, patience_s = ("FINALIZE", FINALIZE_S_MAX) if hanging.is_pending else ("CONCURRENTLY", DETACH_S_MAX)
    await session.execute(
        f"ALTER TABLE {hanging.parent} DETACH PARTITION {hanging.table} {how}", timeout_s=patience_s
    )
