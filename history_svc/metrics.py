"""What history_svc counts beyond what every service does; names as in the telemetry registry."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

PAGES = Counter(
    "ordermesh_history_pages_total", "Pages served, by how many shards they came from.", ["shards"]
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
