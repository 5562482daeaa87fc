"""Straight from Elasticsearch: orders as lists show them, and the lines that processes say."""

from __future__ import annotations

from telemetry.dashboards.board import Board, Elastic, Panel, Row, Text

_TRACE = "trace.id:$trace"
_ALIVE = "deleted:false"

BOARD = Board(
    name="logs",
    title="Orders and log lines in Elasticsearch",
    says="How many orders were made and why some failed, from the read model; the log lines of one trace.",
    variables=(Text("trace", "Trace id", "*"),),
    since="now-6h",
    rows=(
        Row(
            "Orders in the read model",
            (
                Panel(
                    "series",
                    "Orders by status",
                    "Orders by when they were made, each once, with the status that they have now.",
                    (Elastic(_ALIVE, "orders", by="status"),),
                    stacked=True,
                ),
                Panel(
                    "series",
                    "Orders by kind",
                    "The ten most frequent kinds.",
                    (Elastic(_ALIVE, "orders", by="kind"),),
                    stacked=True,
                ),
                Panel(
                    "series",
                    "Failed orders by reason",
                    "The ten most frequent reasons, by when the orders were made.",
                    (Elastic(f"{_ALIVE} AND status:FAILED", "orders", by="failure_reason"),),
                    stacked=True,
                ),
                Panel(
                    "table",
                    "Why orders failed",
                    "How many orders of the chosen time failed for which reason.",
                    (Elastic(f"{_ALIVE} AND status:FAILED", "orders", by="failure_reason", in_table=True),),
                ),
                Panel(
                    "table",
                    "Where orders stand that are not done",
                    "By the stage inside PENDING.",
                    (
                        Elastic(
                            f"{_ALIVE} AND status:PENDING",
                            "orders",
                            by="stage",
                            in_table=True,
                            empty_when_healthy="orders are done within a moment.",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Log lines",
            (
                Panel(
                    "series",
                    "Lines by level",
                    "What processes say, and how bad it is.",
                    (Elastic("*", "lines", by="log.level"),),
                    stacked=True,
                ),
                Panel(
                    "series",
                    "Errors and warnings by event",
                    "The ten most frequent.",
                    (
                        Elastic(
                            "log.level:(error OR warning)",
                            "lines",
                            by="event.action",
                            empty_when_healthy="nobody warns of anything.",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "series",
                    "Refusals by reason",
                    "Calls that ended with an error, by its reason.",
                    (
                        Elastic(
                            "error.code:*",
                            "lines",
                            by="error.code",
                            empty_when_healthy="no call is refused.",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "logs",
                    "Lines of a trace",
                    "The lines of the trace whose id stands above, newest first; `*` is any trace.",
                    (Elastic(_TRACE, "logs"),),
                    wide=24,
                ),
            ),
        ),
    ),
)
