"""Prometheus of production takes its files, and scrapes every job that rules and dashboards select."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops import gobuild, prometheus
from ops.stack.plan import PORT_NAMES
from tests.telemetry import grafana

DEPLOY = grafana.ROOT / "deploy/prometheus"
TARGETS = [{"targets": ["a.internal:9090"], "labels": {"instance": "a"}}]
OF_A_LAPTOP = {"upstream"}
"""What runs in a local stack and nowhere else."""
OF_PRODUCTION = {"otelcol"}
_SELECTS = re.compile(r'\bjob(=~?|!=|!~)"([^"]*)"')
_VARIABLE = re.compile(r"\$\{?\w+\}?")


def promtool(directory: Path) -> subprocess.CompletedProcess[str]:
    """What promtool says of the configuration in a directory, with all that it knows to be doubtful."""
    return subprocess.run(
        [gobuild.programs() / "promtool", "check", "config", "--lint=all", directory / "prometheus.yml"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The files where production has them, with a target in each file that they name."""
    for path in DEPLOY.glob("*.yml"):
        shutil.copy(path, tmp_path)
    (tmp_path / "targets").mkdir()
    for name in (*jobs(), "alertmanager"):
        (tmp_path / f"targets/{name}.yml").write_text(yaml.safe_dump(TARGETS))
    return tmp_path


def loaded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    return found


def jobs() -> list[str]:
    return [each["job_name"] for each in loaded("scrape.yml")["scrape_configs"]]


def expressions() -> Iterator[str]:
    """Every expression of rules and dashboards, as Prometheus gets it."""
    for group in loaded("rules.yml")["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    yield from (target.asked["expr"] for target in grafana.targets() if "expr" in target.asked)
    for board in grafana.dashboards().values():
        for variable in grafana.variables(board):
            if variable["type"] == "query":
                yield variable["query"]["query"]


def selected() -> set[str]:
    """The names of jobs that are selected anywhere, without what a reader chooses."""
    return {
        name
        for expression in expressions()
        for _, names in _SELECTS.findall(expression)
        for name in names.split("|")
        if not _VARIABLE.fullmatch(name)
    }


def test_promtool_takes_the_configuration_with_its_rules_and_jobs(directory: Path) -> None:
    ended = promtool(directory)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = ended.stdout + ended.stderr
    assert "prometheus.yml is valid prometheus config file syntax" in said
    assert "rules found" in said
    assert not re.search("warning|does not exist|FAILED", said, re.IGNORECASE), said


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("scrape.yml", "job_name: projector", "job_name: gateway"),
        ("rules.yml", "up == 0", "up =="),
        ("prometheus.yml", "scrape_timeout: 10s", "scrape_timeout: 20s"),
    ],
)
def test_promtool_reads_each_of_the_files(directory: Path, name: str, right: str, wrong: str) -> None:
    text = (directory / name).read_text()
    assert right in text
    (directory / name).write_text(text.replace(right, wrong))
    assert promtool(directory).returncode != 0


def test_every_job_that_rules_and_dashboards_select_is_scraped() -> None:
    assert {"gateway", "shard_proxy", "history_svc"} <= selected() <= set(jobs())


def test_a_job_reads_its_own_file_and_takes_a_bounded_number_of_series() -> None:
    for each in loaded("scrape.yml")["scrape_configs"]:
        assert [found["files"] for found in each["file_sd_configs"]] == [[f"targets/{each['job_name']}.yml"]]
        assert 0 < each["sample_limit"] <= 20_000
        assert each.keys() == {"job_name", "sample_limit", "file_sd_configs"}, "the rest is for all"


def test_exemplars_are_kept_and_a_scrape_ends_before_the_next() -> None:
    whole = loaded("prometheus.yml")
    text = (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")
    assert whole["storage"]["exemplars"]["max_exemplars"] > 0
    assert "--enable-feature=exemplar-storage" in text
    assert whole["global"]["scrape_interval"] == "15s", "data source and panels reckon with it"
    boards = json.dumps(grafana.dashboards())
    assert '"interval": "15s"' in boards
    assert whole["alerting"]["alertmanagers"]


def test_links_of_alerts_begin_with_labels_that_the_server_has() -> None:
    wanted = re.findall(r"\$externalLabels\.(\w+)", (DEPLOY / "rules.yml").read_text(encoding="utf-8"))
    assert wanted
    assert set(wanted) == loaded("prometheus.yml")["global"]["external_labels"].keys()


def test_what_links_begin_with_is_no_label_of_an_alert() -> None:
    whole = loaded("prometheus.yml")
    (dropped,) = whole["alerting"]["alert_relabel_configs"]
    assert dropped.keys() == {"action", "regex"}
    assert dropped["action"] == "labeldrop"
    names = whole["global"]["external_labels"].keys()
    assert [name for name in names if not re.fullmatch(dropped["regex"], name)] == []
    kept = {"alertname", "severity", "promise", "instance", "shard", "job"}
    assert [name for name in kept if re.fullmatch(dropped["regex"], name)] == []


def test_the_local_stack_scrapes_the_jobs_of_production_and_what_a_laptop_has_besides() -> None:
    assert list(prometheus.jobs()) == jobs()
    admins = {name.partition(".")[0] for name in PORT_NAMES if name.endswith(".admin")}
    assert admins == set(jobs()) - OF_PRODUCTION | OF_A_LAPTOP
