"""Panels that show what an alert is computed from, with its threshold drawn.

The queries are the alert's own expression, cut at its comparisons: when the alert changes, so does its panel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from telemetry import rules
from telemetry.dashboards.board import Limit, Panel, Prom

_COMPARISON: Final = re.compile(r" (>=|<=|==|!=|>|<) ")
_WORD: Final = re.compile(r" (or|and) ")
_BY: Final = re.compile(r"\bby \(([a-z_, ]+)\)")
_ELSE_WRONG: Final = re.compile(r" (unless on \(\w+\) \w+ == 1|and on \(\w+\) \(\w+ > 0\))\)$")
"""Of a query that gives something only where another gives nothing, or is bad itself."""
_WINDOW: Final = re.compile(r"ratio_rate(\w+)")
_ABOVE_NOTHING: Final = 0.5
"""Grafana colours from a number on; what may not be above 0, or is 0 when it is bad, is counted in ones."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One comparison of an alert: what is measured, how, and against what; only the first for a presence."""

    expr: str
    comparison: str = ""
    bound: str = ""

    @property
    def number(self) -> float | None:
        """The bound, where it is a number."""
        try:
            return float(self.bound)
        except ValueError:
            return None


def measured(alert: str) -> tuple[Measured, ...]:
    """What an alert compares, in the order of its expression."""
    expression = rules.timed(_alert(alert).expr, rules.AS_IT_IS)
    return tuple(_comparison(part) for part in _parts(expression))


def watch(
    alert: str,
    title: str,
    says: str,
    *,
    unit: str = "short",
    legend: str = "",
    empty_when_healthy: str = "",
    more: tuple[Prom, ...] = (),
    wide: int = 8,
) -> Panel:
    """The panel of an alert. legend: how its series are called, by its labels unless said.

    empty_when_healthy: of the alert's own expressions, as of Prom. more: what is shown beside them.
    """
    compared = measured(alert)
    queries = [
        Prom(each.expr, legend or _legend(each.expr), empty_when_healthy=_reason(each, empty_when_healthy))
        for each in compared
    ]
    queries += [
        Prom(each.bound, "alert above this", empty_when_healthy=empty_when_healthy)
        for each in compared
        if each.bound and each.number is None
    ]
    return Panel(
        kind="series",
        title=title,
        says=says,
        queries=(*queries, *more),
        unit=unit,
        limit=_limit(compared),
        alerts=(alert,),
        wide=wide,
    )


def _alert(name: str) -> rules.Alert:
    return next(alert for alert in rules.alerts() if alert.name == name)


def _parts(expression: str) -> Iterator[str]:
    """The comparisons of an expression, which `or` and `and` join."""
    for part in _split(expression, _WORD):
        inner = part[1:-1] if part.startswith("(") and _depths(part)[-2] == 1 and part.endswith(")") else ""
        if inner and _COMPARISON.search(inner) and min(_depths(part)[:-1]) > 0:
            yield from _parts(inner)
        else:
            yield part


def _comparison(part: str) -> Measured:
    found = list(_outside(part, _COMPARISON))
    if not found:
        return Measured(part.strip())
    at = found[0]
    return Measured(part[: at.start()].strip(), at[1], part[at.end() :].strip())


def _split(text: str, pattern: re.Pattern[str]) -> list[str]:
    ends = [0, *(place for found in _outside(text, pattern) for place in found.span()), len(text)]
    return [text[start:end].strip() for start, end in zip(ends[::2], ends[1::2], strict=True)]


def _outside(text: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """Where a pattern stands outside of all brackets and quotes."""
    depths = _depths(text)
    return (found for found in pattern.finditer(text) if depths[found.start()] == 0)


def _depths(text: str) -> list[int]:
    """How deep in brackets and quotes each character is; an opening one is inside, a closing one outside."""
    depth, quoted, depths = 0, False, []
    for character in text:
        if character == '"':
            quoted = not quoted
        elif not quoted:
            depth += (character in "([{") - (character in ")]}")
        depths.append(depth + quoted)
    return depths


def _legend(expr: str) -> str:
    if window := _WINDOW.search(expr):
        return window[1]
    by = _BY.search(expr)
    labels = [label.strip() for label in by[1].split(",")] if by else []
    return " ".join(f"{{{{{label}}}}}" for label in labels if label != "le")


def _reason(each: Measured, reason: str) -> str:
    if not each.bound:
        return reason or "it is there only while what should be there is not."
    return reason or (
        "it counts only while something else is wrong." if _ELSE_WRONG.search(each.expr) else ""
    )


def _limit(compared: tuple[Measured, ...]) -> Limit | None:
    """Where the alert begins; of several bounds the highest, which is the one of the shortest window."""
    for each in compared:
        if each.number is not None:
            return Limit(each.number or _ABOVE_NOTHING, below=each.comparison in ("<", "=="))
    return None
