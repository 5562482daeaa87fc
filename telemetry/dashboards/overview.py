"""The first look: does the mesh keep what it promises, and if not, which service?"""

from __future__ import annotations

from telemetry.dashboards.board import Board, Limit, Panel, Prom, Row
from telemetry.dashboards.watching import watch
from telemetry.rules import slos

_UNARY = 'grpc_type="unary"'
"""What shares and times are of: a stream goes on until its deadline, which is no fault and no measure."""
_ORDERS = 'job="shard_proxy", grpc_service=~"ordermesh\\\\.(order|history)\\\\.v1\\\\..*"'
_FAULTS = 'grpc_code=~"UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|DATA_LOSS"'
_SERVED = ("shard_proxy", "order_svc", "history_svc", "projector", "recovery_svc", "archive_svc")
_SELDOM_CALLED = ("projector", "recovery_svc", "archive_svc")


def _rate(metric: str, where: str) -> str:
    return f"sum(rate({metric}{{{where}}}[$__rate_interval]))"


def _share(part: str, whole: str) -> str:
    """A share; 0 where there is no part, nothing where there is no whole."""
    return f"({part} or vector(0)) / ({whole} > 0)"


def _slow(metric: str, where: str) -> str:
    return f"histogram_quantile(0.99, sum by (le) (rate({metric}_bucket{{{where}}}[$__rate_interval])))"


def _service(name: str, handled: str, seconds: str, where: str, faults: str, once: str = "") -> Row:
    """The row of one service. handled, seconds: its metrics. where: matchers of it, faults: of its faults,
    once: of calls with one answer, which faults and times are of.
    """
    calls = _rate(handled, where)
    answered = f"{where}, {once}" if once else where
    quiet = "it works by itself, and is called by operators only." if name in _SELDOM_CALLED else ""
    return Row(
        name,
        (
            Panel(
                "stat",
                f"{name}: processes",
                "Processes that show metrics.",
                (Prom(f'sum(up{{job="{name}"}})', "up", now=True),),
                limit=Limit(1, below=True),
                wide=4,
            ),
            Panel(
                "series",
                f"{name}: calls",
                "Calls a second that ended.",
                (Prom(calls, "calls", empty_when_healthy=quiet),),
                unit="reqps",
                wide=7,
            ),
            Panel(
                "series",
                f"{name}: faults",
                "The share of calls that ended with a fault of ours; streams are not in it.",
                (
                    Prom(
                        _share(_rate(handled, f"{answered}, {faults}"), _rate(handled, answered)),
                        "faults",
                        empty_when_healthy=quiet,
                    ),
                ),
                unit="percentunit",
                wide=6,
            ),
            Panel(
                "series",
                f"{name}: time",
                "99 of 100 calls are faster; streams are not in it.",
                (Prom(_slow(seconds, answered), "p99", empty_when_healthy=quiet),),
                unit="s",
                wide=7,
            ),
        ),
    )


def _budget(slo: str) -> Prom:
    of = f'{{sloth_id="ordermesh-{slo}"}}'
    spent = f"max without (sloth_window) (slo:sli_error:ratio_rate3d{of})"
    return Prom(f"1 - {spent} / on (sloth_id) slo:error_budget:ratio{of}", slo)


BOARD = Board(
    name="overview",
    title="Overview",
    says="Whether the mesh keeps what it promises, what is left of its error budgets, which service is ill.",
    rows=(
        Row(
            "How users fare",
            (
                Panel(
                    "stat",
                    "Calls a second",
                    "Calls of orders and histories at the mesh's entrance.",
                    (Prom(_rate("grpc_server_handled_total", _ORDERS), "calls"),),
                    unit="reqps",
                    wide=6,
                ),
                Panel(
                    "stat",
                    "Share of faults",
                    "Calls that ended with a fault of ours, at the mesh's entrance; streams are not in it.",
                    (
                        Prom(
                            _share(
                                _rate("grpc_server_handled_total", f"{_ORDERS}, {_UNARY}, {_FAULTS}"),
                                _rate("grpc_server_handled_total", f"{_ORDERS}, {_UNARY}"),
                            ),
                            "faults",
                        ),
                    ),
                    unit="percentunit",
                    limit=Limit(0.001),
                    wide=6,
                ),
                Panel(
                    "stat",
                    "Time of a call",
                    "99 of 100 calls at the entrance are faster; streams are not in it.",
                    (Prom(_slow("grpc_server_handling_seconds", f"{_ORDERS}, {_UNARY}"), "p99"),),
                    unit="s",
                    limit=Limit(0.25),
                    wide=6,
                ),
                Panel(
                    "stat",
                    "Fullest pool",
                    "The greatest share that is busy of what a pool may open: how saturated the mesh is.",
                    (
                        Prom(
                            'max(sum by (instance, pool) (ordermesh_pg_connections{state="busy"}) / '
                            "sum by (instance, pool) (ordermesh_pg_connections_max))",
                            "busy",
                        ),
                    ),
                    unit="percentunit",
                    limit=Limit(0.9),
                    wide=6,
                ),
                Panel(
                    "stat",
                    "Error budget that is left",
                    "Of three days, by objective. Below 0 the objective is broken.",
                    tuple(_budget(slo.name) for slo in slos()),
                    unit="percentunit",
                    limit=Limit(0, below=True),
                ),
                Panel(
                    "table",
                    "Alerts",
                    "What is firing or about to. Each has a runbook, a dashboard and a command.",
                    (
                        Prom(
                            "sum by (alertname, severity, alertstate, shard, lane, upstream, instance) "
                            "(ALERTS)",
                            now=True,
                            empty_when_healthy="nothing is wrong.",
                        ),
                    ),
                ),
                Panel(
                    "series",
                    "Orders made and settled",
                    "The work itself; the dashboard of orders says more.",
                    (
                        Prom(_rate("ordermesh_order_changes_total", 'kind="OPENED"'), "made"),
                        Prom("sum(rate(ordermesh_orders_settled_total[$__rate_interval]))", "settled"),
                    ),
                    unit="ops",
                ),
            ),
        ),
        Row(
            "Error budgets",
            (
                watch(
                    "RequestsFail",
                    "Calls that fail, by window: somebody gets up",
                    "Calls with a fault of ours, or shed: the budget burns too fast in both windows.",
                    unit="percentunit",
                    wide=12,
                ),
                watch(
                    "SomeRequestsFail",
                    "Calls that fail, by window: for the morning",
                    "The same over longer windows; the budget will not last.",
                    unit="percentunit",
                    wide=12,
                ),
                watch(
                    "RestRequestsFail",
                    "Requests of apps that fail, by window: somebody gets up",
                    "Answers of 500 and more by the gateway, and connections that found no place.",
                    unit="percentunit",
                    wide=12,
                ),
                watch(
                    "SomeRestRequestsFail",
                    "Requests of apps that fail, by window: for the morning",
                    "The same over longer windows; the budget will not last.",
                    unit="percentunit",
                    wide=12,
                ),
                watch(
                    "CreatesAreSlow",
                    "Slow creates, by window: somebody gets up",
                    "The share of orders that were written down after more than a quarter of a second.",
                    unit="percentunit",
                    wide=12,
                ),
                watch(
                    "SomeCreatesAreSlow",
                    "Slow creates, by window: for the morning",
                    "The same over longer windows; the budget will not last.",
                    unit="percentunit",
                    wide=12,
                ),
                watch(
                    "ReadsAreSlow",
                    "Slow reads, by window: somebody gets up",
                    "The share of reads that took longer than a quarter of a second.",
                    unit="percentunit",
                    wide=12,
                ),
                watch(
                    "SomeReadsAreSlow",
                    "Slow reads, by window: for the morning",
                    "The same over longer windows; the budget will not last.",
                    unit="percentunit",
                    wide=12,
                ),
            ),
        ),
        _service(
            "gateway",
            "http_server_handled_total",
            "http_server_handling_seconds",
            'job="gateway"',
            'status=~"5.."',
        ),
        *(
            _service(
                name,
                "grpc_server_handled_total",
                "grpc_server_handling_seconds",
                f'job="{name}"',
                _FAULTS,
                _UNARY,
            )
            for name in _SERVED
        ),
    ),
)
