"""Settings of the shipper."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from chassis.settings import Address, Settings


class ShipperSettings(Settings):
    """Where lines and spans come from, and where they go."""

    listen: Address = Field("127.0.0.1:0", description="Where spans are taken, OTLP over HTTP.")
    admin_listen: Address = Field(
        "127.0.0.1:0", description="Where /metrics, /healthz and /readyz are served."
    )
    elasticsearch: str = Field(pattern="^https?://", description="Address of Elasticsearch.")
    elasticsearch_api_key: SecretStr = Field(
        SecretStr(""), description="API key of Elasticsearch; none when empty."
    )
    logs_dir: Path | None = Field(
        None, description="The directory with the processes' log files; where others carry lines, none."
    )
    shipper_dir: Path = Field(description="Where offsets, waiting spans and refused lines are kept.")
    spool_bytes_max: int = Field(
        128 * 1024 * 1024,
        ge=1024 * 1024,
        le=8 * 1024 * 1024 * 1024,
        description="Spans that wait for Elasticsearch; more are refused, with a time to come back.",
    )
