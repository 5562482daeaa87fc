"""What history_svc counts beyond what every service does; names as in the telemetry registry."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

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
