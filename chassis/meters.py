"""Metrics as the registry describes them: each with all its label sets from the start.

A series that appears with its first event hides that event from `increase()`, and an alert on it stays quiet.
So counters and histograms are prepared for every combination of what their labels may say: at once where the
registry lists the values, and by `know` where a process learns them when it starts. Gauges are not: a zero
that nobody measured is a lie. The definitions themselves are generated from telemetry/ into `metrics.py` of
each package.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

disable_created_metrics()  # type: ignore[no-untyped-call]  # They would double the series.
SERIES_MAX: Final = 2000
"""A metric with more label sets than this in one process is a mistake."""


class Known(str):
    """A vocabulary whose values a process says when it starts, such as its shards."""

    __slots__ = ()


Shown = Gauge
"""A gauge, for those who take one away."""
Values = tuple[str, ...] | Known | None
"""What a label may say: a list, what a process will say, or None where label sets are not prepared."""

_known: defaultdict[str, set[str]] = defaultdict(set)
_waiting: list[tuple[Counter | Histogram, Mapping[str, Values]]] = []


class TooManySeries(Exception):
    """A metric would have more label sets than SERIES_MAX."""


def counter(name: str, meaning: str, labels: Mapping[str, Values] | None = None) -> Counter:
    """A counter with its label sets prepared."""
    metric = Counter(name, meaning, list(labels or ()))
    _prepare(metric, labels or {})
    return metric


def gauge(name: str, meaning: str, labels: Mapping[str, Values] | None = None) -> Gauge:
    """A gauge; it has no series until it is set, but one without labels, which begins with zero."""
    return Gauge(name, meaning, list(labels or ()))


def histogram(
    name: str, meaning: str, labels: Mapping[str, Values] | None = None, *, buckets: Sequence[float]
) -> Histogram:
    """A histogram with its label sets prepared; buckets: upper bounds, in the unit of its name."""
    metric = Histogram(name, meaning, list(labels or ()), buckets=buckets)
    _prepare(metric, labels or {})
    return metric


def know(**vocabularies: Iterable[str]) -> None:
    """Say what labels of these vocabularies may be, such as `shard=["s1", "s2"]`; adds to what is known.

    Raises: TooManySeries.
    """
    for vocabulary, values in vocabularies.items():
        _known[vocabulary].update(values)
    for metric, labels in _waiting:
        if any(isinstance(values, Known) and str(values) in vocabularies for values in labels.values()):
            _make(metric, labels)


def forget(*gauges: Gauge, **labels: str) -> None:
    """Show these gauges no more for label sets such as `shard="s1"`, from when nobody here measures them: a
    gauge that keeps its last value says what is no longer so, and another process says what is.
    """
    for metric in gauges:
        metric.remove_by_labels(labels)


def _prepare(metric: Counter | Histogram, labels: Mapping[str, Values]) -> None:
    if not labels or None in labels.values():
        return
    if any(isinstance(values, Known) for values in labels.values()):
        _waiting.append((metric, labels))
    _make(metric, labels)


def _make(metric: Counter | Histogram, labels: Mapping[str, Values]) -> None:
    """Make every label set of which all values are known by now."""
    lists = [
        sorted(_known[values]) if isinstance(values, Known) else values or () for values in labels.values()
    ]
    count = 1
    for each in lists:
        count *= len(each)
    if count > SERIES_MAX:
        raise TooManySeries(f"{metric} would have {count} label sets")
    for values in product(*lists):
        metric.labels(*values)
