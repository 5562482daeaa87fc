"""Channels to upstreams: what they show before anybody calls, and when a call brings no verdict."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from chassis import traces
from order_svc.clients import EXECUTE, Ambiguity, Upstreams
from ordermesh.upstream.v1 import upstream_service_pb2 as pb
from tests.unit.orders import opened

UPSTREAM = "never-called"
NOWHERE = "127.0.0.1:1"


async def test_an_upstream_that_nobody_called_has_its_series() -> None:
    async with Upstreams.open({UPSTREAM: NOWHERE}, tls=None):
        shown = REGISTRY.get_sample_value("ordermesh_order_submits_in_flight", {"upstream": UPSTREAM})
    assert shown == 0


async def answers(body: bytes) -> bytes:
    """What a call of an upstream ends with."""
    return body


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, {"error.type": "UNAVAILABLE", "rpc.response.status_code": "UNAVAILABLE"}),
        (b"\xff", {"error.type": "MALFORMED"}),
        (b"\x0a\x02\x08\x63", {"error.type": "MALFORMED"}),
        (pb.ExecuteResponse(answer=pb.Answer(verdict=pb.VERDICT_FAILED)).SerializeToString(), {}),
    ],
    ids=["away", "no message", "no verdict", "a verdict"],
)
async def test_the_span_of_a_call_without_a_verdict_has_failed(
    monkeypatch: pytest.MonkeyPatch, body: bytes | None, said: dict[str, str]
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    order = opened("payments").order

    def call(_: Any, timeout: float) -> Any:
        return answers(body or b"")

    with traces.work_span("submit"):
        if body is None:
            async with Upstreams.open({"payments": NOWHERE}, tls=None) as upstreams:
                heard = await upstreams.execute(order, timeout_s=5.0)
        else:
            heard = await Upstreams({"payments": call}).execute(order, timeout_s=5.0)
    span = next(span for span in exporter.get_finished_spans() if span.name == EXECUTE.strip("/"))
    assert isinstance(heard, Ambiguity) is bool(said)
    assert span.status.is_ok is not bool(said)
    assert {"upstream": "payments", **said} == span.attributes
