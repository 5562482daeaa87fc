"""The named statements of queries.sql, for panels."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_FILE = Path(__file__).parent / "queries.sql"


@cache
def statements() -> dict[str, str]:
    """The text of each statement by its name, with the sentences that explain it."""
    parts = re.split(r"^-- name: (\w+)$", _FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def statement(name: str) -> str:
    """One of them. Raises: KeyError."""
    return statements()[name]
