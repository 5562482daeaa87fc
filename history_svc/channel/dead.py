"""Says in the log which change became a dead letter, and never what it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from history_svc.events import Record

log = structlog.get_logger("dead_letters")


def tell(record: Record, reason: str) -> None:
    """Log a dead letter. reason: a kind, a colon, and words that may quote the document, which stay out."""
    assert record.event is not None
    log.error(
        "dead_event",
        order_id=str(record.event.order_id),
        version=record.event.version,
        position=str(record.position),
        reason=reason.partition(":")[0],
    )
