"""What the local stack consists of, as data: shards, users, upstreams, topics, the order of stopping."""

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
PARTITIONS_PER_SHARD = 8
PARTITION_BASE = {shard: number * PARTITIONS_PER_SHARD for number, shard in enumerate(ALL_SHARDS)}
"""Each shard writes to its own run of partitions of the one topic."""
EVENTS_TOPIC = "ordermesh.order-events.v1"
TOPICS = {EVENTS_TOPIC: PARTITIONS_PER_SHARD * len(ALL_SHARDS), f"{EVENTS_TOPIC}.dlq": 1}
"""Topics of the stack with Kafka, and their partitions."""
S3_BUCKET = "ordermesh"
STOP_ORDER = (
    ("gateway", "recovery_svc"),
    ("shard_proxy",),
    (*(f"order_svc.{shard}" for shard in ALL_SHARDS), "history_svc", "projector", "archive_svc"),
    ("issuer", *(f"upstream.{name}" for name in UPSTREAMS)),
    ("shipper",),
    ("kafka", "elasticsearch", "s3", "prometheus", *(f"postgres.{shard}.replica" for shard in ALL_SHARDS)),
    ("postgres.control", "postgres.shards", *(f"postgres.{shard}" for shard in ALL_SHARDS)),
)
"""Who is stopped first: whoever takes work in, then those who do it, the databases last. No stack has all."""


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
    def mails(self) -> Path:
        """Mails that would be sent, were this not a laptop."""
        return self.state / "mails"

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.state / "logs"

    @property
    def hold(self) -> Path:
        """Names of processes that are to stay down."""
        return self.state / "hold"

    @property
    def choice(self) -> Path:
        """Says whether this is a stack with all real servers."""
        return self.state / "kind"

    @property
    def faults_fired(self) -> Path:
        """Where fault points write that they fired."""
        return self.state / "faults_fired"

    @property
    def shipper(self) -> Path:
        """How far lines are shipped, and spans that wait."""
        return self.state / "shipper"

    def log(self, name: str) -> Path:
        """The log of one process."""
        return self.logs / f"{name}.log"

    def ledger(self, upstream: str) -> Path:
        """The ledger of one simulated upstream."""
        return self.state / "ledgers" / f"{upstream}.sqlite"

    def map_copy(self) -> Path:
        """shard_proxy's copy of the map."""
        return self.state / "shard_proxy" / "map.json"
