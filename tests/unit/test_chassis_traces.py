"""Spans of one call and of what comes later: parents, links, and who is recorded."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from chassis import traces
from chassis.sampling import Wanted

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What is recorded when no call is sampled by chance."""
    return recorded(monkeypatch, ratio=0.0)


def recorded(monkeypatch: pytest.MonkeyPatch, *, ratio: float, exported: bool = True) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    limits = SpanLimits(max_links=traces.LINKS_MAX)
    provider = TracerProvider(sampler=Wanted(ratio, exported=exported), span_limits=limits)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    return exporter


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def names(exporter: InMemorySpanExporter) -> list[str]:
    return [span.name for span in exporter.get_finished_spans()]


def test_a_server_span_continues_the_callers_trace(spans: InMemorySpanExporter) -> None:
    with traces.server_span("/ordermesh.order.v1.OrderService/GetOrder", {"traceparent": PARENT}):
        assert traces.trace_id() == TRACE_ID
        assert traces.traceparent().split("-")[1] == TRACE_ID
    span = only(spans)
    assert (span.name, span.kind) == ("ordermesh.order.v1.OrderService/GetOrder", SpanKind.SERVER)
    assert span.parent is not None
    assert trace.format_span_id(span.parent.span_id) == PARENT.split("-")[2]


@pytest.mark.parametrize("junk", ["", "00-zz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5000])
def test_a_broken_traceparent_begins_a_trace_of_its_own(spans: InMemorySpanExporter, junk: str) -> None:
    with traces.server_span("/s/m", {"traceparent": junk}, always=True):
        assert traces.trace_id() not in ("", TRACE_ID)
    assert only(spans).parent is None


def test_background_work_continues_the_trace_of_its_order(spans: InMemorySpanExporter) -> None:
    with traces.work_span("probe", PARENT), traces.client_span("/upstream/Probe"):
        assert traces.trace_id() == TRACE_ID
    kinds = [span.kind for span in spans.get_finished_spans()]
    assert kinds == [SpanKind.CLIENT, SpanKind.INTERNAL]


def test_a_failed_span_says_its_code_and_no_text_of_an_exception(spans: InMemorySpanExporter) -> None:
    def fails() -> None:
        with traces.work_span("probe", PARENT) as span:
            traces.failed(span, "UNAVAILABLE")
            raise ValueError("canary")

    with pytest.raises(ValueError, match="canary"):
        fails()
    ended = only(spans)
    assert (ended.status.status_code, ended.status.description) == (StatusCode.ERROR, "UNAVAILABLE")
    assert (ended.attributes or {})["rpc.response.status_code"] == "UNAVAILABLE"
    assert "canary" not in ended.to_json()


def test_outside_of_work_there_is_no_trace() -> None:
    assert (traces.traceparent(), traces.trace_id()) == ("", "")


def test_work_on_many_orders_belongs_to_none_of_their_traces_and_is_linked_to_the_sampled(
    spans: InMemorySpanExporter,
) -> None:
    others = [f"00-{number:032x}-{number:016x}-01" for number in range(1, 2 * traces.LINKS_MAX)]
    unsampled = f"00-{'a' * 32}-{'b' * 16}-00"
    with (
        traces.work_span("probe", f"00-{'c' * 32}-{'d' * 16}-01"),
        traces.linked_span("send events", [unsampled, "", "junk-01", PARENT, PARENT, *others]),
    ):
        assert traces.trace_id() not in (TRACE_ID, "c" * 32)
    batch = spans.get_finished_spans()[0]
    assert batch.parent is None
    linked = [f"{link.context.trace_id:032x}" for link in batch.links]
    assert linked[0] == TRACE_ID
    assert len(linked) == len(set(linked)) == traces.LINKS_MAX, "junk takes no place"


def test_work_that_comes_later_is_linked_to_the_order_and_always_recorded_when_it_must_be(
    spans: InMemorySpanExporter,
) -> None:
    with traces.linked_span("send events", [UNSAMPLED, ""]):
        pass
    assert names(spans) == [], "nobody would look for it"
    with traces.linked_span("recover", [UNSAMPLED], always=True, attributes={"order_id": "7"}):
        assert traces.trace_id() != TRACE_ID
    recover = only(spans)
    assert [f"{link.context.trace_id:032x}" for link in recover.links] == [TRACE_ID]
    assert (recover.parent, (recover.attributes or {})["order_id"]) == (None, "7")


@pytest.mark.parametrize(
    ("parent", "always", "is_recorded"),
    [
        (PARENT, False, True),
        (UNSAMPLED, False, False),
        (UNSAMPLED, True, True),
        ("", True, True),
        ("", False, False),
    ],
)
def test_a_call_is_recorded_as_its_caller_says_unless_it_has_to_be(
    spans: InMemorySpanExporter, parent: str, always: bool, is_recorded: bool
) -> None:
    with traces.server_span("/s/m", {"traceparent": parent}, always=always):
        sampled = traces.traceparent().endswith(("-01", "-03"))
        with traces.client_span("child"):
            pass
    assert sampled is is_recorded, "who is called next has to know"
    assert names(spans) == (["child", "s/m"] if is_recorded else [])


@pytest.mark.parametrize("flags", ["00", "02"])
def test_an_unsampled_trace_goes_on_with_a_span_of_its_own_in_every_service(
    spans: InMemorySpanExporter, flags: str
) -> None:
    carried = f"00-{TRACE_ID}-{'b' * 16}-{flags}"
    for _ in range(2):
        before, sent = carried, ""
        with traces.server_span("/s/m", {"traceparent": before}) as span:
            carried = traces.traceparent()
            with traces.client_span("child"):
                sent = traces.traceparent()
        assert (span.is_recording(), sent) == (False, carried)
        assert carried.startswith(f"00-{TRACE_ID}-")
        assert carried.endswith(f"-{flags}")
        assert carried != before
    assert (traces.traceparent(), names(spans)) == ("", [])


def test_an_unrecorded_span_ends_with_its_work_and_returns_to_what_ran_before(
    spans: InMemorySpanExporter,
) -> None:
    def fails() -> None:
        with traces.work_span("submit", UNSAMPLED):
            raise ValueError("canary")

    with traces.work_span("outer", PARENT):
        before = traces.traceparent()
        with pytest.raises(ValueError, match="canary"):
            fails()
        assert traces.traceparent() == before
    assert names(spans) == ["outer"]


def test_only_calls_begin_traces_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded(monkeypatch, ratio=1.0)
    with traces.work_span("a loop's round"), traces.client_span("its query"):
        pass
    with traces.server_span("/s/m", {}):
        pass
    assert names(spans) == ["s/m"]


def test_nothing_is_recorded_when_nobody_exports_it_and_the_trace_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spans = recorded(monkeypatch, ratio=1.0, exported=False)
    with traces.server_span("/s/m", {"traceparent": PARENT}, always=True):
        assert traces.trace_id() == TRACE_ID
    assert names(spans) == []


def test_an_exception_marks_the_span_it_leaves_by_its_type(spans: InMemorySpanExporter) -> None:
    def fails() -> None:
        with traces.work_span("submit", PARENT), traces.client_span("OrderStore.decide"):
            raise KeyError("canary")

    with pytest.raises(KeyError):
        fails()
    for span in spans.get_finished_spans():
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "KeyError")
        assert (span.attributes or {})["error.type"] == "KeyError"
        assert "canary" not in span.to_json()


def test_what_is_said_about_work_is_on_its_span_and_nowhere_else(spans: InMemorySpanExporter) -> None:
    traces.describe(order_id="nobody listens")
    with traces.server_span("/s/m", {"traceparent": PARENT}):
        traces.describe(order_id="7", shard="")
    assert dict(only(spans).attributes or {}) == {"order_id": "7"}


def test_no_more_calls_may_ask_to_be_recorded_than_the_allowance_has(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: dict[str, Any] = {"now": 100.0}
    monkeypatch.setattr("chassis.traces.time.monotonic", lambda: clock["now"])
    allowance = traces.DebugAllowance(per_s=2.0, burst=3)
    assert [allowance.take() for _ in range(5)] == [True, True, True, False, False]
    clock["now"] += 1.0
    assert [allowance.take() for _ in range(3)] == [True, True, False]
    clock["now"] += 1000.0
    assert sum(allowance.take() for _ in range(10)) == 3


LONG = ",".join(f"k{number}=" + "v" * 60 for number in range(8))


@pytest.mark.parametrize("parent", [PARENT, UNSAMPLED])
@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("", ""),
        ("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
        (LONG + ",last=1", LONG),
        ("first=1,long=" + "v" * 200 + "," + LONG, "first=1," + LONG.rpartition(",")[0]),
    ],
    ids=["none", "two", "too many", "a long one"],
)
def test_what_vendors_keep_in_a_context_goes_on_with_it_in_bounds(
    spans: InMemorySpanExporter, parent: str, state: str, kept: str
) -> None:
    with traces.server_span("/s/m", {"traceparent": parent, "tracestate": state}):
        assert traces.tracestate() == kept
        assert len(kept) <= traces.TRACESTATE_CHARS_MAX
        assert traces.trace_id() == parent.split("-")[1]
    with traces.server_span("/s/m", {"traceparent": "rubbish", "tracestate": state}):
        assert traces.tracestate() == "", "a state without a context is nobody's"
