"""Statements as people use them, over the whole stack: asked for, made of real orders, announced, fetched."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import sys
import zipfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from chassis.testing import eventually
from ops.stack.layout import VIP_USER, Places
from tests.e2e.test_tools import buf_curl
from tests.stack import World

pytestmark = pytest.mark.timeout(180)
ORDERS = 3


async def ordermesh(world: World, *words: str) -> tuple[int, Any]:
    """One command; its exit code and what it said in JSON."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ops", *words, "--state-dir", str(world.state_dir), "-o", "json"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), timeout=90)
    assert out, err.decode()
    return await process.wait(), json.loads(out)


async def test_a_statement_of_real_orders_is_made_announced_and_fetched(world: World, tmp_path: Path) -> None:
    user = f"statement.{uuid4().hex[:8]}"
    orders = [await world.create(user) for _ in range(ORDERS)]
    today = str(datetime.now(UTC).date())
    request_id = str(uuid4())
    asking = ("statement", "request", "--user", user, "--from", "2024-01-01", "--to", today)
    code, operation = await ordermesh(world, *asking, "--request-id", request_id, "--wait", "60s")
    assert code == 0, operation
    ready = operation["response"]
    assert (operation["done"], ready["state"], ready["orderCount"]) == (True, "READY", str(ORDERS))
    assert sum(int(total["orderCount"]) for total in ready["totals"]) == ORDERS
    _, again = await ordermesh(world, *asking, "--request-id", request_id)
    assert again["name"] == operation["name"]

    code, _ = await ordermesh(world, "statement", "download", operation["name"], "--to", str(tmp_path))
    assert code == 0
    (path,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(path) as file:
        text = file.read("orders.csv").decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["order_id"] for row in rows} == {order.order_id for order in orders}

    # The same operation by the tools of everybody.
    url = f"http://{world.endpoints.grpc.plain}"
    method = f"{url}/google.longrunning.Operations/GetOperation"
    said = json.loads(await buf_curl(world, "-d", json.dumps({"name": operation["name"]}), method))
    assert said["done"]
    assert said["response"]["sha256"] == ready["sha256"]

    _, mails = await ordermesh(world, "mail", "list")
    (mail,) = [each for each in mails if ready["statementId"] in each["name"]]
    assert mail["to"] == f"{user}@customers.invalid"
    assert f"{world.endpoints.gateway}/statements/{ready['statementId']}" in mail["text"]
    async with httpx.AsyncClient(trust_env=False) as http:
        page = await http.get(f"{world.endpoints.gateway}/statements/{ready['statementId']}")
    assert (page.status_code, ready["statementId"] in page.text) == (200, True), "the link leads somewhere"
    assert not any(order.order_id in mail["text"] for order in orders)
    assert Places(world.state_dir).mails.is_dir()

    await given_up(world, ready["statementId"])
    _, dead = await ordermesh(world, "mail", "dead")
    assert [each["note"] for each in dead if each["statementId"] == ready["statementId"]] == ["550 no"]
    code, again = await ordermesh(world, "mail", "retry", mail["name"], "--reason", "they are back")
    assert (code, again["mail"]["retryCount"], again["mail"]["reason"]) == (0, 1, "they are back")
    await eventually(partial(is_announced, world, operation["name"]))
    _, dead = await ordermesh(world, "mail", "dead")
    assert ready["statementId"] not in {each["statementId"] for each in dead}
    _, mails = await ordermesh(world, "mail", "list")
    assert [each for each in mails if ready["statementId"] in each["name"]] == [mail], "the same mail"


async def given_up(world: World, statement_id: str) -> None:
    """As if the mail server had refused the mail that was sent."""
    for database in world.endpoints.databases:
        if database.role != "shard":
            continue
        connection = await asyncpg.connect(database.dsn)
        try:
            await connection.execute(
                "UPDATE ordermesh.statement_mails SET state = 'DEAD', note = $2 WHERE statement_id = $1",
                UUID(statement_id),
                "550 no",
            )
        finally:
            await connection.close()


async def is_announced(world: World, name: str) -> bool:
    """Whether a statement's mail was sent."""
    _, operation = await ordermesh(world, "statement", "wait", name, "--wait", "0s")
    return bool(operation["metadata"]["mail"] == "MAIL_SENT")


async def test_a_vip_s_statement_reads_every_shard_that_ever_had_orders(world: World, tmp_path: Path) -> None:
    first = str(datetime.now(UTC).date())
    order = await world.create(VIP_USER)
    last = str(datetime.now(UTC).date())
    asking = ("statement", "request", "--user", VIP_USER, "--from", first, "--to", last, "--wait", "60s")
    code, operation = await ordermesh(world, *asking)
    assert (code, operation["response"]["state"]) == (0, "READY")
    await ordermesh(world, "statement", "download", operation["name"], "--to", str(tmp_path / "vip.zip"))
    with zipfile.ZipFile(tmp_path / "vip.zip") as file:
        rows = list(csv.DictReader(io.StringIO(file.read("orders.csv").decode("utf-8-sig"))))
    assert order.order_id in {row["order_id"] for row in rows}
    assert len(rows) == int(operation["response"]["orderCount"])


async def test_a_statement_of_a_period_that_is_too_long_is_refused(world: World) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ops", "statement", "request", "--user", "alice", "--from", "2020-01-01"),
        *("--to", "2024-12-31", "--state-dir", str(world.state_dir)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), timeout=60)
    assert process.returncode == 4
    assert "36 months" in err.decode()
