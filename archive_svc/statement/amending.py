"""Notes what was found out about an order after it was archived, when the archive has the order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archive_svc.errors import ArchivedOrderNotFound
from archive_svc.statement.amendments import Amended
from archive_svc.statement.legs import QUERIES, ShardReader
from chassis.errors import InvalidField
from chassis.ids import id_time

if TYPE_CHECKING:
    from uuid import UUID

    from archive_svc.statement.amendments import Amend
    from archive_svc.statement.fetching import Fetcher
    from archive_svc.statement.legs import Sessions


class Amender:
    """Amends the archived orders of one shard. sessions: at its primary."""

    def __init__(self, shard: str, sessions: Sessions, fetcher: Fetcher) -> None:
        self._sessions = sessions
        self._reader = ShardReader(shard, sessions, fetcher)

    async def amend(self, wish: Amend, amendment_id: UUID, actor: str) -> Amended | None:
        """Note it; None when no segment of this shard has the order. Idempotent by `amendment_id`.

        Raises: InvalidField when the id was used for another order, or nothing would change that should;
        ArchivedOrderNotFound when the month came back meanwhile; as `ShardReader.rows`.
        """
        there = await self._reader.archived_order(wish.user_id, wish.order_id)
        if there is None:
            return None
        row, _ = there
        async with self._sessions() as session:
            known = await session.fetchval(QUERIES.amended, amendment_id)
            if known is None:
                if "status" in wish.changes and row.status == "SUCCESS":
                    raise InvalidField.of("succeeded", "is so already")
                if row.status == "SUCCESS" and wish.changes.get("upstream_ref") == "":
                    raise InvalidField.of("upstream_ref", "must stay, as the order succeeded")
                await session.execute(
                    QUERIES.amend,
                    *(amendment_id, wish.order_id, wish.user_id, id_time(wish.order_id)),
                    *(wish.note, dict(wish.changes), actor, wish.reason),
                )
                known = await session.fetchval(QUERIES.amended, amendment_id)
        if known is None:
            raise ArchivedOrderNotFound(order_id=str(wish.order_id))
        if known != wish.order_id:
            raise InvalidField.of("request_id", "was used for another order")
        after = await self._reader.archived_order(wish.user_id, wish.order_id)
        if after is None:
            raise ArchivedOrderNotFound(order_id=str(wish.order_id))
        return Amended(self._reader.shard, after[0].status, after[1])
