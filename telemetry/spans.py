"""The spans and their attributes, as telemetry/spans.toml lists them; for the docs and for tests."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Any

from telemetry.registry import HERE


@dataclass(frozen=True, slots=True)
class RegisteredSpan:
    """One span: its name, with {} where it is filled in, its kind, who makes it and what it stands below."""

    name: str
    kind: str
    made_by: str
    place: str
    meaning: str

    @property
    def is_literal(self) -> bool:
        """Whether the name stands in the code as it is."""
        return "{" not in self.name


@cache
def spans() -> tuple[RegisteredSpan, ...]:
    """Every span. Raises: TypeError for an entry that lacks something, or has something unknown."""
    return tuple(RegisteredSpan(**entry) for entry in _read()["span"])


@cache
def attributes() -> dict[str, str]:
    """What each attribute says, by its name."""
    found: dict[str, str] = _read()["attribute"]
    return found


@cache
def _read() -> dict[str, Any]:
    return tomllib.loads((HERE / "spans.toml").read_text(encoding="utf-8"))
