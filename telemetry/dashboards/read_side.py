"""The way of a change to the lists that people read: outbox, relay, watermark, search, page."""

from __future__ import annotations

from telemetry.dashboards.board import SHARD, Board, Panel, Prom, Row
from telemetry.dashboards.expressions import gauge, quantiles, rate, spread
from telemetry.dashboards.watching import watch

_SHARD = 'shard=~"$shard"'

BOARD = Board(
    name="read-side",
    title="Read side",
    says="From the outbox to the read model to the page: where a change waits, and who serves lists.",
    variables=(SHARD,),
    rows=(
        Row(
            "From the outbox to the stream",
            (
                watch(
                    "ChangesWait",
                    "Oldest change that is not published",
                    "Since when changes may wait that nobody has published.",
                    unit="s",
                ),
                Panel(
                    "series",
                    "Changes handed over",
                    "By the relay: published, too large, or failed and read again.",
                    (rate("ordermesh_relay_events_total", "shard", "result", where=_SHARD, seen=True),),
                    unit="ops",
                ),
                Panel(
                    "series",
                    "Time of a batch",
                    "From reading changes to their acknowledgement: half, and 99 of 100, are faster.",
                    quantiles("ordermesh_relay_batch_seconds", "shard", where=_SHARD),
                    unit="s",
                ),
                Panel(
                    "series",
                    "Oldest transaction that still writes",
                    "Keeps later changes back until it ends.",
                    (gauge("ordermesh_outbox_fence_age_seconds", "shard", where=_SHARD, of="max"),),
                    unit="s",
                ),
                Panel(
                    "series",
                    "Size of the outbox",
                    "On the shard's disk. Days are dropped when everybody has read them.",
                    (gauge("ordermesh_outbox_bytes", "shard", where=_SHARD, of="max"),),
                    unit="bytes",
                ),
                Panel(
                    "series",
                    "Who reads the outbox",
                    "1 for the process that leads a shard. It should be one for each.",
                    (gauge("ordermesh_projector_leads", "shard", where=_SHARD),),
                ),
            ),
        ),
        Row(
            "From the stream to the read model",
            (
                watch(
                    "ReadModelBehind",
                    "How far the read model is behind",
                    "Every change that is older than this can be found.",
                    unit="s",
                ),
                Panel(
                    "series",
                    "Messages that wait",
                    "In the stream, not yet taken.",
                    (gauge("ordermesh_kafka_lag_records", "instance"),),
                ),
                Panel(
                    "series",
                    "Documents written",
                    "By what became of them; `stale` is a repeat and harmless.",
                    (rate("ordermesh_index_items_total", "verdict"),),
                    unit="ops",
                ),
                Panel(
                    "series",
                    "Time of a bulk",
                    "One request that writes documents: half, and 99 of 100, are faster.",
                    quantiles("ordermesh_index_bulk_seconds"),
                    unit="s",
                ),
                watch(
                    "OrdersRefusedByReadModel",
                    "Orders that the read model refuses",
                    "The shard shows them instead.",
                ),
                Panel(
                    "series",
                    "Gaps, rewinds and odd messages",
                    "Nothing is lost by them: a watermark waits, or is read again.",
                    (
                        gauge(
                            "ordermesh_index_held", "shard", where=_SHARD, legend="{{shard}} waits", of="max"
                        ),
                        rate("ordermesh_index_holes_total", "shard", where=_SHARD, legend="{{shard}} gaps"),
                        rate("ordermesh_rewinds_total", "by", where=_SHARD, legend="rewound by {{by}}"),
                        rate("ordermesh_index_undecodable_total", legend="not understood"),
                        rate("ordermesh_dead_events_total", "channel", legend="set aside, {{channel}}"),
                        rate("ordermesh_kafka_foreign_messages_total", legend="foreign"),
                        rate("ordermesh_kafka_consumers_replaced_total", "error"),
                    ),
                ),
            ),
        ),
        Row(
            "Pages",
            (
                Panel(
                    "series",
                    "Pages by who served them",
                    "SQL_FALLBACK: the read model was away, and the shards served what it would have.",
                    (rate("ordermesh_history_pages_total", "served_by"),),
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "heatmap",
                    "Orders laid over a page",
                    "Orders that changed after the watermark. Many mean that the read model is behind.",
                    (spread("ordermesh_history_overlay_rows"),),
                ),
                Panel(
                    "series",
                    "Time of a search, and of a shard's part",
                    "Half, and 99 of 100, are faster.",
                    (
                        *quantiles(
                            "ordermesh_history_search_seconds",
                            empty_when_healthy="pages of the last two days need no search.",
                        ),
                        *quantiles("ordermesh_history_shard_read_seconds", "shard", where=_SHARD),
                    ),
                    unit="s",
                ),
                watch(
                    "ReadModelAway",
                    "Searches that fail",
                    "Against all searches. Lists come from the shards meanwhile; words are not found.",
                    unit="reqps",
                    legend="failed",
                ),
                Panel(
                    "series",
                    "Pages that ended early or were refused",
                    "Short pages go on with the next one; stale routes are asked again.",
                    (
                        rate("ordermesh_history_short_pages_total", legend="short"),
                        rate("ordermesh_history_stale_routes_total", legend="stale route"),
                    ),
                    unit="reqps",
                ),
                Panel(
                    "series",
                    "Calls of the history",
                    "As callers see them, by method and code.",
                    (
                        rate(
                            "grpc_server_handled_total",
                            "grpc_method",
                            "grpc_code",
                            where='job="history_svc"',
                            seen=True,
                        ),
                    ),
                    unit="reqps",
                ),
            ),
        ),
        Row(
            "Care",
            (
                Panel(
                    "series",
                    "Operations that are open or over",
                    "Rebuilds and comparisons of shards' parts.",
                    (
                        gauge(
                            "ordermesh_projection_operations_open",
                            "shard",
                            where=_SHARD,
                            legend="{{shard}} open",
                            of="max",
                        ),
                        rate("ordermesh_projection_operations_total", "kind", "state"),
                        rate(
                            "ordermesh_projection_operation_failures_total",
                            "error",
                            empty_when_healthy="no step of an operation fails.",
                        ),
                    ),
                ),
                Panel(
                    "series",
                    "Differences found",
                    "Documents that differ from their order: missing, stale, ahead or extra.",
                    (
                        rate("ordermesh_projection_differences_total", "how"),
                        rate("ordermesh_indices_doubted_total", legend="indices that are not ours"),
                    ),
                ),
                Panel(
                    "series",
                    "Rebuilding",
                    "Orders copied into new indices, and months that shards serve meanwhile.",
                    (
                        rate("ordermesh_projection_copied_orders_total", "shard", where=_SHARD),
                        gauge(
                            "ordermesh_projection_months_unserved",
                            "shard",
                            where=_SHARD,
                            legend="{{shard}} months",
                            of="max",
                        ),
                    ),
                ),
                Panel(
                    "series",
                    "Days of the outbox dropped",
                    "`no`: unread ones made room, at the cost of a rebuild.",
                    (
                        Prom(
                            "sum by (shard, read) (increase(ordermesh_outbox_days_dropped_total[1d]))",
                            "{{shard}} read: {{read}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
