"""Where the months of a shard stand, as gauges."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from archive_svc import metrics
from archive_svc.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from archive_svc.catalog import Control
    from archive_svc.lifecycle import Month

FAILURES_MIN = 3
"""So many in a row are no longer an accident."""


def tell(shard: str, months: Sequence[Month], control: Control) -> None:
    """Show where the months of a shard stand."""
    counts = Counter(month.state for month in months)
    for state in State:
        metrics.MONTHS.labels(shard, state.value).set(counts[state])
    metrics.QUARANTINED.labels(shard).set(sum(bool(month.quarantined) for month in months))
    failing = [month for month in months if month.failures >= FAILURES_MIN and not month.quarantined]
    metrics.FAILING.labels(shard).set(len(failing))
    metrics.HALTED.labels(shard).set(control.is_halted)
