"""Where the statements and the mails of a shard stand, as gauges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archive_svc.statement import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from archive_svc.statement.outbox import Standing


def tell(shard: str, counts: Mapping[str, int], states: Iterable[str]) -> None:
    """Show where the statements of a shard stand."""
    for state in states:
        metrics.WAITING.labels(shard, state).set(counts.get(state, 0))


def tell_mails(shard: str, standing: Standing) -> None:
    """Show how the mails of a shard stand."""
    metrics.MAILS_WAITING.labels(shard).set(standing.waiting)
    metrics.MAILS_DEAD.labels(shard).set(standing.dead)
    metrics.MAILS_OLDEST.labels(shard).set(standing.oldest_s)
