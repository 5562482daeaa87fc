"""Alerts over series that end, are missing, or come from several processes: promtool runs the stories."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from telemetry import rules
from telemetry.rules import AS_IT_IS
from tests.telemetry.test_rules import promtool

STORIES: dict[str, list[dict[str, Any]]] = tomllib.loads(
    (Path(__file__).parent / "stories.toml").read_text(encoding="utf-8")
)
ALERTS = {alert.name: alert for alert in rules.alerts()}


def told(name: str, story: dict[str, Any]) -> dict[str, Any]:
    """A test of promtool. The sample of minute 0 is the first."""
    return {
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in story["series"].items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)',
                "eval_time": f"{minute}m",
                "exp_samples": [{"value": count}],
            }
            for minute, count in story["firing"].items()
        ],
    }


@pytest.mark.parametrize("name", STORIES)
def test_an_alert_knows_dead_processes_lost_leaders_and_missing_series(name: str, tmp_path: Path) -> None:
    rule_file = tmp_path / "rules.yml"
    groups = [{"name": "alone", "rules": [ALERTS[name].rule(AS_IT_IS)]}]
    rule_file.write_text(yaml.safe_dump({"groups": groups}, width=1_000_000))
    document = {
        "rule_files": [str(rule_file)],
        "evaluation_interval": "1m",
        "tests": [told(name, story) for story in STORIES[name]],
    }
    path = tmp_path / "stories.yml"
    path.write_text(yaml.safe_dump(document, width=1_000_000))
    promtool("test", "rules", path)


def test_every_story_has_both_ends_and_says_what_it_is_about() -> None:
    for name, stories in STORIES.items():
        for story in stories:
            assert story["what"], name
            assert story["firing"], name
        assert any(count for story in stories for count in story["firing"].values()), f"{name} never fires"
