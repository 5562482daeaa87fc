"""Settings of shard_proxy; docs/SETTINGS.md is generated from the descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from chassis.settings import Address, PagingSettings, is_loopback


class ProxySettings(PagingSettings):
    """One shard_proxy process."""

    dsn: SecretStr = Field(description="postgresql:// address of the control database.")
    map_file: Path = Field(
        description="Where the last good map is kept, so that a start needs no control database."
    )
    plain_listen: Address | None = Field(
        None,
        description="A second listener without TLS, for people with grpcurl; loopback only. None opens none.",
    )
    issuer: str = Field(
        "https://issuer.ordermesh.local", description="The `iss` of bearer tokens on the plain listener."
    )
    audience: str = Field("ordermesh", description="The `aud` of bearer tokens on the plain listener.")
    jwks_url: str = Field(
        "",
        description="Keys of the issuer, for bearer tokens on the plain listener; empty accepts none.",
    )
    lane_slots: int = Field(128, ge=1, le=250, description="Unary calls at once on one lane.")
    lane_queue: int = Field(
        256, ge=0, le=1024, description="Unary calls that may wait for a slot of one lane."
    )
    lane_streams: int = Field(200, ge=1, le=250, description="Streams at once on one lane.")
    bridge_s: float = Field(
        6.0, ge=0, le=30, description="How long calls wait for a lane whose process is being started again."
    )
    user_calls: int = Field(16, ge=1, le=1024, description="Calls at once of one user, and as many streams.")
    vip_calls: int = Field(64, ge=1, le=1024, description="The same for a VIP user.")

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if self.plain_listen is not None and not is_loopback(self.plain_listen):
            raise ValueError("plain_listen: plain text is only served on a loopback address")
        where = urlsplit(self.jwks_url)
        on_loopback = where.scheme == "http" and is_loopback(where.netloc or "-:0")
        if self.jwks_url and where.scheme != "https" and not on_loopback:
            raise ValueError("jwks_url: must be https, or http on loopback")
        return self
