"""What `ordermesh top` makes of the metrics: rates, quantiles, and why things wait."""

from __future__ import annotations

import re

import pytest

from ops.top import screen, waits
from ops.top.readings import Change, Process, Reading, parsed
from telemetry import rules

BEFORE = """
# TYPE grpc_server_handled_total counter
grpc_server_handled_total{grpc_method="GetOrder",grpc_code="OK"} 100
grpc_server_handled_total{grpc_method="GetOrder",grpc_code="INTERNAL"} 5
# TYPE ordermesh_event_loop_lag_seconds histogram
ordermesh_event_loop_lag_seconds_bucket{le="0.01"} 10
ordermesh_event_loop_lag_seconds_bucket{le="0.1"} 10
ordermesh_event_loop_lag_seconds_bucket{le="+Inf"} 10
"""
NOW = """
# TYPE grpc_server_handled_total counter
grpc_server_handled_total{grpc_method="GetOrder",grpc_code="OK"} 140
grpc_server_handled_total{grpc_method="GetOrder",grpc_code="INTERNAL"} 7
# TYPE ordermesh_event_loop_lag_seconds histogram
ordermesh_event_loop_lag_seconds_bucket{le="0.01"} 12
ordermesh_event_loop_lag_seconds_bucket{le="0.1"} 20
ordermesh_event_loop_lag_seconds_bucket{le="+Inf"} 20
"""


def reading(at: float, *processes: Process) -> Reading:
    return Reading(at, processes)


def change(before: str = BEFORE, now: str = NOW, *, name: str = "order_svc.s1") -> Change:
    return Change(reading(0.0, parsed(name, before)), reading(2.0, parsed(name, now)))


def test_rates_are_of_the_time_between_two_looks() -> None:
    assert change().rate("grpc_server_handled_total") == 21.0
    assert change().rate("grpc_server_handled_total", grpc_code="INTERNAL") == 1.0
    assert change().rates("grpc_server_handled_total", "grpc_code") == {"OK": 20.0, "INTERNAL": 1.0}
    assert change().rate("grpc_server_handled_total", process="gateway") == 0.0


STREAMS_BEFORE = """
# TYPE grpc_server_handled_total counter
grpc_server_handled_total{grpc_type="server_stream",grpc_code="DEADLINE_EXCEEDED"} 10
grpc_server_handled_total{grpc_type="unary",grpc_code="INTERNAL"} 1
# TYPE grpc_server_handling_seconds histogram
grpc_server_handling_seconds_bucket{grpc_type="server_stream",le="0.25"} 0
grpc_server_handling_seconds_bucket{grpc_type="server_stream",le="+Inf"} 10
grpc_server_handling_seconds_bucket{grpc_type="unary",le="0.25"} 1
grpc_server_handling_seconds_bucket{grpc_type="unary",le="+Inf"} 1
"""
STREAMS_NOW = """
# TYPE grpc_server_handled_total counter
grpc_server_handled_total{grpc_type="server_stream",grpc_code="DEADLINE_EXCEEDED"} 30
grpc_server_handled_total{grpc_type="unary",grpc_code="INTERNAL"} 3
# TYPE grpc_server_handling_seconds histogram
grpc_server_handling_seconds_bucket{grpc_type="server_stream",le="0.25"} 0
grpc_server_handling_seconds_bucket{grpc_type="server_stream",le="+Inf"} 30
grpc_server_handling_seconds_bucket{grpc_type="unary",le="0.25"} 3
grpc_server_handling_seconds_bucket{grpc_type="unary",le="+Inf"} 3
"""


def test_streams_that_go_on_until_their_deadline_are_no_faults_and_not_slow() -> None:
    (row,) = screen.services(change(STREAMS_BEFORE, STREAMS_NOW))
    assert (row["calls/s"], row["faults/s"], row["p99"]) == (11.0, 1.0, 0.25)


def test_a_process_that_was_started_again_counts_from_zero() -> None:
    assert change(NOW, BEFORE).rate("grpc_server_handled_total") == 52.5


def test_a_process_that_was_not_seen_before_has_no_rates() -> None:
    """All that it ever counted did not come in the last two seconds."""
    late = Change(reading(0.0, Process("order_svc.s1", away=True)), reading(2.0, parsed("order_svc.s1", NOW)))
    assert late.rate("grpc_server_handled_total") == 0.0
    assert late.quantile("ordermesh_event_loop_lag_seconds", 0.99) is None
    (row,) = screen.services(late)
    assert (row["calls/s"], row["faults/s"]) == (None, None)


def test_what_several_processes_look_at_alike_counts_once() -> None:
    shown = (
        'ordermesh_orders_pending{shard="s1",age="1m"} 40\nordermesh_orders_pending{shard="s1",age="1h"} 2\n'
    )
    both = reading(0.0, parsed("history_svc", shown), parsed("history_svc.2", shown.replace("40", "41")))
    assert both.agreed("ordermesh_orders_pending", shard="s1") == 43
    assert both.agreed("ordermesh_orders_pending", shard="s2") is None


@pytest.mark.parametrize(
    ("shown", "cases"),
    [
        ('ordermesh_lookback_up{shard="s1"} 0\n', None),
        ('ordermesh_lookback_up{shard="s1"} 1\n', 0.0),
        (
            'ordermesh_lookback_up{shard="s1"} 1\nordermesh_dead_letters_open{shard="s1",reason="GONE"} 3\n',
            3.0,
        ),
    ],
)
def test_cases_are_not_known_while_the_replica_is_away(shown: str, cases: float | None) -> None:
    (row,) = screen.shards(change(shown, shown, name="history_svc"), ["s1"])
    assert row["cases"] == cases


def test_requests_that_the_gateway_could_not_serve_are_faults() -> None:
    line = 'http_server_handled_total{{route="/v1/orders",method="POST",status="{}"}} {}\n'
    before = "".join(line.format(status, 0) for status in (201, 404, 503))
    now = "".join(line.format(status, 100) for status in (201, 404, 503))
    (row,) = screen.services(change(before, now, name="gateway"))
    assert (row["calls/s"], row["faults/s"]) == (150.0, 50.0)


def test_a_quantile_is_of_what_happened_between_two_looks() -> None:
    assert change().quantile("ordermesh_event_loop_lag_seconds", 0.99) == 0.1
    assert change().quantile("ordermesh_event_loop_lag_seconds", 0.1) == 0.01
    assert change(NOW, NOW).quantile("ordermesh_event_loop_lag_seconds", 0.99) is None


def test_what_nobody_shows_is_a_dash_and_not_a_zero() -> None:
    (row,) = screen.shards(change(), ["s1"])
    assert row["pending"] is None
    assert row["replica"] is None
    assert screen.cell("pending", row["pending"]) == "-"


@pytest.mark.parametrize("text", ["", "rubbish {", 'x{y="z} 1\n'])
def test_a_text_that_is_none_is_a_process_that_is_away(text: str) -> None:
    process = parsed("gateway", text)
    assert process.away or not process.series


def test_a_process_that_is_away_is_a_reason_to_wait() -> None:
    found = list(waits.of_metrics(reading(0.0, Process("projector", away=True))))
    assert [wait.where for wait in found] == ["projector"]


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ('ordermesh_proxy_lane_up{lane="s1"} 0', "s1"),
        ("ordermesh_proxy_control_up 0", "mesh"),
        ('ordermesh_index_held{shard="s2"} 1', "s2"),
        ('ordermesh_lookback_up{shard="s1"} 0', "s1"),
        ('ordermesh_archive_halted{shard="v1"} 1', "v1"),
        ('ordermesh_archive_months_quarantined{shard="v1"} 2', "v1"),
    ],
)
def test_what_stands_still_says_so(line: str, where: str) -> None:
    (wait,) = waits.of_metrics(reading(0.0, parsed("a process", f"{line}\n")))
    assert wait.where == where
    well = line.rpartition(" ")[0] + (" 1" if line.endswith("0") else " 0")
    assert list(waits.of_metrics(reading(0.0, parsed("a process", f"{well}\n")))) == []


SUBMITS = 'ordermesh_order_submits_total{{upstream="payments",said="{}"}} {}\n'
PROBES = 'ordermesh_recovery_probes_total{{upstream="payments",probe_class="{}",verdict="NONE"}} {}\n'


@pytest.mark.parametrize(
    ("line", "well", "ill"), [(SUBMITS, "EXECUTED", "UNAVAILABLE"), (PROBES, "ANSWERED", "UNREACHED")]
)
def test_an_upstream_that_gives_no_word_is_a_reason_to_wait(line: str, well: str, ill: str) -> None:
    def seen(wells: int, ills: int) -> list[str]:
        before = line.format(well, 50) + line.format(ill, 50)
        now = line.format(well, 50 + wells) + line.format(ill, 50 + ills)
        return [wait.what for wait in waits.of_upstreams(change(before, now, name="a process"))]

    (what,) = seen(1, 3)
    assert "75%" in what
    assert "payments" in what
    assert seen(3, 1) == []
    assert seen(0, 0) == []


def test_top_and_the_alerts_mean_the_same_by_an_upstream_that_fails() -> None:
    (expr,) = (alert.expr for alert in rules.alerts() if alert.name == "UpstreamFails")
    assert set(re.findall(r'said=~"([^"]+)"', expr)[0].split("|")) == waits.NO_WORD
    assert f"> {waits.ILL_SHARE} *" in expr


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("created/s", 1.25, "1.2"),
        ("pending", 12.0, "12"),
        ("overdue", 0.5, "500 ms"),
        ("overdue", 45.0, "45 s"),
        ("index", 7300.0, "2 h"),
        ("wait p99", float("inf"), "over"),
        ("memory", 104_857_600.0, "100 MiB"),
        ("process", "gateway", "gateway"),
    ],
)
def test_numbers_are_shown_for_people(column: str, value: object, shown: str) -> None:
    assert screen.cell(column, value) == shown
