"""Counts and latencies of a run, small enough to keep whole. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds at the points people look at."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latencies:
        """The figures of a sample in seconds; all zero for an empty one."""
        ordered = sorted(seconds)
        at = [round(1000 * percentile(ordered, share), 2) for share in (0.5, 0.95, 0.99, 1.0)]
        return cls(len(ordered), *at)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of an ascending sample does not exceed; 0 for an empty
    one.
    """
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(slots=True)
class Tally:
    """What became of the orders that were asked for, as far as their callers know."""

    arrived: int = 0
    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0
    shed: int = 0
    replayed: int = 0
    retries: int = 0
    late_s_max: float = 0.0
    """How far the generator itself was behind its schedule, at worst."""
    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)

    def acknowledge(self, transport: str, seconds: float) -> None:
        """Count an acknowledgement; seconds since the order was due, retries included."""
        self.acknowledged += 1
        self.latencies_s.setdefault(transport, []).append(seconds)

    def fail(self, why: str) -> None:
        """Count a try that brought no acknowledgement."""
        self.failures[why] = self.failures.get(why, 0) + 1

    def figures(self) -> dict[str, Latencies]:
        """Latencies by transport, and of all."""
        by_transport = {name: Latencies.of(sample) for name, sample in sorted(self.latencies_s.items())}
        everything = [one for sample in self.latencies_s.values() for one in sample]
        return {**by_transport, "all": Latencies.of(everything)}
