"""What the local stack consists of, as data: shards, users, upstreams with their contracts, kinds of
orders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHARDS = ("s1", "s2")
VIP_SHARD = "v1"
ALL_SHARDS = (*SHARDS, VIP_SHARD)
VIP_USER = "vip.1"
VIP_BUCKET = 4096
USERS = ("alice", "bob", VIP_USER)
"""Seeded users: `alice` hashes to s1, `bob` to s2 and `vip.1` is placed on v1."""
UPSTREAMS = ("payments", "fulfilment")
IDEMPOTENT = {"payments": False, "fulfilment": True}
"""The simulator of payments executes again when it is asked twice, so that a double submission shows in its
ledger.
"""
STOP_ORDER = (
    ("gateway", "recovery_svc"),
    ("shard_proxy",),
    (*(f"order_svc.{shard}" for shard in ALL_SHARDS), "history_svc"),
    ("issuer", *(f"upstream.{name}" for name in UPSTREAMS)),
    ("postgres.control", "postgres.shards"),
)
"""Who is stopped first: whoever takes work in, then those who do it, the databases last."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the stack keeps things, below its state directory."""

    state: Path

    @property
    def tls(self) -> Path:
        """Certificates of all identities."""
        return self.state / "tls"

    @property
    def subject(self) -> Path:
        """Keys that sign subjects."""
        return self.state / "subject"

    @property
    def issuer(self) -> Path:
        """The key that signs users' JWTs."""
        return self.state / "issuer"

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.state / "logs"

    @property
    def hold(self) -> Path:
        """Names of processes that are to stay down."""
        return self.state / "hold"

    @property
    def faults_fired(self) -> Path:
        """Where fault points write that they fired."""
        return self.state / "faults_fired"

    def log(self, name: str) -> Path:
        """The log of one process."""
        return self.logs / f"{name}.log"

    def ledger(self, upstream: str) -> Path:
        """The ledger of one simulated upstream."""
        return self.state / "ledgers" / f"{upstream}.sqlite"

    def map_copy(self) -> Path:
        """shard_proxy's copy of the map."""
        return self.state / "shard_proxy" / "map.json"
