"""The REST listener against people who hold on to it: slow, silent, too many, or speaking no HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY

from chassis.supervise import LoopDied, until_stopped
from chassis.testing import eventually
from gateway.counting import OUR_FAULTS
from tests import gateways
from tests.gateways import Rest, new_order

WITHIN_S = 10.0
RECEIPT_S = 0.4


@pytest.fixture(scope="module")
async def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture
async def rest(directory) -> AsyncIterator[Rest]:
    async with gateways.opened(directory, profile="local", receipt_s=RECEIPT_S) as opened:
        yield opened


class Wire:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_closed(self) -> bytes:
        async with asyncio.timeout(WITHIN_S):
            return await self.reader.read()

    async def answer(self) -> tuple[int, dict[str, Any]]:
        """Status and JSON of one answer."""
        async with asyncio.timeout(WITHIN_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            body = await self.reader.readexactly(length)
        return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else {}


@asynccontextmanager
async def connected(rest: Rest) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", rest.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


def problem_in(raw: bytes) -> dict[str, Any]:
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head.lower()
    assert b"connection: close" in head.lower()
    problem: dict[str, Any] = json.loads(body)
    assert head.startswith(f"HTTP/1.1 {problem['status']} ".encode())
    return problem


def post(rest: Rest, length: int) -> bytes:
    headers = rest.headers(idempotency_key="8e03978e-40d5-43e8-bc93-6894a57f9324")
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST /v1/orders HTTP/1.1\r\nhost: x\r\n{lines}content-type: application/json\r\n"
        f"content-length: {length}\r\n\r\n"
    ).encode()


HALF = {
    "nothing": b"",
    "half a head": b"GET /healthz HTTP/1.1\r\nhos",
    "half a body": b"POST /v1/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{",
    "half a chunk": b"POST /v1/orders HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
}


@pytest.mark.parametrize("name", HALF)
async def test_a_request_that_does_not_arrive_in_time_is_refused_and_hung_up_on(rest, name):
    async with connected(rest) as wire:
        await wire.send(HALF[name])
        problem = problem_in(await wire.until_closed())
    assert (problem["status"], problem["reason"]) == (408, "DEADLINE_EXCEEDED")
    assert rest.mesh.creates == []


async def test_dripping_bytes_buys_no_time(rest):
    loop = asyncio.get_running_loop()
    async with connected(rest) as wire:
        await wire.send(b"GET /healthz HTTP/1.1\r\n")
        began = loop.time()
        closed = asyncio.create_task(wire.until_closed())
        while not closed.done():
            wire.writer.write(b"x: y\r\n")
            await asyncio.wait([closed], timeout=0.02)
        assert loop.time() - began < RECEIPT_S + 1
        try:
            assert problem_in(closed.result())["status"] == 408
        except ConnectionResetError:
            return  # Who writes into a closed connection may lose the answer; closed in time it is.


async def test_a_request_in_pieces_is_served_when_it_is_complete_in_time(rest):
    body = json.dumps(new_order()).encode()
    async with connected(rest) as wire:
        head = post(rest, len(body))
        for piece in (head[:20], head[20:], body[:5], body[5:]):
            await wire.send(piece)
        status, order = await wire.answer()
    assert (status, order["status"]) == (201, "PENDING")


async def test_the_deadline_of_a_request_counts_from_its_head(directory):
    async with gateways.opened(directory, profile="local", receipt_s=5.0) as rest, connected(rest) as wire:
        body = json.dumps(new_order()).encode()
        head = post(rest, len(body)).replace(b"\r\nhost: x", b"\r\nhost: x\r\nx-request-timeout: 300ms")
        await wire.send(head)
        late = asyncio.create_task(asyncio.wait_for(asyncio.Event().wait(), 0.6))
        await asyncio.wait([late])
        late.exception()
        await wire.send(body)
        status, problem = await wire.answer()
        assert (status, problem["reason"]) == (504, "DEADLINE_EXCEEDED")
        assert rest.mesh.creates == []


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def test_every_route_is_counted_from_zero_under_the_name_that_its_requests_are_counted_under(directory):
    async with gateways.opened(directory, profile="local") as rest:
        order_id = (await rest.create()).json()["orderId"]
        assert (await rest.get(f"/v1/orders/{order_id}")).status_code == 200
        assert (await rest.get("/v1/statements")).status_code == 200
        assert (await rest.get("/no/such/path")).status_code == 404
    for route, method, seen in (
        ("/v1/orders", "POST", "201"),
        ("/v1/orders/{order_id}", "GET", "200"),
        ("/v1/statements", "GET", "200"),
        ("unmatched", "GET", "404"),
    ):
        labels = {"route": route, "method": method}
        assert sample("http_server_handled_total", **labels, status=seen)
        faults = [sample("http_server_handled_total", **labels, status=each) for each in OUR_FAULTS]
        assert None not in faults
    assert sample("http_server_handled_total", route="unmatched", method="other", status="503") is not None


async def test_requests_answered_at_once_are_bounded_and_so_is_their_queue(directory):
    async with gateways.opened(
        directory, profile="local", requests_in_flight_max=1, requests_queue=1
    ) as rest:
        path = f"/v1/orders/{(await rest.create()).json()['orderId']}"
        rest.mesh.held, calls = asyncio.Event(), len(rest.mesh.calls)
        answered = asyncio.create_task(rest.get(path))
        await eventually(lambda: holds(len(rest.mesh.calls) == calls + 1))
        before = sample("ordermesh_gateway_shed_total") or 0.0
        queued = [asyncio.create_task(rest.get(path)) for _ in range(2)]
        done, _ = await asyncio.wait(queued, return_when=asyncio.FIRST_COMPLETED, timeout=WITHIN_S)
        refused = done.pop().result()
        assert (refused.status_code, refused.json()["reason"]) == (503, "OVERLOADED")
        assert refused.headers["retry-after"] == "1"
        assert (await rest.http.get("/healthz")).status_code == 200, "busy is not dead"
        codes = {(await one).status_code for one in queued}
        assert codes == {503}, "nobody queues for long"
        assert sample("ordermesh_gateway_shed_total") == before + 2
        rest.mesh.held.set()
        assert (await answered).status_code == 200
        assert (await rest.get(path)).status_code == 200


async def test_a_stream_that_has_begun_keeps_nobody_from_being_answered(directory):
    async with gateways.opened(
        directory, profile="local", requests_in_flight_max=1, requests_queue=0
    ) as rest:
        path = f"/v1/orders/{(await rest.create()).json()['orderId']}"
        async with rest.http.stream("GET", f"{path}/events", headers=rest.headers()) as stream:
            assert stream.status_code == 200
            assert (await rest.get(path)).status_code == 200


async def holds(claim: bool) -> bool:
    return claim


async def test_a_connection_serves_many_requests_and_the_clock_starts_anew_for_each(rest):
    async with connected(rest) as wire:
        for _ in range(3):
            await wire.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await wire.answer())[0] == 200
        await wire.send(b"GET /healthz HTTP/1.1\r\n")
        assert problem_in(await wire.until_closed())["status"] == 408


async def test_a_slow_answer_is_not_a_slow_request(rest):
    order_id = (await rest.create()).json()["orderId"]
    async with rest.http.stream("GET", f"/v1/orders/{order_id}/events", headers=rest.headers()) as answer:
        lines = answer.aiter_lines()
        async with asyncio.timeout(WITHIN_S):
            while not (await anext(lines)).startswith("data"):
                continue
            waited = asyncio.create_task(asyncio.wait_for(asyncio.Event().wait(), RECEIPT_S * 2))
            await asyncio.wait([waited])
            waited.exception()
            await rest.mesh.settle(order_id)
            while not (await anext(lines)).startswith("id: 2"):
                continue


class Dead:
    """A loop that has ended."""

    name = "dead"

    async def run(self) -> None:
        return


async def test_a_dead_loop_ends_the_listener_though_a_request_would_go_on(directory):
    async with gateways.opened(directory, profile="local", drain_s=30.0) as rest:
        order_id = (await rest.create()).json()["orderId"]
        async with connected(rest) as wire:
            lines = "".join(f"{name}: {value}\r\n" for name, value in rest.headers().items())
            asked = f"GET /v1/orders/{order_id}/events HTTP/1.1\r\nhost: x\r\n{lines}\r\n"
            await wire.send(asked.encode())
            await rest.mesh.watching.wait()
            async with asyncio.timeout(3):
                with pytest.raises(LoopDied):
                    await until_stopped(Dead(), drain=(rest.gateway.rest.stop,))
                await rest.gateway.rest.stop()


async def test_an_idle_connection_is_closed_quietly(directory):
    async with gateways.opened(directory, profile="local", keep_alive_s=1) as rest, connected(rest) as wire:
        await wire.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await wire.answer())[0] == 200
        assert await wire.until_closed() == b""


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / SPDY/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"POST /v1/orders HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcde",
    ],
)
async def test_broken_http_is_a_problem_and_the_end(rest, raw):
    async with connected(rest) as wire:
        await wire.send(raw)
        problem = problem_in(await wire.until_closed())
    assert (problem["status"], problem["reason"]) == (400, "MALFORMED_REQUEST")


async def test_a_head_is_bounded_whether_it_comes_at_once_or_in_pieces(rest):
    async with connected(rest) as wire:
        await wire.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\nlong: " + b"x" * 17_000 + b"\r\n\r\n")
        status, problem = await wire.answer()
        assert (status, problem["reason"]) == (413, "TOO_LARGE")
    async with connected(rest) as wire:
        await wire.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\nlong: ")
        await wire.send(b"x" * 17_000)
        assert problem_in(await wire.until_closed())["status"] == 400


async def test_a_body_without_a_length_is_counted_too(rest):
    head = post(rest, 0).replace(b"content-length: 0", b"transfer-encoding: chunked")
    async with connected(rest) as wire:
        await wire.send(head)
        for _ in range(20):
            await wire.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        status, problem = await wire.answer()
    assert (status, problem["reason"]) == (413, "TOO_LARGE")
    assert rest.mesh.creates == []


async def test_connections_of_one_address_are_bounded_and_others_are_served(directory):
    async with gateways.opened(directory, profile="production", connections_per_address_max=3) as rest:
        async with connected(rest) as one, connected(rest), connected(rest):
            async with connected(rest) as fourth:
                problem = problem_in(await fourth.until_closed())
                assert (problem["status"], problem["reason"]) == (503, "OVERLOADED")
            await one.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await one.answer())[0] == 200
        assert (await rest.http.get("/healthz")).status_code == 200


async def test_a_websocket_is_not_opened(rest):
    async with connected(rest) as wire:
        await wire.send(
            b"GET /v1/orders HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert (await wire.answer())[0] == 401
