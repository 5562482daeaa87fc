"""`ordermesh trace` and `ordermesh logs`: what happened to an order, in the order in which it happened."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.cli import output
from ops.cli.edge import ExitCode
from ops.cli.options import Format, OrderId, Output, StateDir
from ops.errors import OpsError
from ops.stack.endpoints import Endpoints
from ops.stack.layout import Places
from ops.story import files, timeline
from ops.story.kept import LINES_MAX, SPANS_MAX, TRACES_MAX, Kept, traces_in
from ops.story.timeline import Entry
from ops.top import readings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ordermesh.order.v1 import order_pb2

NO_SPANS = "this stack has no Elasticsearch, so no spans; lines are from its log files (dev --full has both)"
NO_STACK = "no stack runs here; lines are from the log files it left"
FROM_FILES = "no spans therefore, and lines from the log files"
NOT_SHIPPED = "Elasticsearch has no such line; lines are from the log files"
BEHIND_BYTES_MIN = 1024 * 1024
"""Less stands in files all the time, for a moment."""
ARRIVES_WITHIN_S = 4.0
"""Spans are sent a moment after the call."""
_TRACE = re.compile(r"[0-9a-f]{32}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def logs(
    what: Annotated[
        str, typer.Argument(metavar="ORDER|TRACE", help="An id of an order or a trace.", show_default=False)
    ],
    state_dir: StateDir,
    form: Output = Format.TABLE,
) -> None:
    """Show the log lines about an order, or of a trace.

    \b
    With an order also those of every trace that it was worked on in. Exit code 1 when there is none.
    Example:
      ordermesh logs 01939c5e-7a3b-7000-8af5-...
    """
    word = what.lower()
    if not _TRACE.fullmatch(word) and not _UUID.fullmatch(word):
        raise typer.BadParameter("give an order id or a trace id of 32 hex digits", param_hint="ORDER|TRACE")
    lines = _lines(state_dir, word)
    _tell_if_cut(lines, [])
    entries = timeline.merged(timeline.of_lines(lines))
    if form is Format.JSON:
        output.print_json([entry.raw for entry in entries])
    else:
        _show(entries)
    if not entries:
        output.note(f"no line about {word}")
        raise typer.Exit(ExitCode.NO)


def trace(order_id: OrderId, state_dir: StateDir, form: Output = Format.TABLE) -> None:
    """Show what happened to an order, all on one timeline.

    \b
    Journal, spans and log lines. Spans are indented below what called them; `~` is a trace
    beside the order's own and linked to it: the relay, the indexer, recovery. `!` is what
    went wrong.
    Example:
      ordermesh trace 01939c5e-7a3b-7000-8af5-...
    """
    order, events = _journal(state_dir, order_id)
    own = {parent.split("-")[1] for parent in (order.traceparent,) if parent.count("-") == 3}
    known = own | {event.traceparent.split("-")[1] for event in events if event.traceparent.count("-") == 3}
    # As it is written, whatever was typed.
    spans, lines = _found(state_dir, order.order_id, own, known)
    _tell_if_cut(lines, spans)
    every = timeline.merged(
        [_journaled(event, own) for event in events],
        timeline.of_spans(spans, own),
        timeline.of_lines(lines, spans, own),
    )
    if form is Format.JSON:
        output.print_json(_as_json(order, every))
        return
    output.show(_head(order, every, own))
    output.show("")
    _show(timeline.without_echoes(every), with_depth=True)


def _found(
    state_dir: Path, order_id: str, own: set[str], known: set[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Spans and lines; only lines, from files, where Elasticsearch is away or never was."""
    endpoints = Endpoints.read(state_dir)
    why = NO_SPANS
    if endpoints.elasticsearch is not None:
        kept = Kept(endpoints.elasticsearch, endpoints.elasticsearch_api_key)
        try:
            return _spans(kept, order_id, own, known), kept.lines(orders=[order_id], traces=known)
        except OpsError as away:
            why = f"{away}; {FROM_FILES}"
    output.note(why)
    return [], files.lines_of(Places(state_dir).logs, order=order_id, traces=known)


def _lines(state_dir: Path, word: str) -> list[dict[str, Any]]:
    """Lines about what a word names, from where this stack keeps them.

    Raises: OpsError when there is nowhere to look.
    """
    is_trace = _TRACE.fullmatch(word) is not None
    found = Endpoints.peek(state_dir)
    is_there = found is not None and found.state in ("ready", "elsewhere")
    why = NO_SPANS if is_there else NO_STACK
    if found is not None and found.elasticsearch is not None and is_there:
        kept = Kept(found.elasticsearch, found.elasticsearch_api_key)
        try:
            if lines := _kept_lines(kept, word, is_trace=is_trace):
                _tell_if_behind(found)
                return lines
            why = ""
        except OpsError as away:
            if found.state == "elsewhere":
                raise
            why = f"{away}; {FROM_FILES}"
    if found is not None and found.state == "elsewhere":
        return []
    directory = Places(state_dir).logs
    if not directory.is_dir():
        raise OpsError(f"there are no logs in {state_dir}; name another --state-dir")
    lines = files.lines_of(directory, traces=[word]) if is_trace else files.lines_of(directory, order=word)
    if why or lines:
        output.note(why or NOT_SHIPPED)
    return lines


def _kept_lines(kept: Kept, word: str, *, is_trace: bool) -> list[dict[str, Any]]:
    if is_trace:
        return kept.lines(traces=[word])
    about = kept.lines(orders=[word])
    return kept.lines(orders=[word], traces=_few(traces_in(about))) if about else []


def _few(traces: list[str]) -> list[str]:
    """As many as are looked into: the first, in which the order was made, and the newest."""
    if len(traces) <= TRACES_MAX:
        return traces
    output.note(f"it is in {len(traces)} traces; shown are the first and the newest {TRACES_MAX - 1}")
    return [traces[0], *traces[1 - TRACES_MAX :]]


def _tell_if_behind(endpoints: Endpoints) -> None:
    """Say so when newer lines stand in files that are not shipped yet."""
    shown = asyncio.run(readings.read(endpoints, only="shipper"))
    behind = shown.most("ordermesh_shipper_behind_bytes", stream="logs")
    if behind is not None and behind >= BEHIND_BYTES_MIN:
        output.note(f"{behind / 2**20:.0f} MiB of newer lines are not in Elasticsearch yet")


def _tell_if_cut(lines: Sequence[object], spans: Sequence[object]) -> None:
    if len(lines) >= LINES_MAX or len(spans) >= SPANS_MAX:
        output.note(f"there may be more than the first {LINES_MAX} lines and {SPANS_MAX} spans")


def _spans(kept: Kept, order_id: str, own: set[str], known: set[str]) -> list[dict[str, Any]]:
    """The spans of the order's own traces and of those that are linked to them."""
    end = time.monotonic() + ARRIVES_WITHIN_S
    while True:
        about = kept.spans(orders=[order_id], traces=known, linked=known)
        starts = {span["trace.id"] for span in about if "parent.id" not in span}
        if own <= starts or time.monotonic() > end:
            break
        time.sleep(0.5)
    beside = _few([trace_id for trace_id in traces_in(about) if trace_id not in known])
    whole = kept.spans(traces=beside) if beside else []
    return list({span["span.id"]: span for span in (*about, *whole)}.values())


def _journal(state_dir: Path, order_id: str) -> tuple[order_pb2.Order, list[order_pb2.OrderEvent]]:
    from ops.cli.calls import TIMEOUT_S, ask
    from ops.cli.order import events_of
    from ops.mesh import Mesh
    from ordermesh.order.v1 import order_service_pb2

    async def work(mesh: Mesh) -> tuple[order_pb2.Order, list[order_pb2.OrderEvent]]:
        request = order_service_pb2.GetOrderRequest(order_id=order_id)
        order = (await mesh.orders.GetOrder(request, timeout=TIMEOUT_S)).order
        return order, await events_of(mesh, order_id)

    return ask(state_dir, work)


def _journaled(event: order_pb2.OrderEvent, own: set[str]) -> Entry:
    before = output.stage_name(event.from_stage, event.from_status)
    after = output.stage_name(event.to_stage, event.to_status)
    trace_id = event.traceparent.split("-")[1] if event.traceparent.count("-") == 3 else ""
    return Entry(
        at_ns=event.event_time.ToNanoseconds(),
        source="journal",
        where="journal",
        what=" ".join(
            part
            for part in (
                event.kind,
                f"{before} -> {after}",
                f"by {event.actor}",
                event.proof,
                output.evidence(event.evidence_json),
            )
            if part
        ),
        is_linked=bool(trace_id) and trace_id not in own,
        trace=trace_id,
        raw=output.as_dict(event),
    )


def _head(order: order_pb2.Order, every: Sequence[Entry], own: set[str]) -> Any:
    beside = {entry.trace for entry in every if entry.source == "span"} - own
    return output.facts(
        ("order", order.order_id),
        ("status", output.stage(order)),
        ("trace", " ".join(sorted(own))),
        ("linked", f"{len(beside)} traces" if beside else ""),
        ("shown", ", ".join(f"{count} of {name}" for name, count in _counts(every).items())),
    )


def _counts(every: Sequence[Entry]) -> dict[str, int]:
    names = {"journal": "the journal", "span": "spans", "line": "log lines"}
    return {name: sum(entry.source == source for entry in every) for source, name in names.items()}


def _show(entries: Sequence[Entry], *, with_depth: bool = False) -> None:
    """One row for each entry."""
    if not entries:
        return
    output.show(
        output.table(
            *("time (UTC)", "took", "where", "what"),
            rows=[_row(entry, with_depth=with_depth) for entry in entries],
        )
    )


def _row(entry: Entry, *, with_depth: bool) -> tuple[str, str, str, str]:
    indent = "  " * entry.depth if with_depth else ""
    mark = ("! " if entry.is_wrong else "") + ("~ " if entry.is_linked and with_depth else "")
    took = f"{entry.took_ns / 1e6:.1f} ms" if entry.took_ns >= 0 else ""
    at = timeline.instant(entry.at_ns).replace("T", " ").removesuffix("Z")
    return at, took, entry.where, _shown(indent + mark + entry.what)


def _shown(text: str) -> str:
    """Text that moves no cursor, whoever wrote it."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def _as_json(order: order_pb2.Order, every: Sequence[Entry]) -> Mapping[str, Any]:
    return {
        "order": output.as_dict(order),
        "entries": [
            {
                "at": timeline.instant(entry.at_ns),
                "source": entry.source,
                "where": entry.where,
                "what": entry.what,
                "depth": entry.depth,
                "isLinked": entry.is_linked,
                "isWrong": entry.is_wrong,
                "traceId": entry.trace,
                "tookNs": entry.took_ns if entry.took_ns >= 0 else None,
                "raw": entry.raw,
            }
            for entry in every
        ],
    }
