"""What archive_svc counts."""

from prometheus_client import Counter, Gauge

AHEAD = Gauge(
    "ordermesh_partitions_ahead",
    "Partitions that follow the current one without a hole; -1 when there is no current one. Alarm below 2.",
    ["shard", "table"],
)
MADE = Counter(
    "ordermesh_partitions_made_total", "Partitions that were missing and were made.", ["shard", "table"]
)
FAILURES = Counter(
    "ordermesh_partition_failures_total", "Partitions that could not be made, by why.", ["shard", "reason"]
)
