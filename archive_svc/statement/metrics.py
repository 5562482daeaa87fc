"""What is counted of statements and their mails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from archive_svc.statement.outbox import Standing

WAITING = Gauge(
    "ordermesh_statements", "Statements that are not over yet, by where they stand.", ["shard", "state"]
)
TURNS = Counter(
    "ordermesh_statement_turns_total",
    "Turns of workers at statements, by what came of them.",
    ["shard", "outcome"],
)
SECONDS = Histogram(
    "ordermesh_statement_turn_seconds",
    "How long a worker's turn at a statement took.",
    ["outcome"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600, 1800, 7200),
)
FILE_BYTES = Histogram(
    "ordermesh_statement_file_bytes",
    "Size of the files.",
    buckets=(4096, 16_384, 65_536, 262_144, 2**20, 2**22, 2**24, 2**26, 2**28),
)
EXPIRED = Counter("ordermesh_statements_expired_total", "Statements whose time was over.", ["shard"])
REMOVED = Counter(
    "ordermesh_statement_files_removed_total", "Files taken away: expired, or stored in vain.", ["shard"]
)
MAILS = Counter(
    "ordermesh_statement_mails_total", "Tries of mails, by what came of them.", ["shard", "outcome"]
)
MAILS_WAITING = Gauge("ordermesh_statement_mails_waiting", "Mails that are to be sent.", ["shard"])
MAILS_DEAD = Gauge(
    "ordermesh_statement_mails_dead", "Mails that were given up. Alarm when it grows.", ["shard"]
)
MAILS_OLDEST = Gauge(
    "ordermesh_statement_mails_oldest_seconds",
    "For how long the oldest mail waits. Alarm above 3600.",
    ["shard"],
)


def tell(shard: str, counts: Mapping[str, int], states: Iterable[str]) -> None:
    """Show where the statements of a shard stand."""
    for state in states:
        WAITING.labels(shard, state).set(counts.get(state, 0))


def tell_mails(shard: str, standing: Standing) -> None:
    """Show how the mails of a shard stand."""
    MAILS_WAITING.labels(shard).set(standing.waiting)
    MAILS_DEAD.labels(shard).set(standing.dead)
    MAILS_OLDEST.labels(shard).set(standing.oldest_s)
