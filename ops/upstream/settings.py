"""Settings of one simulated upstream."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from chassis.settings import ProcessSettings


class UpstreamSettings(ProcessSettings):
    """What one simulated upstream is called, where its ledger lies and what its contract promises."""

    upstream_name: str = Field(
        "upstream",
        pattern=r"^[a-z][a-z0-9_-]{0,31}$",
        description="The upstream's name; goes into every upstream_ref.",
    )
    ledger: Path = Field(description="The SQLite file with what was executed; made when it is missing.")
    idempotent: bool = Field(
        True, description="Whether a second Execute of one key finds the first one; false executes again."
    )
