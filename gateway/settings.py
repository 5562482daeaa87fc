"""Settings of the gateway; docs/SETTINGS.md is generated from the descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from chassis.settings import Address, ProcessSettings, is_loopback

_LOCAL: dict[str, Any] = {
    # One address is everybody on a laptop, and a load test is hundreds of users at full speed.
    "connections_per_address_max": 2000,
    "requests_per_user_per_s": 500,
    "requests_burst": 1000,
    "creates_per_user_per_s": 500,
    "creates_burst": 1000,
    "trust_traceparent": True,
    "secure_cookies": False,
}
"""What profile `local` changes, unless the environment says otherwise."""


class GatewaySettings(ProcessSettings):
    """One gateway process."""

    listen: Address = Field("127.0.0.1:8400", description="Where REST is served; TLS ends in front of it.")
    mesh_target: Address = Field(description="mTLS listener of shard_proxy.")
    issuer: str = Field("https://issuer.ordermesh.local", description="The only `iss` that is accepted.")
    audience: str = Field("ordermesh", description="The `aud` that tokens must name.")
    jwks_url: str = Field(description="Where the issuer publishes its keys; https, or http on loopback.")
    jwks_file: Path | None = Field(None, description="Where the last good keys are kept for the next start.")
    trusted_proxies: str = Field(
        "", description="Addresses whose X-Forwarded-For is believed, comma-separated."
    )

    trust_traceparent: bool = Field(
        False, description="Whether callers may continue their own traces, and so decide what is sampled."
    )

    timeout_s: float = Field(
        5.0, gt=0, le=35, description="Deadline of a request that names none; `wait` is added."
    )
    timeout_s_max: float = Field(35.0, gt=0, le=120, description="No request gets a longer deadline.")
    wait_s_max: int = Field(30, ge=0, le=30, description="The longest `Prefer: wait` that is honoured.")

    body_bytes_max: int = Field(65_536, ge=1024, le=1_048_576, description="Larger bodies are refused.")
    receipt_s: float = Field(10.0, gt=0, le=60, description="A whole request must arrive within this time.")
    keep_alive_s: int = Field(5, ge=1, le=75, description="How long an idle connection stays open.")
    connections_max: int = Field(2000, ge=1, le=65_536, description="Connections at once.")
    connections_per_address_max: int = Field(
        32, ge=1, le=65_536, description="Connections at once of one address."
    )

    requests_in_flight_max: int = Field(
        512, ge=1, le=65_536, description="Requests answered at once; begun event streams are not counted."
    )
    requests_queue: int = Field(
        1024,
        ge=0,
        le=65_536,
        description="Requests that may wait up to 1 s to be answered; the next is refused.",
    )
    requests_per_user_per_s: float = Field(20, gt=0, description="Requests a user may send in the long run.")
    requests_burst: int = Field(40, ge=1, description="Requests a user may send at once.")
    creates_per_user_per_s: float = Field(5, gt=0, description="Orders a user may create in the long run.")
    creates_burst: int = Field(20, ge=1, description="Orders a user may create at once.")
    users_tracked_max: int = Field(20_000, ge=100, description="Users whose rates are remembered at once.")

    consistency_cookie_s: int = Field(
        60, ge=1, le=3600, description="How long the cookie lives by which a caller sees its own writes."
    )
    secure_cookies: bool = Field(
        True, description="Whether cookies are for https only; the profile `local` speaks http."
    )

    streams_max: int = Field(500, ge=1, le=10_000, description="Event streams at once.")
    streams_per_user_max: int = Field(8, ge=1, le=1000, description="Event streams at once of one user.")
    stream_s_max: float = Field(
        280.0, gt=0, le=290, description="An event stream is closed after this; the client resumes."
    )
    heartbeat_s: float = Field(
        15.0, gt=0, le=60, description="Silence on an event stream before a comment is sent."
    )

    @model_validator(mode="before")
    @classmethod
    def _profile(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("profile") == "local":
            return {**_LOCAL, **given}
        return given

    @model_validator(mode="after")
    def _safe_keys(self) -> Self:
        where = urlsplit(self.jwks_url)
        if where.scheme == "https" or (where.scheme == "http" and is_loopback(where.netloc or "-:0")):
            return self
        raise ValueError("jwks_url: must be https, or http on loopback")
