"""The processes themselves: loops, memory, CPU, files, restarts, versions, clocks."""

from __future__ import annotations

from telemetry.dashboards.board import Board, Labels, Panel, Prom, Row
from telemetry.dashboards.expressions import rate
from telemetry.dashboards.watching import watch

_OF = 'instance=~"$instance"'

BOARD = Board(
    name="runtime",
    title="Runtime",
    says="Whether processes run, and what they take of the machine.",
    variables=(Labels("instance", "Process", "ordermesh_build_info", "instance"),),
    rows=(
        Row(
            "Do they run?",
            (
                watch(
                    "EntranceAway",
                    "Gateways and proxies that answer",
                    "How many there are of each. With none nobody gets in.",
                ),
                watch(
                    "ProcessAway",
                    "Processes that show metrics",
                    "1 for each process that answers; 0 for one that is down or stuck.",
                    legend="{{instance}}",
                ),
                watch(
                    "ProcessRestarts",
                    "Starts in a quarter of an hour",
                    "How often a process was started anew.",
                    legend="{{instance}}",
                ),
                Panel(
                    "table",
                    "Versions",
                    "Which version each process runs.",
                    (Prom(f"sum by (instance, version) (ordermesh_build_info{{{_OF}}})", now=True),),
                ),
            ),
        ),
        Row(
            "Are they well?",
            (
                watch(
                    "LoopIsLate",
                    "Lag of the event loop",
                    "How late the loop comes to what is due; 99 of 100 looks are sooner.",
                    unit="s",
                ),
                Panel(
                    "series",
                    "CPU",
                    "Cores that a process uses. One process uses at most about one.",
                    (
                        Prom(
                            f"rate(process_cpu_seconds_total{{{_OF}}}[$__rate_interval])",
                            "{{instance}}",
                        ),
                    ),
                ),
                Panel(
                    "series",
                    "Memory",
                    "Resident memory of each process.",
                    (Prom(f"process_resident_memory_bytes{{{_OF}}}", "{{instance}}"),),
                    unit="bytes",
                ),
                Panel(
                    "series",
                    "Open files",
                    "File descriptors, sockets among them, as a share of what is allowed.",
                    (
                        Prom(
                            f"process_open_fds{{{_OF}}} / process_max_fds{{{_OF}}}",
                            "{{instance}}",
                        ),
                    ),
                    unit="percentunit",
                ),
                Panel(
                    "series",
                    "Garbage collections",
                    "Runs of Python's garbage collector a second, by generation.",
                    (
                        Prom(
                            f"sum by (instance, generation) (rate(python_gc_collections_total{{{_OF}}}"
                            "[$__rate_interval]))",
                            "{{instance}} {{generation}}",
                        ),
                    ),
                    unit="ops",
                ),
                watch(
                    "ClocksDiffer",
                    "Clock against the database",
                    "How far the clock of a process is from its database's.",
                    unit="s",
                ),
            ),
        ),
        Row(
            "Keys and the dashboards' own data",
            (
                Panel(
                    "series",
                    "Age of the issuer's keys",
                    "Since when the keys that prove tokens were not fetched.",
                    (
                        Prom(
                            "time() - max by (instance) (ordermesh_token_keys_fetched_timestamp_seconds > 0)",
                            "{{instance}}",
                        ),
                        Prom(
                            "sum by (outcome) (rate(ordermesh_token_key_fetches_total[$__rate_interval]))",
                            "{{outcome}} a second",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    "series",
                    "Time of a scrape",
                    "How long Prometheus takes to read a process's metrics.",
                    (Prom(f"scrape_duration_seconds{{{_OF}}}", "{{instance}}"),),
                    unit="s",
                ),
                Panel(
                    "series",
                    "Series of a process",
                    "How many series a process shows; they do not grow with users or orders.",
                    (Prom(f"scrape_samples_scraped{{{_OF}}}", "{{instance}}"),),
                ),
            ),
        ),
        Row(
            "Lines and spans on their way to Elasticsearch",
            (
                Panel(
                    "series",
                    "Documents shipped",
                    "Lines and spans by what became of them; `refused` ones are set aside in a file.",
                    (rate("ordermesh_shipper_documents_total", "stream", "outcome"),),
                    unit="ops",
                ),
                watch(
                    "LinesWait",
                    "Not shipped yet",
                    "What stands in files and is not in Elasticsearch. It waits there while that is away.",
                    unit="bytes",
                ),
                watch(
                    "LinesAreLost",
                    "Lines that could not be written",
                    "In a quarter of an hour, by process: its disk is full, or nobody reads its output.",
                    legend="{{instance}}",
                ),
                watch(
                    "SpansAreLost",
                    "Spans that are lost, or soon will be",
                    "In a quarter of an hour, by process and collector; and how full its queue is.",
                    legend="{{instance}}",
                    empty_when_healthy="only where there is a collector does it show its own.",
                    more=(rate("ordermesh_spans_lost_total", "cause", legend="a second: {{cause}}"),),
                ),
                Panel(
                    "series",
                    "Tries that failed",
                    "Requests to Elasticsearch that had to be repeated, and spans that were not taken.",
                    (
                        rate(
                            "ordermesh_shipper_tries_failed_total",
                            "cause",
                            empty_when_healthy="Elasticsearch takes everything at once.",
                        ),
                        rate("ordermesh_shipper_spans_refused_total", "cause", legend="spans: {{cause}}"),
                    ),
                    unit="ops",
                ),
            ),
        ),
    ),
)
