"""What order_svc counts. The calls it serves are counted by the chassis as `grpc_server_*`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from order_svc.order import Change, Order

CHANGES = Counter("ordermesh_order_changes_total", "Changes of orders, by journal entry.", ["kind"])
SETTLED = Counter(
    "ordermesh_orders_settled_total", "Orders that reached an end, by which and why.", ["status", "basis"]
)
SETTLE_SECONDS = Histogram(
    "ordermesh_order_settle_seconds",
    "Time from the creation of an order to its end.",
    ["kind"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86_400),
)
CASES_OPENED = Counter("ordermesh_dead_letters_opened_total", "Cases opened.", ["reason", "severity"])
CASES_CLOSED = Counter("ordermesh_dead_letters_closed_total", "Cases closed.", ["outcome"])
SUBMITS = Counter(
    "ordermesh_order_submits_total",
    "Submissions, by the upstream's word or why there was none.",
    ["upstream", "said"],
)
SUBMIT_SECONDS = Histogram(
    "ordermesh_order_submit_seconds",
    "Time a call to an upstream took.",
    ["upstream"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
IN_FLIGHT = Gauge("ordermesh_order_submits_in_flight", "Submissions that run now.", ["upstream"])
VERDICTS_LOST = Counter(
    "ordermesh_order_verdicts_lost_total",
    "Verdicts that could not be written; recovery finds them again.",
    ["reason"],
)
CLAIMED = Counter("ordermesh_order_claims_total", "Timers leased.", ["timer_class"])
WATCHING = Gauge("ordermesh_order_watchers", "Calls that wait for a change of an order.")
CLOCK_SKEW = Gauge("ordermesh_clock_skew_seconds", "The database's clock minus ours.")
KEYS_REAPED = Counter("ordermesh_idempotency_keys_reaped_total", "Expired request keys that were deleted.")


def record(change: Change, after: Order) -> None:
    """Count one change that was written."""
    CHANGES.labels(change.entry.kind).inc()
    if change.opens is not None:
        CASES_OPENED.labels(change.opens.reason, change.opens.severity).inc()
    if change.closes is not None:
        CASES_CLOSED.labels(change.closes.outcome).inc()
    before = change.before
    if after.settled_at is not None and (before is None or before.status is not after.status):
        SETTLED.labels(after.status, after.basis or "").inc()
        SETTLE_SECONDS.labels(after.kind).observe((after.settled_at - after.created_at).total_seconds())
