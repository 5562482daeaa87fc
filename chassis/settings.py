"""Settings come from the environment once, at start, into frozen models; a bad one stops the process with
every error named.

Each field says its unit in its name, its bound in its type and its purpose in its description;
docs/SETTINGS.md is generated from them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

EXIT_BAD_SETTINGS = 78
"""EX_CONFIG of sysexits.h."""

Address = Annotated[str, Field(pattern=r"^(\[[0-9a-f:]+\]|[A-Za-z0-9_.-]+):\d{1,5}$")]
"""`host:port`; port 0 takes a free one."""


class Settings(BaseSettings):
    """The base of every settings model: frozen, read from `ORDERMESH_*`."""

    model_config = SettingsConfigDict(
        env_prefix="ORDERMESH_",
        env_nested_delimiter="__",
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
    )


class ProcessSettings(Settings):
    """What every service process needs."""

    listen: Address = Field("127.0.0.1:0", description="Where the gRPC server listens.")
    admin_listen: Address = Field(
        "127.0.0.1:0",
        description="Where /metrics, /healthz and /readyz are served; loopback or cluster-internal.",
    )
    tls_dir: Path = Field(
        description="Directory with ca.pem and one folder per identity, each with cert.pem and key.pem."
    )
    subject_dir: Path = Field(description="Directory with the Ed25519 keys of those who sign subjects.")
    profile: Literal["local", "production"] = Field(
        "production", description="`local` makes waits short, for a laptop."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity logged."
    )
    log_file: Path | None = Field(
        None,
        description="The file that standard output goes to, if it is to be moved aside to `.1` at 32 MiB.",
    )
    drain_s: float = Field(10.0, ge=0, le=300, description="How long calls may take to end at stop.")
    otlp_endpoint: str = Field("", description="OTLP/HTTP endpoint for traces; empty exports none.")
    trace_ratio: float = Field(
        0.05, ge=0, le=1, description="Share of traces that is sampled where no caller decided."
    )
    trace_export_s: float = Field(
        5.0, gt=0, le=60, description="How long spans wait at most until they are handed over, together."
    )
    user_hash_key: SecretStr = Field(
        SecretStr(""),
        description="Key of the hashes that logs have instead of user ids, the same in every process; "
        "empty leaves users out of them.",
    )
    faults: str = Field("", description="Fault points to arm, `point=action[:nth[:seconds]];...`; for tests.")


_LOCAL_PAGE_TOKEN_KEY = SecretStr("page tokens of a laptop carry no authority")
PageTokenKey = Annotated[SecretStr, Field(min_length=16, max_length=256)]


class PagingSettings(ProcessSettings):
    """What a process needs that answers in pages."""

    page_token_keys: tuple[PageTokenKey, ...] = Field(
        (),
        max_length=2,
        description="Keys that sign page tokens, newest first, same in every process. Needed in production.",
    )

    @model_validator(mode="after")
    def _keys_in_production(self) -> Self:
        if self.profile == "production" and self.has_pages() and not self.page_token_keys:
            raise ValueError("page_token_keys: give one or two keys of at least 16 characters")
        return self

    def has_pages(self) -> bool:
        """Whether there is anything to page through, with these settings."""
        return True

    def token_keys(self) -> tuple[bytes, ...]:
        """The keys to sign page tokens with, newest first."""
        return tuple(
            key.get_secret_value().encode() for key in self.page_token_keys or (_LOCAL_PAGE_TOKEN_KEY,)
        )


S = TypeVar("S", bound=Settings)


def load(model: type[S]) -> S:
    """Read a settings model from the environment; print every error and exit 78 when it is not valid."""
    try:
        return model()
    except ValidationError as wrong:
        prefix = str(model.model_config.get("env_prefix", ""))
        for error in wrong.errors(include_input=False, include_url=False):
            name = prefix + "__".join(str(part) for part in error["loc"]).upper()
            sys.stderr.write(f"{name}: {error['msg']}\n")
        raise SystemExit(EXIT_BAD_SETTINGS) from None


def reasons(wrong: ValidationError) -> str:
    """Why a model was refused, in one line, without what was given."""
    said = [str(error["msg"]) for error in wrong.errors(include_input=False, include_url=False)]
    return "; ".join(each.removeprefix("Value error, ") for each in said)


def split_address(address: str) -> tuple[str, int]:
    """`host:port` as a pair, brackets of IPv6 removed."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address."""
    host, _ = split_address(address)
    return host in ("localhost", "::1") or host.startswith("127.")
