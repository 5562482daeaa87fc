"""Who decides about a request's trace, and what its line says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from chassis import traces
from chassis.sampling import Wanted
from tests.exposition import exemplars
from tests.gateways import Rest, opened, order_of

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
DEBUG = {"x-ordermesh-debug": "1"}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What is recorded when nothing is by chance; gateway and mesh are one process here."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=Wanted(0.0, exported=True))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(traces, "debugs", traces.DebugAllowance(per_s=0.001, burst=2))
    return exporter


@pytest.fixture
async def rest(tmp_path: Path) -> AsyncIterator[Rest]:
    async with opened(tmp_path, trust_traceparent=False) as gateway:
        yield gateway


@pytest.fixture
async def trusting(tmp_path: Path) -> AsyncIterator[Rest]:
    async with opened(tmp_path, trust_traceparent=True) as gateway:
        yield gateway


def bearer(rest: Rest, user: str = "alice", *roles: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {rest.token(user, *roles)}", **more}


async def got(rest: Rest, headers: dict[str, str]) -> int:
    order = order_of("alice")
    rest.mesh.orders[order.order_id] = order
    return (await rest.http.get(f"/v1/orders/{order.order_id}", headers=headers)).status_code


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_the_mesh_is_called_in_the_gateways_trace_and_not_in_one_of_the_framework(
    rest: Rest, spans: InMemorySpanExporter
) -> None:
    assert await got(rest, bearer(rest, **DEBUG)) == 200
    mesh, edge = spans.get_finished_spans()
    assert edge.parent is None
    assert mesh.parent is not None
    assert mesh.parent.span_id == edge.context.span_id
    assert f"{edge.context.trace_id:032x}" in exemplars("http_server_handling_seconds")


async def test_a_stranger_continues_no_trace_of_theirs_and_has_none_recorded(
    rest: Rest, spans: InMemorySpanExporter
) -> None:
    before = exemplars("http_server_handling_seconds")
    assert await got(rest, bearer(rest, traceparent=PARENT)) == 200
    assert rest.mesh.calls[0].trace_id != TRACE_ID
    assert spans.get_finished_spans() == ()
    assert exemplars("http_server_handling_seconds") <= before


async def test_where_callers_are_trusted_their_trace_goes_on(
    trusting: Rest, spans: InMemorySpanExporter
) -> None:
    assert await got(trusting, bearer(trusting, traceparent=PARENT)) == 200
    assert trusting.mesh.calls[0].trace_id == TRACE_ID
    mesh, edge = spans.get_finished_spans()
    assert mesh.parent is not None
    assert mesh.parent.span_id == edge.context.span_id
    assert edge.name == "GET /v1/orders/{order_id}"
    assert attributes(edge)["order_id"] in trusting.mesh.orders


@pytest.mark.parametrize("authorization", [None, "Bearer nonsense", "Basic YTpi"])
async def test_who_is_not_logged_in_cannot_ask_to_be_recorded(
    rest: Rest, spans: InMemorySpanExporter, authorization: str | None
) -> None:
    headers = {"authorization": authorization} if authorization else {}
    assert await got(rest, {**headers, **DEBUG}) == 401
    assert spans.get_finished_spans() == ()
    assert await got(rest, bearer(rest, **DEBUG)) == 200
    assert len(spans.get_finished_spans()) == 2, "nor use up what others may ask for"


async def test_who_is_logged_in_may_ask_now_and_then(rest: Rest, spans: InMemorySpanExporter) -> None:
    recorded = []
    for _ in range(4):
        spans.clear()
        assert await got(rest, bearer(rest, **DEBUG)) == 200
        recorded.append(len(spans.get_finished_spans()))
    assert recorded == [2, 2, 0, 0]


async def test_operators_are_recorded_without_asking(rest: Rest, spans: InMemorySpanExporter) -> None:
    headers = bearer(rest, "mira", "operator")
    for _ in range(2):
        assert await got(rest, headers) == 200
    names = [span.name.rpartition("/")[2] for span in spans.get_finished_spans()]
    assert names == ["GetOrder", "GetOrder", "{order_id}"], "the first call makes the operator known"


async def test_the_line_of_a_request_says_how_it_ended_and_no_path(rest: Rest) -> None:
    with capture_logs() as lines:
        assert await got(rest, bearer(rest)) == 200
        assert await got(rest, bearer(rest, "bob")) == 403
        await rest.http.get("/v1/secret/alice", headers=bearer(rest))
    fine, refused, unknown = [line for line in lines if line["event"] == "request"]
    assert (fine["event.outcome"], fine["log_level"], fine["http.response.status_code"]) == (
        "success",
        "info",
        200,
    )
    assert fine["event.duration"] > 0
    assert fine["user_id"] == "alice", "which the renderer hashes"
    assert (refused["event.outcome"], refused["error.code"]) == ("failure", "NOT_YOUR_ORDER")
    assert (unknown["http.route"], unknown["http.response.status_code"]) == ("unmatched", 404)
    assert "secret" not in str(unknown)
