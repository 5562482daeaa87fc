"""Metrics have all their label sets from the start, and no more than they should."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from chassis import meters


def sets(metric: Any) -> set[tuple[str, ...]]:
    """The label values of a metric's series."""
    (family,) = metric.collect()
    return {
        tuple(value for label, value in sample.labels.items() if label != "le") for sample in family.samples
    }


def name(suffix: str) -> str:
    return f"test_{uuid4().hex}_{suffix}"


def test_a_counter_begins_at_zero_for_every_listed_value() -> None:
    metric = meters.counter(name("total"), "Things.", {"a": ("x", "y"), "b": ("1", "2")})
    assert sets(metric) == {("x", "1"), ("x", "2"), ("y", "1"), ("y", "2")}
    assert {sample.value for family in metric.collect() for sample in family.samples} == {0.0}


def test_a_histogram_too() -> None:
    metric = meters.histogram(name("seconds"), "Times.", {"a": ("x", "y")}, buckets=(1, 2))
    assert sets(metric) == {("x",), ("y",)}


def test_what_a_process_learns_at_start_is_prepared_then_and_adds_up() -> None:
    vocabulary = uuid4().hex
    metric = meters.counter(name("total"), "Things.", {"shard": meters.Known(vocabulary), "a": ("x", "y")})
    assert sets(metric) == set()
    meters.know(**{vocabulary: ["s1"]})
    meters.know(**{vocabulary: ["s2"]})
    assert sets(metric) == {("s1", "x"), ("s1", "y"), ("s2", "x"), ("s2", "y")}


def test_two_vocabularies_are_prepared_when_both_are_known() -> None:
    first, second = uuid4().hex, uuid4().hex
    labels = {"a": meters.Known(first), "b": meters.Known(second)}
    metric = meters.counter(name("total"), "Things.", labels)
    meters.know(**{first: ["x"]})
    assert sets(metric) == set()
    meters.know(**{second: ["y"]})
    assert sets(metric) == {("x", "y")}


def test_a_gauge_says_nothing_that_nobody_measured() -> None:
    metric = meters.gauge(name("seconds"), "Ages.", {"a": ("x",)})
    assert sets(metric) == set()


def test_what_nobody_measures_any_more_is_forgotten_with_all_its_label_sets_and_nothing_else() -> None:
    labels = {"shard": ("s1", "s2"), "table": ("a", "b")}
    metric, other = meters.gauge(name("rows"), "Rows.", labels), meters.gauge(name("bytes"), "Bytes.", labels)
    for each in (metric, other):
        for shard in ("s1", "s2"):
            for table in ("a", "b"):
                each.labels(shard, table).set(1)
    meters.forget(metric, shard="s1")
    assert sets(metric) == {("s2", "a"), ("s2", "b")}
    assert len(sets(other)) == 4
    meters.forget(metric, other, shard="s2", table="a")
    assert sets(metric) == {("s2", "b")}
    assert sets(other) == {("s1", "a"), ("s1", "b"), ("s2", "b")}
    meters.forget(metric, shard="s3")
    assert sets(metric) == {("s2", "b")}


def test_label_sets_that_cannot_be_listed_are_not_prepared() -> None:
    assert sets(meters.counter(name("total"), "Things.", {"a": None})) == set()


def test_a_metric_with_too_many_series_is_a_mistake() -> None:
    many = tuple(str(number) for number in range(60))
    with pytest.raises(meters.TooManySeries):
        meters.counter(name("total"), "Things.", {"a": many, "b": many})
