"""Whole histories, walked across the seam while orders are made and changed and processes die."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from chassis.testing import eventually
from ops.stack import local
from ops.stack.endpoints import Endpoints
from ops.stack.local import LocalStack

RUN_S_MAX = 150
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
async def walked(server_dir: Path) -> AsyncIterator[tuple[LocalStack, Path]]:
    """A stack that nobody else uses, whose lists take all but the last seconds from the read model."""
    state_dir = server_dir / "walked"
    short = {"history_svc": {"HOT_WINDOW_S": "3"}}
    async with local.running(state_dir, port_base=0, durable=False, extra=short) as stack:
        yield stack, state_dir


async def begun(state_dir: Path, *words: str) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "ops", *words, "--state-dir", str(state_dir))
    return await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


async def ordermesh(state_dir: Path, *words: str) -> tuple[int | None, str, str]:
    """Run a command beside this process, whose loop keeps the stack alive meanwhile."""
    process = await begun(state_dir, *words)
    async with asyncio.timeout(RUN_S_MAX):
        out, err = await process.communicate()
    return process.returncode, out.decode(), " ".join(err.decode().split())


async def test_without_a_history_a_walk_says_which_command_makes_one(walked):
    _, state_dir = walked
    code, _, err = await ordermesh(state_dir, "load", "--walk", "--rate", "5", "--seconds", "5")
    assert code == 1
    assert "`ordermesh seed --users 8 --orders 4000 --months 4`" in err


async def test_walks_across_the_seam_miss_nothing_while_everything_changes(walked):
    stack, state_dir = walked
    code, _, err = await ordermesh(
        state_dir, "seed", "--users", "4", "--orders", "2000", "--months", "4", "-o", "json"
    )
    assert code == 0, err
    code, out, err = await ordermesh(
        state_dir,
        *("load", "--walk", "--rate", "8", "--seconds", "20", "--users", "4", "-o", "json"),
        *("--kill", "history_svc:8s", "--kill", "projector:6s", "--freeze", "projector:7s:2s"),
    )
    assert err == ""
    told = json.loads(out)
    assert [each for each in told["checks"] if each["count"]] == []
    assert told["void"] == ""
    assert code == 0
    walks = told["walks"]
    assert walks["finished"] > 0
    assert walks["compared"] == walks["to_compare"] >= 4
    assert walks["relabelled"] > 0
    assert walks["merged_share"] >= 0.5
    assert walks["overlay_share"] >= 0.05
    ways = {"STRONG", "TOKEN", "BARE"}
    assert set(walks["asked"]) == {f"{by} {way}" for by in ("grpc", "rest") for way in ways} | {
        "grpc AT_LEAST"
    }
    assert {kill["service"] for kill in told["kills"]} == {"history_svc", "projector"}
    assert {freeze["service"] for freeze in told["freezes"]} == {"projector"}

    lost = await lose_some_documents(stack)
    code, out, _ = await ordermesh(
        state_dir,
        *("load", "--walk", "--rate", "2", "--seconds", "6", "--users", "4", "-o", "json"),
        *("--upstream-fault", "in_progress:1:1s"),
    )
    broken = {each["check"]: each["first"] for each in json.loads(out)["checks"] if each["count"]}
    assert code == 1
    assert set(broken) == {"w1_missing"}
    assert {each["id"] for each in broken["w1_missing"]} <= lost


async def lose_some_documents(stack: LocalStack) -> set[str]:
    """Take orders out of the read model; only those that are changed by chance come back."""
    session = await asyncpg.connect(stack.endpoints.shard_dsns()["s1"])
    lost = await session.fetch(
        "SELECT order_id FROM ordermesh.orders WHERE user_id = 'seed.1.0' AND stage = 'DONE'"
        " AND created_at BETWEEN now() - interval '50 days' AND now() - interval '40 days' LIMIT 20"
    )
    await session.close()
    model = next(each.dsn for each in stack.endpoints.databases if each.role == "readmodel")
    session = await asyncpg.connect(model)
    ids = [row["order_id"] for row in lost]
    gone = await session.execute("DELETE FROM ordermesh.documents WHERE order_id = ANY ($1::uuid[])", ids)
    await session.close()
    assert gone == "DELETE 20"
    return set(map(str, ids))


async def test_a_run_that_is_told_to_end_leaves_no_process_frozen(walked):
    _, state_dir = walked
    frozen = Endpoints.read(state_dir).service("recovery_svc").pid
    stat = Path(f"/proc/{frozen}/stat")
    process = await begun(
        state_dir,
        *(
            "load",
            "--rate",
            "1",
            "--seconds",
            "300",
            "--freeze",
            "recovery_svc:2s:1s",
            "--settle-timeout",
            "1",
        ),
    )

    async def stands_still() -> bool | None:
        return stat.read_text().rpartition(")")[2].split()[0] == "T" or None

    await eventually(stands_still, within_s=60.0, every_s=0.02)
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "nothing was checked" in err.decode()
    assert stat.read_text().rpartition(")")[2].split()[0] != "T"


async def test_a_hot_window_that_makes_no_sense_is_a_usage_error(tmp_path):
    for wrong in ("31d", "soon"):
        code, _, err = await ordermesh(tmp_path, "dev", "--hot-window", wrong)
        assert code == 2
        assert "--hot-window" in err
