"""Counts what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from order_svc import metrics

if TYPE_CHECKING:
    from order_svc.order import Change, Order


def count(change: Change, after: Order) -> None:
    """Count one change that was written."""
    metrics.CHANGES.labels(change.entry.kind).inc()
    if change.opens is not None:
        metrics.CASES_OPENED.labels(change.opens.reason, change.opens.severity).inc()
    if change.closes is not None:
        metrics.CASES_CLOSED.labels(change.closes.outcome).inc()
    before = change.before
    if after.settled_at is not None and (before is None or before.status is not after.status):
        metrics.SETTLED.labels(after.status, after.basis or "").inc()
        took = after.settled_at - after.created_at
        metrics.SETTLE_SECONDS.labels(after.kind).observe(took.total_seconds())
