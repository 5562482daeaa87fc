"""From an order id to everything that happened to it, on the whole mesh with real servers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from chassis.testing import eventually
from ordermesh.order.v1.order_pb2 import Order
from ordermesh.upstream.v1.simulator_service_pb2 import Fault
from tests.stack import World, ready

pytestmark = pytest.mark.timeout(400)  # A stack of nine servers starts first.
WITHIN_S = 60.0
LOST = {"kind": Fault.LOST_REPLY, "method": Fault.EXECUTE, "user_id_prefix": "alice", "limit": 1}
Entries = list[dict[str, Any]]


@pytest.fixture(scope="module")
async def full(server_dir: Path) -> AsyncIterator[World]:
    """A mesh with Kafka and Elasticsearch, of this module's own."""
    async with ready(server_dir / "stories", full=True) as opened:
        yield opened


async def ordermesh(world: World, *words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ops", *words, "--state-dir", str(world.state_dir)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return await process.wait(), out.decode(), err.decode()


async def story(world: World, order_id: str) -> Entries:
    code, out, err = await ordermesh(world, "trace", order_id, "-o", "json")
    assert code == 0, err
    entries: Entries = json.loads(out)["entries"]
    return entries


def spans(entries: Entries, *, linked: bool) -> set[tuple[str, str]]:
    return {
        (each["where"].partition(".")[0], each["raw"]["span.name"].rpartition("/")[2])
        for each in entries
        if each["source"] == "span" and each["isLinked"] is linked
    }


async def order_over_rest(world: World, user: str, **more: Any) -> str:
    body = {"kind": "payment", "amount": {"currencyCode": "EUR", "amountMinor": 1250}, **more}
    async with world.rest(user) as http:
        made = await http.post("/v1/orders", json=body, headers={"idempotency-key": str(uuid4())})
    assert made.status_code == 201, made.text
    return str(made.json()["orderId"])


async def test_one_trace_crosses_the_mesh_and_relay_and_indexer_are_linked_to_it(full: World) -> None:
    order_id = await order_over_rest(full, "alice", kind="purchase")
    await full.until_settled(order_id)
    own = {
        ("gateway", "orders"),
        ("shard_proxy", "CreateOrder"),
        ("order_svc", "CreateOrder"),
        ("order_svc", "OrderStore.create"),
        ("order_svc", "submit"),
        ("order_svc", "Execute"),
        ("upstream", "Execute"),
    }
    beside = {("projector", f"{verb} ordermesh.order-events.v1") for verb in ("send", "process")}

    async def told() -> Entries | None:
        entries = await story(full, order_id)
        whole = own <= spans(entries, linked=False) and beside <= spans(entries, linked=True)
        return entries if whole else None

    entries = await eventually(told, within_s=WITHIN_S, every_s=0.5)
    traces = {each["traceId"] for each in entries if each["source"] == "span" and not each["isLinked"]}
    assert len(traces) == 1, "one trace from the gateway to the upstream"
    assert [each["what"].split()[0] for each in entries if each["source"] == "journal"][::3] == [
        "OPENED",
        "SETTLED",
    ]
    assert [each["at"] for each in entries] == sorted(each["at"] for each in entries)
    depths = {each["raw"]["span.name"]: each["depth"] for each in entries if each["source"] == "span"}
    assert depths["POST /v1/orders"] == 0
    assert depths["ordermesh.upstream.v1.UpstreamService/Execute"] >= 4
    assert not any(each["isWrong"] for each in entries)
    store = next(each for each in entries if each["raw"].get("span.name") == "OrderStore.create")
    assert store["raw"]["attributes"]["db.query.summary"].startswith("INSERT ")
    _, shown, _ = await ordermesh(full, "trace", order_id)
    assert "~ process ordermesh.order-events.v1" in shown
    assert order_id in shown


async def test_logs_finds_the_lines_of_an_order_and_of_a_trace_in_elasticsearch(full: World) -> None:
    order_id = await order_over_rest(full, "bob")
    await full.until_settled(order_id)

    async def told() -> Entries | None:
        code, out, err = await ordermesh(full, "logs", order_id, "-o", "json")
        lines: Entries = json.loads(out)
        rooms = {line["service.name"] for line in lines}
        is_all = rooms >= {"gateway", "shard_proxy", "order_svc", "upstream"}
        return lines if (code, err, is_all) == (0, "", True) else None

    lines = await eventually(told, within_s=WITHIN_S, every_s=0.5)
    assert all("bob" not in json.dumps(line) for line in lines), "a user is a hash"
    hashes = {line["user.hash"] for line in lines if "user.hash" in line}
    assert len(hashes) == 1, "the same in every service"
    (made,) = [line for line in lines if line["event.action"] == "request"]
    code, out, _ = await ordermesh(full, "logs", made["trace.id"], "-o", "json")
    assert code == 0
    assert {line["trace.id"] for line in json.loads(out)} == {made["trace.id"]}
    code, _, err = await ordermesh(full, "logs", "0" * 32)
    assert (code, err) == (1, f"no line about {'0' * 32}\n")


async def test_a_hanging_order_shows_what_recovery_did_in_traces_of_its_own(full: World) -> None:
    async with full.fault("payments", **LOST):
        order_id = await order_over_rest(full, "alice")
        await full.until_stage(order_id, Order.UNKNOWN, Order.DONE)
    await full.until_settled(order_id)

    async def told() -> Entries | None:
        entries = await story(full, order_id)
        wanted = {("recovery_svc", "recover"), ("upstream", "Probe"), ("order_svc", "ReportVerdict")}
        return entries if wanted <= spans(entries, linked=True) else None

    entries = await eventually(told, within_s=WITHIN_S, every_s=0.5)
    recovered = [each for each in entries if each["raw"].get("span.name") == "recover"]
    assert all(each["raw"]["links"] for each in recovered)
    assert any(each["raw"].get("event.action") == "recovered" for each in entries)
