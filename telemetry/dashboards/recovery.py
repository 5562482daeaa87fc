"""Is anything hanging, is somebody looking after it, and what waits for a person?"""

from __future__ import annotations

from telemetry.dashboards.board import SHARD, UPSTREAM, Board, Panel, Prom, Replicas, Row, Sql
from telemetry.dashboards.expressions import agreed, gauge, quantiles, rate
from telemetry.dashboards.watching import watch

_SHARD = 'shard=~"$shard"'
_NOTHING_TO_ASK = "no order needs to be asked about."
_UPSTREAM = 'upstream=~"$upstream"'

BOARD = Board(
    name="recovery",
    title="Recovery and dead letters",
    says="Orders that should have been looked at, who looks, what upstreams answer, and cases for a person.",
    variables=(SHARD, UPSTREAM, Replicas()),
    rows=(
        Row(
            "Does anything hang?",
            (
                watch(
                    "OrdersHang",
                    "Most overdue order",
                    "How long ago the most overdue order of each shard should have been looked at.",
                    unit="s",
                ),
                Panel(
                    "series",
                    "Orders that hang",
                    "Orders that are not done and past the time at which they should have been looked at.",
                    (agreed("ordermesh_orders_hanging", "shard", where=_SHARD),),
                ),
                watch(
                    "RecoveryStands",
                    "Time since a shard was last swept",
                    "Recovery asks every shard for overdue orders every few seconds; this is how long ago.",
                    unit="s",
                ),
                Panel(
                    "table",
                    "The most overdue orders",
                    "On the replica that is chosen above. An order id leads to the log lines of its trace.",
                    (Sql("hanging_orders", "orders are looked at in time."),),
                    wide=24,
                    traced=True,
                    alerts=("OrdersHang",),
                ),
            ),
        ),
        Row(
            "What recovery does",
            (
                Panel(
                    "series",
                    "Sweeps by how they ended",
                    "Recovery's questions for overdue orders, by the shard's answer; all but OK is a fault.",
                    (rate("ordermesh_recovery_sweeps_total", "shard", "code", where=_SHARD, seen=True),),
                    unit="ops",
                ),
                Panel(
                    "series",
                    "Orders claimed, and in work",
                    "How many overdue orders a second recovery takes up, and how many it works on now.",
                    (
                        rate("ordermesh_recovery_claims_total", where=_SHARD, legend="claimed a second"),
                        gauge("ordermesh_recovery_in_flight", where=_SHARD, legend="in work"),
                    ),
                ),
                Panel(
                    "series",
                    "Findings reported, by how that ended",
                    "What recovery told the shards, by their answer; ABORTED: somebody was first.",
                    (
                        rate("ordermesh_recovery_reports_total", "code", where=_SHARD),
                        rate("ordermesh_recovery_reports_given_up_total", where=_SHARD, legend="given up"),
                    ),
                    unit="ops",
                ),
                watch(
                    "ProbesFail",
                    "Probes without an answer",
                    "Questions to upstreams about orders that brought no answer, and half of all questions.",
                    unit="ops",
                ),
                Panel(
                    "series",
                    "What probes were worth",
                    "Questions to upstreams about orders, by what they brought.",
                    (
                        rate(
                            "ordermesh_recovery_probes_total",
                            *("upstream", "probe_class", "verdict"),
                            where=_UPSTREAM,
                            seen=True,
                            empty_when_healthy=_NOTHING_TO_ASK,
                        ),
                    ),
                    unit="ops",
                ),
                Panel(
                    "series",
                    "Time of a probe",
                    "How long upstreams take to answer: half of the probes, and 99 of 100, are faster.",
                    quantiles(
                        "ordermesh_recovery_probe_seconds",
                        "upstream",
                        where=_UPSTREAM,
                        empty_when_healthy=_NOTHING_TO_ASK,
                    ),
                    unit="s",
                ),
                Panel(
                    "table",
                    "Holds in force",
                    "What keeps recovery away from orders of the chosen shard, who said so and why.",
                    (Sql("holds_in_force", "nobody paused recovery."),),
                    wide=16,
                ),
                Panel(
                    "series",
                    "Holds",
                    "How many holds keep recovery away from orders.",
                    (gauge("ordermesh_holds", "shard", where=_SHARD, of="max"),),
                ),
            ),
        ),
        Row(
            "Cases for a person",
            (
                watch(
                    "CasesWait",
                    "Oldest open case",
                    "For how long the oldest case of each shard has waited for a person.",
                    unit="s",
                ),
                watch(
                    "CasesPileUp",
                    "Cases opened in a quarter of an hour",
                    "Orders that automation gave up lately. Many at once have one cause.",
                ),
                watch(
                    "MoneyMayBeWrong",
                    "Cases of severity 1",
                    "An upstream contradicts itself or us about something it executed.",
                ),
                watch(
                    "OrderExecutedTwice",
                    "Orders executed twice",
                    "Open cases in which an upstream names another execution than it did before.",
                ),
                Panel(
                    "series",
                    "Open cases by reason",
                    "Cases that wait for a person.",
                    (agreed("ordermesh_dead_letters_open", "reason", where=_SHARD),),
                    stacked=True,
                ),
                Panel(
                    "series",
                    "Cases closed, by outcome",
                    "What people decided: put back to automation, settled, or noted.",
                    (
                        Prom(
                            "sum by (outcome) (increase(ordermesh_dead_letters_closed_total"
                            "[$__rate_interval]))",
                            "{{outcome}}",
                        ),
                    ),
                ),
                Panel(
                    "table",
                    "The oldest open cases",
                    "On the replica that is chosen above. `ordermesh dlq show ORDER` has the evidence.",
                    (Sql("open_cases", "no order waits for a person."),),
                    alerts=("CasesWait",),
                    wide=24,
                    traced=True,
                ),
            ),
        ),
    ),
)
