"""Lines as they stand in the log files of a local stack, for one without Elasticsearch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ops.story.kept import LINES_MAX, traces_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


def lines_of(logs: Path, *, order: str = "", traces: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Lines about an order and of the traces that it was worked on in, or of these traces; the oldest first.

    Reads every file once for the order and once more for its traces; `LINES_MAX` at most.
    """
    wanted = set(traces)
    if order:
        wanted |= set(traces_in(_with(logs, {order})))
    found = [
        line
        for line in _with(logs, {order, *wanted} - {""})
        if line.get("order_id") == order or line.get("trace.id") in wanted
    ]
    return sorted(found, key=lambda line: str(line.get("@timestamp", "")))[:LINES_MAX]


def _with(logs: Path, words: set[str]) -> Iterator[dict[str, Any]]:
    """Every ECS line that has one of these words somewhere."""
    needles = [word.encode() for word in words]
    for path in sorted([*logs.glob("*.log.[0-9]"), *logs.glob("*.log")]):
        with path.open("rb") as file:
            for raw in file:
                if raw.startswith(b"{") and any(needle in raw for needle in needles):
                    try:
                        line = json.loads(raw)
                    except ValueError:
                        continue
                    if isinstance(line, dict) and "@timestamp" in line:
                        yield line
