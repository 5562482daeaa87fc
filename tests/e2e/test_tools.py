"""People's tools against the proxy: reflection, calls without a deadline, REST with events."""

import asyncio
import json
import sys
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from ordermesh.upstream.v1.simulator_service_pb2 import Fault
from tests.stack import World

BUF = Path(sys.executable).parent / "buf"
CREATE = "ordermesh.order.v1.OrderService/CreateOrder"

pytestmark = pytest.mark.timeout(120)


async def buf_curl(world: World, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), timeout=60)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_buf_curl_lists_services_and_creates_an_order_on_the_plain_port(world: World) -> None:
    url = f"http://{world.endpoints.grpc.plain}"
    services = (await buf_curl(world, url, "--list-services")).split()
    assert {
        "ordermesh.order.v1.OrderService",
        "ordermesh.history.v1.HistoryService",
        "ordermesh.recovery.v1.RecoveryService",
        "ordermesh.routing.v1.RoutingService",
        "grpc.health.v1.Health",
    } <= set(services)
    ask = {
        "userId": "alice",
        "requestId": str(uuid4()),
        "kind": "payment",
        "amount": {"currencyCode": "EUR", "amountMinor": 1250},
        "wait": "4s",
    }
    answer = json.loads(await buf_curl(world, "-d", json.dumps(ask), f"{url}/{CREATE}"))
    assert answer["order"]["status"] == "SUCCESS"


async def test_events_of_an_order_stream_until_it_is_settled_and_resume(world: World) -> None:
    user = f"events.{uuid4().hex[:8]}"
    async with world.fault("payments", kind=Fault.SLOW, user_id_prefix=user, duration={"seconds": 1}):
        order = await world.create(user)
        async with world.rest(user) as http:
            stream = await http.get(f"/v1/orders/{order.order_id}/events")
            assert stream.headers["content-type"].startswith("text/event-stream")
            versions = [
                line.removeprefix("id: ") for line in stream.text.splitlines() if line.startswith("id: ")
            ]
            assert versions[-1] == "2"
            over = await http.get(
                f"/v1/orders/{order.order_id}/events", headers={"last-event-id": versions[-1]}
            )
            assert over.status_code == httpx.codes.NO_CONTENT


async def test_a_rest_order_waits_replays_and_answers_304(world: World) -> None:
    user, key = f"rest.{uuid4().hex[:8]}", str(uuid4())
    body = {"kind": "payment", "amount": {"currencyCode": "EUR", "amountMinor": 1250}}
    headers = {"idempotency-key": key, "prefer": "wait=5"}
    async with world.rest(user) as http:
        first = await http.post("/v1/orders", json=body, headers=headers)
        assert (first.status_code, first.json()["status"]) == (httpx.codes.CREATED, "SUCCESS")
        assert first.headers["preference-applied"] == "wait=5"
        again = await http.post("/v1/orders", json=body, headers=headers)
        assert (again.status_code, again.headers["idempotent-replayed"]) == (httpx.codes.OK, "true")
        assert again.json()["orderId"] == first.json()["orderId"]
        shown = await http.get(first.headers["location"])
        same = await http.get(first.headers["location"], headers={"if-none-match": shown.headers["etag"]})
        assert same.status_code == httpx.codes.NOT_MODIFIED
        page = await http.get("/v1/orders")
        assert [order["orderId"] for order in page.json()["orders"]] == [first.json()["orderId"]]
        assert (await http.get("/docs")).status_code == httpx.codes.OK
