"""For how long segments and manifests are locked in S3, where its bucket has locks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chassis.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from chassis.clock import Clock


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what is stored now is locked.

    keeps:    None for not at all.
    bypasses: whether an erasure deletes what is locked all the same, as who may bypass governance.
    """

    keeps: timedelta | None = None
    bypasses: bool = False
    clock: Clock = SYSTEM_CLOCK

    def until(self) -> datetime | None:
        """Until when what is stored now is locked; in whole seconds, as S3 keeps it."""
        return None if self.keeps is None else (self.clock.now() + self.keeps).replace(microsecond=0)


NOT_LOCKED = Retention()
