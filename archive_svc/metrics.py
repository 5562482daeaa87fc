"""What archive_svc counts."""

from __future__ import annotations

from collections import Counter as Counted
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from archive_svc.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from archive_svc.catalog import Control
    from archive_svc.lifecycle import Month

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
ROWS = Counter("ordermesh_archive_rows_total", "Rows written into segments.", ["shard", "table"])
STORED_BYTES = Counter(
    "ordermesh_archive_stored_bytes_total", "Bytes of segments stored.", ["shard", "table"]
)
RESTORED = Counter(
    "ordermesh_archive_restored_rows_total", "Rows copied back from segments.", ["shard", "table"]
)
READ_BACK_BYTES = Counter(
    "ordermesh_archive_read_back_bytes_total", "Bytes of segments read back and compared.", ["shard"]
)
ERASED = Counter("ordermesh_archive_erased_rows_total", "Rows taken out of segments.", ["shard", "table"])
CHECKED = Counter("ordermesh_archive_checked_total", "Segments read once more and found whole.", ["shard"])
DAMAGES = Counter(
    "ordermesh_archive_damages_total",
    "Segments that did not read back as they were written, by the proof that failed.",
    ["shard", "proof"],
)
FAILED = Counter(
    "ordermesh_archive_failures_total",
    "What was done to a month, failed, and is done again.",
    ["shard", "action"],
)
MONTHS = Gauge(
    "ordermesh_archive_months", "Months that were asked for, by where they stand.", ["shard", "state"]
)
QUARANTINED = Gauge(
    "ordermesh_archive_months_quarantined", "Months that wait for a person. Alarm above 0.", ["shard"]
)
STATEMENT_READ_BYTES = Counter(
    "ordermesh_archive_statement_read_bytes_total", "Bytes of segments read for statements.", ["shard"]
)
STRAYS = Gauge(
    "ordermesh_archive_strays", "Objects in S3 that nothing names, as the last walk found them.", ["shard"]
)
STRAY_BYTES = Gauge("ordermesh_archive_stray_bytes", "How large they are.", ["shard"])
SWEPT = Counter(
    "ordermesh_archive_swept_total", "Strays that were deleted, by what they were.", ["shard", "kind"]
)
HALTED = Gauge("ordermesh_archive_halted", "1 while the kill switch keeps tables as they are.", ["shard"])


def tell(shard: str, months: Sequence[Month], control: Control) -> None:
    """Show where the months of a shard stand."""
    counts = Counted(month.state for month in months)
    for state in State:
        MONTHS.labels(shard, state.value).set(counts[state])
    QUARANTINED.labels(shard).set(sum(bool(month.quarantined) for month in months))
    HALTED.labels(shard).set(control.is_halted)
