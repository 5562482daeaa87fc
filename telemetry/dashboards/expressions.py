"""The few shapes that expressions of dashboards have: rates, spreads, quantiles."""

from __future__ import annotations

from typing import Final

from telemetry import registry
from telemetry.dashboards.board import Prom

_QUANTILES: Final = ((0.5, "p50"), (0.99, "p99"))


def rate(
    metric: str, *by: str, where: str = "", legend: str = "", seen: bool = False, empty_when_healthy: str = ""
) -> Prom:
    """How much a counter grows a second, summed up by labels. where: matchers. seen: only what does grow."""
    return Prom(
        _summed(f"rate({metric}{_braced(where)}[$__rate_interval])", by) + (" > 0" if seen else ""),
        legend or _legend(by),
        empty_when_healthy=empty_when_healthy,
    )


def gauge(
    metric: str,
    *by: str,
    where: str = "",
    legend: str = "",
    of: str = "sum",
    empty_when_healthy: str = "",
) -> Prom:
    """A gauge, summed up by labels. of: what else than its sum, such as `max`."""
    return Prom(
        _summed(f"{metric}{_braced(where)}", by, of),
        legend or _legend(by),
        empty_when_healthy=empty_when_healthy,
    )


def agreed(metric: str, *by: str, where: str = "", legend: str = "", empty_when_healthy: str = "") -> Prom:
    """A gauge that several processes show alike, as each looks at every shard: counted once, summed up."""
    labels = next(each.labels for each in registry.metrics() if each.name == metric)
    once = _summed(f"{metric}{_braced(where)}", tuple(labels), "max")
    return Prom(_summed(once, by), legend or _legend(by), empty_when_healthy=empty_when_healthy)


def quantiles(
    metric: str, *by: str, where: str = "", exemplars: bool = False, empty_when_healthy: str = ""
) -> tuple[Prom, ...]:
    """What half, and 99 of 100, of a histogram's observations are below. metric: without `_bucket`."""
    spread_of = spread(metric, *by, where=where).expr
    return tuple(
        Prom(
            f"histogram_quantile({quantile}, {spread_of})",
            f"{_legend(by)} {name}".strip(),
            exemplars=exemplars,
            empty_when_healthy=empty_when_healthy,
        )
        for quantile, name in _QUANTILES
    )


def spread(metric: str, *by: str, where: str = "") -> Prom:
    """A histogram's buckets, for a heatmap."""
    return rate(f"{metric}_bucket", *by, "le", where=where, legend="{{le}}")


def _summed(expression: str, by: tuple[str, ...], of: str = "sum") -> str:
    return f"{of} by ({', '.join(by)}) ({expression})" if by else f"{of}({expression})"


def _braced(where: str) -> str:
    return f"{{{where}}}" if where else ""


def _legend(by: tuple[str, ...]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by)
