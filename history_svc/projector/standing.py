"""How many orders of a shard its read model refuses, as every projector of the shard tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chassis import meters
from history_svc import metrics

if TYPE_CHECKING:
    from history_svc.projector.store import ProjectionStore


class Standing:
    """Tells of one shard's quarantine: who indexes it tells so too, and only while it does."""

    def __init__(self, store: ProjectionStore) -> None:
        self.name = f"quarantine.{store.shard}"
        self.shard = store.shard
        self._store = store

    def begin(self) -> None:
        """It tells no times."""

    async def tell(self) -> None:
        """Look once and set the gauge. Raises: what chassis.pg raises."""
        metrics.QUARANTINE.labels(self.shard).set(await self._store.quarantined_beside(()))

    def forget(self) -> None:
        """Take the gauge away."""
        meters.forget(metrics.QUARANTINE, shard=self.shard)
