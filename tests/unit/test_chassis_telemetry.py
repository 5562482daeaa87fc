"""Logs and spans of one call: each leads to the other, and both to the order."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from chassis import telemetry

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


PROGRAM = """
import asyncio
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from chassis import telemetry

exporter = InMemorySpanExporter()
telemetry.configure("order_svc", facts={"shard": "s1"}, exporter=exporter, trace_ratio=1.0)
log = structlog.get_logger("test")
parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}

with telemetry.server_span("/ordermesh.order.v1.OrderService/GetOrder", parent):
    telemetry.bind(order_id="01890a5d-ac96-774b-bcce-b302099a8057")
    log.info("order_placed", attempt=1)
try:
    raise ValueError("two\\nlines")
except ValueError as wrong:
    log.error("call_failed", exc_info=wrong)
log.debug("probe_answered")

async def call(order_id):
    telemetry.bind(order_id=order_id)
    await asyncio.sleep(0)
    log.info("order_watched", expected=order_id)

async def calls():
    await asyncio.gather(*(asyncio.create_task(call(str(number))) for number in range(5)))

asyncio.run(calls())
telemetry.flush()
log.info("flushed", spans=[format(span.context.span_id, "016x") for span in exporter.get_finished_spans()])
"""


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """What a process that uses the chassis's logs writes to its standard output."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stderr == ""
    return [json.loads(line) for line in ended.stdout.splitlines()]


def named(lines: list[dict[str, Any]], message: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["message"] == message]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    return exporter


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def flat(line: dict[str, object], name: str) -> object:
    """A field of ECS, whether it is written flat or nested."""
    value: object = line
    for part in name.split("."):
        if isinstance(value, dict) and name in value:
            return value[name]
        value = value.get(part) if isinstance(value, dict) else None
    return value


def test_a_line_is_ecs_json_and_says_service_shard_order_and_trace(lines: list[dict[str, Any]]) -> None:
    (line,) = named(lines, "order_placed")
    assert {
        name: flat(line, name)
        for name in ("log.level", "service.name", "shard", "order_id", "trace.id", "attempt")
    } == {
        "log.level": "info",
        "service.name": "order_svc",
        "shard": "s1",
        "order_id": "01890a5d-ac96-774b-bcce-b302099a8057",
        "trace.id": TRACE_ID,
        "attempt": 1,
    }
    assert flat(line, "ecs.version")
    assert line["@timestamp"]


def test_spans_that_wait_are_handed_over_at_stop_and_lines_lead_to_them(lines: list[dict[str, Any]]) -> None:
    (line,), (flushed,) = named(lines, "order_placed"), named(lines, "flushed")
    assert flushed["spans"] == [flat(line, "span.id")]


def test_a_trace_back_stays_on_its_line(lines: list[dict[str, Any]]) -> None:
    (line,) = named(lines, "call_failed")
    assert "ValueError: two" in json.dumps(line)


def test_less_severe_lines_are_not_written(lines: list[dict[str, Any]]) -> None:
    assert named(lines, "probe_answered") == []


def test_facts_of_one_call_do_not_reach_the_lines_of_another(lines: list[dict[str, Any]]) -> None:
    watched = named(lines, "order_watched")
    assert len(watched) == 5
    assert all(line["order_id"] == line["expected"] for line in watched)


def test_a_server_span_continues_the_callers_trace(spans: InMemorySpanExporter) -> None:
    with telemetry.server_span("/ordermesh.order.v1.OrderService/GetOrder", {"traceparent": PARENT}):
        assert telemetry.trace_id() == TRACE_ID
        assert telemetry.traceparent().split("-")[1] == TRACE_ID
    span = only(spans)
    assert (span.name, span.kind) == ("ordermesh.order.v1.OrderService/GetOrder", SpanKind.SERVER)
    assert span.parent is not None
    assert trace.format_span_id(span.parent.span_id) == PARENT.split("-")[2]


@pytest.mark.parametrize("junk", ["", "00-zz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5000])
def test_a_broken_traceparent_begins_a_trace_of_its_own(spans: InMemorySpanExporter, junk: str) -> None:
    with telemetry.server_span("/s/m", {"traceparent": junk}):
        assert telemetry.trace_id() not in ("", TRACE_ID)
    assert only(spans).parent is None


def test_background_work_continues_the_trace_of_its_order(spans: InMemorySpanExporter) -> None:
    with telemetry.work_span("probe", PARENT), telemetry.client_span("/upstream/Probe"):
        assert telemetry.trace_id() == TRACE_ID
    kinds = [span.kind for span in spans.get_finished_spans()]
    assert kinds == [SpanKind.CLIENT, SpanKind.INTERNAL]


def test_a_failed_span_says_its_code_and_no_text_of_an_exception(spans: InMemorySpanExporter) -> None:
    def fails() -> None:
        with telemetry.work_span("probe") as span:
            telemetry.failed(span, "UNAVAILABLE")
            raise ValueError("canary")

    with pytest.raises(ValueError, match="canary"):
        fails()
    ended = only(spans)
    assert (ended.status.status_code, ended.status.description) == (StatusCode.ERROR, "UNAVAILABLE")
    assert (ended.attributes or {})["rpc.response.status_code"] == "UNAVAILABLE"
    assert "canary" not in ended.to_json()


def test_outside_of_work_there_is_no_trace() -> None:
    assert (telemetry.traceparent(), telemetry.trace_id()) == ("", "")


def test_work_on_many_orders_belongs_to_none_of_their_traces_and_is_linked_to_the_sampled(
    spans: InMemorySpanExporter,
) -> None:
    others = [f"00-{number:032x}-{number:016x}-01" for number in range(1, 2 * telemetry.LINKS_MAX)]
    unsampled = f"00-{'a' * 32}-{'b' * 16}-00"
    with (
        telemetry.work_span("probe", f"00-{'c' * 32}-{'d' * 16}-01"),
        telemetry.linked_span("relay batch", [unsampled, "", "junk-01", PARENT, PARENT, *others]),
    ):
        assert telemetry.trace_id() not in (TRACE_ID, "c" * 32)
    batch = spans.get_finished_spans()[0]
    assert batch.parent is None
    linked = [f"{link.context.trace_id:032x}" for link in batch.links]
    assert linked[0] == TRACE_ID
    assert len(linked) == len(set(linked)) == telemetry.LINKS_MAX - 1, "junk takes a place and is no link"
