"""Settings of the projector."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, ValidationError, model_validator

from chassis.kafka import Cluster, Mechanism
from chassis.settings import reasons
from history_svc.care.parts import Pacing
from history_svc.channel.kafka import TOPIC, Topics
from history_svc.projector.relay import Batching
from history_svc.projector.retention import Keeping
from history_svc.settings import ReadSideSettings

MIB = 1024 * 1024


class ProjectorSettings(ReadSideSettings):
    """One projector process."""

    instance: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,128}$",
        description="Name of this process, its own and the same after a restart; empty: its host's.",
    )
    pool_size: int = Field(4, ge=2, le=32, description="Connections to each shard, opened when first needed.")
    pool_queue: int = Field(12, ge=0, le=96, description="Statements that may wait for one of them.")
    batch_rows: int = Field(1000, ge=1, le=10_000, description="Changes that the relay reads at once.")
    batch_mib: int = Field(4, ge=1, le=64, description="MiB of changes that the relay reads at once.")
    tick_s: float = Field(
        0.25, ge=0.05, le=5, description="How often what was written is made searchable, and watermarks move."
    )
    quarantine_max: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Orders of a shard that may be refused before its watermarks wait.",
    )
    inbox_mib: int = Field(
        64, ge=1, le=4096, description="MiB taken from Kafka that may wait for the indexers of all shards."
    )
    stuck_s: float = Field(
        60.0, ge=5, le=3600, description="A consumer of Kafka that stands still so long is replaced."
    )
    group: str = Field(
        "ordermesh.indexer",
        pattern=r"^[A-Za-z0-9._-]{1,128}$",
        description="Kafka's name for all projectors.",
    )
    topic: str = Field(
        TOPIC,
        pattern=r"^[A-Za-z0-9._-]{1,200}$",
        description="Kafka's topic of changes; dead letters go to the one that has `.dlq` behind its name.",
    )
    topic_partitions: int = Field(
        64, ge=1, le=10_000, description="Partitions of the topic of changes where it has to be made."
    )
    topic_replicas: int = Field(3, ge=1, le=9, description="Copies of a topic where it has to be made.")
    outbox_days: int = Field(
        3, ge=1, le=90, description="Days of changes that a shard keeps although they are searchable."
    )
    outbox_gib_max: float = Field(
        64.0,
        gt=0,
        le=16_384,
        description="GiB of a shard's outbox above which its oldest days go unread, to be rebuilt.",
    )

    kafka_tls: bool = Field(False, description="Whether Kafka is spoken to by TLS only.")
    kafka_ca_file: Path | None = Field(
        None, description="PEM file with whom to trust as Kafka's brokers, when not the system's list."
    )
    kafka_cert_file: Path | None = Field(
        None, description="PEM file with the certificate that brokers ask for, where they do."
    )
    kafka_key_file: Path | None = Field(None, description="PEM file with its key.")
    kafka_username: str = Field("", max_length=256, description="User name for Kafka; none when empty.")
    kafka_password: SecretStr = Field(SecretStr(""), description="That user's password.")
    kafka_mechanism: Mechanism = Field(
        "SCRAM-SHA-512", description="How the password is proved to Kafka; PLAIN by TLS only."
    )

    calls_max: int = Field(16, ge=1, le=256, description="Calls of operators at once.")
    calls_queue: int = Field(16, ge=0, le=256, description="Calls of operators that may wait for a slot.")
    care_every_s: float = Field(
        5.0, gt=0, le=3600, description="How often each shard's projection is looked after."
    )
    copy_rate: int = Field(
        5000, ge=1, le=1_000_000, description="Orders per second that a rebuild reads from a shard at most."
    )
    verify_every_h: float = Field(
        24.0, ge=0, le=8760, description="Hours after which a month is compared again by itself; 0 for never."
    )
    retired_grace_s: float = Field(
        3600.0, ge=0, le=2_592_000, description="How long an index is kept that nobody reads any more."
    )

    @model_validator(mode="after")
    def _is_let_in(self) -> Self:
        try:
            self.cluster()
        except ValidationError as wrong:
            raise ValueError(f"kafka: {reasons(wrong)}") from None
        return self

    def holder(self) -> str:
        """What this process is called."""
        return self.instance or socket.gethostname()

    def batching(self) -> Batching:
        """How much the relay reads."""
        return Batching(self.batch_rows, self.batch_mib * MIB)

    def keeping(self) -> Keeping:
        """How long changes are kept."""
        return Keeping(
            timedelta(days=self.outbox_days),
            int(self.outbox_gib_max * 1024 * MIB),
            reads_cursors=self.channel == "kafka",
        )

    def cluster(self) -> Cluster:
        """Kafka's brokers and how to be let in."""
        return Cluster(
            addresses=self.kafka,
            tls=self.kafka_tls,
            ca_file=self.kafka_ca_file,
            cert_file=self.kafka_cert_file,
            key_file=self.kafka_key_file,
            username=self.kafka_username,
            password=self.kafka_password,
            mechanism=self.kafka_mechanism,
        )

    def pacing(self) -> Pacing:
        """How the projection is looked after."""
        return Pacing(
            every_s=self.care_every_s,
            copy_rate=self.copy_rate,
            verify_every=timedelta(hours=self.verify_every_h),
            grace=timedelta(seconds=self.retired_grace_s),
        )

    def topics(self) -> Topics:
        """Where the topics are."""
        return Topics(self.cluster(), self.topic, self.topic_partitions, self.topic_replicas)
