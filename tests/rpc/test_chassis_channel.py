"""Channels of the chassis: no proxy takes calls away, they come back after a restart and carry the trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc import StatusCode
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from chassis import rpc, traces
from chassis.rpc.options import channel_options, server_options
from chassis.testing import eventually
from ops import ports
from ordermesh.order.v1 import order_service_pb2 as pb
from tests.listeners import CALL_S, Scripted, Trust, orders_of, orders_served, refused


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


@asynccontextmanager
async def listening_proxy() -> AsyncIterator[tuple[int, list[bytes]]]:
    """An HTTP proxy that writes down what it is asked and closes."""
    asked: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], asked
    server.close()


async def test_an_http_proxy_in_the_environment_carries_no_call_of_the_mesh_away(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening_proxy() as (port, asked), orders_served(trust, Scripted()) as server:
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        for name in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        async with trust.channel(server) as channel:
            await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
        assert asked == []
        # Without our arguments the call does go to the proxy.
        async with grpc.aio.insecure_channel(f"localhost:{server.port}") as unguarded:
            with refused(StatusCode.UNAVAILABLE):
                await orders_of(unguarded).GetOrder(pb.GetOrderRequest(), timeout=CALL_S)
    assert asked[0].startswith(b"CONNECT")


async def test_a_channel_finds_its_server_again_within_two_seconds_of_its_return(trust: Trust) -> None:
    port = ports.free_port()
    listen = f"127.0.0.1:{port}"
    async with rpc.Channel(listen, service="order_svc", tls=trust.files("shard_proxy")) as channel:

        async def served() -> bool:
            call = orders_of(channel).GetOrder(
                pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata()
            )
            return await call.code() is StatusCode.OK

        for _ in range(2):
            with refused(StatusCode.UNAVAILABLE):
                await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S)
            async with orders_served(trust, Scripted(), listen=listen):
                await eventually(served, within_s=2)


@asynccontextmanager
async def slow_door(port: int, wait_s: float) -> AsyncIterator[int]:
    """A door to a server that lets nothing through for so long after each connection, like a starved one."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        awake = asyncio.Event()
        asyncio.get_running_loop().call_later(wait_s, awake.set)
        await awake.wait()
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer), return_exceptions=True)

    door = await asyncio.start_server(enter, "127.0.0.1", 0)
    yield door.sockets[0].getsockname()[1]
    door.close()


async def test_a_channel_gives_a_busy_server_the_time_to_shake_hands(trust: Trust) -> None:
    """Tries that are each cut off after a second would only cost the server more of what it lacks."""
    files = trust.files("shard_proxy")
    async with (
        orders_served(trust, Scripted()) as server,
        slow_door(server.port, wait_s=2.0) as port,
        rpc.Channel(f"127.0.0.1:{port}", service="order_svc", tls=files) as channel,
    ):
        asked = orders_of(channel).GetOrder(
            pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata(), wait_for_ready=True
        )
        assert await asked.code() is StatusCode.OK


async def test_what_vendors_keep_in_a_trace_goes_with_it_to_the_next_service(trust: Trust) -> None:
    orders, state = Scripted(), "congo=t61rcWkgMzE"
    parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "tracestate": state}
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        with traces.server_span("/s/m", parent):
            await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())
    (call,) = orders.calls
    assert call.tracestate == call.metadata["tracestate"] == state
    assert call.trace_id == parent["traceparent"].split("-")[1]


async def test_a_channel_passes_the_trace_on_unless_the_caller_did(trust: Trust) -> None:
    orders = Scripted()
    tracer = TracerProvider().get_tracer("test")
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with orders_served(trust, orders) as server, trust.channel(server) as channel:
        stub, metadata = orders_of(channel), trust.metadata()
        with tracer.start_as_current_span("caller"):
            here = traces.traceparent()
            await stub.GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=metadata)
            await stub.GetOrder(
                pb.GetOrderRequest(), timeout=CALL_S, metadata=(*metadata, ("traceparent", given))
            )
        assert not trace.get_current_span().get_span_context().is_valid
        await stub.GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=metadata)
    assert [call.metadata.get("traceparent", "") for call in orders.calls] == [here, given, ""]


async def test_closing_a_channel_ends_what_runs_on_it(trust: Trust) -> None:
    async def watches(_: object, __: rpc.Call) -> AsyncIterator[pb.WatchOrderResponse]:
        yield pb.WatchOrderResponse()
        await asyncio.Event().wait()

    async with orders_served(trust, Scripted(WatchOrder=watches)) as server:
        channel = trust.channel(server)
        stream = orders_of(channel).WatchOrder(
            pb.WatchOrderRequest(), timeout=CALL_S, metadata=trust.metadata()
        )
        await stream.read()
        await asyncio.wait_for(channel.close(), 5)
        assert await stream.code() is StatusCode.CANCELLED


def test_every_argument_has_a_name_that_grpc_knows() -> None:
    """grpcio ignores unknown names silently; these were all seen to do something."""
    known = {
        "grpc.absolute_max_metadata_size",
        "grpc.enable_http_proxy",
        "grpc.enable_retries",
        "grpc.http2.max_ping_strikes",
        "grpc.http2.max_pings_without_data",
        "grpc.http2.min_ping_interval_without_data_ms",
        "grpc.http2.ping_timeout_ms",
        "grpc.initial_reconnect_backoff_ms",
        "grpc.keepalive_permit_without_calls",
        "grpc.keepalive_time_ms",
        "grpc.keepalive_timeout_ms",
        "grpc.max_allowed_incoming_connections",
        "grpc.max_concurrent_streams",
        "grpc.max_connection_age_grace_ms",
        "grpc.max_connection_age_ms",
        "grpc.max_connection_idle_ms",
        "grpc.max_metadata_size",
        "grpc.max_receive_message_length",
        "grpc.max_reconnect_backoff_ms",
        "grpc.max_send_message_length",
        "grpc.min_reconnect_backoff_ms",
        "grpc.server_handshake_timeout_ms",
        "grpc.so_reuseport",
        "grpc.ssl_target_name_override",
        "grpc.use_local_subchannel_pool",
    }
    for options in (server_options(), channel_options("order-svc.ordermesh")):
        names = [name for name, _ in options]
        assert len(names) == len(set(names)), "an argument given twice"
        assert set(names) <= known


def test_connections_age_out_within_half_an_hour_and_not_all_at_once() -> None:
    ages = {int(dict(server_options())["grpc.max_connection_age_ms"]) for _ in range(50)}
    assert len(ages) > 10
    assert all(27 * 60_000 <= age <= 33 * 60_000 for age in ages)
