"""Where the objects are, who we are there, and how long we wait."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

MIB = 1024 * 1024
PUBLIC_ENDPOINT = (
    r"^(https://[A-Za-z0-9.:\[\]_-]{1,250}|http://(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?)?$"
)
"""A link is all that its file takes, so it is to be read by nobody on the way."""


class S3Settings(BaseModel):
    """One bucket of one S3."""

    model_config = ConfigDict(frozen=True)

    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", description="The S3 bucket.")
    endpoint: str = Field("", description="http:// or https:// address; empty for that of AWS in the region.")
    public_endpoint: str = Field(
        "",
        pattern=PUBLIC_ENDPOINT,
        description="https:// address under which those find the bucket who are given a link, on loopback "
        "http:// too; empty for `endpoint`.",
    )
    region: str = Field("us-east-1", description="Region, which is part of every signature.")
    access_key: str = Field("", description="Access key; empty for the chain of the AWS SDKs (role, file).")
    secret_key: SecretStr = Field(SecretStr(""), description="Secret of the access key.")
    addressing: Literal["path", "virtual"] = Field(
        "path", description="Where the bucket's name stands: in the path, or before the host's name."
    )
    ca_file: Path | None = Field(None, description="Whom to trust for https, when not the system's list.")
    encryption: Literal["", "AES256", "aws:kms"] = Field(
        "", description="Encryption at rest that is asked for with each object; empty for the bucket's own."
    )
    kms_key_id: str = Field("", description="The key for `aws:kms`; empty for the account's.")
    object_lock: bool = Field(
        False, description="Whether objects are locked until their time; needs a bucket made with locks."
    )
    connections: int = Field(16, ge=1, le=256, description="Connections at most, and calls at a time.")
    connect_s: float = Field(3.0, gt=0, le=60, description="How long making a connection may take.")
    attempt_s: float = Field(
        10.0, gt=0, le=120, description="How long one try may take, beyond the time for its bytes."
    )
    call_s: float = Field(60.0, gt=0, le=900, description="How long a call may take with all its tries.")
    bytes_per_s_min: int = Field(
        MIB, ge=1024, description="The slowest transfer that is waited for, in bytes per second."
    )
    tries_max: int = Field(6, ge=1, le=20, description="Tries of one call.")
    pause_s: float = Field(
        0.1, ge=0, le=10, description="The first pause between tries is up to this; each next up to twice it."
    )
    pause_s_max: float = Field(5.0, ge=0, le=60, description="No pause is longer.")
    part_bytes: int = Field(
        8 * MIB, ge=5 * MIB, le=64 * MIB, description="Size of a part of an upload in parts, held in memory."
    )
