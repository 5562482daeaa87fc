"""What the gate does to a call on its way in and out: deadline, decoding, errors, limiter, trailers."""

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
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from chassis import rpc, traces
from chassis.auth import Subject
from chassis.errors import (
    DOMAIN,
    OF_ONE_USER,
    DeadlineExceeded,
    InternalError,
    InvalidField,
    OrdermeshError,
    Overloaded,
    Reason,
    ShardUnavailable,
    StaleRoute,
    Violation,
)
from chassis.limits import Limiter
from chassis.logs import Lines
from chassis.output import Output
from chassis.rpc import ended as ended_module
from chassis.rpc import gate as gate_module
from chassis.sampling import Wanted
from chassis.supervise import StopSignal, until_stopped
from chassis.testing import eventually
from ordermesh.order.v1 import order_pb2
from ordermesh.order.v1 import order_service_pb2 as pb
from tests.exposition import exemplars
from tests.listeners import (
    ALICE,
    CALL_S,
    OPERATOR,
    ORDERS,
    Scripted,
    Trust,
    orders_of,
    orders_served,
    raw_channel,
    refused,
)

SHORT_S = 1.0
"""A stream that has no more time than this may end at any moment: gRPC rounds up."""
CANARY = "canary-postgres://u:hunter2@db/orders"


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


def handled(method: str, code: str) -> float:
    """How often the counter that dashboards read saw this."""
    return sampled("grpc_server_handled_total", grpc_method=method, grpc_code=code)


def sampled(name: str, **labels: str) -> float:
    """What the series of a metric with these labels say together."""
    return sum(
        sample.value
        for metric in prometheus_client.REGISTRY.collect()
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def test_a_call_without_a_deadline_is_refused_on_a_lane(trust: Trust) -> None:
    orders = Scripted()
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        with refused(StatusCode.INVALID_ARGUMENT, Reason.DEADLINE_REQUIRED):
            await orders_of(channel).GetOrder(pb.GetOrderRequest(), metadata=trust.metadata())
    assert orders.calls == []


async def test_the_entrance_gives_a_call_without_a_deadline_the_one_of_its_method(trust: Trust) -> None:
    orders = Scripted()
    gate = trust.lane(inject_deadline=True)
    async with orders_served(trust, orders, gate=gate) as server, trust.channel(server) as channel:
        stub = orders_of(channel)
        await stub.GetOrder(pb.GetOrderRequest(), metadata=trust.metadata())
        await stub.CreateOrder(pb.CreateOrderRequest(), metadata=trust.metadata())
        await stub.GetOrder(pb.GetOrderRequest(), timeout=2, metadata=trust.metadata())
    default, longer, own = orders.calls
    assert 4 < default.time_remaining() <= default.method.timeout_s == 5
    assert 30 < longer.time_remaining() <= longer.method.timeout_s == 35
    assert own.time_remaining() < 2.5  # gRPC rounds it up on its way.


async def test_a_deadline_of_hours_is_cut(trust: Trust) -> None:
    orders = Scripted()
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=86_400, metadata=trust.metadata())
    assert orders.calls[0].time_remaining() <= gate_module.DEADLINE_S_MAX


async def test_a_call_that_cannot_answer_in_time_is_refused_before_work(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The floor is raised so that the call reaches the server alive and the refusal reaches the client.
    monkeypatch.setattr(gate_module, "DEADLINE_S_MIN", 3.0)
    orders = Scripted()
    before = handled("GetOrder", "DEADLINE_EXCEEDED")
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        with refused(StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED):
            await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=2, metadata=trust.metadata())
        assert orders.calls == []
        await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=5, metadata=trust.metadata())
    assert len(orders.calls) == 1
    assert handled("GetOrder", "DEADLINE_EXCEEDED") == before + 1


async def test_an_uncaught_exceptions_text_stays_inside(
    trust: Trust, capsys: pytest.CaptureFixture[str]
) -> None:
    async def breaks(_: Any, __: rpc.Call) -> None:
        raise ValueError(CANARY)

    async def breaks_midway(_: Any, __: rpc.Call) -> AsyncIterator[pb.WatchOrderResponse]:
        yield pb.WatchOrderResponse()
        raise KeyError(CANARY)

    orders = Scripted(GetOrder=breaks, WatchOrder=breaks_midway)
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        stub = orders_of(channel)
        with refused(StatusCode.INTERNAL, Reason.INTERNAL_ERROR) as unary:
            await stub.GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
        with refused(StatusCode.INTERNAL, Reason.INTERNAL_ERROR) as stream:
            async for _ in stub.WatchOrder(pb.WatchOrderRequest(), timeout=CALL_S, metadata=trust.metadata()):
                pass
    assert CANARY not in repr(unary) + repr(stream)
    assert unary[0].message == stream[0].message == InternalError.sentence()
    assert capsys.readouterr().out.count(CANARY) >= 2, "the log must say what the caller may not see"


async def test_a_typed_error_keeps_its_code_reason_facts_and_delay(trust: Trust) -> None:
    errors: list[OrdermeshError] = [
        StaleRoute(bucket=701, epoch=7, owner="s2"),
        Overloaded(limiter="s1"),
        InvalidField(Violation("amount.currency_code", "must be EUR"), Violation("user_id", "is missing")),
    ]

    async def refuses(_: Any, call: rpc.Call) -> None:
        call.set_trailer("x-ordermesh-shard", "s1")
        raise errors[len(orders.calls) - 1]

    orders = Scripted(GetOrder=refuses)
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        found = []
        for error in errors:
            with refused(error.code, error.reason) as facts:
                await orders_of(channel).GetOrder(
                    pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata()
                )
            found.append(facts[0])
    stale, overloaded, invalid = found
    assert {"bucket": "701", "epoch": "7", "owner": "s2"}.items() <= stale.metadata.items()
    assert (overloaded.retry_after_s, stale.retry_after_s) == (Overloaded.retry_after_s, None)
    assert invalid.violations == errors[2].violations
    assert [error.message for error in found] == [error.sentence() for error in errors]


async def test_an_error_carries_exactly_one_error_info_of_our_domain(trust: Trust) -> None:
    async def refuses(_: Any, __: rpc.Call) -> None:
        raise Overloaded(limiter="s1")

    async with orders_served(trust, Scripted(GetOrder=refuses)) as server, trust.channel(server) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
    trailers = dict(failed.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    kinds = [detail.type_url.rpartition(".")[2] for detail in status.details]
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert kinds == ["ErrorInfo", "RetryInfo"]
    assert (info.domain, info.reason) == (DOMAIN, "OVERLOADED")


async def test_the_largest_error_still_reaches_its_caller(trust: Trust) -> None:
    """Trailers past 8 KiB would be replaced by a RESOURCE_EXHAUSTED that says nothing."""

    async def refuses(_: Any, __: rpc.Call) -> None:
        raise InvalidField(*(Violation("labels." + "k" * 5000, "v" * 5000) for _ in range(50)))

    async with orders_served(trust, Scripted(GetOrder=refuses)) as server, trust.channel(server) as channel:
        with refused(StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD) as facts:
            await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
    assert len(facts[0].violations) == 10


async def test_bytes_that_are_no_message_are_malformed_and_reach_no_handler(trust: Trust) -> None:
    orders = Scripted()
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        get = channel.unary_unary(f"/{ORDERS}/GetOrder")
        watch = channel.unary_stream(f"/{ORDERS}/WatchOrder")
        for junk in (b"\xff\xff\xff", b"\x0a\x7fshort", b"\x0a\x02\xff\xfe"):
            with refused(StatusCode.INVALID_ARGUMENT, Reason.MALFORMED_REQUEST):
                await get(junk, timeout=CALL_S, metadata=trust.metadata())
            with refused(StatusCode.INVALID_ARGUMENT, Reason.MALFORMED_REQUEST):
                await watch(junk, timeout=CALL_S, metadata=trust.metadata()).read()
    assert orders.calls == []


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


def shed(method: str) -> float:
    labels = {"grpc_service": ORDERS, "grpc_method": method}
    return prometheus_client.REGISTRY.get_sample_value("ordermesh_rpc_shed_total", labels) or 0.0


def relayed(error: OrdermeshError) -> rpc.RelayedStatus:
    return rpc.RelayedStatus(*rpc.to_status(error))


@pytest.mark.parametrize(
    ("error", "sheds"),
    [
        (Overloaded(limiter="s1"), 1),
        (relayed(Overloaded(limiter="history_calls")), 1),
        (Overloaded(limiter=OF_ONE_USER), 0),
        (relayed(Overloaded(limiter=OF_ONE_USER)), 0),
        (ShardUnavailable(), 0),
        (rpc.RelayedStatus(StatusCode.RESOURCE_EXHAUSTED, "a message of gRPC's own", ()), 0),
    ],
    ids=["here", "behind", "its-user", "its-user-behind", "away", "no-reason"],
)
async def test_a_call_is_shed_when_too_much_goes_on_and_not_when_its_own_user_has_too_much(
    trust: Trust, error: Exception, sheds: int
) -> None:
    async def raises(_: Any, __: rpc.Call) -> None:
        raise error

    async with orders_served(trust, Scripted(GetOrder=raises)) as server, trust.channel(server) as channel:
        assert (
            prometheus_client.REGISTRY.get_sample_value(
                "ordermesh_rpc_shed_total", {"grpc_service": ORDERS, "grpc_method": "UpdateOrder"}
            )
            is not None
        ), "there before the first one"
        before = shed("GetOrder")
        with pytest.raises(grpc.aio.AioRpcError):
            await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
    assert shed("GetOrder") - before == sheds


async def test_beyond_slots_and_queue_a_call_is_refused_at_once_with_a_delay(trust: Trust) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def waits(_: Any, __: rpc.Call) -> pb.GetOrderResponse:
        arrived.set()
        await release.wait()
        return pb.GetOrderResponse()

    limiter = Limiter(slots=1, queue=1, name="s1")
    orders = Scripted(GetOrder=waits)
    gate = trust.lane(limiter=limiter)
    async with orders_served(trust, orders, gate=gate) as server, trust.channel(server) as channel:
        stub = orders_of(channel)

        def get() -> Any:
            return stub.GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())

        working, queued = get(), get()
        await arrived.wait()
        await eventually(lambda: _true(len(limiter._waiting) == 1))
        with refused(StatusCode.RESOURCE_EXHAUSTED, Reason.OVERLOADED) as facts:
            await get()
        # A stream waits most of its life; it takes no slot while it is open.
        assert await stub.WatchOrder(
            pb.WatchOrderRequest(), timeout=CALL_S, metadata=trust.metadata()
        ).read() == (pb.WatchOrderResponse())
        release.set()
        await asyncio.gather(working, queued)
    assert facts[0].retry_after_s == Overloaded.retry_after_s
    assert facts[0].metadata["limiter"] == "s1"
    assert limiter.taken == 0


async def _true(claim: bool) -> bool:
    return claim


async def test_a_queued_call_whose_caller_went_away_never_starts(trust: Trust) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def waits(_: Any, __: rpc.Call) -> pb.GetOrderResponse:
        arrived.set()
        await release.wait()
        return pb.GetOrderResponse()

    limiter = Limiter(slots=1, queue=4)
    orders = Scripted(GetOrder=waits)
    async with (
        orders_served(trust, orders, gate=trust.lane(limiter=limiter)) as server,
        trust.channel(server) as channel,
    ):

        def get() -> Any:
            return orders_of(channel).GetOrder(
                pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata()
            )

        working = get()
        await arrived.wait()
        queued = get()
        await eventually(lambda: _true(len(limiter._waiting) == 1))
        queued.cancel()
        await eventually(lambda: _true(len(limiter._waiting) == 0))
        release.set()
        await working
    assert len(orders.calls) == 1


async def test_a_cancelled_call_is_cancelled_inside_and_counted_so(trust: Trust) -> None:
    arrived, cancelled = asyncio.Event(), asyncio.Event()

    async def waits(_: Any, __: rpc.Call) -> None:
        arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    before = handled("GetOrder", "CANCELLED")
    async with (
        orders_served(trust, Scripted(GetOrder=waits)) as server,
        trust.channel(server) as channel,
    ):
        call = orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
        await arrived.wait()
        call.cancel()
        await asyncio.wait_for(cancelled.wait(), 5)
        await eventually(lambda: _true(handled("GetOrder", "CANCELLED") == before + 1))


async def test_a_stream_that_is_left_closes_its_generator(trust: Trust) -> None:
    closed = asyncio.Event()

    async def endless(_: Any, __: rpc.Call) -> AsyncIterator[pb.WatchOrderResponse]:
        try:
            for version in range(1, 10_000):
                yield pb.WatchOrderResponse(order=order_pb2.Order(version=version))
                await asyncio.sleep(0)
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with (
        orders_served(trust, Scripted(WatchOrder=endless)) as server,
        trust.channel(server) as channel,
    ):
        stream = orders_of(channel).WatchOrder(
            pb.WatchOrderRequest(), timeout=CALL_S, metadata=trust.metadata()
        )
        assert isinstance(await stream.read(), pb.WatchOrderResponse)
        stream.cancel()
        await asyncio.wait_for(closed.wait(), 5)


async def test_trailers_of_a_handler_arrive_with_an_answer_with_a_stream_and_with_an_error(
    trust: Trust,
) -> None:
    async def answers(_: Any, call: rpc.Call) -> pb.GetOrderResponse:
        call.set_trailer("x-ordermesh-shard", "s1")
        return pb.GetOrderResponse()

    async def streams(_: Any, call: rpc.Call) -> AsyncIterator[pb.WatchOrderResponse]:
        call.set_trailer("x-ordermesh-shard", "s1")
        yield pb.WatchOrderResponse()

    async def refuses(_: Any, call: rpc.Call) -> None:
        call.set_trailer("x-ordermesh-shard", "s1")
        raise Overloaded

    orders = Scripted(GetOrder=answers, WatchOrder=streams, ListOrderEvents=refuses)
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        stub, options = orders_of(channel), {"timeout": CALL_S, "metadata": trust.metadata()}
        calls: list[Any] = [
            stub.GetOrder(pb.GetOrderRequest(), **options),  # type: ignore[arg-type]
            stub.WatchOrder(pb.WatchOrderRequest(), **options),  # type: ignore[arg-type]
            stub.ListOrderEvents(pb.ListOrderEventsRequest(), **options),  # type: ignore[arg-type]
        ]
        assert len([answer async for answer in calls[1]]) == 1
        trailers = [dict(await call.trailing_metadata()) for call in calls]
    assert [trailer["x-ordermesh-shard"] for trailer in trailers] == ["s1"] * 3


async def test_a_status_from_behind_is_relayed_as_it_is(trust: Trust) -> None:
    foreign = status_pb2.Status(code=9, message="from far", details=[any_pb2.Any(type_url="t/x", value=b"1")])
    details = ("grpc-status-details-bin", foreign.SerializeToString())

    async def relays(_: Any, __: rpc.Call) -> None:
        raise rpc.RelayedStatus(StatusCode.FAILED_PRECONDITION, "from far", (details, ("x-more", "1")))

    async with orders_served(trust, Scripted(GetOrder=relays)) as server, trust.channel(server) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
    assert (failed.value.code(), failed.value.details()) == (StatusCode.FAILED_PRECONDITION, "from far")
    assert {details, ("x-more", "1")} <= set(failed.value.trailing_metadata() or ())


async def test_refusals_before_the_handler_are_counted_too(trust: Trust) -> None:
    before = handled("GetOrder", "UNAUTHENTICATED")
    async with (
        orders_served(trust, Scripted()) as server,
        raw_channel(f"127.0.0.1:{server.port}", trust.peer()) as channel,
    ):
        with refused(StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED):
            await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S)
    assert handled("GetOrder", "UNAUTHENTICATED") == before + 1


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
