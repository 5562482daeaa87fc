"""What recovery_svc counts. The calls it serves are counted by the chassis as `grpc_server_*`."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SWEEPS = Counter("ordermesh_recovery_sweeps_total", "Claims asked for, by how it ended.", ["shard", "code"])
SWEEP_LAG = Gauge(
    "ordermesh_recovery_sweep_lag_seconds", "Time since the shard last answered a claim.", ["shard"]
)
CLAIMS = Counter("ordermesh_recovery_claims_total", "Orders claimed.", ["shard"])
IN_FLIGHT = Gauge("ordermesh_recovery_in_flight", "Orders that are worked on now.", ["shard"])
PROBES = Counter(
    "ordermesh_recovery_probes_total",
    "Probes, by what they were worth.",
    ["upstream", "probe_class", "verdict"],
)
PROBE_SECONDS = Histogram(
    "ordermesh_recovery_probe_seconds",
    "Time a call to an upstream took.",
    ["upstream"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
REPORTS = Counter(
    "ordermesh_recovery_reports_total", "Tries to report a finding, by how they ended.", ["shard", "code"]
)
REPORTS_GIVEN_UP = Counter(
    "ordermesh_recovery_reports_given_up_total",
    "Findings that were never taken; the lease runs out.",
    ["shard"],
)
SHARDS = Gauge("ordermesh_recovery_shards", "Shards that are swept.")
