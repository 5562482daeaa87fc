"""What every process counts of itself: calls to others, its event loop, its connections, its version."""

from __future__ import annotations

import asyncio
import time

import prometheus_client
import pytest
from grpc import StatusCode

from chassis import looplag, rpc
from chassis.testing import eventually
from ops import ports
from ordermesh.order.v1 import order_service_pb2 as pb
from tests.listeners import CALL_S, Scripted, Trust, orders_of, orders_served, refused

LABELS = {
    "grpc_service": "ordermesh.order.v1.OrderService",
    "grpc_method": "GetOrder",
    "grpc_type": "unary",
}


def value(name: str, **labels: str) -> float:
    return prometheus_client.REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


def ended(code: StatusCode) -> float:
    return value("grpc_client_handled_total", **LABELS, grpc_code=code.name)


async def test_a_call_to_another_is_counted_when_it_is_sent_and_when_it_ends(trust: Trust) -> None:
    sent = value("grpc_client_started_total", **LABELS)
    timed = value("grpc_client_handling_seconds_count", **LABELS)
    well = ended(StatusCode.OK)
    async with orders_served(trust, Scripted()) as server, trust.channel(server) as channel:
        await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())

    async def counted() -> bool:
        return ended(StatusCode.OK) == well + 1

    await eventually(counted)
    assert value("grpc_client_started_total", **LABELS) == sent + 1
    assert value("grpc_client_handling_seconds_count", **LABELS) == timed + 1


async def test_a_call_that_nobody_answers_is_counted_by_its_code(trust: Trust) -> None:
    before = ended(StatusCode.UNAVAILABLE)
    target = f"127.0.0.1:{ports.free_port()}"
    async with rpc.Channel(target, service="order_svc", tls=trust.files("shard_proxy")) as channel:
        with refused(StatusCode.UNAVAILABLE):
            await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
    assert ended(StatusCode.UNAVAILABLE) == before + 1


async def test_a_call_that_its_caller_gives_up_is_counted_too(trust: Trust) -> None:
    before = ended(StatusCode.CANCELLED)
    target = f"127.0.0.1:{ports.free_port()}"
    async with rpc.Channel(target, service="order_svc", tls=trust.files("shard_proxy")) as channel:
        call = orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, wait_for_ready=True)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    async def counted() -> bool:
        return ended(StatusCode.CANCELLED) == before + 1

    await eventually(counted)


async def test_a_failure_that_never_happened_is_there_as_zero(trust: Trust) -> None:
    """So that the first one is an increase."""
    target = f"127.0.0.1:{ports.free_port()}"
    async with rpc.Channel(target, service="order_svc", tls=trust.files("shard_proxy")) as channel:
        orders_of(channel)
    family = {
        sample.labels["grpc_code"]
        for metric in prometheus_client.REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "grpc_client_handled_total" and sample.labels["grpc_method"] == "CreateOrder"
    }
    assert {"OK", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"} <= family


async def test_a_loop_that_is_blocked_shows_in_its_lag() -> None:
    def late() -> float:
        everything = value("ordermesh_event_loop_lag_seconds_count")
        return everything - value("ordermesh_event_loop_lag_seconds_bucket", le="0.1")

    before, looked = late(), value("ordermesh_event_loop_lag_seconds_count")

    async def seen() -> bool:
        return value("ordermesh_event_loop_lag_seconds_count") > looked

    async with looplag.watched():
        await asyncio.sleep(0)
        free_at = time.monotonic() + looplag.EVERY_S + 0.3
        while time.monotonic() < free_at:
            pass
        await eventually(seen)
    assert late() > before
