"""Every alert fires when it should, stays quiet when it should, and clears: promtool runs the timelines."""

from __future__ import annotations

import re
import subprocess
import tomllib
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops import gobuild
from telemetry import registry, rules
from telemetry.rules import AS_IT_IS, Alert, Slo, Time, timed

ROOT = Path(__file__).resolve().parent.parent.parent
TIMELINES: dict[str, dict[str, Any]] = tomllib.loads(
    (Path(__file__).parent / "alerts.toml").read_text(encoding="utf-8")
)
pytestmark = pytest.mark.timeout(400)
PHASE_MIN = 60
NOT_OURS = {"up", "process_start_time_seconds"}
"""What Prometheus and its client library show by themselves."""
OF_THE_COLLECTOR = {
    *("otelcol_receiver_refused_spans", "otelcol_exporter_enqueue_failed_spans"),
    *("otelcol_exporter_send_failed_spans", "otelcol_exporter_queue_size", "otelcol_exporter_queue_capacity"),
}
"""What the collector of deploy/otelcol shows by its configuration: looked up on one of 0.165."""


def promtool(*words: str | Path) -> str:
    """What promtool says; it must agree."""
    ended = subprocess.run(
        [gobuild.programs() / "promtool", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def step_min(minutes: int) -> int:
    """How often there is a sample, and a look at the rules, when a phase lasts so long."""
    return 1 if minutes <= PHASE_MIN else 5


def samples(values: list[float], minutes: int, *, counter: bool) -> str:
    """Each value for a phase, of a counter as its increase a minute."""
    step = step_min(minutes)
    flat = [value * (step if counter else 1) for value in values for _ in range(minutes // step)]
    return " ".join(f"{value:.10g}" for value in (accumulate(flat) if counter else flat))


def told(alert: Alert, minutes: int, phases: tuple[int, ...], *kinds: str) -> dict[str, Any]:
    """A test of promtool in which phases follow each other: 0 well, 1 bad, 2 nearly bad, 3 recovering."""
    series = []
    for kind in kinds:
        for name, values in TIMELINES[alert.name].get(kind, {}).items():
            of_phases = [values[phase] if phase < len(values) else values[0] for phase in phases]
            series.append({"series": name, "values": samples(of_phases, minutes, counter=kind != "gauge")})
    ends = [minutes * (number + 1) - 1 for number in range(len(phases))]
    firing = [phase == 1 for phase in phases]
    expressions = [
        {
            "expr": f'count(ALERTS{{alertname="{alert.name}", alertstate="firing"}}) or vector(0)',
            "eval_time": f"{end}m",
            "exp_samples": [{"value": 1 if fires else 0}],
        }
        for end, fires in zip(ends, firing, strict=True)
    ]
    return {
        "interval": f"{step_min(minutes)}m",
        "input_series": series,
        "promql_expr_test": expressions,
    }


def recordings(alert: Alert) -> list[dict[str, Any]]:
    """What an alert on an objective is computed from."""
    of = [each for slo in rules.slos() if alert in slo.alerts() for each in slo.recordings(AS_IT_IS)]
    return [each for each in of if f"{each['record']}{{" in alert.expr]


def test_promtool_takes_the_rules_of_both_scales(tmp_path: Path) -> None:
    said = promtool("check", "rules", ROOT / "deploy/prometheus/rules.yml")
    assert "SUCCESS" in said
    fast = tmp_path / "fast.yml"
    fast.write_text(yaml.safe_dump(rules.rules(Time(1 / 60, 30))))
    assert "SUCCESS" in promtool("check", "rules", fast)


def test_every_alert_has_a_timeline_and_every_timeline_an_alert() -> None:
    assert {alert.name for alert in rules.alerts()} == TIMELINES.keys()
    for name, timeline in TIMELINES.items():
        values = [each for kind in ("gauge", "counter", "shed") for each in timeline.get(kind, {}).values()]
        assert values, name
        assert all(len(each) in (3, 4) for each in values), name


@pytest.mark.parametrize("alert", rules.alerts(), ids=lambda alert: alert.name)
def test_an_alert_fires_stays_quiet_when_it_was_near_and_clears(alert: Alert, tmp_path: Path) -> None:
    minutes = TIMELINES[alert.name].get("phase", PHASE_MIN)
    # With the others beside it, each of thousands of moments would compute all of them.
    alone = tmp_path / "rules.yml"
    groups = [{"name": "alone", "rules": [*recordings(alert), alert.rule(AS_IT_IS)]}]
    alone.write_text(yaml.safe_dump({"groups": groups}))
    lines = [("gauge", "counter"), *([("shed",)] if "shed" in TIMELINES[alert.name] else [])]
    document = {
        "rule_files": [str(alone)],
        "evaluation_interval": f"{step_min(minutes)}m",
        "tests": [told(alert, minutes, phases, *kinds) for kinds in lines for phases in ((0, 1, 3), (0, 2))],
    }
    path = tmp_path / "timeline.yml"
    path.write_text(yaml.safe_dump(document, width=1_000_000))
    promtool("test", "rules", path)


@pytest.mark.parametrize(
    ("labels", "board", "page"),
    [
        ({}, "", "docs/runbooks"),
        (
            {"grafana": "https://grafana.internal", "runbooks": "https://docs.internal/runbooks"},
            "https://grafana.internal",
            "https://docs.internal/runbooks",
        ),
    ],
)
def test_an_alert_links_to_where_the_server_is_told_that_things_are(
    labels: dict[str, str], board: str, page: str, tmp_path: Path
) -> None:
    (alert,) = (each for each in rules.alerts() if each.name == "ShardAway")
    annotations = {
        "summary": "Lane s1 is not connected: its users get UNAVAILABLE.",
        "command": alert.command,
        "dashboard_url": f"{board}{alert.link()}",
        "runbook_url": f"{page}/shards.md#shardaway",
    }
    fired = {"exp_labels": {"severity": "page", "lane": "s1"}, "exp_annotations": annotations}
    document = {
        "rule_files": [str(ROOT / "deploy/prometheus/rules.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "external_labels": labels,
                "input_series": [{"series": 'ordermesh_proxy_lane_up{lane="s1"}', "values": "0x10"}],
                "alert_rule_test": [{"eval_time": "5m", "alertname": alert.name, "exp_alerts": [fired]}],
            }
        ],
    }
    path = tmp_path / "links.yml"
    path.write_text(yaml.safe_dump(document, width=1_000_000))
    promtool("test", "rules", path)


NIGHTS = [alert for alert in rules.alerts() if "night" in TIMELINES[alert.name]]


def test_every_share_of_calls_that_is_no_objective_has_a_night() -> None:
    """A share is a rate compared with a part of another rate: one call alone makes it 100 %."""
    shares = {
        alert.name
        for alert in rules.alerts()
        if re.search(r"rate\(.*> [0-9.]+ \* .*rate\(", alert.expr) and "slo:" not in alert.expr
    }
    assert shares == {alert.name for alert in NIGHTS}


@pytest.mark.parametrize("alert", NIGHTS, ids=lambda alert: alert.name)
def test_one_call_that_fails_at_night_is_told_nobody_and_an_outage_at_night_is(
    alert: Alert, tmp_path: Path
) -> None:
    rule_file = tmp_path / "rules.yml"
    rule_file.write_text(
        yaml.safe_dump({"groups": [{"name": "alone", "rules": [alert.rule(AS_IT_IS)]}]}, width=1_000_000)
    )
    night: dict[str, list[float]] = TIMELINES[alert.name]["night"]
    one = {name: f"0x60 {first}x60" for name, (first, _) in night.items()}
    many = {name: f"0x60 0+{each}x60" for name, (_, each) in night.items()}
    document = {
        "rule_files": [str(rule_file)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'max_over_time(count(ALERTS{{alertname="{alert.name}"'
                        ', alertstate="firing"}) [110m:1m]) or vector(0)',
                        "eval_time": "115m",
                        "exp_samples": [{"value": fires}],
                    }
                ],
            }
            for series, fires in ((one, 0), (many, 1))
        ],
    }
    path = tmp_path / "night.yml"
    path.write_text(yaml.safe_dump(document, width=1_000_000))
    promtool("test", "rules", path)


def test_recovery_that_is_gone_altogether_is_told_too(tmp_path: Path) -> None:
    rule_file = tmp_path / "rules.yml"
    rule_file.write_text(yaml.safe_dump(rules.rules()))
    document = {
        "rule_files": [str(rule_file)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": "ordermesh_recovery_shards", "values": "3x10 _x20 3x20"}],
                "promql_expr_test": [
                    {
                        "expr": 'count(ALERTS{alertname="RecoveryStands", alertstate="firing"}) or vector(0)',
                        "eval_time": at,
                        "exp_samples": [{"value": value}],
                    }
                    for at, value in (("8m", 0), ("25m", 1), ("45m", 0))
                ],
            }
        ],
    }
    path = tmp_path / "gone.yml"
    path.write_text(yaml.safe_dump(document))
    promtool("test", "rules", path)


@pytest.mark.parametrize(
    ("alert", "series", "values", "at"),
    [
        ("MonthsStay", 'ordermesh_archive_months{shard="s1", state="DETACHING"}', "0x60 1x400 0x60", "450m"),
        ("ErasuresWait", 'ordermesh_archive_failures_total{action="ERASE"}', "0x60 1+0.1x200 21x200", "250m"),
    ],
)
def test_what_is_begun_and_not_ended_is_told_long_before_it_is_late(
    tmp_path: Path, alert: str, series: str, values: str, at: str
) -> None:
    rule_file = tmp_path / "rules.yml"
    rule_file.write_text(yaml.safe_dump(rules.rules()))
    document = {
        "rule_files": [str(rule_file)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": series, "values": values}],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                        "eval_time": moment,
                        "exp_samples": [{"value": fires}],
                    }
                    for moment, fires in (("59m", 0), (at, 1), ("520m", 0))
                ],
            }
        ],
    }
    path = tmp_path / "begun.yml"
    path.write_text(yaml.safe_dump(document))
    promtool("test", "rules", path)


@pytest.mark.parametrize(
    ("failing", "at", "fires"), [("0x100 1x100", "104m", 0), ("0x100 1+1x100", "130m", 1)]
)
def test_where_hardly_anybody_calls_one_failure_wakes_nobody_and_many_do(
    tmp_path: Path, failing: str, at: str, fires: int
) -> None:
    rule_file = tmp_path / "rules.yml"
    rule_file.write_text(yaml.safe_dump(rules.rules()))
    called = 'grpc_server_handled_total{job="shard_proxy", grpc_type="unary"'
    called += ', grpc_service="ordermesh.order.v1.OrderService"'
    document = {
        "rule_files": [str(rule_file)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": f'{called}, grpc_code="OK"}}', "values": "0+1x200"},
                    {"series": f'{called}, grpc_code="UNAVAILABLE"}}', "values": failing},
                ],
                "promql_expr_test": [
                    {
                        "expr": 'count(ALERTS{alertname="RequestsFail", alertstate="firing"}) or vector(0)',
                        "eval_time": at,
                        "exp_samples": [{"value": fires}],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "quiet.yml"
    path.write_text(yaml.safe_dump(document))
    promtool("test", "rules", path)


def known_names() -> set[str]:
    known = {metric.name for metric in registry.metrics()}
    return known | {f"{name}_{end}" for name in known for end in ("bucket", "count", "sum")}


@pytest.mark.parametrize("slo", rules.slos(), ids=lambda slo: slo.name)
def test_an_objective_is_counted_from_metrics_that_there_are(slo: Slo) -> None:
    used = set(re.findall(r"\b(?:ordermesh|grpc|http)_[a-z0-9_]+(?=[{\[])", slo.errors + slo.total))
    assert used
    assert used <= known_names()


@pytest.mark.parametrize("alert", rules.alerts(), ids=lambda alert: alert.name)
def test_an_alert_asks_for_metrics_that_there_are_and_is_told_with_what_helps(alert: Alert) -> None:
    known = known_names()
    known |= {each["record"] for slo in rules.slos() for each in slo.recordings(AS_IT_IS)}
    used = set(re.findall(r"\b(?:ordermesh|grpc|http|slo|process|otelcol)[_:][a-z0-9_:]+|\bup\b", alert.expr))
    assert used
    assert used <= known | NOT_OURS | OF_THE_COLLECTOR
    assert alert.summary.endswith(".")
    assert alert.severity in rules.SEVERITIES
    assert alert.dashboard in rules.DASHBOARDS


def test_each_promise_that_can_be_seen_failing_has_an_alert() -> None:
    promises = {f"P{number}" for number in range(1, 9)}
    assert {alert.promise for alert in rules.alerts()} == promises | {""}


@pytest.mark.parametrize(
    ("text", "time", "filled"),
    [
        ("rate(x[%{5m}])", AS_IT_IS, "rate(x[5m])"),
        ("rate(x[%{5m}])", Time(1 / 60), "rate(x[5000ms])"),
        ("rate(x[%{6h}])", Time(1 / 60, 30), "rate(x[30000ms])"),
        ("x > %{4h in seconds}", AS_IT_IS, "x > 14400"),
        ("x > %{1m in seconds}", Time(0.1), "x > 6"),
        ("x > %{4h in seconds}", Time(0.1, 30), "x > 1440"),
        ("%{1d} %{10s}", Time(0.5), "43200000ms 5000ms"),
        ("nothing", Time(0.5), "nothing"),
    ],
)
def test_times_are_filled_in_and_shrink_together(text: str, time: Time, filled: str) -> None:
    assert timed(text, time) == filled
