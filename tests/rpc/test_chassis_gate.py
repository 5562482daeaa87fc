"""What the gate does to a call on its way in and out: deadline, decoding, errors, limiter, trailers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import prometheus_client
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from chassis import rpc
from chassis.errors import (
    DOMAIN,
    OF_ONE_USER,
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
from chassis.rpc import gate as gate_module
from chassis.testing import eventually
from ordermesh.order.v1 import order_pb2
from ordermesh.order.v1 import order_service_pb2 as pb
from tests.exposition import handled
from tests.listeners import (
    CALL_S,
    ORDERS,
    Scripted,
    Trust,
    orders_of,
    orders_served,
    raw_channel,
    refused,
)

CANARY = "canary-postgres://u:hunter2@db/orders"


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


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
