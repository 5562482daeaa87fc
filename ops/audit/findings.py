"""What checks found: every violation is counted, the first few are kept to be shown. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXAMPLES_MAX = 10
"""Enough to start looking; the count says how many there are."""


@dataclass(frozen=True, slots=True)
class Broken:
    """One violation. where: a shard, an upstream or a log; id: mostly an order; fact: what is wrong with
    it.
    """

    where: str
    id: str
    fact: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One check, what it says, and what breaks it."""

    check: str
    says: str
    count: int
    first: tuple[Broken, ...]


class Findings:
    """Collects violations of a closed list of checks; a check that found nothing is part of the result."""

    def __init__(self, checks: Mapping[str, str]) -> None:
        self._checks = dict(checks)
        self._counts = dict.fromkeys(checks, 0)
        self._first: dict[str, list[Broken]] = {check: [] for check in checks}

    def add(self, check: str, *broken: Broken, count: int | None = None) -> None:
        """Record violations. count: how many there are when only the first are given."""
        self._counts[check] += len(broken) if count is None else count
        room = EXAMPLES_MAX - len(self._first[check])
        self._first[check].extend(broken[:room])

    def all(self) -> list[Finding]:
        """Every check in its order."""
        return [
            Finding(check, says, self._counts[check], tuple(self._first[check]))
            for check, says in self._checks.items()
        ]


def violations(findings: Iterable[Finding]) -> int:
    """How many violations there are in all."""
    return sum(finding.count for finding in findings)
