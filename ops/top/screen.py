"""What the screen shows, from two readings: pure tables of words and numbers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ops.top.readings import Change, Reading
    from ops.top.waits import Wait

SHARD_COLUMNS = (
    *("shard", "created/s", "settled/s", "pending", "hanging", "overdue", "cases", "outbox", "index"),
    *("replica", "busy", "wait p99"),
)
SERVICE_COLUMNS = ("process", "calls/s", "faults/s", "p99", "loop p99", "memory")
FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
UNARY = "unary"
"""Calls with one answer, which faults and times are of: a stream goes on until its deadline."""


def shards(change: Change, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each shard; None where nobody knows."""
    now = change.now
    rows = []
    for shard in names:
        process = f"order_svc.{shard}"
        rows.append(
            {
                "shard": shard,
                "created/s": _of(change, "ordermesh_order_changes_total", process, kind="OPENED"),
                "settled/s": _of(change, "ordermesh_orders_settled_total", process),
                "pending": now.agreed("ordermesh_orders_pending", shard=shard),
                "hanging": now.most("ordermesh_orders_hanging", shard=shard),
                "overdue": now.most("ordermesh_orders_hanging_oldest_seconds", shard=shard),
                "cases": _cases(now, shard),
                "outbox": _since(now.most("ordermesh_outbox_published_until_seconds", shard=shard)),
                "index": _since(now.most("ordermesh_indexed_until_seconds", shard=shard)),
                "replica": now.most("ordermesh_replica_lag_seconds", shard=shard),
                "busy": now.total("ordermesh_pg_connections", pool=shard, state="busy"),
                "wait p99": change.quantile("ordermesh_pg_wait_seconds", 0.99, pool=shard),
            }
        )
    return rows


def services(change: Change) -> list[dict[str, Any]]:
    """One row for each process."""
    rows = []
    for process in change.now.processes:
        name = process.name
        rows.append(
            {
                "process": name,
                "calls/s": _calls(change, name),
                "faults/s": _faults(change, name),
                "p99": change.quantile("grpc_server_handling_seconds", 0.99, process=name, grpc_type=UNARY)
                or change.quantile("http_server_handling_seconds", 0.99, process=name),
                "loop p99": change.quantile("ordermesh_event_loop_lag_seconds", 0.99, process=name),
                "memory": change.now.most("process_resident_memory_bytes", process=name),
            }
        )
    return rows


def _calls(change: Change, process: str) -> float | None:
    if not change.saw(process):
        return None
    return sum(change.rate(f"{kind}_server_handled_total", process=process) for kind in ("grpc", "http"))


def _faults(change: Change, process: str) -> float | None:
    """Calls and requests that were not served through no fault of the caller's."""
    if not change.saw(process):
        return None
    statuses = change.rates("http_server_handled_total", "status", process=process)
    return sum(
        change.rate("grpc_server_handled_total", process=process, grpc_code=code, grpc_type=UNARY)
        for code in FAULTS
    ) + sum(rate for status, rate in statuses.items() if status.startswith("5"))


def _cases(now: Reading, shard: str) -> float | None:
    """Open cases; a replica that is looked at and has none shows no series of them."""
    if not now.most("ordermesh_lookback_up", shard=shard):
        return None
    return now.agreed("ordermesh_dead_letters_open", shard=shard) or 0.0


def snapshot(change: Change, names: Sequence[str], waits: Sequence[Wait]) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "shards": shards(change, names),
        "processes": services(change),
        "waits": [{"where": wait.where, "what": wait.what, "why": wait.why} for wait in waits],
    }


def cell(column: str, value: Any) -> str:
    """One value for people; a dash where nobody knows."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if column == "memory":
        return f"{value / 2**20:.0f} MiB"
    if column in ("overdue", "outbox", "index", "replica") or column.endswith("p99"):
        return span(value)
    return f"{value:.1f}" if column.endswith("/s") else f"{value:.0f}"


def span(seconds: float) -> str:
    """A time for people."""
    if seconds == float("inf"):
        return "over"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _since(instant: float | None) -> float | None:
    """How long ago a unix time was; None for one that nobody knows."""
    return None if not instant else max(0.0, time.time() - instant)


def _of(change: Change, name: str, process: str, **labels: str) -> float | None:
    """What a process counts a second; None when it was not seen both times."""
    return change.rate(name, process=process, **labels) if change.saw(process) else None
