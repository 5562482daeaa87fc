"""One reader of each shard's log: a session advisory lock on a direct connection, and a term taken with it.

The lock saves double work; the term keeps a reader that lost it without knowing from writing. A process that
dies loses its connection and so the lock; one that is frozen loses it when the server has heard nothing for
`SILENCE_S`.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from chassis import faults, meters, pg
from chassis.errors import OrdermeshError
from history_svc import metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from chassis.clock import Clock
    from history_svc.channel.log import ShardLog

log = structlog.get_logger("leadership")
ASK_S = 1.0
"""How often somebody who does not lead tries to."""
PING_S = 2.0
PING_TIMEOUT_S = 2.0
SILENCE_S = 15
AGAIN_S_MAX = 5.0
AFTER_TERM = faults.declare(
    "lead.after_term", "a new term is written; whoever led before writes no cursor any more"
)


class Leadership:
    """Whether this process reads a shard's log; a loop that holds on to it."""

    def __init__(
        self,
        shard_log: ShardLog,
        database: pg.PgSettings,
        *,
        holder: str,
        clock: Clock,
        jitter: Callable[[], float],
    ) -> None:
        self.name = f"leadership.{shard_log.shard}"
        self.term: int | None = None
        """The term we lead in; None when we do not."""
        self._log = shard_log
        self._database = database.model_copy(
            update={"session": {**database.session, "idle_session_timeout": f"{SILENCE_S}s"}}
        )
        self._holder = holder
        self._clock = clock
        self._jitter = jitter
        self._leads = asyncio.Event()
        self._lost = asyncio.Event()
        self._lost.set()

    async def run(self) -> None:
        """Lead whenever nobody else does, until cancelled; a shard that is down is asked again and again."""
        failures = 0
        # There from now on: a shard that somebody serves and nobody leads is not one that nobody serves.
        metrics.LEADS.labels(self._log.shard)
        while True:
            try:
                async with pg.open_session(self._database, name=self.name) as session:
                    failures = 0
                    await self._hold(session)
            except OrdermeshError as failed:
                failures += 1
                log.warning("leadership_failed", shard=self._log.shard, reason=failed.reason)
            await self._clock.sleep(min(AGAIN_S_MAX, 0.25 * 2 ** min(failures, 8)) * (0.5 + self._jitter()))

    async def until_leading(self) -> int:
        """Wait until this process leads; the term."""
        while self.term is None:
            await self._leads.wait()
        return self.term

    async def while_leading(
        self, work: Callable[[int], Awaitable[None]], *, shows: Sequence[meters.Shown] = ()
    ) -> None:
        """Wait until this process leads, then do a term's work until it ends or the term does.

        shows: gauges that only the work knows; nothing is shown of the shard in them once the term is over.

        Raises: what the work raises.
        If cancelled here: the work is cancelled, and has ended when this returns.
        """
        if self.term is None:
            # The term may have ended after the work failed.
            meters.forget(*shows, shard=self._log.shard)
        term = await self.until_leading()
        working = asyncio.ensure_future(work(term))
        lost = asyncio.create_task(self._lost.wait(), name=f"{self.name}.lost")
        try:
            await asyncio.wait((working, lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            lost.cancel()
            await asyncio.wait((working, lost))
            if self.term != term:
                meters.forget(*shows, shard=self._log.shard)
        if not working.cancelled():
            working.result()

    async def _hold(self, session: pg.Session) -> None:
        while (term := await self._log.take_lease(session, self._holder)) is None:
            await self._clock.sleep(ASK_S * (0.75 + 0.5 * self._jitter()))
        await faults.point(AFTER_TERM)
        with self._leading(term):
            while True:
                await self._clock.sleep(PING_S)
                await session.ping(PING_TIMEOUT_S)

    @contextmanager
    def _leading(self, term: int) -> Iterator[None]:
        shard = self._log.shard
        log.info("leads", shard=shard, term=term)
        metrics.LEADS.labels(shard).set(1)
        self.term = term
        self._lost.clear()
        self._leads.set()
        try:
            yield
        finally:
            metrics.LEADS.labels(shard).set(0)
            self.term = None
            self._leads.clear()
            self._lost.set()
            log.info("leads_no_more", shard=shard, term=term)
