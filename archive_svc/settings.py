"""Settings of archive_svc."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from archive_svc.archiver import Pacing
from archive_svc.domain import Ahead
from archive_svc.lifecycle import State
from archive_svc.retention import Retention
from archive_svc.statement.settings import MailSettings, StatementSettings
from archive_svc.sweep import Sweeping
from chassis.s3.settings import MIB, S3Settings
from chassis.settings import Address, PagingSettings


class ArchiveSettings(PagingSettings):
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
    days_ahead: int = Field(7, ge=3, le=60, description="Days of the outbox that exist after today.")
    calls_max: int = Field(
        128, ge=1, le=1024, description="Calls at once; those that wait for a statement count too."
    )
    calls_queue: int = Field(128, ge=0, le=1024, description="Calls that may wait for a slot.")
    s3: S3Settings | None = Field(None, description="Where months are archived, as JSON; without it none is.")
    archive_reach: Literal["", "VERIFIED", "COMMITTED", "GRACE", "DROPPED"] = Field(
        "",
        description="How far months go by themselves when they are old enough; empty when each is asked for.",
    )
    archive_months_min: int = Field(
        24, ge=1, le=600, description="Calendar months that a month has to be past before it is archived."
    )
    archive_days_min: int = Field(7, ge=0, le=31, description="Days beyond these months.")
    settle_s: float | None = Field(
        None, ge=0, le=2_592_000, description="From commit to detach; a day, or nothing with profile `local`."
    )
    grace_s: float | None = Field(
        None, ge=0, le=31_536_000, description="From detach to drop; 14 days, or none with profile `local`."
    )
    archive_look_s: float = Field(
        10.0, ge=0.05, le=600, description="How often months are looked for; 0.5 at most with `local`."
    )
    archive_lease_s: float = Field(
        60.0, ge=3, le=600, description="How long a process that died keeps a shard from being archived."
    )
    check_every_days: float = Field(
        365.0, gt=0, le=3650, description="A segment is read back once more after so many days, for ever."
    )
    archive_retain_days: float | None = Field(
        None,
        gt=0,
        le=36_500,
        description="How long segments and manifests are locked in S3 once stored; needs its `object_lock`. "
        "null for not at all.",
    )
    erase_bypasses_lock: bool = Field(
        False, description="Whether erasing a user deletes locked objects too; the S3 user needs the right."
    )
    sweep_every_days: float | None = Field(
        1.0, gt=0, le=365, description="How often strays in S3 are looked for; null for only when asked."
    )
    sweep_deletes: bool = Field(
        False,
        description="Whether strays are deleted by themselves; else only `ordermesh archive sweep` does.",
    )
    stray_grace_s: float | None = Field(
        None,
        ge=0,
        le=31_536_000,
        description="Younger objects are no strays; 14 days, or a minute with profile `local`. "
        "Longer than the age of any backup that would be restored.",
    )
    sweep_objects_per_s: float = Field(
        100.0, gt=0, le=10_000, description="Objects that are looked at, per second and shard."
    )
    part_bytes: int = Field(
        128 * MIB, ge=65_536, le=512 * MIB, description="Rows of a part, in bytes of the tables."
    )
    archive_bytes_per_s: float = Field(
        32 * MIB, gt=0, description="Rows, and segments read back, in bytes per second and shard."
    )

    proxy_target: Address | None = Field(
        None,
        description="Where shard_proxy listens with mTLS; needed with `s3`: who makes statements asks it.",
    )
    statements: StatementSettings = Field(
        StatementSettings(), description="How statements are made and how many there may be, as JSON."
    )
    mail: MailSettings | None = Field(
        None, description="How users hear of their statements, as JSON; without it mails wait."
    )

    @model_validator(mode="after")
    def _can_find_users(self) -> Self:
        if self.s3 is not None and self.proxy_target is None:
            raise ValueError("proxy_target: needed with s3")
        return self

    def has_pages(self) -> bool:
        """Only statements are listed in pages, and only with an S3 there are any."""
        return self.s3 is not None

    def pacing(self) -> Pacing:
        """When months go, and how long their tables stay."""
        is_local = self.profile == "local"
        settle_s = (0.0 if is_local else 86_400.0) if self.settle_s is None else self.settle_s
        grace_s = (0.0 if is_local else 14 * 86_400.0) if self.grace_s is None else self.grace_s
        return Pacing(
            months_min=self.archive_months_min,
            days_min=self.archive_days_min,
            settle=timedelta(seconds=settle_s),
            grace=timedelta(seconds=grace_s),
            reach=State(self.archive_reach) if self.archive_reach else None,
            lease=timedelta(seconds=self.archive_lease_s),
            look_s=min(0.5, self.archive_look_s) if is_local else self.archive_look_s,
            enough_for=timedelta(days=self.check_every_days),
            part_bytes=self.part_bytes,
        )

    @model_validator(mode="after")
    def _can_lock(self) -> Self:
        if self.archive_retain_days is not None and not (self.s3 and self.s3.object_lock):
            raise ValueError("archive_retain_days: needs an s3 with object_lock")
        return self

    def retention(self) -> Retention:
        """How long what is archived is locked."""
        days = self.archive_retain_days
        return Retention(None if days is None else timedelta(days=days), self.erase_bypasses_lock)

    def sweeping(self) -> Sweeping:
        """When strays are looked for, and what is one."""
        grace_s = 60.0 if self.profile == "local" else 14 * 86_400.0
        return Sweeping(
            grace=timedelta(seconds=grace_s if self.stray_grace_s is None else self.stray_grace_s),
            every=None if self.sweep_every_days is None else timedelta(days=self.sweep_every_days),
            deletes=self.sweep_deletes,
        )

    def ahead(self) -> Ahead:
        """How far partitions reach."""
        return Ahead(months=self.months_ahead, days=self.days_ahead)
