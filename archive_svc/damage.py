"""Tells that a segment is not what was written: counted and logged here, whoever found it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from archive_svc import metrics

if TYPE_CHECKING:
    from archive_svc.segment import Step

log = structlog.get_logger("archive")


def tell(shard: str, step: Step, detail: str, **about: object) -> None:
    """Count one segment and say which; somebody is woken.

    step: which proof failed. detail: of what, without any row's content. about: month, key, who found it.
    """
    metrics.DAMAGES.labels(shard, step.value).inc()
    log.error("segment_damaged", shard=shard, step=step.value, detail=detail, **about)
