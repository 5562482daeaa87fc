"""The registry of metrics: what is in it is counted, what is counted is in it; no label holds a person."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from prometheus_client.metrics import MetricWrapperBase

from scripts import docs
from scripts import telemetry as generator
from telemetry import registry
from telemetry.registry import Metric, RegistryError
from tests.tidy.tree import SHIPPED, text, tree, written

PREFIXES = ("ordermesh_", "grpc_server_", "grpc_client_", "http_server_")


def test_the_generated_files_are_those_of_the_registry() -> None:
    assert generator.stale() == []


def test_every_package_with_metrics_is_registered() -> None:
    made = {
        path.parent.as_posix().replace("/", ".")
        for path in written(".py", under=SHIPPED)
        if path.name == "metrics.py"
    }
    assert made == registry.packages().keys()


def test_metrics_are_made_in_generated_files_only() -> None:
    """An unregistered metric has no meaning, no vocabulary and no page."""
    makers = {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum"}
    found = [
        f"{path}:{node.lineno}"
        for path in written(".py", under=SHIPPED)
        if path.as_posix() != "chassis/meters.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("prometheus_client")
        and makers & {alias.name for alias in node.names}
    ]
    assert found == []
    callers = [
        path.as_posix()
        for path in written(".py", under=SHIPPED)
        if path.name != "metrics.py" and re.search(r"meters\.(counter|gauge|histogram)\(", text(path))
    ]
    assert callers == []


def test_what_processes_show_is_what_the_registry_says() -> None:
    docs.modules()
    shown = {
        name: (collector._type, tuple(collector._labelnames))
        for collector, names in prometheus_client.REGISTRY._collector_to_names.items()
        if isinstance(collector, MetricWrapperBase)
        for name in [collector._name + ("_total" if collector._type == "counter" else "")]
        if name.startswith(PREFIXES)
    }
    assert shown == {metric.name: (metric.kind, tuple(metric.labels)) for metric in registry.metrics()}


@pytest.mark.parametrize("metric", registry.metrics(), ids=lambda metric: metric.name)
def test_a_metric_is_named_in_the_manner_of_prometheus_and_counted_somewhere(metric: Metric) -> None:
    assert metric.name.startswith(PREFIXES)
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
    home = Path(metric.package.replace(".", "/"))
    code = "\n".join(
        text(path)
        for path in written(".py", under=SHIPPED)
        if path.is_relative_to(metric.owner) and path != home / "metrics.py"
    )
    assert re.search(rf"\b{metric.constant}\.\w", code), f"nobody counts {metric.package}.{metric.constant}"


def test_every_vocabulary_is_used_and_a_process_says_those_that_it_must() -> None:
    used = {each.name for metric in registry.metrics() for each in metric.labels.values()}
    assert used == registry.vocabularies().keys()
    code = "\n".join(text(path) for path in written(".py", under=SHIPPED))
    said = {
        name
        for call in re.findall(r"meters\.know\((.*?)\)\n", code, re.DOTALL)
        for name in re.findall(r"(\w+)=", call)
    }
    assert {name for name, each in registry.vocabularies().items() if each.known} == said


GOOD: dict[str, Any] = {"name": "ordermesh_things_total", "type": "counter", "meaning": "Things."}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"labels": {"user_id": "shard"}}, "one series for each user_id"),
        ({"labels": {"order": "shard"}}, "one series for each order"),
        ({"labels": {"shard": "unlisted"}}, "not listed"),
        ({"labels": {"route": "route"}}, "say why in `sparse`"),
        ({"name": "ordermesh_things"}, "ends with _total"),
        ({"type": "histogram", "name": "ordermesh_things_seconds"}, "has buckets"),
        ({"type": "histogram", "name": "ordermesh_things", "buckets": [1]}, "ends with a unit"),
        ({"type": "histogram", "name": "ordermesh_things_seconds", "buckets": [2, 1]}, "buckets go up"),
        ({"type": "summary"}, "no type"),
        ({"meaning": "Things"}, "a sentence"),
        ({"help": "Things."}, "nobody knows"),
    ],
)
def test_an_entry_that_is_wrong_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(RegistryError, match=re.escape(why)):
        registry._metric("order_svc", "THINGS", GOOD | change)


def test_the_listed_values_are_words_and_few() -> None:
    for name, vocabulary in registry.vocabularies().items():
        assert len(vocabulary.values) <= 100, name
        assert all(re.fullmatch(r"[A-Za-z0-9_]*", value) for value in vocabulary.values), name
    raw = tomllib.loads((registry.HERE / "vocabularies.toml").read_text(encoding="utf-8"))
    sentences = [entry[kind] for entry in raw.values() for kind in ("known", "bounded") if kind in entry]
    assert all(sentence.endswith(".") for sentence in sentences)
