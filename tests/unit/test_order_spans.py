"""Which trace a submission is part of."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, cast
from uuid import UUID, uuid4

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chassis import traces
from chassis.clock import SYSTEM_CLOCK
from chassis.limits import Limiter
from chassis.sampling import Wanted
from chassis.supervise import OwnedTasks
from chassis.testing import eventually
from order_svc.driver import SAME_TRACE, LegDriver, span_of
from order_svc.events import Answer, Verdict
from order_svc.order import Change, Decision, JournalEntry, Kind, Order, Seen, Stage
from order_svc.rows import Claim, Position
from order_svc.states import Where
from order_svc.store import Decided
from tests.unit.orders import AT, opened, rules, standing

if TYPE_CHECKING:
    from order_svc.clients import Upstreams
    from order_svc.store import OrderStore

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
    with traces.last(span_of(order, order.created_at + SAME_TRACE - timedelta(seconds=1))):
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
    with traces.last(span_of(order, order.created_at + SAME_TRACE)):
        assert traces.trace_id() != TRACE_ID
    (span,) = spans.get_finished_spans()
    assert span.parent is None
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [TRACE_ID]


class OneOrder:
    """A store with one READY order, handed out once; keeps what is journaled of it."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.entries: list[JournalEntry] = []
        self.decided = asyncio.Event()
        self._handed_out = False

    async def claim_submissions(self, *_: object) -> list[Claim]:
        claims = (
            []
            if self._handed_out
            else [Claim(order=self.seen.order, lease_token=uuid4(), lease_until=AT, unfinished_count=0)]
        )
        self._handed_out = True
        return claims

    async def decide(
        self, _: UUID, __: UUID, rule: Callable[[Seen], Decision], *, at: object, known: Seen | None
    ) -> Decided:
        change = rule(known or self.seen)
        assert isinstance(change, Change)
        assert change.wake is not None
        self.entries.append(change.entry)
        order = replace(change.after, updated_at=AT)
        self.seen = Seen(order, change.wake.tally, None, AT)
        if order.stage is not Stage.SUBMITTING:
            self.decided.set()
        return Decided(order, Position("s1", 1, 1), change)


class Accepts:
    """An upstream that takes its time for whatever it is asked."""

    async def execute(self, _: Order, *, timeout_s: float) -> Answer:
        return Answer(verdict=Verdict.IN_PROGRESS)


async def test_what_is_journaled_of_a_later_submission_points_at_its_own_trace(
    spans: InMemorySpanExporter,
) -> None:
    seen = standing(Where.READY)
    orders = OneOrder(replace(seen, order=replace(seen.order, traceparent=PARENT + "1")))
    driver = LegDriver(
        cast("OrderStore", orders),
        cast("Upstreams", Accepts()),
        rules(),
        {"payments": Limiter(1, 0, name="payments")},
        OwnedTasks(),
        claimed_by="a test",
        lease=timedelta(seconds=30),
        tick_s=60.0,
        begins_at_once=1,
        clock=SYSTEM_CLOCK,
        jitter=lambda: 0.5,
        measure_clock=never,
    )
    running = asyncio.create_task(driver.run())
    await asyncio.wait_for(orders.decided.wait(), 10)
    await eventually(lambda: ended(spans))
    running.cancel()
    await asyncio.wait([running])
    (span,) = [span for span in spans.get_finished_spans() if span.name == "submit"]
    own = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [TRACE_ID]
    assert [(entry.kind, entry.traceparent) for entry in orders.entries] == [
        (Kind.SUBMITTED, own),
        (Kind.ACCEPTED, own),
    ]


async def never() -> None:
    """Nobody measures the clock of a shard that is not there."""


async def ended(spans: InMemorySpanExporter) -> bool:
    return bool(spans.get_finished_spans())
