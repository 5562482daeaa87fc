"""Notes what was found out about an order after it was archived, when the archive has the order.

First in S3, then in the shard: what a caller was told is noted is in both. When the process dies between the
two, nobody was told; the same request, or a rebuilt catalog, goes on with the object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from archive_svc import amendment, points
from archive_svc.amendment import AMENDMENT_TYPE, AmendmentUnreadable, Noted
from archive_svc.errors import ArchivedOrderNotFound, StorageUnavailable
from archive_svc.statement.amendments import Amended
from archive_svc.statement.legs import QUERIES, ShardReader
from chassis import faults
from chassis.errors import InvalidField
from chassis.ids import id_time
from chassis.s3 import ObjectExists, S3Error

if TYPE_CHECKING:
    from uuid import UUID

    from archive_svc.statement.amendments import Amend
    from archive_svc.statement.fetching import Fetcher
    from archive_svc.statement.legs import Sessions
    from archive_svc.statement.rows import Row
    from chassis.pg import Session
    from chassis.s3 import ObjectStore, Stored


class Amender:
    """Amends the archived orders of one shard. sessions: at its primary. reader: reads its segments."""

    def __init__(self, shard: str, sessions: Sessions, fetcher: Fetcher, objects: ObjectStore) -> None:
        self._sessions = sessions
        self.reader = ShardReader(shard, sessions, fetcher)
        self._objects = objects

    async def amend(self, wish: Amend, amendment_id: UUID, actor: str) -> Amended | None:
        """Note it; None when no segment of this shard has the order. Idempotent by `amendment_id`.

        If cancelled here: it may be noted.
        Raises: InvalidField when the id was used for another order, or nothing would change that should;
        ArchivedOrderNotFound when the month came back meanwhile, or the user was erased; StorageUnavailable;
        as `ShardReader.rows`.
        """
        there = await self.reader.archived_order(wish.user_id, wish.order_id)
        if there is None:
            return None
        async with self._sessions() as session:
            known = await session.fetchval(QUERIES.amended, amendment_id)
            if known is None:
                _check(wish, there[0])
                known = await self._note(session, wish, amendment_id, actor)
        if known is None:
            raise ArchivedOrderNotFound(order_id=str(wish.order_id))
        if known != wish.order_id:
            raise InvalidField.of("request_id", "was used for another order")
        after = await self.reader.archived_order(wish.user_id, wish.order_id)
        if after is None:
            raise ArchivedOrderNotFound(order_id=str(wish.order_id))
        return Amended(self.reader.shard, after[0].status, after[1])

    async def _note(self, session: Session, wish: Amend, amendment_id: UUID, actor: str) -> UUID | None:
        """The order that the amendment is of by now; None when the shard does not take it any more."""
        noted = Noted(
            amendment_id,
            wish.order_id,
            wish.user_id,
            wish.note,
            dict(wish.changes),
            actor,
            wish.reason,
            await session.fetchval(QUERIES.amended_now),
        )
        try:
            stored, noted = await self._stored(noted)
            if noted.order_id != wish.order_id:
                return noted.order_id
            await faults.point(points.AFTER_AMENDMENT)
            await session.execute(
                QUERIES.amend,
                *(noted.amendment_id, noted.order_id, noted.user_id, id_time(noted.order_id), noted.note),
                *(dict(noted.changes), noted.actor, noted.reason, noted.amended_at),
            )
            known: UUID | None = await session.fetchval(QUERIES.amended, amendment_id)
            if known is None:
                await self._objects.delete(stored)
        except S3Error as failed:
            raise StorageUnavailable from failed
        return known

    async def _stored(self, noted: Noted) -> tuple[Stored, Noted]:
        """The amendment's object, and what it says: an earlier try's, when that came as far."""
        key = amendment.key_of(self.reader.shard, noted)
        try:
            made = await self._objects.create(key, noted.body(), content_type=AMENDMENT_TYPE)
        except ObjectExists:
            there = await self._objects.head(key)
            try:
                return there, amendment.parsed(await self._objects.read(there))
            except AmendmentUnreadable as wrong:
                raise StorageUnavailable(key=key) from wrong
        return made, noted


def _check(wish: Amend, row: Row) -> None:
    """See that an amendment says what may be said of the order. Raises: InvalidField."""
    if "status" in wish.changes and row.status == "SUCCESS":
        raise InvalidField.of("succeeded", "is so already")
    if row.status == "SUCCESS" and wish.changes.get("upstream_ref") == "":
        raise InvalidField.of("upstream_ref", "must stay, as the order succeeded")
