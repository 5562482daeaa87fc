"""Settings of order_svc: which shard it serves, which upstreams there are and what they promise.

Numbers that make recovery patient are the same everywhere in production and short with profile `local`; a
setting that is given wins over both.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from chassis.settings import Address, PagingSettings
from order_svc.contract import LOCAL_POLICY, PRODUCTION_POLICY, RecoveryPolicy, Rules, UpstreamContract

UpstreamName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
KindName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class ContractSettings(BaseModel):
    """What one upstream promises; the defaults promise nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    idempotent_submit: bool = Field(
        False, description="Whether a second Execute of one key finds the first while the key lives."
    )
    lookup_by_key: bool = Field(True, description="Whether Probe finds what Execute of that key did.")
    not_found_final_after_s: float | None = Field(
        None, ge=0, le=604_800, description="So long after the last send NOT_FOUND means never; unset: never."
    )
    resubmit_on_not_found: bool = Field(
        True, description="Whether a leg that is proven absent is sent again; else the order fails."
    )
    cancel: bool = Field(False, description="Whether a key can be cancelled; not used yet.")
    reversible: bool = Field(False, description="Whether an executed leg can be reversed; not used yet.")
    key_ttl_s: float = Field(86_400.0, ge=1, description="How long the upstream remembers a key.")
    pending_deadline_s: float = Field(
        86_400.0, ge=0, description="How long IN_PROGRESS is fine before it spends the budget."
    )
    submit_timeout_s: float = Field(5.0, ge=0.1, le=60, description="Deadline of one Execute.")
    settle_window_s: float = Field(
        600.0, ge=0, le=86_400, description="How long an Execute may take to show in a Probe."
    )

    def contract(self) -> UpstreamContract:
        """The contract as the rules read it."""
        return UpstreamContract(**self.model_dump())


LOCAL_CONTRACTS = {
    "payments": ContractSettings(
        not_found_final_after_s=3.0, settle_window_s=3.0, submit_timeout_s=3.0, pending_deadline_s=30.0
    ),
    "fulfilment": ContractSettings(
        idempotent_submit=True,
        not_found_final_after_s=3.0,
        settle_window_s=3.0,
        submit_timeout_s=3.0,
        pending_deadline_s=30.0,
    ),
}
"""What the simulated upstreams of the local stack promise."""


class PolicySettings(BaseModel):
    """How patiently recovery asks; what is not given is the profile's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_s: float | None = Field(None, gt=0, le=3600, description="Ceiling of the first backoff.")
    cap_s: float | None = Field(None, gt=0, le=86_400, description="Ceiling of every backoff.")
    floor_s: float | None = Field(None, ge=0.01, le=60, description="No backoff is shorter.")
    first_probe_s: float | None = Field(
        None, ge=0, le=3600, description="From an ambiguous submission to its first probe."
    )
    submit_margin_s: float | None = Field(
        None, ge=0, le=60, description="From the deadline of a call to the first look at its order."
    )
    parked_probe_s: float | None = Field(
        None, ge=1, le=604_800, description="Between two probes of a parked order."
    )
    pushback_max_s: float | None = Field(
        None, ge=0, le=86_400, description="Longest time an upstream can keep us away from an order."
    )
    probes_max: int | None = Field(
        None, ge=1, le=10_000, description="Answers that settle nothing before an order is parked."
    )
    probing_max_s: float | None = Field(
        None, ge=1, le=2_592_000, description="Time of such answers before an order is parked."
    )
    malformed_max: int | None = Field(
        None, ge=1, le=100, description="Senseless answers in a row before an order is parked."
    )
    unfinished_max: int | None = Field(
        None, ge=1, le=100, description="Lost claims of a suspect order before it is parked."
    )

    def over(self, profile: RecoveryPolicy) -> RecoveryPolicy:
        """The profile's policy with what is given here in place of it."""
        values = {name: getattr(profile, name) for name in type(self).model_fields}
        return RecoveryPolicy(**{**values, **self.model_dump(exclude_none=True)})


class OrderSettings(PagingSettings):
    """What one order_svc serves and how much at once."""

    shard: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$", description="The shard this process serves.")
    dsn: SecretStr = Field(description="postgresql:// address of the shard's database.")
    pool_size: int = Field(8, ge=1, le=64, description="Connections, and so statements at once.")
    pool_queue: int = Field(24, ge=0, le=256, description="Statements that may wait for a connection.")
    upstream_targets: dict[UpstreamName, Address] = Field(
        description='Where each upstream is, as JSON: {"payments": "host:port"}.', min_length=1, max_length=64
    )
    contracts: dict[UpstreamName, ContractSettings] = Field(
        {}, description="What each upstream promises, as JSON by name; what is missing promises nothing."
    )
    kinds: dict[KindName, tuple[UpstreamName, ...]] = Field(
        {"payment": ("payments",), "purchase": ("payments", "fulfilment")},
        description="The upstreams that execute each kind of order, in order, as JSON.",
        min_length=1,
        max_length=256,
    )
    policy: PolicySettings = Field(
        PolicySettings(), description="Patience of recovery, as JSON; see the profile."
    )
    submits_per_upstream: int = Field(
        64, ge=1, le=1024, description="Orders at once that are being submitted to one upstream."
    )
    submit_queue: int = Field(
        128, ge=0, le=2048, description="Creates that may wait for one of these slots; the next is refused."
    )
    submit_tick_s: float | None = Field(
        None, ge=0.02, le=60, description="Time between two looks for READY orders; 1 s, locally 0.25 s."
    )
    submit_lease_s: float = Field(
        10.0,
        ge=1,
        le=300,
        description="How long a claimed READY order is left to the process that claimed it.",
    )
    unserved_s: float = Field(
        60.0,
        ge=0.05,
        le=3600,
        description="How long a READY order of an upstream that is not configured here is left to other"
        " processes; then it is parked.",
    )
    watchers_max: int = Field(1024, ge=1, le=65_536, description="Calls at once that wait for a change.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for kind, legs in self.kinds.items():
            if not 1 <= len(legs) <= 8:
                raise ValueError(f"kinds: {kind} needs 1 to 8 legs")
            missing = sorted(set(legs) - self.upstream_targets.keys())
            if missing:
                raise ValueError(f"kinds: {kind} needs {', '.join(missing)}, missing in upstream_targets")
        return self

    @property
    def tick_s(self) -> float:
        """Time between two looks for READY orders."""
        if self.submit_tick_s is not None:
            return self.submit_tick_s
        return 0.25 if self.profile == "local" else 1.0

    def rules(self) -> Rules:
        """What `transition` consults."""
        local = self.profile == "local"
        given = {**(LOCAL_CONTRACTS if local else {}), **self.contracts}
        contracts = {name: given.get(name, ContractSettings()).contract() for name in self.upstream_targets}
        return Rules(contracts, self.policy.over(LOCAL_POLICY if local else PRODUCTION_POLICY))
