"""The OpenTelemetry collector of production: whole, bounded, and fitting those before and behind it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from ops.shipper import intake
from tests.telemetry import grafana

PATH = grafana.ROOT / "deploy/otelcol/config.yaml"
PAGE = grafana.ROOT / "docs/howto/watch-production.md"
KINDS = ("receivers", "processors", "exporters", "extensions")
SPANS_MAX = 512
"""Of which a request of 16 MiB holds fifty times as many."""
SETTINGS = {
    "receivers/otlp": {"protocols"},
    "processors/memory_limiter": {"check_interval", "limit_mib", "spike_limit_mib"},
    "processors/batch": {"send_batch_size", "send_batch_max_size", "timeout"},
    "exporters/otlp_http": {
        *("endpoint", "encoding", "compression", "timeout", "retry_on_failure", "sending_queue"),
    },
    "extensions/health_check": {"endpoint"},
    "extensions/file_storage": {"directory", "create_directory", "timeout", "compaction"},
}
"""What the components that are used here may be told, of all that the collector's own pages list."""


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    return found


def used(config: dict[str, Any], kind: str) -> list[str]:
    """The components of a kind that pipelines name, or the service for extensions."""
    if kind == "extensions":
        return list(config["service"]["extensions"])
    return [name for pipeline in config["service"]["pipelines"].values() for name in pipeline[kind]]


@pytest.mark.parametrize("kind", KINDS)
def test_each_component_that_is_used_is_there_and_each_that_is_there_is_used(
    config: dict[str, Any], kind: str
) -> None:
    assert set(used(config, kind)) == config[kind].keys()
    for name, told in config[kind].items():
        assert told.keys() <= SETTINGS[f"{kind}/{name.partition('/')[0]}"], name
    assert config.keys() == {*KINDS, "service"}
    assert config["service"]["pipelines"].keys() == {"traces"}


def test_it_refuses_before_it_is_full_and_loses_nothing_that_it_took(config: dict[str, Any]) -> None:
    (pipeline,) = config["service"]["pipelines"].values()
    assert pipeline["processors"] == ["memory_limiter", "batch"], "the first refuses, the last fills requests"
    memory = config["processors"]["memory_limiter"]
    assert 0 < memory["spike_limit_mib"] < memory["limit_mib"]
    shipper = config["exporters"]["otlp_http/shipper"]
    queue = shipper["sending_queue"]
    assert queue["enabled"]
    assert 0 < queue["queue_size"] <= 10_000
    assert queue["storage"] in config["service"]["extensions"], "what waits outlives the collector"
    assert shipper["retry_on_failure"]["enabled"]
    assert shipper["retry_on_failure"]["max_elapsed_time"] == "0s", "it is tried for ever"


def test_nothing_is_sampled_a_second_time() -> None:
    """The first process of a trace decided for all; who sampled again would tear links."""
    assert not re.search(r"^ *(tail_sampling|probabilistic_sampler)", PATH.read_text("utf-8"), re.MULTILINE)


def test_requests_fit_those_who_send_and_the_shipper_that_takes(config: dict[str, Any]) -> None:
    taken = config["receivers"]["otlp"]["protocols"]["http"]
    assert taken["max_request_body_size"] == intake.BODY_BYTES_MAX
    assert f"ORDERMESH_OTLP_ENDPOINT=http://{taken['endpoint']}{intake.PATH}" in PATH.read_text("utf-8")
    shipper = config["exporters"]["otlp_http/shipper"]
    assert (shipper["encoding"], shipper["compression"]) == ("proto", "gzip"), "as the shipper reads"
    assert not shipper["endpoint"].endswith(intake.PATH), "the exporter adds it"
    assert config["processors"]["batch"]["send_batch_max_size"] <= SPANS_MAX
    assert shipper["sending_queue"]["num_consumers"] <= intake.REQUESTS_MAX


def test_prometheus_and_the_page_know_it(config: dict[str, Any]) -> None:
    (reader,) = config["service"]["telemetry"]["metrics"]["readers"]
    shown = reader["pull"]["exporter"]["prometheus"]
    assert shown["without_type_suffix"], "its counters do not end with _total, as in rules and panels"
    assert shown["without_units"]
    port = shown["port"]
    page = PAGE.read_text(encoding="utf-8")
    assert f"{port}" in page
    for name in set(re.findall(r"\$\{env:(\w+)", PATH.read_text("utf-8"))):
        assert f"`{name}`" in page, name
