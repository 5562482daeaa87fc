"""A whole history over REST while its oldest month goes to the archive and comes back: the whole mesh."""

import asyncio
import csv
import io
import json
import sys
import zipfile
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from chassis.testing import eventually
from tests.stack import World, ready

PROCESS_S_MAX = 240.0
USER = "seed.91.heavy"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
async def world(server_dir: Path) -> AsyncIterator[World]:
    """A mesh of its own: what is archived is gone for everybody."""
    async with ready(server_dir / "archiving") as opened:
        yield opened


async def typed(world: World, *words: str) -> tuple[int | None, Any, str]:
    """A command's exit code, JSON and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ops", *words, "-o", "json", "--state-dir", str(world.state_dir)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PROCESS_S_MAX):
        out, err = await process.communicate()
    return process.returncode, json.loads(out or b"null"), err.decode()


async def done(world: World, *words: str) -> Any:
    """What a command that ends well says."""
    code, said, err = await typed(world, *words)
    assert code == 0, (said, err)
    return said


async def whole(world: World) -> tuple[list[Any], Any]:
    """Every order of the user's list, and its last page."""
    orders: list[Any] = []
    async with world.rest(USER) as http:
        token = ""
        while True:
            answer = await http.get("/v1/orders", params={"pageSize": "50", "pageToken": token})
            assert answer.status_code == httpx.codes.OK, answer.text
            page = answer.json()
            orders += page["orders"]
            token = page.get("nextPageToken", "")
            if not token:
                return orders, page
            assert "archivedBeforeTime" not in page["readInfo"]


async def amended(world: World, order: Any, tmp_path: Path) -> None:
    """An archived order is amended by a person, and the user's next statement tells it."""
    amend = ("archive", "amend", order["orderId"], "--user", USER, "--note", "paid by hand")
    words = (*amend, "--description", "a lamp", "--reason", "case 7", "--request-id", str(uuid4()))
    said = await done(world, *words)
    assert (said["status"], said["amendmentCount"]) == (order["status"], 1)
    assert await done(world, *words) == said, "the same again notes nothing more"
    code, _, err = await typed(world, *amend[:4], "nobody", *amend[5:], "--reason", "case 7")
    assert (code, "ORDER_NOT_FOUND" in err) == (4, True)

    day = order["createTime"][:10]
    period = ("--user", USER, "--from", day, "--to", day, "--zone", "UTC")
    made = await done(world, "statement", "request", *period, "--wait", "2m")
    await done(world, "statement", "download", made["name"], "--to", str(tmp_path))
    (path,) = tmp_path.glob("*.zip")
    text = zipfile.ZipFile(path).read("orders.csv").decode("utf-8-sig")
    rows = {row["order_id"]: row for row in csv.DictReader(io.StringIO(text))}
    told = rows[order["orderId"]]
    assert (told["correction"], told["description"]) == ("paid by hand", "a lamp")
    assert [
        each["correction"] for key, each in rows.items() if key != order["orderId"] and each["correction"]
    ] == []


async def kept_and_swept(world: World, month: str, orders: int) -> None:
    """What a legal hold keeps is not erased, nor without `--execute`; nothing that is needed is a stray."""
    await done(world, "archive", "hold", "--user", USER, "--reason", "case 8")
    code, _, err = await typed(world, "archive", "erase", "--user", USER, "--reason", "asked for it", "--yes")
    assert (code, "LEGAL_HOLD" in err) == (4, True)
    kept = await done(world, "archive", "holds")
    assert {(each["userId"], each["reason"]) for each in kept["holds"]} == {(USER, "case 8")}
    await done(world, "archive", "lift", "--user", USER, "--reason", "it is over")
    said = await done(world, "archive", "erase", "--user", USER, "--reason", "asked for it")
    would_go = [each for part in said["shards"] for each in part.get("months", [])]
    assert {each["month"] for each in would_go} == {month}
    assert sum(int(each["orderCount"]) for each in would_go) == orders
    code, _, _ = await typed(world, "archive", "lift", "--month", month, "--reason", "nothing kept it")
    assert code == 1

    swept = await done(world, "archive", "sweep", "--reason", "what is there?", "--execute")
    assert all(part["endTime"] and not part.get("refusal") for part in swept["shards"])
    assert sum(int(part.get("objectCount", 0)) for part in swept["shards"]) > 0
    assert [part.get("strays", []) for part in swept["shards"] if part.get("strays")] == []


async def test_a_list_holds_all_that_is_not_archived_and_after_a_restore_everything(
    world: World, tmp_path: Path
) -> None:
    seeding = ("--seed", "91", "--users", "3", "--orders", "960", "--months", "32", "--heavy-user", "0.5")
    await done(world, "seed", *seeding)
    before, last = await whole(world)
    assert len(before) >= 300
    assert "archivedBeforeTime" not in last["readInfo"]

    planned = await done(world, "archive", "plan")
    moved = await done(world, "archive", "run", "--oldest", "1", "--reason", "it is old", "--execute")
    (month,) = {each["month"] for each in moved}
    assert all(int(part["partBytes"]) > 0 for part in planned["shards"])
    months = [each for part in planned["shards"] for each in part["months"] if each["month"] == month]
    assert sum(int(each.get("rowBytes", 0)) for each in months) > 0
    after, last = await whole(world)
    floor = datetime.fromisoformat(last["readInfo"]["archivedBeforeTime"])
    assert last["hint"] == f"Orders from before {floor:%Y-%m-%d} are archived; ask for a statement."
    assert after == [each for each in before if datetime.fromisoformat(each["createTime"]) >= floor]
    assert 0 < len(after) < len(before)
    gone = before[len(after) :]
    assert {each["createTime"][:7] for each in gone} == {month}
    explained = await done(world, "explain-page", USER)
    floors = {datetime.fromisoformat(part["archivedBeforeTime"]) for part in explained["shards"]}
    assert floors == {floor}

    async def left() -> bool:
        said = await done(world, "index", "status")
        states = {
            each["state"] for part in said["shards"] for each in part["indices"] if each["month"] == month
        }
        return states == {"RETIRED"}

    assert await eventually(left, within_s=60.0, every_s=1.0), "no list needs the month's index"
    await done(world, "audit")
    await amended(world, gone[0], tmp_path)
    await kept_and_swept(world, month, len(gone))
    await done(world, "archive", "restore", "--month", month, "--reason", "a court wants it")
    again, last = await whole(world)
    assert (again, last["readInfo"].get("archivedBeforeTime")) == (before, None)
    await done(world, "index", "status", "--wait", "1m")
    again, last = await whole(world)
    assert (again, last["unreachable"]) == (before, [])
