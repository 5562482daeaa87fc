"""The story of an order: what stands where on the timeline, and where lines are without Elasticsearch."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ops.cli import story
from ops.ports import free_port
from ops.stack.endpoints import Endpoints, Grpc, Tls
from ops.stack.layout import Places
from ops.story import files, timeline
from ops.story.kept import TRACES_MAX
from ops.story.timeline import Entry

OWN, BESIDE = "a" * 32, "b" * 32
ORDER = "01939c5e-7a3b-7000-8af5-000000000000"


def span(number: int, at: str, *, parent: Any = 0, trace: Any = OWN, **more: Any) -> dict[str, Any]:
    found = {
        "@timestamp": f"2026-09-01T12:00:{at}Z",
        "trace.id": trace,
        "span.id": f"{number:016x}",
        "span.name": "ordermesh.order.v1.OrderService/CreateOrder",
        "service.name": "order_svc",
        "event.duration": 1_500_000,
        **more,
    }
    return {**found, "parent.id": f"{parent:016x}"} if parent else found


def line(
    at: str, action: str = "order_changed", *, within: Any = 0, trace: Any = OWN, **more: Any
) -> dict[str, Any]:
    found = {
        "@timestamp": f"2026-09-01T12:00:{at}Z",
        "log.level": "info",
        "message": action,
        "event.action": action,
        "service.name": "order_svc",
        "shard": "s1",
        "trace.id": trace,
        **more,
    }
    return {**found, "span.id": f"{within:016x}"} if within else found


def shown(entries: list[Entry]) -> list[tuple[int, str, str]]:
    return [(entry.depth, entry.source, entry.what) for entry in entries]


def test_spans_stand_below_their_callers_and_lines_below_their_spans() -> None:
    spans = [span(1, "00.1"), span(2, "00.2", parent=1), span(3, "00.3", parent=2)]
    lines = [line("00.25", within=2, kind="OPENED"), line("00.4", within=3), line("00.5")]
    entries = timeline.merged(timeline.of_spans(spans, {OWN}), timeline.of_lines(lines, spans, {OWN}))
    assert [entry.depth for entry in entries] == [0, 1, 2, 2, 3, 0]
    assert entries[0].what == "OrderService/CreateOrder"
    assert entries[2].what == "order_changed kind=OPENED"
    assert not any(entry.is_linked for entry in entries)


def test_what_is_of_another_trace_is_beside() -> None:
    spans = [span(1, "00.1"), span(2, "00.2", trace=BESIDE, **{"span.name": "send events"})]
    lines = [line("00.3", trace=BESIDE), line("00.4")]
    entries = timeline.merged(timeline.of_spans(spans, {OWN}), timeline.of_lines(lines, spans, {OWN}))
    assert [entry.is_linked for entry in entries] == [False, True, True, False]


def test_at_one_instant_the_journal_is_first_and_a_span_before_what_is_said_in_it() -> None:
    at = timeline.nanos("2026-09-01T12:00:00.1Z")
    journal = Entry(at, "journal", "journal", "OPENED")
    spans = [span(1, "00.1"), span(2, "00.1", parent=1)]
    entries = timeline.merged(
        timeline.of_lines([line("00.1", within=1)], spans), timeline.of_spans(spans, {OWN}), [journal]
    )
    assert [source for _, source, _ in shown(entries)] == ["journal", "span", "span", "line"]


def test_failures_are_marked() -> None:
    failed = span(
        1, "00.1", **{"event.outcome": "failure", "span.status": "UNAVAILABLE", "upstream": "payments"}
    )
    (entry,) = timeline.of_spans([failed], {OWN})
    assert (entry.is_wrong, entry.what) == (True, "OrderService/CreateOrder payments UNAVAILABLE")
    warned, fine = timeline.of_lines([line("00.1", **{"log.level": "warning"}), line("00.2")])
    assert (warned.is_wrong, fine.is_wrong) == (True, False)


def test_lines_that_say_what_their_span_says_are_left_out() -> None:
    spans = [span(1, "00.1")]
    lines = [
        line("00.2", "rpc_finished", within=1),
        line("00.3", "rpc_finished", within=9),
        line("00.4", "recovered", within=1),
    ]
    entries = timeline.merged(timeline.of_spans(spans, {OWN}), timeline.of_lines(lines, spans))
    left = timeline.without_echoes(entries)
    assert [entry.raw.get("event.action", "span") for entry in left] == ["span", "rpc_finished", "recovered"]


def test_spans_that_call_each_other_in_a_circle_end_somewhere() -> None:
    depths = timeline.depths(
        [span(1, "00.1", parent=2), span(2, "00.2", parent=1), span(3, "00.3", parent=3)]
    )
    assert set(depths.values()) == {timeline.DEPTH_MAX}


@pytest.mark.parametrize(
    ("text", "fraction_ns"),
    [
        ("2026-09-01T12:00:00Z", 0),
        ("2026-09-01T12:00:00.5Z", 500_000_000),
        ("2026-09-01T12:00:00.123456789Z", 123_456_789),
    ],
)
def test_instants_keep_their_nanoseconds(text: str, fraction_ns: int) -> None:
    assert timeline.nanos(text) == 1_788_264_000 * 1_000_000_000 + fraction_ns
    assert timeline.nanos(timeline.instant(timeline.nanos(text))) // 1000 == timeline.nanos(text) // 1000


def write(path: Path, *lines: dict[str, Any] | str) -> None:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in lines))


def test_without_elasticsearch_an_order_leads_to_all_lines_of_its_traces(tmp_path: Path) -> None:
    write(
        tmp_path / "order_svc.s1.log",
        "Traceback (most recent call last):",
        f'{{"torn": "{ORDER}',
        line("00.3", order_id=ORDER),
        line("00.4", "another", trace=BESIDE, order_id="x"),
    )
    write(tmp_path / "gateway.log.1", line("00.1", "request"))
    write(tmp_path / "gateway.log", line("00.5", "recovered", trace=BESIDE, order_id=ORDER, why=f"not {OWN}"))
    write(tmp_path / "notes.txt", line("00.0", order_id=ORDER))
    found = files.lines_of(tmp_path, order=ORDER)
    assert [each["message"] for each in found] == ["request", "order_changed", "another", "recovered"]
    assert [each["message"] for each in files.lines_of(tmp_path, traces=[OWN])] == [
        "request",
        "order_changed",
    ]
    assert files.lines_of(tmp_path, order="nobody's") == []
    assert files.lines_of(tmp_path, traces=[]) == []


def a_stack(state_dir: Path, elasticsearch: str) -> None:
    """As if one ran here."""
    Endpoints(
        state="ready",
        stack_pid=os.getpid(),
        gateway="http://127.0.0.1:1",
        grpc=Grpc(plain="127.0.0.1:1", mtls="127.0.0.1:1"),
        tls=Tls(ca="", cert="", key=""),
        services=(),
        databases=(),
        upstreams=(),
        issuer="http://127.0.0.1:1",
        elasticsearch=elasticsearch,
    ).write(state_dir)


def test_while_elasticsearch_is_away_the_files_are_read_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Places(tmp_path)
    here.logs.mkdir(parents=True)
    write(here.logs / "order_svc.s1.log", line("00.3", order_id=ORDER))
    a_stack(tmp_path, f"http://127.0.0.1:{free_port()}")
    for of_trace in (False, True):
        found = story._lines(tmp_path, OWN if of_trace else ORDER)
        assert [each["message"] for each in found] == ["order_changed"]
        assert story.FROM_FILES in capsys.readouterr().err
    spans, lines = story._found(tmp_path, ORDER, {OWN}, {OWN})
    assert (spans, [each["message"] for each in lines]) == ([], ["order_changed"])
    assert "does not answer" in capsys.readouterr().err


class NothingKept(BaseHTTPRequestHandler):
    """An Elasticsearch to which nobody shipped anything."""

    def do_POST(self) -> None:
        self.send_response(404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def nothing_kept() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), NothingKept)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_lines_that_are_not_shipped_yet_are_found_in_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_kept: str
) -> None:
    here = Places(tmp_path)
    here.logs.mkdir(parents=True)
    a_stack(tmp_path, nothing_kept)
    assert story._lines(tmp_path, ORDER) == []
    assert capsys.readouterr().err == ""
    write(here.logs / "order_svc.s1.log", line("00.3", order_id=ORDER))
    assert [each["message"] for each in story._lines(tmp_path, ORDER)] == ["order_changed"]
    assert story.NOT_SHIPPED in capsys.readouterr().err


def test_of_many_traces_the_first_and_the_newest_are_looked_into_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    traces = [f"{number:032x}" for number in range(TRACES_MAX + 30)]
    assert story._few(traces[:TRACES_MAX]) == traces[:TRACES_MAX]
    assert capsys.readouterr().err == ""
    few = story._few(traces)
    assert (len(few), few[0], few[-1]) == (TRACES_MAX, traces[0], traces[-1])
    assert str(len(traces)) in capsys.readouterr().err
