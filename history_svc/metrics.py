"""What history_svc counts beyond what every service does; names as in the telemetry registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from history_svc.channel.tail import Tail

PAGES = Counter(
    "ordermesh_history_pages_total",
    "Pages served, by how many shards they came from and by who served them.",
    ["shards", "served_by"],
)
OVERLAY_ROWS = Histogram(
    "ordermesh_history_overlay_rows",
    "Changed orders that a page overlays on the read model.",
    buckets=(0, 1, 2, 5, 10, 20, 50, 100, 200, 500),
)
SHORT_PAGES = Counter(
    "ordermesh_history_short_pages_total", "Pages that ended before they were full although the list goes on."
)
REPLICA_ANSWERS = Counter(
    "ordermesh_history_replica_answers_total",
    "What became of asking a read replica: used, or why the primary was asked.",
    ["outcome"],
)
SEARCH_SECONDS = Histogram(
    "ordermesh_history_search_seconds",
    "Time of one search of the read model.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
SEARCH_FAILURES = Counter(
    "ordermesh_history_search_failures_total", "Searches that the read model did not answer."
)
STALE = Counter(
    "ordermesh_history_stale_routes_total", "Pages refused because the proxy's map was behind.", ["shard"]
)
READ_SECONDS = Histogram(
    "ordermesh_history_shard_read_seconds",
    "Time to read one shard's part of a page.",
    ["shard"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
SHARDS_OF_A_PAGE_MAX = 4
"""Label values stop here; more shards count as this many."""

LEADS = Gauge(
    "ordermesh_projector_leads", "Whether this process reads the shard's outbox, 0 or 1.", ["shard"]
)
FENCE_AGE = Gauge(
    "ordermesh_outbox_fence_age_seconds",
    "How long the oldest transaction that still writes keeps later changes back.",
    ["shard"],
)
UNPUBLISHED_AGE = Gauge(
    "ordermesh_outbox_unpublished_age_seconds",
    "How old the oldest change may be that the relay has not published.",
    ["shard"],
)
RELAY_BATCH_SECONDS = Histogram(
    "ordermesh_relay_batch_seconds",
    "Time from reading a batch of changes to its acknowledgement by all partitions.",
    ["shard"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
RELAY_EVENTS = Counter(
    "ordermesh_relay_events_total",
    "Changes that the relay handed over: published, too_large, or failed and read again.",
    ["shard", "result"],
)
REWINDS = Counter(
    "ordermesh_rewinds_total",
    "Stream partitions read again from an earlier position: by the outbox source, Kafka's, or the relay.",
    ["shard", "by"],
)
DAYS_DROPPED = Counter(
    "ordermesh_outbox_days_dropped_total",
    "Days of the outbox that were dropped; unread ones make room at the cost of a rebuild.",
    ["shard", "read"],
)
OUTBOX_BYTES = Gauge("ordermesh_outbox_bytes", "Size of a shard's outbox on its disk.", ["shard"])
KAFKA_LAG = Gauge(
    "ordermesh_kafka_lag_records", "Messages of this process's partitions that it has not taken yet."
)
CONSUMERS_REPLACED = Counter(
    "ordermesh_kafka_consumers_replaced_total", "Consumers that were given up for a new one.", ["error"]
)
FOREIGN_MESSAGES = Counter(
    "ordermesh_kafka_foreign_messages_total", "Messages in the topic of changes that are none."
)
DEAD_EVENTS = Counter(
    "ordermesh_dead_events_total", "Changes that were set aside for a person to look at.", ["channel"]
)


def observe_tail(shard: str, tail: Tail) -> None:
    """Show how far the fence of a shard is behind."""
    FENCE_AGE.labels(shard).set(tail.fence_age_s)


BULK_ITEMS = Counter(
    "ordermesh_index_items_total", "Documents sent to the read model, by what became of them.", ["verdict"]
)
BULK_SECONDS = Histogram(
    "ordermesh_index_bulk_seconds",
    "Time of one request that writes documents.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
INDEXED_UNTIL = Gauge(
    "ordermesh_indexed_until_seconds",
    "Every change that was committed before this instant is searchable; unix time.",
    ["shard"],
)
QUARANTINE = Gauge("ordermesh_quarantine_orders", "Orders whose document the read model refuses.", ["shard"])
INDEX_HELD = Gauge(
    "ordermesh_index_held", "1 while a watermark waits, for a gap or for too many refusals.", ["shard"]
)
HOLES = Counter("ordermesh_index_holes_total", "Gaps found between records of a stream partition.", ["shard"])
UNDECODABLE = Counter(
    "ordermesh_index_undecodable_total",
    "Changes that could not be understood; they hold their watermark.",
    ["shard"],
)
INDICES_DOUBTED = Counter(
    "ordermesh_indices_doubted_total", "Indices that were gone or not the ones that were made.", ["shard"]
)
OPERATIONS_OPEN = Gauge(
    "ordermesh_projection_operations_open", "Operations on a shard's projection that are not over.", ["shard"]
)
OPERATIONS = Counter(
    "ordermesh_projection_operations_total",
    "Operations on a shard's projection that are over, by kind and by how they ended.",
    ["shard", "kind", "state"],
)
OPERATION_FAILURES = Counter(
    "ordermesh_projection_operation_failures_total",
    "Steps of operations that failed and are done again.",
    ["shard", "error"],
)
MONTHS_UNSERVED = Gauge(
    "ordermesh_projection_months_unserved",
    "Months of a shard whose pages the shard itself serves.",
    ["shard"],
)
COPIED = Counter(
    "ordermesh_projection_copied_orders_total", "Orders that rebuilds wrote into new indices.", ["shard"]
)
DIFFERENCES = Counter(
    "ordermesh_projection_differences_total",
    "Documents found to differ from their order: missing, stale, ahead or extra.",
    ["shard", "how"],
)
