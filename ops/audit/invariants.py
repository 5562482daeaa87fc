"""The invariants of one shard, read from invariants.sql: a name, the sentence below it, and a statement.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from chassis import pg


@dataclass(frozen=True, slots=True)
class Invariant:
    """Something that always holds on a shard; the statement returns (id, fact) of what breaks it."""

    name: str
    says: str
    statement: str


@cache
def invariants() -> tuple[Invariant, ...]:
    """All of them, in the order of the file."""
    found = vars(pg.queries("ops.audit", "invariants.sql"))
    return tuple(_invariant(name, text) for name, text in found.items())


def _invariant(name: str, text: str) -> Invariant:
    says, _, statement = text.partition("\n")
    return Invariant(name, says.removeprefix("--").strip(), statement)
