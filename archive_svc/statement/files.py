"""Where the files of statements are: below their shard, which alone knows who may have them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID


def statements_prefix(shard: str) -> str:
    """Where all files of a shard's statements are."""
    return f"statements/v1/shard={shard}/"


def prefix_of(shard: str, statement_id: UUID) -> str:
    """Where all files of a statement are."""
    return f"{statements_prefix(shard)}{statement_id}/"


def key_of(shard: str, statement_id: UUID, fence: int) -> str:
    """Where a turn stores its file."""
    return f"{prefix_of(shard, statement_id)}{fence}.zip"


def fence_of(key: str) -> int:
    """The turn that stored a file; -1 for what no turn stored."""
    name = key.rpartition("/")[2].removesuffix(".zip")
    return int(name) if name.isdecimal() else -1
