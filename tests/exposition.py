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
