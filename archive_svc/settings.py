"""Settings of archive_svc."""

from __future__ import annotations

from pydantic import Field, SecretStr

from archive_svc.domain import Ahead
from chassis.settings import ProcessSettings


class ArchiveSettings(ProcessSettings):
    """One archive process; several do no harm, as each step is done once."""

    shards: dict[str, SecretStr] = Field(
        description="Name of each shard and the postgresql:// address of its primary."
    )
    pool_size: int = Field(2, ge=1, le=16, description="Connections to each shard, opened when first needed.")
    look_s: float = Field(600.0, ge=1, le=3600, description="How often the partitions are looked at.")
    again_s: float = Field(
        30.0,
        ge=0.1,
        le=600,
        description="Longest pause after a look that left something missing.",
    )
    months_ahead: int = Field(3, ge=2, le=24, description="Months that exist after the current one.")
    days_ahead: int = Field(7, ge=2, le=60, description="Days of the outbox that exist after today.")

    def ahead(self) -> Ahead:
        """How far partitions reach."""
        return Ahead(months=self.months_ahead, days=self.days_ahead)
