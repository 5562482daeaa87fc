"""Which trace a submission is part of."""

from dataclasses import replace
from datetime import timedelta

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chassis import traces
from chassis.sampling import Wanted
from order_svc.driver import SAME_TRACE, span_of
from tests.unit.orders import opened

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-0"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=Wanted(0.0, exported=True))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    return exporter


def test_a_submission_soon_after_the_creation_is_part_of_the_orders_trace(
    spans: InMemorySpanExporter,
) -> None:
    order = replace(opened("payments").order, traceparent=PARENT + "1")
    with span_of(order, order.created_at + SAME_TRACE - timedelta(seconds=1)):
        assert traces.trace_id() == TRACE_ID
    (span,) = spans.get_finished_spans()
    assert (span.name, span.attributes) == (
        "submit",
        {"order_id": str(order.order_id), "upstream": "payments"},
    )


def test_a_later_one_is_linked_to_it_and_recorded_even_when_the_order_is_not(
    spans: InMemorySpanExporter,
) -> None:
    order = replace(opened("payments").order, traceparent=PARENT + "0")
    with span_of(order, order.created_at + SAME_TRACE):
        assert traces.trace_id() != TRACE_ID
    (span,) = spans.get_finished_spans()
    assert span.parent is None
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [TRACE_ID]
