"""Spans of stores: one for each question, with what was asked in two words, and none where nobody looks."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from chassis import store_spans, traces
from chassis.sampling import Wanted
from order_svc.store import OrderStore
from order_svc.store import queries as order_queries

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"


@store_spans.traced
class Store:
    """Asks nobody."""

    shard = "s1"

    async def load(self, sql: str, *, again: bool = False) -> str:
        """Ask."""
        store_spans.tell(sql, "orders_s1")
        if again:
            store_spans.tell("SELECT 1 FROM other", "orders_s1")
        return await self._read(sql)

    async def _read(self, sql: str) -> str:
        if not sql:
            raise LookupError("canary")
        return sql

    def name(self) -> str:
        """Not a question."""
        return "store"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=Wanted(0.0, exported=True))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    return exporter


async def test_a_question_within_a_recorded_call_is_one_span(spans: InMemorySpanExporter) -> None:
    with traces.server_span("/s/m", {"traceparent": PARENT + "1"}):
        assert (
            await Store().load("INSERT INTO orders VALUES ($1)", again=True)
            == "INSERT INTO orders VALUES ($1)"
        )
    span, call = spans.get_finished_spans()
    assert (span.name, span.kind) == ("Store.load", SpanKind.CLIENT)
    assert span.parent is not None
    assert span.parent.span_id == call.context.span_id
    assert dict(span.attributes or {}) == {
        "db.system.name": "postgresql",
        "db.query.summary": "INSERT orders",
        "db.namespace": "orders_s1",
        "shard": "s1",
    }
    assert "db.query.summary" not in (call.attributes or {})


async def test_where_nothing_is_recorded_the_method_runs_as_it_is(spans: InMemorySpanExporter) -> None:
    assert await Store().load("a b") == "a b"
    with traces.server_span("/s/m", {"traceparent": PARENT + "0"}):
        assert await Store().load("a b") == "a b"
    assert spans.get_finished_spans() == ()


async def test_a_question_that_fails_says_so_by_its_type(spans: InMemorySpanExporter) -> None:
    with (
        traces.server_span("/s/m", {"traceparent": PARENT + "1"}),
        pytest.raises(LookupError),
    ):
        await Store().load("")
    span = spans.get_finished_spans()[0]
    assert (span.status.is_ok, (span.attributes or {})["error.type"]) == (False, "LookupError")
    assert "canary" not in span.to_json()


def test_only_public_questions_have_spans_and_they_keep_their_docstrings() -> None:
    assert store_spans.names_of(Store) == ["Store.load"]
    assert Store.load.__doc__ == "Ask."
    names = store_spans.names_of(OrderStore)
    assert {"OrderStore.create", "OrderStore.decide", "OrderStore.get"} <= set(names)
    assert not any("._" in name for name in names)


@pytest.mark.parametrize(
    ("sql", "summary"),
    [
        ("SELECT * FROM orders WHERE order_id = $1", "SELECT orders"),
        ("-- INSERT INTO nothing\nSELECT 1 FROM ONLY a.b", "SELECT a.b"),
        ("WITH moved AS (UPDATE orders SET a = 1 RETURNING *) SELECT * FROM moved", "UPDATE orders"),
        ("SELECT * FROM t FOR UPDATE SKIP LOCKED", "SELECT t"),
        ("SELECT * FROM t FOR NO KEY UPDATE", "SELECT t"),
        ("INSERT INTO k VALUES (1) ON CONFLICT DO UPDATE SET a = 'FROM x'", "INSERT k"),
        ("DELETE FROM keys USING x", "DELETE keys"),
        ("SELECT 1", "SELECT"),
        ("", ""),
    ],
)
def test_a_statement_is_summed_up_by_what_it_changes_or_reads(sql: str, summary: str) -> None:
    assert store_spans.summary_of(sql) == summary


def test_a_summary_never_holds_more_than_a_verb_and_a_table() -> None:
    every: dict[str, Any] = vars(order_queries)
    summaries = {name: store_spans.summary_of(sql) for name, sql in every.items()}
    assert summaries["create_order"].split()[0] == "INSERT"
    for summary in summaries.values():
        assert len(summary.split()) <= 2
        assert "'" not in summary
