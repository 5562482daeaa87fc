"""The mails of one shard that are to be sent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from archive_svc.statement.letter import News
from chassis import pg
from chassis.store_spans import traced

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

QUERIES = pg.queries("archive_svc.statement", "mails.sql")
TRIED_FOR = timedelta(hours=48)
"""How long a mail is tried, at first and when somebody has it sent again."""


@dataclass(frozen=True, slots=True)
class Due:
    """A mail for one try.

    is_last:   its time is over; when this try fails there is no other.
    is_of_use: its statement can still be downloaded.
    """

    news: News
    fence: int
    attempts: int
    is_last: bool
    is_of_use: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How the mails stand.

    dead:     of which the statement can still be downloaded: somebody may send them again.
    oldest_s: for how long the oldest one waits.
    """

    waiting: int
    dead: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Told:
    """A mail as operators see it.

    state:         WAITING, SENT or DEAD. attempts: in all.
    note:          what the mail server said last.
    ended_at:      when it was taken, or given up.
    kept_until:    of its statement; None when that is gone.
    retries:       how often somebody had it sent again; actor, reason: of the last time.
    """

    statement_id: UUID
    user_id: str
    state: str
    attempts: int
    note: str
    ready_at: datetime
    ended_at: datetime | None
    kept_until: datetime | None
    retries: int
    actor: str
    reason: str


@traced
class MailOutbox:
    """Written when statements become ready. Every method raises what chassis.pg raises.

    Changes under the fence of an older try change nothing.
    """

    def __init__(self, shard: str, database: pg.Database) -> None:
        self.shard = shard
        self._database = database

    def until(self, deadline: float) -> MailOutbox:
        """The same mails for one call: nothing is waited for after its deadline."""
        return MailOutbox(self.shard, self._database.until(deadline))

    async def claim(self, lease: timedelta) -> Due | None:
        """Take the next mail for one try, which nobody else makes within the lease."""
        row = await self._database.fetchrow(QUERIES.claim, lease)
        if row is None:
            return None
        fields = ("statement_id", "user_id", "locale", "first_day", "last_day", "ready_at", "kept_until")
        news = News(**{name: row[name] for name in fields})
        return Due(news, row["fence"], row["attempts"], row["is_last"], row["is_of_use"])

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

    async def dead_letters(self, after: tuple[datetime, UUID], limit: int) -> list[Told]:
        """A page of those that were given up, the youngest first."""
        return [Told(**row) for row in await self._database.fetch(QUERIES.dead_letters, *after, limit)]

    async def mail(self, statement_id: UUID) -> Told | None:
        """The mail of one statement."""
        row = await self._database.fetchrow(QUERIES.mail, statement_id)
        return None if row is None else Told(**row)

    async def retry(
        self, retry_id: UUID, statement_id: UUID, actor: str, reason: str, tried: timedelta
    ) -> str:
        """Let one that was given up be sent again, for so long; the verdict of `retry_statement_mail`.

        Idempotent by the retry's id. If cancelled here: it may be sent again.
        """
        verdict: str = await self._database.fetchval(
            QUERIES.retry, retry_id, statement_id, actor, reason, tried
        )
        return verdict
