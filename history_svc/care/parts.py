"""What the care for one shard works with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from chassis.clock import Clock
    from history_svc.care.store import CareStore
    from history_svc.projector.store import ProjectionStore
    from history_svc.readmodel.port import ReadModel


@dataclass(frozen=True, slots=True)
class Pacing:
    """How fast and how often.

    every_s:      between two looks at what is to be done. copy_rate: orders per second that a rebuild reads.
    again_after:  a rebuild that failed is begun again by itself so much later.
    verify_every: a month is compared again by itself so often; never when it is zero.
    settle_s:     how long a comparison waits for the watermark to pass what it has read.
    grace:        how long an index that nobody reads any more is kept.
    """

    every_s: float = 5.0
    copy_rate: int = 5000
    again_after: timedelta = timedelta(minutes=5)
    verify_every: timedelta = timedelta(days=1)
    settle_s: float = 60.0
    grace: timedelta = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Parts:
    """One shard's stores, the read model, and the pace."""

    care: CareStore
    projection: ProjectionStore
    read_model: ReadModel
    clock: Clock
    jitter: Callable[[], float]
    pacing: Pacing
    quarantine_max: int
