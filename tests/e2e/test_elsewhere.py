"""Commands of an operator against a mesh that does not run in a state directory of this machine."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.stack import World

pytestmark = pytest.mark.timeout(180)
LOCAL_ONLY = (
    ("down",),
    ("stop", "gateway"),
    ("load", "--rate", "1", "--seconds", "1"),
    ("seed", "--orders", "10"),
    ("upstream", "heal"),
)


async def ordermesh(state_dir: Path, *words: str) -> tuple[int, str, str]:
    """Run a command beside this process, whose loop keeps the stack alive meanwhile."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ops", *words, "--state-dir", str(state_dir)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), timeout=60)
    return await process.wait(), out.decode(), err.decode()


def described(directory: Path, facts: dict[str, Any]) -> Path:
    (directory / "endpoints.json").write_text(json.dumps({"state": "elsewhere", **facts}), encoding="utf-8")
    return directory


@pytest.fixture
def there(world: World, tmp_path: Path) -> Path:
    """What an operator knows of a mesh: the proxy, an identity, and where processes show their metrics."""
    services = [
        {"name": each.name, "shard": each.shard, "metrics_url": each.metrics_url}
        for each in world.endpoints.services
        if each.metrics_url
    ]
    # The same process once more, as if there were two gateways.
    services.append(next(each for each in services if each["name"] == "gateway"))
    return described(
        tmp_path,
        {
            "grpc": {"mtls": world.endpoints.grpc.mtls},
            "tls": world.endpoints.tls.model_dump(),
            "services": services,
        },
    )


async def test_an_operator_asks_a_mesh_elsewhere(world: World, there: Path) -> None:
    made = await world.create(f"elsewhere.{uuid4().hex}")
    code, out, err = await ordermesh(there, "order", "get", made.order_id)
    assert (code, err) == (0, "")
    assert made.order_id in out
    code, out, err = await ordermesh(there, "trace", made.order_id, "-o", "json")
    assert code == 0
    assert {each["source"] for each in json.loads(out)["entries"]} >= {"journal"}
    for asked in (("dlq", "list"), ("recovery", "status"), ("archive", "status")):
        code, _, err = await ordermesh(there, *asked)
        assert code == 0, (asked, err)
    code, out, _ = await ordermesh(there, "top", "--once", "-o", "json")
    shown = json.loads(out)
    assert {each["shard"] for each in shown["shards"]} == set(world.endpoints.shard_dsns())
    gateways = [each for each in shown["processes"] if each["process"].startswith("gateway")]
    assert [each["process"] for each in gateways] == ["gateway", "gateway#2"]
    assert all(each["calls/s"] is not None for each in gateways)


async def test_the_doctor_examines_what_is_named_and_nothing_of_this_machine(
    world: World, there: Path
) -> None:
    code, out, err = await ordermesh(there, "doctor", "-o", "json")
    found = {each["check"]: each for each in json.loads(out)}
    assert (code, err) == (0, ""), found
    assert set(found) == {"certificates", "map", "processes", "databases"}
    described(
        there,
        {
            "grpc": {"mtls": world.endpoints.grpc.mtls},
            "tls": world.endpoints.tls.model_dump(),
            "services": [{"name": "gateway", "metrics_url": "http://127.0.0.1:1/metrics"}],
        },
    )
    code, out, _ = await ordermesh(there, "doctor", "-o", "json")
    (wrong,) = [each for each in json.loads(out) if each["word"] != "ok"]
    assert (code, wrong["check"]) == (1, "gateway")
    assert "ordermesh start" not in wrong["fix"]


@pytest.mark.parametrize("words", LOCAL_ONLY, ids=lambda words: words[0])
async def test_nothing_elsewhere_is_stopped_loaded_or_filled(there: Path, words: tuple[str, ...]) -> None:
    code, _, err = await ordermesh(there, *words)
    assert code != 0
    assert "elsewhere" in err


async def test_a_wrong_description_says_what_is_wrong(tmp_path: Path) -> None:
    described(tmp_path, {"grpc": {}, "tls": {"ca": "", "cert": "", "key": ""}})
    code, _, err = await ordermesh(tmp_path, "dlq", "list")
    assert code != 0
    assert "grpc.mtls" in err
