"""Sends the mails of one shard, one after the other, until each is taken or is a dead letter.

A mail whose sender died between handing it over and saying so is sent once more, with the same Message-ID.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from archive_svc.statement import letter, metrics, points
from chassis import faults
from chassis.errors import OrdermeshError
from chassis.mail import NotSent

if TYPE_CHECKING:
    from collections.abc import Callable

    from archive_svc.statement.letter import Stationery
    from archive_svc.statement.outbox import Due, MailOutbox
    from archive_svc.statement.wakes import Wakes
    from chassis.clock import Clock
    from chassis.mail import Transport

log = structlog.get_logger("mails")

ADDRESS = "(the address)"


@dataclass(frozen=True, slots=True)
class Rounds:
    """How mails are tried.

    lease:   longer than a try may take, so that nobody else makes one meanwhile.
    pause_s: after the first try that failed; each next twice it, up to pause_s_max.
    look_s:  how often mails are looked for.
    """

    lease: timedelta = timedelta(seconds=120)
    pause_s: float = 60.0
    pause_s_max: float = 43_200.0
    look_s: float = 5.0


class Postman:
    """A loop that sends the mails of one shard. jitter: gives 0 to 1."""

    def __init__(
        self,
        outbox: MailOutbox,
        transport: Transport,
        paper: Stationery,
        rounds: Rounds,
        wakes: Wakes,
        clock: Clock,
        jitter: Callable[[], float],
    ) -> None:
        self.name = f"mails.{outbox.shard}"
        self._outbox = outbox
        self._transport = transport
        self._paper = paper
        self._rounds = rounds
        self._wakes = wakes
        self._clock = clock
        self._jitter = jitter

    async def run(self) -> None:
        """Send until cancelled; a shard that does not answer is asked again."""
        while True:
            try:
                found_one = await self.once()
            except OrdermeshError as failed:
                log.warning("mails_not_seen", shard=self._outbox.shard, reason=failed.reason)
                found_one = False
            if not found_one:
                await self._wakes.sleep(self.name, self._rounds.look_s * (0.5 + 0.5 * self._jitter()))

    async def once(self) -> bool:
        """Try one mail; whether there was one. Raises: what chassis.pg raises; then it is tried again."""
        due = await self._outbox.claim(self._rounds.lease)
        if due is None:
            return False
        outcome = await self._try(due)
        metrics.MAILS.labels(self._outbox.shard, outcome).inc()
        log.info(
            "mail_tried",
            shard=self._outbox.shard,
            statement_id=str(due.news.statement_id),
            attempt=due.attempts,
            outcome=outcome,
        )
        return True

    async def _try(self, due: Due) -> str:
        """Send it; what came of it."""
        if not due.is_of_use:
            await self._outbox.dead(due, "its statement is gone")
            return "dead"
        try:
            written = letter.write(due.news, self._paper)
        except letter.LetterUnsafe as unsafe:
            await self._outbox.dead(due, str(unsafe))
            return "dead"
        try:
            await self._transport.send(written)
        except NotSent as failed:
            # Servers repeat the address that they refuse; whoever reads the note needs it not.
            note = failed.note.replace(written.to, ADDRESS)
            if due.is_last or not failed.may_pass:
                await self._outbox.dead(due, note)
                return "dead"
            longest_s = min(self._rounds.pause_s_max, self._rounds.pause_s * 2.0 ** min(due.attempts - 1, 30))
            pause = timedelta(seconds=longest_s * (0.5 + 0.5 * self._jitter()))
            await self._outbox.put_off(due, pause, note)
            return "put_off"
        await faults.point(points.AFTER_SEND)
        await self._outbox.sent(due)
        await faults.point(points.AFTER_SENT)
        return "sent"
