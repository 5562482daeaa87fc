"""How findings look: a row per check for people, objects for programs. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ops.audit.findings import Finding

COLUMNS = ("check", "violations", "says", "first")
SHOWN = 3
"""Examples in a cell of the table; JSON has all that were kept."""


def rows(findings: Iterable[Finding]) -> list[tuple[str, str, str, str]]:
    """One row for each check."""
    return [(each.check, str(each.count), each.says, _first(each)) for each in findings]


def as_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """One object for each check."""
    return [asdict(each) for each in findings]


def _first(finding: Finding) -> str:
    shown = [f"{each.id} ({each.where}): {each.fact}" for each in finding.first[:SHOWN]]
    more = finding.count - len(shown)
    return "; ".join([*shown, f"and {more} more"] if more else shown)
