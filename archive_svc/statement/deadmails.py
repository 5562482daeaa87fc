"""Mails that were given up, of all shards: shown to operators, and sent again because one of them says so."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from archive_svc.errors import MailNotDead, MailNotFound, RequestIdReused, StatementNotReady, UnknownShard
from archive_svc.statement.outbox import TRIED_FOR
from chassis.errors import DeadlineExceeded, Overloaded, ShardUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from archive_svc.statement.outbox import MailOutbox, Told
    from archive_svc.statement.wakes import Wakes

log = structlog.get_logger("mails")


@dataclass(frozen=True, slots=True)
class Retry:
    """A checked wish to have a mail sent again. retry_id: the same one again changes nothing."""

    retry_id: UUID
    statement_id: UUID
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Seen:
    """Mails with their shards, the youngest first, and shards that gave no answer."""

    mails: list[tuple[str, Told]]
    unreachable: list[str]


class DeadMails:
    """The mails of several shards that were given up. outboxes: by shard."""

    def __init__(self, outboxes: Mapping[str, MailOutbox], wakes: Wakes) -> None:
        self._outboxes = outboxes
        self._wakes = wakes

    async def page(self, shard: str, after: tuple[datetime, UUID], limit: int, deadline: float) -> Seen:
        """The next so many, of one shard or, without a name, of all.

        Raises: UnknownShard. A shard that gives no answer is told, and its mails are missing.
        """
        if shard and shard not in self._outboxes:
            raise UnknownShard(shard=shard)
        names = [shard] if shard else sorted(self._outboxes)
        said = await asyncio.gather(*(self._of(name, after, limit, deadline) for name in names))
        mails = [
            (name, mail)
            for name, found in zip(names, said, strict=True)
            if found is not None
            for mail in found
        ]
        mails.sort(key=lambda pair: (pair[1].ended_at, pair[1].statement_id), reverse=True)
        silent = [name for name, found in zip(names, said, strict=True) if found is None]
        return Seen(mails[:limit], silent)

    async def retry(self, wish: Retry, deadline: float) -> tuple[str, Told]:
        """Have one sent again, in whichever shard it is; the mail as it is then.

        Raises: MailNotFound, MailNotDead, StatementNotReady, RequestIdReused; ShardUnavailable when it may be
        in a shard that gives no answer.
        """
        silent = ""
        for shard, outbox in self._outboxes.items():
            try:
                told = await self._retried(outbox.until(deadline), wish)
            except ShardUnavailable:
                silent = shard
                continue
            if told is not None:
                self._wakes.wake(f"mails.{shard}")
                log.info("mail_retried", shard=shard, statement_id=str(wish.statement_id), actor=wish.actor)
                return shard, told
        if silent:
            raise ShardUnavailable(shard=silent)
        raise MailNotFound

    async def _retried(self, outbox: MailOutbox, wish: Retry) -> Told | None:
        """The mail, when this shard has it."""
        verdict = await outbox.retry(wish.retry_id, wish.statement_id, wish.actor, wish.reason, TRIED_FOR)
        if verdict == "NOT_FOUND":
            return None
        if verdict == "REUSED":
            raise RequestIdReused
        if verdict == "NOT_DEAD":
            raise MailNotDead
        if verdict == "GONE":
            raise StatementNotReady("EXPIRED")
        return await outbox.mail(wish.statement_id)

    async def _of(
        self, shard: str, after: tuple[datetime, UUID], limit: int, deadline: float
    ) -> list[Told] | None:
        try:
            return await self._outboxes[shard].until(deadline).dead_letters(after, limit)
        except (DeadlineExceeded, Overloaded, ShardUnavailable):
            return None
