"""Settings of history_svc; docs/SETTINGS.md is generated from the descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator

from chassis.es import EsSettings
from chassis.settings import PagingSettings, ProcessSettings, reasons


class ReadSideSettings(ProcessSettings):
    """What the processes of the read side share: where the shards and the read model are."""

    shards: dict[str, SecretStr] = Field(
        description="Name of each shard and the postgresql:// address of its primary."
    )
    read_model: Literal["postgres", "elasticsearch"] = Field(
        "postgres", description="What holds the documents: a table in a Postgres database, or Elasticsearch."
    )
    read_model_dsn: SecretStr = Field(
        SecretStr(""), description="postgresql:// address of the read model's own database."
    )
    read_model_pool_size: int = Field(
        4, ge=1, le=32, description="Connections to the read model's own database."
    )
    elasticsearch: str = Field(
        "",
        description="http:// or https:// address of Elasticsearch, several nodes with commas between them.",
    )
    elasticsearch_api_key: SecretStr = Field(
        SecretStr(""), description="API key of Elasticsearch; none when empty."
    )
    elasticsearch_username: str = Field(
        "", max_length=256, description="User name for Elasticsearch in place of a key; none when empty."
    )
    elasticsearch_password: SecretStr = Field(SecretStr(""), description="That user's password.")
    elasticsearch_ca_file: Path | None = Field(
        None, description="PEM file with whom to trust for https, when not the system's list."
    )
    elasticsearch_shards: int = Field(
        1, ge=1, le=64, description="Shards of an index made from now on: one per 30 GB of a month."
    )
    elasticsearch_replicas: int = Field(
        0, ge=0, le=3, description="Copies of an index beside the first one; none on a single node."
    )
    channel: Literal["outbox", "kafka"] = Field(
        "outbox", description="How changes reach the projector: from the shards' outboxes, or by Kafka."
    )
    kafka: str = Field("", description="`host:port` of Kafka's brokers, several with commas between them.")

    @model_validator(mode="after")
    def _addresses(self) -> Self:
        if self.read_model == "elasticsearch" and not self.elasticsearch:
            raise ValueError("elasticsearch: needed with read_model=elasticsearch")
        if self.channel == "kafka" and not self.kafka:
            raise ValueError("kafka: needed with channel=kafka")
        try:
            self.elastic()
        except ValidationError as wrong:
            raise ValueError(f"elasticsearch: {reasons(wrong)}") from None
        return self

    def elastic(self) -> EsSettings:
        """Elasticsearch's nodes and how to be let in."""
        return EsSettings(
            addresses=tuple(self.elasticsearch.split(",")),
            api_key=self.elasticsearch_api_key,
            username=self.elasticsearch_username,
            password=self.elasticsearch_password,
            ca_file=self.elasticsearch_ca_file,
        )


class HistorySettings(ReadSideSettings, PagingSettings):
    """One history_svc process."""

    replicas: dict[str, SecretStr] = Field(
        {}, description="Name of a shard and the postgresql:// address of its read replica, where it has one."
    )
    lookback_s: float = Field(
        15.0, gt=0, le=300, description="How often the gauges of orders and cases are looked up."
    )
    hot_window_s: float = Field(
        172_800, ge=0, le=2_592_000, description="Orders younger than this are read from the shards."
    )
    pool_size: int = Field(4, ge=1, le=32, description="Connections to each shard, opened when first needed.")
    fallback_max: int = Field(
        2, ge=1, le=64, description="Pages at once that the shards serve in the read model's stead."
    )
    fallback_queue: int = Field(4, ge=0, le=64, description="Such pages that may wait for a slot.")
    search_timeout_s: float = Field(
        1.5, gt=0, le=30, description="How long one search of the read model may take."
    )
    pool_queue: int = Field(12, ge=0, le=96, description="Reads that may wait for a connection of one shard.")
    calls_max: int = Field(64, ge=1, le=1024, description="Calls at once.")
    calls_queue: int = Field(64, ge=0, le=1024, description="Calls that may wait for a slot.")
    read_timeout_s: float = Field(
        4.0, gt=0, le=30, description="How long the read of one shard may take at most."
    )
