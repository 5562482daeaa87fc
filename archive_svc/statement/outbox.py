"""The mails of one shard that are to be sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from archive_svc.statement.letter import News
from chassis import pg

if TYPE_CHECKING:
    from datetime import timedelta

QUERIES = pg.queries("archive_svc.statement", "mails.sql")


@dataclass(frozen=True, slots=True)
class Due:
    """A mail for one try. is_last: its time is over; when this try fails there is no other."""

    news: News
    fence: int
    attempts: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How the mails stand. oldest_s: for how long the oldest one waits."""

    waiting: int
    dead: int
    oldest_s: float


class MailOutbox:
    """Written when statements become ready. Every method raises what chassis.pg raises.

    Changes under the fence of an older try change nothing.
    """

    def __init__(self, shard: str, database: pg.Database) -> None:
        self.shard = shard
        self._database = database

    async def claim(self, lease: timedelta) -> Due | None:
        """Take the next mail for one try, which nobody else makes within the lease."""
        row = await self._database.fetchrow(QUERIES.claim, lease)
        if row is None:
            return None
        fields = ("statement_id", "user_id", "locale", "first_day", "last_day", "ready_at", "kept_until")
        news = News(**{name: row[name] for name in fields})
        return Due(news, row["fence"], row["attempts"], row["is_last"])

    async def sent(self, due: Due) -> None:
        """Note that a server took it."""
        await self._database.fetchval(QUERIES.sent, due.news.statement_id, due.fence)

    async def dead(self, due: Due, why: str) -> None:
        """Note that it will not be sent."""
        await self._database.fetchval(QUERIES.dead, due.news.statement_id, due.fence, why)

    async def put_off(self, due: Due, pause: timedelta, why: str) -> None:
        """Let it be tried again later."""
        await self._database.fetchval(QUERIES.put_off, due.news.statement_id, due.fence, pause, why)

    async def standing(self) -> Standing:
        """How many wait, and how many are dead."""
        row = await self._database.fetchrow(QUERIES.standing)
        assert row is not None, "an aggregate has a row"
        return Standing(**row)
