"""Where the statements and the mails of a shard stand, as gauges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archive_svc.statement import metrics
from archive_svc.statement.store import RUNNING
from chassis import meters

if TYPE_CHECKING:
    from archive_svc.statement import outbox
    from archive_svc.statement.outbox import MailOutbox
    from archive_svc.statement.store import StatementStore

COUNTS = (metrics.WAITING, metrics.MAILS_WAITING, metrics.MAILS_DEAD, metrics.MAILS_OLDEST)


class Standing:
    """Tells how the statements of one shard stand, and their mails.

    outbox: the mails of the same shard; they wait, and somebody is to see it, also where nobody sends any.
    """

    def __init__(self, store: StatementStore, outbox: MailOutbox) -> None:
        self.name = f"statements.{store.shard}.standing"
        self.shard = store.shard
        self._store = store
        self._outbox = outbox

    def begin(self) -> None:
        """Let the time be there, as 0."""
        metrics.MADE_UNTIL.labels(self.shard)

    async def tell(self) -> None:
        """Look once and set the gauges. Raises: what chassis.pg raises."""
        counts = await self._store.counts()
        made_until = await self._store.made_until()
        tell_mails(self.shard, await self._outbox.standing())
        for state in RUNNING:
            metrics.WAITING.labels(self.shard, state).set(counts.get(state, 0))
        metrics.MADE_UNTIL.labels(self.shard).set(made_until.timestamp())

    def forget(self) -> None:
        """Take away the gauges that are no times."""
        meters.forget(*COUNTS, shard=self.shard)


def tell_mails(shard: str, standing: outbox.Standing) -> None:
    """Show how the mails of a shard stand."""
    metrics.MAILS_WAITING.labels(shard).set(standing.waiting)
    metrics.MAILS_DEAD.labels(shard).set(standing.dead)
    metrics.MAILS_OLDEST.labels(shard).set(standing.oldest_s)
