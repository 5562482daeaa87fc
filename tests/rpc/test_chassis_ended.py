"""How a call is told once it has ended: its line, also on a full disk, its span, and whose is recorded."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import prometheus_client
import pytest
import structlog
from grpc import StatusCode
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from chassis import rpc, traces
from chassis.auth import Subject
from chassis.errors import (
    DeadlineExceeded,
    InvalidField,
    OrdermeshError,
    Overloaded,
    Reason,
    ShardUnavailable,
)
from chassis.logs import Lines
from chassis.output import Output
from chassis.rpc import ended as ended_module
from chassis.sampling import Wanted
from chassis.supervise import StopSignal, until_stopped
from chassis.testing import eventually
from ordermesh.order.v1 import order_pb2
from ordermesh.order.v1 import order_service_pb2 as pb
from tests.exposition import exemplars, handled, sampled
from tests.listeners import (
    ALICE,
    CALL_S,
    OPERATOR,
    ORDERS,
    Scripted,
    Trust,
    orders_of,
    orders_served,
    refused,
)

SHORT_S = 1.0
"""A stream that has no more time than this may end at any moment: gRPC rounds up."""
CANARY = "canary-postgres://u:hunter2@db/orders"


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


async def _true(claim: bool) -> bool:
    return claim


UNKNOWN = {
    f"/{ORDERS}/DropOrders": f"{ORDERS}/DropOrders",
    "/ordermesh.order.v2.OrderService/GetOrder": "ordermesh.order.v2.OrderService/GetOrder",
    "/x": "x",
    '/x/y\n{"log.level":"error"} \x1b[2J%0a': "x/y???log.level???error?????2J?0a",
    f"/{'s' * 4000}/Method": "s" * 128,
}
"""Paths that nobody has, and how a line says them."""


def series_of_calls() -> set[tuple[str, ...]]:
    return {
        (sample.labels["grpc_service"], sample.labels["grpc_method"])
        for metric in prometheus_client.REGISTRY.collect()
        for sample in metric.samples
        if sample.name.startswith("grpc_server_")
    }


@pytest.mark.parametrize("path", UNKNOWN)
async def test_an_unknown_method_is_a_typed_refusal_with_a_line_of_its_name_and_no_series_of_it(
    trust: Trust, path: str
) -> None:
    async with orders_served(trust, Scripted()) as server, trust.channel(server) as channel:
        before, counted = series_of_calls() | {("unknown", "unknown")}, handled("unknown", "UNIMPLEMENTED")
        call = channel.unary_unary(path)
        with capture_logs() as lines:
            with refused(StatusCode.UNIMPLEMENTED, Reason.UNKNOWN_METHOD):
                await call(b"", timeout=CALL_S, metadata=trust.metadata(ALICE))
            line = await of_the_call(lines)
    assert line["rpc.method"] == UNKNOWN[path]
    assert (line["rpc.code"], line["error.code"]) == ("UNIMPLEMENTED", "UNKNOWN_METHOD")
    assert (line["log_level"], line["user_id"]) == ("info", ALICE.name)
    assert handled("unknown", "UNIMPLEMENTED") == counted + 1
    assert series_of_calls() == before


async def test_who_asks_for_an_unknown_method_without_a_name_or_a_deadline_is_refused_likewise(
    trust: Trust,
) -> None:
    async with orders_served(trust, Scripted()) as server, trust.channel(server) as channel:
        with capture_logs() as lines:
            with refused(StatusCode.UNIMPLEMENTED, Reason.UNKNOWN_METHOD):
                await channel.unary_unary("/no.Such/Method")(b"")
            line = await of_the_call(lines)
    assert "user_id" not in line


async def test_the_span_of_a_refused_call_says_its_code_and_continues_the_callers_trace(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def refuses(_: Any, __: rpc.Call) -> None:
        raise Overloaded(limiter="s1")

    orders = Scripted(GetOrder=refuses)
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        stub, metadata = orders_of(channel), (*trust.metadata(), ("traceparent", parent))
        with refused(StatusCode.RESOURCE_EXHAUSTED, Reason.OVERLOADED) as facts:
            await stub.GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=metadata)
        await stub.ListOrderEvents(pb.ListOrderEventsRequest(), timeout=CALL_S, metadata=metadata)
    failed, fine = exporter.get_finished_spans()
    assert (failed.attributes or {})["rpc.response.status_code"] == "RESOURCE_EXHAUSTED"
    assert (failed.status.is_ok, fine.status.is_ok) == (False, True)
    assert facts[0].metadata["trace_id"] == orders.calls[0].trace_id == parent.split("-")[1]


def of_calls(lines: list[Any]) -> list[dict[str, Any]]:
    return [dict(line) for line in lines if line["event"] == "rpc_finished"]


async def of_the_call(lines: list[Any]) -> dict[str, Any]:
    """The one line of a call, which may come a moment after its answer."""
    await eventually(lambda: _true(bool(of_calls(lines))))
    (line,) = of_calls(lines)
    return line


async def test_every_call_ends_with_one_line_whose_level_says_whose_fault_it_was(trust: Trust) -> None:
    def raising(error: Exception) -> Any:
        async def raises(_: Any, __: rpc.Call) -> None:
            raise error

        return raises

    ends = {
        "GetOrder": (InvalidField.of("order_id", "must be one"), "info", "INVALID_ARGUMENT", "INVALID_FIELD"),
        "CreateOrder": (Overloaded(limiter="s1"), "info", "RESOURCE_EXHAUSTED", "OVERLOADED"),
        "UpdateOrder": (ShardUnavailable(), "error", "UNAVAILABLE", "SHARD_UNAVAILABLE"),
        "ListOrderEvents": (ValueError(CANARY), "error", "INTERNAL", "INTERNAL_ERROR"),
    }
    orders = Scripted(**{name: raising(error) for name, (error, *_) in ends.items()})
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        for name, (_, level, code, reason) in ends.items():
            method, kind = getattr(orders_of(channel), name), getattr(pb, f"{name}Request")
            with capture_logs() as lines:
                with pytest.raises(grpc.aio.AioRpcError):
                    await method(kind(), timeout=CALL_S, metadata=trust.metadata(ALICE))
                line = await of_the_call(lines)
            assert (line["log_level"], line["rpc.code"], line["error.code"]) == (level, code, reason)
            assert line["event.outcome"] == "failure"
            assert line["rpc.method"] == f"{ORDERS}/{name}"
            assert line["event.duration"] > 0
            assert line["user_id"] == ALICE.name, "which the renderer hashes"
            assert ("exc_info" in line) is (reason == "INTERNAL_ERROR")


async def test_a_stream_that_goes_on_until_its_deadline_has_not_failed_and_one_that_is_late_before_has(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    late = DeadlineExceeded(limiter="lane")
    ends: list[tuple[float, OrdermeshError | None]] = [
        (SHORT_S, None),
        (SHORT_S, late),
        (CALL_S, late),
        (CALL_S, ShardUnavailable()),
    ]

    async def waits(_: Any, __: rpc.Call) -> AsyncIterator[pb.WatchOrderResponse]:
        yield pb.WatchOrderResponse()
        if (end := ends[len(orders.calls) - 1][1]) is not None:
            raise end
        await asyncio.Event().wait()

    async def too_late(_: Any, __: rpc.Call) -> None:
        raise late

    orders = Scripted(WatchOrder=waits, GetOrder=too_late)
    refusals = sampled("ordermesh_refusals_total", reason="DEADLINE_EXCEEDED")
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        stub = orders_of(channel)
        with capture_logs() as lines:
            for timeout_s, end in ends:
                with pytest.raises(grpc.aio.AioRpcError) as ended:
                    async for _ in stub.WatchOrder(
                        pb.WatchOrderRequest(), timeout=timeout_s, metadata=trust.metadata()
                    ):
                        pass
                await eventually(lambda: _true(len(of_calls(lines)) == len(orders.calls)))
                assert ended.value.code() is (end or late).code
            with refused(StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED):
                await stub.GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
    told = [(line["log_level"], line["event.outcome"]) for line in of_calls(lines)]
    assert told == [*[("info", "success")] * 2, *[("error", "failure")] * 3]
    assert [span.status.is_ok for span in exporter.get_finished_spans()] == [True] * 2 + [False] * 3
    assert sampled("ordermesh_refusals_total", reason="DEADLINE_EXCEEDED") == refusals + 2


@pytest.mark.parametrize(
    ("method", "code", "left_s", "took_s", "is_over"),
    [
        ("WatchOrder", StatusCode.DEADLINE_EXCEEDED, 0.0, 60.0, True),
        ("WatchOrder", StatusCode.DEADLINE_EXCEEDED, 1.0, 60.0, True),
        ("WatchOrder", StatusCode.DEADLINE_EXCEEDED, 30.0, 60.0, False),
        ("WatchOrder", StatusCode.DEADLINE_EXCEEDED, 300.0, 299.9, True),
        ("WatchOrder", StatusCode.CANCELLED, 1.0, 60.0, True),
        ("WatchOrder", StatusCode.CANCELLED, 300.0, 299.9, False),
        ("WatchOrder", StatusCode.UNAVAILABLE, 0.0, 60.0, False),
        ("GetOrder", StatusCode.DEADLINE_EXCEEDED, 0.0, 5.0, False),
    ],
)
def test_a_streams_time_is_what_its_caller_gave_or_the_most_that_its_method_has(
    method: str, code: StatusCode, left_s: float, took_s: float, is_over: bool
) -> None:
    watched = rpc.methods_of(ORDERS)[f"/{ORDERS}/{method}"]
    call = rpc.Call(watched, "gateway", ALICE, "", {}, time.monotonic() + left_s)
    assert ended_module.is_over(call, code, took_s) is is_over


async def test_the_line_of_a_call_names_its_order_from_the_request_or_the_answer(trust: Trust) -> None:
    async def made(_: Any, __: rpc.Call) -> Any:
        return pb.CreateOrderResponse(order=order_pb2.Order(order_id="o-2"))

    orders = Scripted(CreateOrder=made)
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        stub, bound = orders_of(channel), []
        structlog.contextvars.clear_contextvars()

        def note(_: Any, __: str, event: Any) -> Any:
            bound.append({**structlog.contextvars.get_contextvars(), **event})
            raise structlog.DropEvent

        with configured(note):
            await stub.GetOrder(pb.GetOrderRequest(order_id="o-1"), timeout=CALL_S, metadata=trust.metadata())
            await stub.CreateOrder(pb.CreateOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
            await stub.ListOrderEvents(pb.ListOrderEventsRequest(), timeout=CALL_S, metadata=trust.metadata())
    assert [line.get("order_id", "") for line in of_calls(bound)] == ["o-1", "o-2", ""]
    assert all("user_id" not in line for line in of_calls(bound)), "an operator is no user"
    assert all(line["event.outcome"] == "success" for line in of_calls(bound))


@contextmanager
def disk_full() -> Iterator[Callable[[], None]]:
    """Lines of this process go to a full disk until they are told to go where there is room."""
    kept, full, room = os.dup(1), os.open("/dev/full", os.O_WRONLY), os.open("/dev/null", os.O_WRONLY)
    before = structlog.get_config()
    try:
        os.dup2(full, 1)
        structlog.configure(
            processors=[Lines({}, None)],
            logger_factory=lambda *_: output,
            cache_logger_on_first_use=False,
        )
        output = Output()
        yield lambda: _void(os.dup2(room, 1))
    finally:
        structlog.configure(**before)
        os.dup2(kept, 1)
        for each in (kept, full, room):
            os.close(each)


def _void(_: object) -> None:
    """A value that nobody wants."""


@dataclass
class Talks:
    """A loop that says something whenever it is asked to."""

    name: str = "talks"
    asked: asyncio.Queue[None] = field(default_factory=lambda: asyncio.Queue(1))
    said: int = 0

    async def run(self) -> None:
        while True:
            await self.asked.get()
            structlog.get_logger("talks").warning("something_is_wrong")
            self.said += 1


async def test_on_a_full_disk_calls_are_answered_and_counted_and_loops_live_on(trust: Trust) -> None:
    def counted() -> tuple[float, float]:
        return handled("GetOrder", "OK"), sampled("ordermesh_log_lines_lost_total")

    loop, stop = Talks(), StopSignal()
    (calls, lost), orders = counted(), Scripted()
    process = asyncio.create_task(until_stopped(loop, stop=stop))
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        with disk_full() as make_room:
            for said in (1, 2):
                loop.asked.put_nowait(None)
                await orders_of(channel).GetOrder(
                    pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata()
                )
                await eventually(lambda: _true(loop.said == said))  # noqa: B023 - asked within the round
            await eventually(lambda: _true(counted() == (calls + 2, lost + 4)))
            make_room()
            loop.asked.put_nowait(None)
            await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
            await eventually(lambda: _true((loop.said, *counted()) == (3, calls + 3, lost + 4)))
    assert not process.done(), "the loop lives"
    stop.set()
    await asyncio.wait_for(process, 5)


@contextmanager
def configured(processor: Any) -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(processors=[processor], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)


@pytest.mark.parametrize(
    ("subject", "more", "is_recorded"),
    [
        (OPERATOR, (), True),
        (ALICE, (), False),
        (ALICE, (("x-ordermesh-debug", "1"),), True),
        (ALICE, (("x-ordermesh-debug", "yes"),), False),
    ],
)
async def test_operators_calls_are_always_recorded_and_others_when_they_ask(
    trust: Trust,
    monkeypatch: pytest.MonkeyPatch,
    subject: Subject,
    more: tuple[tuple[str, str], ...],
    is_recorded: bool,
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=Wanted(0.0, exported=True))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    before = exemplars("grpc_server_handling_seconds")
    async with orders_served(trust, Scripted()) as server, trust.channel(server) as channel:
        metadata = (*trust.metadata(subject), *more)
        await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=metadata)
    recorded = {f"{span.context.trace_id:032x}" for span in exporter.get_finished_spans()}
    assert len(recorded) == is_recorded
    assert exemplars("grpc_server_handling_seconds") - before == recorded


async def test_who_is_unknown_cannot_ask_to_be_recorded(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=Wanted(0.0, exported=True))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(traces, "debugs", traces.DebugAllowance(per_s=0.001, burst=1))
    async with orders_served(trust, Scripted()) as server, trust.channel(server) as channel:
        stub, asks = orders_of(channel), (("x-ordermesh-debug", "1"),)
        with refused(StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED):
            await stub.GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=asks)
        assert exporter.get_finished_spans() == ()
        for _ in range(2):
            metadata = (*trust.metadata(ALICE), *asks)
            await stub.GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=metadata)
    assert len(exporter.get_finished_spans()) == 1, "the allowance was left for who is known, and has an end"
