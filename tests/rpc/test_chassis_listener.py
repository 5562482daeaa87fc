"""The limits of every listener, each shown by what happens: grpcio reports no argument it does not know."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from chassis import rpc
from chassis.rpc import server as server_module
from chassis.rpc.options import METADATA_BYTES_MAX, MIB
from chassis.supervise import LoopDied, until_stopped
from chassis.testing import eventually
from ordermesh.order.v1 import order_pb2
from ordermesh.order.v1 import order_service_pb2 as pb
from tests.listeners import CALL_S, ORDERS, Scripted, Trust, orders_of, orders_served, raw_channel, refused


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


def create(size: int) -> pb.CreateOrderRequest:
    return pb.CreateOrderRequest(description="x" * size)


async def test_a_request_above_1_mib_is_refused_and_one_below_is_served(trust: Trust) -> None:
    orders = Scripted()
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        stub, metadata = orders_of(channel), trust.metadata()
        await stub.CreateOrder(create(MIB - 1024), timeout=CALL_S, metadata=metadata)
        with refused(StatusCode.RESOURCE_EXHAUSTED):
            await stub.CreateOrder(create(MIB + 1), timeout=CALL_S, metadata=metadata)
    assert len(orders.calls) == 1


def bytes_call(channel: grpc.aio.Channel, path: str) -> Any:
    return channel.unary_unary(path)


async def test_a_small_request_that_inflates_above_1_mib_is_refused(trust: Trust) -> None:
    orders = Scripted()
    bomb = create(64 * MIB).SerializeToString()
    assert len(gzip.compress(bomb)) < MIB
    unlimited = (("grpc.max_send_message_length", -1),)
    proxy = trust.files("shard_proxy").read()
    async with (
        orders_served(trust, orders) as server,
        raw_channel(f"127.0.0.1:{server.port}", proxy, options=unlimited) as channel,
    ):
        with refused(StatusCode.RESOURCE_EXHAUSTED):
            await bytes_call(channel, f"/{ORDERS}/CreateOrder")(
                bomb, timeout=CALL_S, metadata=trust.metadata(), compression=grpc.Compression.Gzip
            )
    assert orders.calls == []


async def test_an_answer_above_4_mib_is_not_sent(trust: Trust) -> None:
    async def answers(request: pb.CreateOrderRequest, _: rpc.Call) -> pb.CreateOrderResponse:
        size = 4 * MIB + 1 if request.description == "too large" else 4 * MIB - 1024
        return pb.CreateOrderResponse(order=order_pb2.Order(description="x" * size))

    unlimited = (("grpc.max_receive_message_length", -1),)
    proxy = trust.files("shard_proxy").read()
    async with (
        orders_served(trust, Scripted(CreateOrder=answers)) as server,
        raw_channel(f"127.0.0.1:{server.port}", proxy, options=unlimited) as channel,
    ):
        stub, metadata = orders_of(channel), trust.metadata()
        await stub.CreateOrder(pb.CreateOrderRequest(), timeout=CALL_S, metadata=metadata)
        with refused(StatusCode.RESOURCE_EXHAUSTED):
            await stub.CreateOrder(
                pb.CreateOrderRequest(description="too large"), timeout=CALL_S, metadata=metadata
            )


async def test_metadata_above_8_kib_is_refused_each_time_and_below_never(trust: Trust) -> None:
    """Between a soft and a hard limit gRPC refuses at random; ours are equal."""

    async def outcomes(channel: Any, size: int) -> set[StatusCode]:
        found = set()
        for _ in range(10):
            call = orders_of(channel).GetOrder(
                pb.GetOrderRequest(), timeout=CALL_S, metadata=(*trust.metadata(), ("x-padding", "p" * size))
            )
            found.add(await call.code())
        return found

    roomy = (("grpc.max_metadata_size", 65536), ("grpc.absolute_max_metadata_size", 65536))
    proxy = trust.files("shard_proxy").read()
    async with (
        orders_served(trust, Scripted()) as server,
        raw_channel(f"127.0.0.1:{server.port}", proxy, options=roomy) as channel,
    ):
        assert await outcomes(channel, METADATA_BYTES_MAX - 2048) == {StatusCode.OK}
        assert await outcomes(channel, METADATA_BYTES_MAX + 1) == {StatusCode.RESOURCE_EXHAUSTED}
        assert await outcomes(channel, METADATA_BYTES_MAX + 4096) == {StatusCode.RESOURCE_EXHAUSTED}


async def test_a_silent_connection_is_closed_after_five_seconds(trust: Trust) -> None:
    async def seconds_until_closed(port: int) -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        began = time.monotonic()
        while await asyncio.wait_for(reader.read(4096), 30):
            pass  # The server's own greeting; the end is what counts.
        writer.close()
        return time.monotonic() - began

    async with (
        orders_served(trust, Scripted()) as secure,
        orders_served(trust, Scripted(), plain=True) as plain,
    ):
        waited = await asyncio.gather(seconds_until_closed(secure.port), seconds_until_closed(plain.port))
    assert all(4 < seconds < 8 for seconds in waited), waited


def waiting_orders(release: asyncio.Event) -> Scripted:
    async def watches(_: Any, __: rpc.Call) -> AsyncIterator[pb.WatchOrderResponse]:
        yield pb.WatchOrderResponse()
        await release.wait()

    return Scripted(WatchOrder=watches)


async def test_one_connection_carries_no_more_streams_than_the_cap(trust: Trust) -> None:
    release = asyncio.Event()
    orders = waiting_orders(release)
    async with orders_served(trust, orders, streams_max=2) as server, trust.channel(server) as channel:
        stub, metadata = orders_of(channel), trust.metadata()
        streams = [
            stub.WatchOrder(pb.WatchOrderRequest(), timeout=CALL_S, metadata=metadata) for _ in range(2)
        ]
        for stream in streams:
            await stream.read()
        with refused(StatusCode.DEADLINE_EXCEEDED):
            await stub.GetOrder(pb.GetOrderRequest(), timeout=0.5, metadata=metadata)
        assert len(orders.calls) == 2, "a stream past the cap waits at the client"
        release.set()
        await stub.GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=metadata)


async def test_past_the_last_fence_calls_are_refused(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "RPCS_MAX", 2)
    release = asyncio.Event()
    async with orders_served(trust, waiting_orders(release)) as server, trust.channel(server) as channel:
        stub, metadata = orders_of(channel), trust.metadata()
        streams = [
            stub.WatchOrder(pb.WatchOrderRequest(), timeout=CALL_S, metadata=metadata) for _ in range(2)
        ]
        for stream in streams:
            await stream.read()
        with refused(StatusCode.RESOURCE_EXHAUSTED):
            await stub.GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=metadata)
        release.set()


async def test_connections_past_the_cap_are_refused_until_one_closes(trust: Trust) -> None:
    proxy = trust.files("shard_proxy").read()

    async def code(channel: grpc.aio.Channel) -> StatusCode:
        return (
            await orders_of(channel)
            .GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
            .code()
        )

    async def served(channel: grpc.aio.Channel) -> bool:
        return await code(channel) is StatusCode.OK

    async with orders_served(trust, Scripted(), connections_max=2) as server, AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                raw_channel(
                    f"127.0.0.1:{server.port}", proxy, options=(("grpc.use_local_subchannel_pool", 1),)
                )
            )
            for _ in range(3)
        ]
        assert await code(channels[0]) == await code(channels[1]) == StatusCode.OK
        assert await code(channels[2]) is StatusCode.UNAVAILABLE
        await channels[0].close()
        await eventually(lambda: served(channels[2]))


async def test_a_second_server_on_the_port_fails_loudly(trust: Trust) -> None:
    async with orders_served(trust, Scripted()) as server:
        with pytest.raises(rpc.PortTaken, match=str(server.port)):
            async with orders_served(trust, Scripted(), listen=f"127.0.0.1:{server.port}"):
                pass
        with pytest.raises(rpc.PortTaken):
            async with orders_served(trust, Scripted(), plain=True, listen=f"127.0.0.1:{server.port}"):
                pass


async def test_an_address_of_another_machine_cannot_be_listened_on(trust: Trust) -> None:
    with pytest.raises(rpc.PortTaken, match=r"198\.51\.100\.7"):
        async with orders_served(trust, Scripted(), listen="198.51.100.7:0"):
            pass


async def test_a_stopped_server_lets_running_calls_end_and_takes_no_more(trust: Trust) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def waits(_: Any, __: rpc.Call) -> pb.GetOrderResponse:
        arrived.set()
        await release.wait()
        return pb.GetOrderResponse()

    orders = Scripted(GetOrder=waits)
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        stub, metadata = orders_of(channel), trust.metadata()
        running = stub.GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=metadata)
        await arrived.wait()
        stopping = asyncio.create_task(server.stop(CALL_S))
        await eventually(lambda: port_closed(server.port))
        late = stub.GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=metadata)
        # A call that crosses the GOAWAY on its way is cut off by gRPC as CANCELLED; it has not begun either.
        assert await late.code() in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)
        release.set()
        assert await running == pb.GetOrderResponse()
        await asyncio.wait_for(stopping, CALL_S)
    assert len(orders.calls) == 1


class Dead:
    """A loop that has ended."""

    name = "dead"

    async def run(self) -> None:
        return


async def test_a_dead_loop_ends_the_server_though_a_call_would_go_on(trust: Trust) -> None:
    arrived = asyncio.Event()

    async def hangs(_: Any, __: rpc.Call) -> pb.GetOrderResponse:
        arrived.set()
        await asyncio.Event().wait()
        return pb.GetOrderResponse()

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(orders_served(trust, Scripted(GetOrder=hangs)))
        channel = await stack.enter_async_context(trust.channel(server))
        running = orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
        await arrived.wait()
        async with asyncio.timeout(3):
            with pytest.raises(LoopDied):
                await until_stopped(Dead(), drain=(partial(server.stop, 30.0),))
            await server.stop(0.1)
        assert await running.code() in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)


async def port_closed(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return True
    writer.close()
    return False


@asynccontextmanager
async def relay(port: int) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A TCP relay to a port; once its event is cleared it swallows bytes and keeps connections open."""
    flows = asyncio.Event()
    flows.set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await flows.wait()
            writer.write(data)
            await writer.drain()
        writer.close()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        pumps = [pump(reader, far_writer), pump(far_reader, writer)]
        await asyncio.gather(*pumps, return_exceptions=True)

    listening = await asyncio.start_server(carry, "127.0.0.1", 0)
    yield listening.sockets[0].getsockname()[1], flows
    flows.set()
    listening.close()


async def test_a_frozen_peer_is_noticed_by_keepalive_within_twenty_seconds(trust: Trust) -> None:
    """Without `http2.ping_timeout_ms` it takes more than a minute."""
    async with (
        orders_served(trust, waiting_orders(asyncio.Event())) as server,
        relay(server.port) as (port, flows),
    ):
        target = f"127.0.0.1:{port}"
        async with rpc.Channel(target, service="order_svc", tls=trust.files("shard_proxy")) as channel:
            stream = orders_of(channel).WatchOrder(
                pb.WatchOrderRequest(), timeout=60, metadata=trust.metadata()
            )
            await stream.read()
            flows.clear()
            began = time.monotonic()
            with refused(StatusCode.UNAVAILABLE):
                await stream.read()
    assert time.monotonic() - began < 20


async def test_pings_at_the_pace_of_our_clients_are_tolerated(trust: Trust) -> None:
    """By default the third ping within five minutes is answered with GOAWAY "too many pings"."""
    release = asyncio.Event()
    pace = (("grpc.keepalive_time_ms", 5_200),)
    proxy = trust.files("shard_proxy").read()
    async with (
        orders_served(trust, waiting_orders(release)) as server,
        raw_channel(f"127.0.0.1:{server.port}", proxy, options=pace) as channel,
    ):
        stream = orders_of(channel).WatchOrder(pb.WatchOrderRequest(), timeout=60, metadata=trust.metadata())
        await stream.read()
        silence = asyncio.ensure_future(stream.read())
        done, _ = await asyncio.wait([silence], timeout=5.2 * 4 + 1)
        assert not done, "the connection ended although nobody closed it"
        release.set()
        assert await silence is grpc.aio.EOF
