"""What a scrape of this process would show."""

from __future__ import annotations

from prometheus_client import REGISTRY


def exemplars(histogram: str) -> set[str]:
    """The traces that a histogram keeps beside its values, one for each bucket at most."""
    return {
        sample.exemplar.labels["trace_id"]
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == f"{histogram}_bucket" and sample.exemplar is not None
    }


def handled(method: str, code: str) -> float:
    """How often the counter that dashboards read saw this."""
    return sampled("grpc_server_handled_total", grpc_method=method, grpc_code=code)


def sampled(name: str, **labels: str) -> float:
    """What the series of a metric with these labels say together."""
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
