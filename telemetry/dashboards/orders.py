"""How orders fare: made, settled, how fast, what they wait for, and why some fail."""

from __future__ import annotations

from telemetry.dashboards.board import SHARD, UPSTREAM, Board, Panel, Replicas, Row, Sql
from telemetry.dashboards.expressions import agreed, gauge, quantiles, rate, spread
from telemetry.dashboards.watching import watch

_CHANGES = "ordermesh_order_changes_total"
_SETTLED = "ordermesh_orders_settled_total"
_SETTLE = "ordermesh_order_settle_seconds"
_SHARD = 'shard=~"$shard"'
_UPSTREAM = 'upstream=~"$upstream"'

BOARD = Board(
    name="orders",
    title="Orders",
    says="Orders made against orders settled, how long that takes, and what the others wait for.",
    variables=(SHARD, UPSTREAM, Replicas()),
    rows=(
        Row(
            "Made and settled",
            (
                Panel(
                    "series",
                    "Orders made and settled",
                    "When more are made than settled for long, something is stuck.",
                    (rate(_CHANGES, where='kind="OPENED"', legend="made"), rate(_SETTLED, "status")),
                    unit="ops",
                ),
                Panel(
                    "series",
                    "Time to settle",
                    "From the creation of an order to its end: half, and 99 of 100, are faster.",
                    quantiles(_SETTLE, "kind"),
                    unit="s",
                ),
                Panel(
                    "heatmap",
                    "Spread of the time to settle",
                    "How many orders took how long. A second band is orders that recovery had to settle.",
                    (spread(_SETTLE),),
                    unit="s",
                ),
                Panel(
                    "series",
                    "Why orders ended",
                    "On whose word: the upstream's, its lasting ignorance of the order, or a person's.",
                    (rate(_SETTLED, "status", "basis", seen=True),),
                    unit="ops",
                    stacked=True,
                ),
                Panel(
                    "series",
                    "Transitions",
                    "What happened to orders, by journal entry.",
                    (rate(_CHANGES, "kind", seen=True),),
                    unit="ops",
                    stacked=True,
                ),
                Panel(
                    "table",
                    "Newest orders",
                    "Of the last hour, on the chosen replica. An order id leads to its log lines.",
                    (Sql("newest_orders"),),
                    traced=True,
                ),
            ),
        ),
        Row(
            "Not done",
            (
                Panel(
                    "series",
                    "Orders that are not done, by age",
                    "Old ones should be few; see the dashboard of recovery when they grow.",
                    (agreed("ordermesh_orders_pending", "age", where=_SHARD),),
                    stacked=True,
                ),
                Panel(
                    "series",
                    "Oldest order that is not done",
                    "How long ago it was created.",
                    (gauge("ordermesh_orders_pending_oldest_seconds", "shard", where=_SHARD, of="max"),),
                    unit="s",
                ),
                Panel(
                    "table",
                    "What they wait for",
                    "The oldest ten thousand orders that are not done, by the upstream whose turn it is.",
                    (Sql("waiting_orders", "orders are done within a moment."),),
                ),
                Panel(
                    "table",
                    "Orders that hang",
                    "Past the time at which they should have been looked at, the most overdue first.",
                    (Sql("hanging_orders", "orders are looked at in time."),),
                    wide=24,
                    traced=True,
                ),
                Panel(
                    "table",
                    "Why orders failed",
                    "Of the newest five thousand orders of the last six hours, by reason and upstream.",
                    (Sql("newest_failures", "few orders fail."),),
                    wide=24,
                    traced=True,
                ),
            ),
        ),
        Row(
            "Upstreams",
            (
                watch(
                    "UpstreamFails",
                    "Submissions without an answer",
                    "Orders sent to an upstream that got no answer of use, and half of all that were sent.",
                    unit="ops",
                ),
                watch(
                    "VerdictsAreLost",
                    "Answers that could not be written",
                    "The upstream answered, the shard did not take it; recovery asks again.",
                ),
                Panel(
                    "series",
                    "Submissions by answer",
                    "Orders sent to upstreams, by their word or why there was none.",
                    (rate("ordermesh_order_submits_total", "upstream", "said", where=_UPSTREAM, seen=True),),
                    unit="ops",
                ),
                Panel(
                    "series",
                    "Time of a submission",
                    "How long an upstream takes: half, and 99 of 100, are faster.",
                    quantiles("ordermesh_order_submit_seconds", "upstream", where=_UPSTREAM),
                    unit="s",
                ),
                Panel(
                    "series",
                    "Submissions under way",
                    "Calls to upstreams that have not ended, and calls of ours that wait for a change.",
                    (
                        gauge("ordermesh_order_submits_in_flight", "upstream", where=_UPSTREAM),
                        gauge("ordermesh_order_watchers", legend="waiting for a change"),
                    ),
                ),
                Panel(
                    "series",
                    "Timers leased, by class",
                    "Orders that order_svc submits, and that recovery probes.",
                    (
                        rate("ordermesh_order_claims_total", "timer_class"),
                        rate("ordermesh_idempotency_keys_reaped_total", legend="request keys deleted"),
                    ),
                    unit="ops",
                ),
            ),
        ),
    ),
)
