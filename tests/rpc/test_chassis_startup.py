"""What stops a service from starting: a gap in its contract, or plain text where others could listen."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from chassis import rpc
from chassis.errors import OrdermeshError
from ordermesh.routing.v1 import options_pb2
from tests.listeners import ORDERS, Scripted, Trust, orders_served

ANY = options_pb2.RouteRule(by=options_pb2.ROUTE_BY_ANY, retry=options_pb2.RETRY_SAFE)


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


def proto(name: str, rule: options_pb2.RouteRule | None, *, client_streaming: bool = False) -> str:
    """Add a service with one method `Ask(Question) -> Question` to the pool; return the service's name."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package=f"broken.{name}", dependency=["ordermesh/routing/v1/options.proto"]
    )
    question = file.message_type.add(name="Question")
    question.field.add(
        name="user_id", number=1, label="LABEL_OPTIONAL", type="TYPE_STRING", json_name="userId"
    )
    method = file.service.add(name="Service").method.add(
        name="Ask",
        input_type=f".broken.{name}.Question",
        output_type=f".broken.{name}.Question",
        client_streaming=client_streaming,
    )
    if rule is not None:
        method.options.Extensions[options_pb2.route].CopyFrom(rule)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return f"broken.{name}.Service"


class Answers:
    async def Ask(self, request: Any, _: rpc.Call) -> Any:
        return request


class AnswersWithoutAwaiting:
    def Ask(self, request: Any, _: rpc.Call) -> Any:
        return request


class Silent:
    pass


async def start(service: str, implementation: object, trust: Trust) -> None:
    mounts = [rpc.Mount(service, implementation)]
    async with rpc.serve("127.0.0.1:0", mounts, gate=trust.lane(), tls=trust.server()):
        pass


async def test_a_method_with_all_it_needs_starts(trust: Trust) -> None:
    await start(proto("whole", ANY), Answers(), trust)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("no_option", None),
        ("no_route", options_pb2.RouteRule(retry=options_pb2.RETRY_SAFE)),
        ("no_retry", options_pb2.RouteRule(by=options_pb2.ROUTE_BY_ANY)),
        ("no_key", options_pb2.RouteRule(by=options_pb2.ROUTE_BY_USER, retry=options_pb2.RETRY_SAFE)),
        (
            "foreign_key",
            options_pb2.RouteRule(by=options_pb2.ROUTE_BY_USER, key="order_id", retry=options_pb2.RETRY_SAFE),
        ),
        (
            "key_for_any",
            options_pb2.RouteRule(by=options_pb2.ROUTE_BY_ANY, key="user_id", retry=options_pb2.RETRY_SAFE),
        ),
    ],
)
async def test_a_method_that_does_not_say_how_it_is_routed_stops_the_start(
    trust: Trust, name: str, rule: options_pb2.RouteRule | None
) -> None:
    with pytest.raises(rpc.BadContract, match=r"/broken.*/Ask"):
        await start(proto(name, rule), Answers(), trust)


@pytest.mark.parametrize("implementation", [Silent(), AnswersWithoutAwaiting()])
async def test_a_method_without_an_async_handler_stops_the_start(
    trust: Trust, implementation: object
) -> None:
    """A plain function would be run in a thread pool, silently."""
    service = proto(f"handler_{type(implementation).__name__}", ANY)
    with pytest.raises(rpc.BadContract, match=r"Ask needs a coroutine function"):
        await start(service, implementation, trust)


async def test_one_missing_handler_of_many_stops_the_start(trust: Trust) -> None:
    orders = Scripted()
    del orders.WatchOrder  # type: ignore[attr-defined]
    with pytest.raises(rpc.BadContract, match="WatchOrder needs an async generator"):
        await start(ORDERS, orders, trust)


async def test_streams_of_requests_stop_the_start(trust: Trust) -> None:
    with pytest.raises(rpc.BadContract, match="streams of requests"):
        await start(proto("uploads", ANY, client_streaming=True), Answers(), trust)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.0.0.1:7400", "ordermesh.example:7400"])
async def test_plain_text_is_refused_off_loopback(trust: Trust, listen: str) -> None:
    with pytest.raises(rpc.BadContract, match="only a loopback address"):
        async with orders_served(trust, Scripted(), plain=True, listen=listen):
            pass


async def test_a_service_that_no_proto_knows_cannot_be_mounted(trust: Trust) -> None:
    with pytest.raises(KeyError):
        await start("ordermesh.order.v9.OrderService", Scripted(), trust)


def test_a_refusal_at_start_is_no_answer_to_a_caller() -> None:
    assert not issubclass(rpc.BadContract, OrdermeshError)
    assert not issubclass(rpc.PortTaken, OrdermeshError)
