"""Histories through the whole mesh: by REST, by gRPC and by the command line, whoever serves them."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest

from chassis.testing import eventually
from gateway.seen import COOKIE, HEADER
from ordermesh.history.v1 import history_service_pb2 as history
from ordermesh.history.v1.history_service_pb2_grpc import HistoryServiceStub
from tests.stack import World, reason_of

BUF = Path(sys.executable).parent / "buf"
SERVICE = "ordermesh.history.v1.HistoryService"
PROCESS_S_MAX = 60.0
AMOUNT = {"currencyCode": "EUR", "amountMinor": 1250}
BODY = {"kind": "payment", "amount": AMOUNT, "description": "two tickets"}
pytestmark = pytest.mark.timeout(120)


def somebody() -> str:
    return f"histories.{uuid4().hex[:8]}"


async def ran(*command: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(PROCESS_S_MAX):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def typed(world: World, *words: str) -> tuple[int | None, Any, str]:
    """A command's exit code, JSON and stderr."""
    command = (sys.executable, "-m", "ops", *words, "-o", "json", "--state-dir", str(world.state_dir))
    code, out, err = await ran(*command)
    return code, json.loads(out or "null"), err


async def bought(http: httpx.AsyncClient, **changes: Any) -> httpx.Response:
    return await http.post("/v1/orders", json=BODY | changes, headers={"idempotency-key": str(uuid4())})


async def test_a_list_over_rest_shows_the_write_before_it(world: World) -> None:
    async with world.rest(somebody()) as http:
        made = await bought(http)
        for count in range(2, 5):
            made = await bought(http)
            assert made.headers[HEADER] == http.cookies[COOKIE]
            page = (await http.get("/v1/orders")).json()
            assert page["orders"][0]["orderId"] == made.json()["orderId"]
            assert len(page["orders"]) == count
        key = {"idempotency-key": str(uuid4())}
        changed = await http.patch(made.headers["location"], json={"labels": {"seen": "yes"}}, headers=key)
        assert changed.status_code == httpx.codes.OK, changed.text
        http.cookies.clear()
        told = {HEADER: changed.headers[HEADER]}
        page = (await http.get("/v1/orders", headers=told)).json()
        assert page["orders"][0]["labels"] == {"seen": "yes"}


async def test_every_filter_shows_what_passes_it_and_read_info_says_who_served(world: World) -> None:
    async with world.rest(somebody()) as http:
        cheap = (await bought(http, amount={"currencyCode": "EUR", "amountMinor": 100})).json()["orderId"]
        dear = (await bought(http, kind="purchase")).json()["orderId"]
        for query, shown in (
            ("consistency=strong", [dear, cheap]),
            ("consistency=eventual&partial=true", [dear, cheap]),
            ("currency=EUR&minAmount=1250", [dear]),
            ("currency=EUR&maxAmount=1249", [cheap]),
            ("currency=USD", []),
            ("kind=purchase", [dear]),
            ("from=2026-01-01T00:00:00Z&until=9000-01-01T00:00:00Z", [dear, cheap]),
            ("until=2020-01-01T00:00:00Z", []),
        ):
            answer = await http.get(f"/v1/orders?{query}")
            page = answer.json()
            assert answer.status_code == httpx.codes.OK, answer.text
            assert [order["orderId"] for order in page["orders"]] == shown, query
            assert page["readInfo"]["servedBy"] in ("SQL", "READ_MODEL", "MERGED", "SQL_FALLBACK")
            assert set(page["unreachable"]) <= {"read-model"}
        words = await http.get("/v1/orders?q=tick")
        if words.status_code == httpx.codes.OK:
            assert [order["orderId"] for order in words.json()["orders"]] == [dear, cheap]
        else:
            assert words.json()["reason"] == "READ_MODEL_UNAVAILABLE"


async def test_buf_curl_searches_and_explains_on_the_plain_port(world: World) -> None:
    user = somebody()
    order = await world.create(user)
    url = f"http://{world.endpoints.grpc.plain}/{SERVICE}"

    async def call(method: str, ask: dict[str, Any]) -> Any:
        data = ("-d", json.dumps(ask), f"{url}/{method}")
        code, out, err = await ran(str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *data)
        assert code == 0, err
        return json.loads(out)

    async def found() -> Any:
        said = await call("SearchOrders", {"userId": user})
        is_there = [each["orderId"] for each in said.get("orders", ())] == [order.order_id]
        # Without a projector nothing was ever indexed, and the answer says that nobody knows its age.
        return said if is_there or "asOf" not in said["readInfo"] else None

    said = await eventually(found, within_s=30.0, every_s=0.5)
    assert said["readInfo"]["servedBy"] == "READ_MODEL_ONLY"
    assert said.get("unreachable", []) == []
    explained = await call("ExplainPage", {"userId": user})
    (part,) = explained["shards"]
    assert part["buckets"]
    assert part["watermarks"]
    assert "servedBy" in explained["readInfo"]


async def test_users_neither_search_nor_explain(world: World) -> None:
    token = (("authorization", f"Bearer {world.token(somebody())}"),)
    async with grpc.aio.insecure_channel(world.endpoints.grpc.plain) as channel:
        stub: Any = HistoryServiceStub(channel)
        for call, request in (
            (stub.SearchOrders, history.SearchOrdersRequest()),
            (stub.ExplainPage, history.ExplainPageRequest(user_id="alice")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(request, timeout=5.0, metadata=token)
            assert reason_of(refused.value) == "ROLE_REQUIRED"


async def test_the_page_of_a_vip_is_explained_by_every_bucket_the_vip_ever_had(world: World) -> None:
    said = await world.mesh.history.ExplainPage(history.ExplainPageRequest(user_id="vip.1"), timeout=5.0)
    assert {(part.shard, tuple(part.buckets)) for part in said.shards} == {("v1", (4096,)), ("s2", (4088,))}


async def test_operators_list_search_and_explain_by_command(world: World) -> None:
    user = somebody()
    made = [await world.create(user) for _ in range(3)]
    every = (
        "order",
        "list",
        "--user",
        user,
        "--all",
        "--page-size",
        "1",
        "--amount",
        "EUR:7",
        "--from",
        "1h",
    )
    listed, searched, explained = await asyncio.gather(
        typed(world, *every, "--from", "1h", "--consistency", "strong"),
        typed(world, "search", "--user", user),
        typed(world, "explain-page", user),
    )
    assert listed[0] == 0, listed
    assert [each["orderId"] for each in listed[1]] == [order.order_id for order in reversed(made)]
    assert searched[1]["readInfo"]["servedBy"] == "READ_MODEL_ONLY"
    assert searched[0] == ("asOf" not in searched[1]["readInfo"])
    assert explained[0] == any(part["unreliable"] for part in explained[1]["shards"])
