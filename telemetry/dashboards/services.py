"""Rate, errors and duration of every method of a service, as its callers see them."""

from __future__ import annotations

from telemetry.dashboards.board import Board, Labels, Panel, Prom, Row
from telemetry.dashboards.expressions import gauge, quantiles, rate, spread

_OF = 'job="$service", grpc_method=~"$method"'
_ONCE = f'{_OF}, grpc_type="unary"'
"""Calls with one answer: a stream goes on until its deadline, which is no fault and no measure."""
_FAULTS = "UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|DATA_LOSS"
_HANDLED = "grpc_server_handled_total"
_SECONDS = "grpc_server_handling_seconds"
_ALONE = "it asks nobody over gRPC."
_SERVICE = 'job="$service"'

BOARD = Board(
    name="services",
    title="Services",
    says="Rate, errors and duration of the calls of one service.",
    variables=(
        Labels("service", "Service", "grpc_server_handled_total", "job", many=False),
        Labels("method", "Method", 'grpc_server_handled_total{job="$service"}', "grpc_method"),
    ),
    rows=(
        Row(
            "Calls that are served",
            (
                Panel(
                    "series",
                    "Calls by method",
                    "Calls a second that ended.",
                    (rate(_HANDLED, "grpc_method", where=_OF),),
                    unit="reqps",
                ),
                Panel(
                    "series",
                    "Calls by code",
                    "How calls ended. Refusals of callers' mistakes are no faults of ours.",
                    (rate(_HANDLED, "grpc_code", where=_OF, seen=True),),
                    unit="reqps",
                ),
                Panel(
                    "series",
                    "Share of calls with a fault of ours",
                    f"Calls that ended with one of {_FAULTS.replace('|', ', ')}, by method; no streams.",
                    (
                        Prom(
                            "(sum by (grpc_method) (rate(grpc_server_handled_total"
                            f'{{{_ONCE}, grpc_code=~"{_FAULTS}"}}[$__rate_interval]))'
                            f" or 0 * sum by (grpc_method) (rate(grpc_server_handled_total{{{_ONCE}}}"
                            "[$__rate_interval]))) / (sum by (grpc_method) (rate("
                            f"grpc_server_handled_total{{{_ONCE}}}[$__rate_interval])) > 0)",
                            "{{grpc_method}}",
                        ),
                    ),
                    unit="percentunit",
                ),
                Panel(
                    "series",
                    "Time of a call",
                    "To the status: half, and 99 of 100, are faster; no streams. Dots are traced calls.",
                    quantiles(_SECONDS, "grpc_method", where=_ONCE, exemplars=True),
                    unit="s",
                    wide=12,
                ),
                Panel(
                    "heatmap",
                    "Spread of the time of calls",
                    "How many calls took how long; streams are not in it.",
                    (spread(_SECONDS, where=_ONCE),),
                    unit="s",
                    wide=12,
                ),
                Panel(
                    "series",
                    "Calls under way",
                    "Begun and not ended, by method.",
                    (
                        Prom(
                            f"sum by (grpc_method) (grpc_server_started_total{{{_OF}}})"
                            f" - sum by (grpc_method) (grpc_server_handled_total{{{_OF}}})",
                            "{{grpc_method}}",
                        ),
                    ),
                ),
                Panel(
                    "table",
                    "Most frequent refusals",
                    "Why the service and the gateway refused calls in the last hour, as callers are told.",
                    (
                        Prom(
                            "topk(10, sum by (job, reason) (increase(ordermesh_refusals_total"
                            '{job=~"gateway|$service"}[1h])) > 0)',
                            now=True,
                        ),
                    ),
                ),
                Panel(
                    "series",
                    "Callers and tokens refused",
                    "Calls refused by certificate and matrix, and bearer tokens refused.",
                    (
                        rate(
                            "ordermesh_authz_denied_total",
                            "caller",
                            where=_SERVICE,
                            legend="caller {{caller}}",
                            empty_when_healthy="nobody calls what it may not.",
                        ),
                        rate("ordermesh_tokens_refused_total", "cause", legend="token {{cause}}"),
                    ),
                    unit="reqps",
                ),
            ),
        ),
        Row(
            "Calls to others",
            (
                Panel(
                    "series",
                    "Calls to others, by method and code",
                    "What this service asks of others, and how that ended.",
                    (
                        rate(
                            "grpc_client_handled_total",
                            *("grpc_method", "grpc_code"),
                            where=_SERVICE,
                            seen=True,
                            empty_when_healthy=_ALONE,
                        ),
                    ),
                    unit="reqps",
                ),
                Panel(
                    "series",
                    "Time of a call to others",
                    "Until the status: half, and 99 of 100, are faster; streams are not in it.",
                    quantiles(
                        "grpc_client_handling_seconds",
                        "grpc_method",
                        where=f'{_SERVICE}, grpc_type="unary"',
                        empty_when_healthy=_ALONE,
                    ),
                    unit="s",
                ),
                Panel(
                    "series",
                    "Calls to others under way",
                    "Sent and not ended.",
                    (
                        Prom(
                            'sum by (grpc_method) (grpc_client_started_total{job="$service"}) - '
                            'sum by (grpc_method) (grpc_client_handled_total{job="$service"})',
                            "{{grpc_method}}",
                            empty_when_healthy=_ALONE,
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "REST",
            (
                Panel(
                    "series",
                    "Requests by route and status",
                    "Requests that the gateway answered.",
                    (rate("http_server_handled_total", "method", "route", "status"),),
                    unit="reqps",
                ),
                Panel(
                    "heatmap",
                    "Spread of the time of requests",
                    "From the first byte of a request to the last of its answer.",
                    (spread("http_server_handling_seconds"),),
                    unit="s",
                ),
                Panel(
                    "series",
                    "Connections, streams and requests",
                    "What the gateway holds open now, and what it refused.",
                    (
                        gauge("ordermesh_gateway_connections", legend="connections"),
                        gauge("ordermesh_gateway_streams", legend="event streams"),
                        gauge("ordermesh_gateway_requests_in_flight", legend="requests"),
                        rate(
                            "ordermesh_gateway_connections_refused_total",
                            "cause",
                            legend="refused a second: {{cause}}",
                        ),
                        rate("ordermesh_gateway_receipt_timeouts_total", legend="too slow a second"),
                    ),
                ),
            ),
        ),
    ),
)
