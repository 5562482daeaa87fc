"""The load generator and the audit on a stack of their own, as an operator runs them."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from ops.stack import local
from ops.stack.local import LocalStack

RUN_S_MAX = 110


@pytest.fixture(scope="module")
async def loaded(server_dir: Path) -> AsyncIterator[tuple[LocalStack, Path]]:
    """A stack that nobody else uses: the audit looks at everything in it."""
    state_dir = server_dir / "loaded"
    async with local.running(state_dir, port_base=0, durable=False) as stack:
        yield stack, state_dir


async def ordermesh(*arguments: str) -> tuple[int, str, str]:
    """Run the command beside this process, whose loop keeps the stack alive meanwhile."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ops", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(RUN_S_MAX):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.timeout(180)
async def test_orders_survive_kills_and_lost_replies_and_a_planted_loss_is_reported(loaded):
    stack, state_dir = loaded
    code, out, err = await ordermesh(
        *("load", "--state-dir", str(state_dir), "-o", "json", "--rate", "15", "--seconds", "8"),
        *("--kill", "order_svc:2s", "--kill", "recovery_svc:3s", "--upstream-fault", "lost_reply:0.3"),
        *("--vip-moves", "400ms"),
    )
    assert err == ""
    told = json.loads(out)
    assert [each for each in told["checks"] if each["count"]] == []
    assert code == 0
    assert told["counts"]["acknowledged"] > 0
    assert "DONE" in {move["said"] for move in told["vip_moves"]}
    assert {kill["service"] for kill in told["kills"]} == {"order_svc", "recovery_svc"}
    assert len({kill["shard"] for kill in told["kills"] if kill["service"] == "order_svc"}) >= 2

    await lose_a_settled_order(stack)
    code, out, _ = await ordermesh("audit", "--state-dir", str(state_dir), "-o", "json")
    broken = {each["check"] for each in json.loads(out) if each["count"]}
    assert code == 1
    assert {"i3_versions", "i7_keys", "i16_known"} <= broken


async def lose_a_settled_order(stack: LocalStack) -> None:
    session = await asyncpg.connect(stack.endpoints.shard_dsns()["s1"])
    lost = await session.execute(
        "DELETE FROM orders WHERE order_id = (SELECT order_id FROM orders WHERE status = 'SUCCESS' LIMIT 1)"
    )
    await session.close()
    assert lost == "DELETE 1"


async def test_a_run_that_names_what_does_not_exist_is_a_usage_error(loaded):
    _, state_dir = loaded
    code, _, err = await ordermesh(
        *("load", "--state-dir", str(state_dir), "--rate", "5", "--seconds", "5", "--kill", "nobody:1s")
    )
    assert code == 2
    said = err.replace("\n", " ")
    assert "the stack has " in said
    assert "gateway" in said.partition("the stack has ")[2]
