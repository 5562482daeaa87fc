"""Settings of recovery_svc: whom it asks, how much at once, and for how long."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from chassis.settings import Address, ProcessSettings

LOCAL: dict[str, Any] = {
    "startup_grace_s": 0.0,
    "lease_s": 10.0,
    "lease_margin_s": 1.0,
    "claim_timeout_s": 2.0,
    "probe_timeout_s": 3.0,
    "report_timeout_s": 2.0,
}
"""Defaults of profile `local`, where nobody wants to wait half a minute for the lease of a killed process."""


class RecoverySettings(ProcessSettings):
    """What one recovery process may do. Backoff and budgets are not here: order_svc decides them."""

    proxy_target: Address = Field(description="Where shard_proxy listens with mTLS.")
    upstreams: dict[str, Address] = Field(
        description='Where each upstream is probed, as JSON: {"payments": "host:port"}.', max_length=64
    )
    # After a deployment those who hold leases come back first; what is left then is really orphaned.
    startup_grace_s: float = Field(60.0, ge=0, le=3600, description="No sweep so long after start.")
    sweep_period_s: float = Field(1.0, ge=0.05, le=60, description="Time between two sweeps of one shard.")
    sweep_jitter: float = Field(
        0.3, ge=0, le=0.9, description="Share by which a period may be longer or shorter."
    )
    sweep_backoff_s_max: float = Field(
        10.0, ge=0.1, le=300, description="Longest time between two sweeps of a shard that does not answer."
    )
    shards_refresh_s: float = Field(
        5.0, ge=0.1, le=300, description="How often the list of shards is read again."
    )
    slots_per_shard: int = Field(
        16, ge=1, le=200, description="Orders of one shard that are worked on at once."
    )
    slots_per_upstream: int = Field(32, ge=1, le=1000, description="Probes of one upstream at once.")
    queue_per_upstream: int = Field(
        64, ge=0, le=2000, description="Probes of one upstream that may wait for a slot."
    )
    slot_wait_s: float = Field(
        1.0, ge=0, le=10, description="How long a probe waits for a slot of its upstream."
    )
    lease_s: float = Field(
        30.0, ge=1, le=300, description="How long a claim keeps others away from an order."
    )
    lease_margin_s: float = Field(
        3.0, ge=0, le=60, description="Part of the lease at its end that is left unused."
    )
    claim_timeout_s: float = Field(3.0, ge=0.05, le=30, description="Deadline of one claim.")
    probe_timeout_s: float = Field(5.0, ge=0.05, le=60, description="Deadline of one probe.")
    report_timeout_s: float = Field(3.0, ge=0.05, le=30, description="Deadline of one try of a report.")
    report_tries_max: int = Field(
        6, ge=1, le=20, description="Tries of one report, all with the same event id."
    )
    scatter_timeout_s: float = Field(
        3.0, ge=0.05, le=30, description="Deadline of one shard in a question to all."
    )

    @model_validator(mode="before")
    @classmethod
    def _local_is_quick(cls, given: dict[str, Any]) -> dict[str, Any]:
        return LOCAL | given if given.get("profile") == "local" else given

    @model_validator(mode="after")
    def _lease_is_long_enough(self) -> RecoverySettings:
        needed = self.claim_timeout_s + self.slot_wait_s + self.probe_timeout_s + self.report_timeout_s
        if self.lease_s - self.lease_margin_s < needed:
            raise ValueError(
                f"lease_s - lease_margin_s must be at least {needed:g} s: claim, slot, probe and one report"
            )
        return self
