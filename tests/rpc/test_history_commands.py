"""`ordermesh order list`, `search` and `explain-page` as people type them, against a real history_svc."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ops.stack.endpoints import Endpoints, Grpc, Tls
from order_svc.events import Verdict
from order_svc.order import Seen, Tally
from ordermesh.history.v1 import history_service_pb2 as pb
from tests.behind import Searched, searching
from tests.leaving import Leaving
from tests.listeners import CALL_S
from tests.shards import Shard
from tests.unit.orders import told

COMMAND_S_MAX = 60.0


@dataclass(frozen=True)
class Typed:
    """Types commands; finds history_svc where endpoints.json says."""

    searched: Searched
    state_dir: Path

    async def __call__(self, *words: str, code: int = 0) -> tuple[str, str]:
        """What a command says on stdout and stderr, if it ends with this exit code."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ops", *words, "--state-dir", str(self.state_dir)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(COMMAND_S_MAX):
            out, err = (said.decode() for said in await process.communicate())
        assert "Traceback" not in err, err
        assert process.returncode == code, (out, err)
        return out, err

    async def json(self, *words: str, code: int = 0) -> Any:
        """The JSON that a command prints."""
        return json.loads((await self(*words, "-o", "json", code=code))[0])


@pytest.fixture
async def typed(tmp_path, shard_database) -> AsyncIterator[Typed]:
    async with searching(tmp_path, await shard_database()) as searched:
        address = f"127.0.0.1:{searched.mesh.proxy.port}"
        tls = searched.mesh.trust.tls
        Endpoints(
            state="ready",
            stack_pid=os.getpid(),
            gateway="http://127.0.0.1:1",
            grpc=Grpc(plain=address, mtls=address),
            tls=Tls(ca=str(tls / "ca.pem"), cert=str(tls / "ops/cert.pem"), key=str(tls / "ops/key.pem")),
            services=(),
            databases=(),
            upstreams=(),
            issuer="http://127.0.0.1:1",
        ).write(tmp_path)
        yield Typed(searched, tmp_path)


async def test_a_list_takes_every_filter_follows_its_pages_and_says_where_it_came_from(typed):
    mine = await typed.searched.create(*["alice"] * 5)
    every = ("order", "list", "--user", "alice", "--page-size", "2", "--all")
    assert [each["orderId"] for each in await typed.json(*every)] == mine
    filters = ("--status", "pending", "--kind", "payment", "--from", "1h", "--until", "9000-01-01")
    words = ("--amount", "EUR:12.50..13", "--text", "boo")
    shown, said = await typed("order", "list", "--user", "alice", *filters, *words)
    assert [line.split()[0] for line in shown.splitlines()[1:]] == mine
    assert "a book" in shown
    assert said.startswith("READ_MODEL from ")
    assert "; read model " in said
    _, said = await typed("order", "list", "--user", "alice", "--page-size", "2")
    assert "there are more; --all shows them" in said
    for none in (("--status", "FAILED"), ("--amount", "USD"), ("--from", "9000-01-01"), ("--text", "train")):
        shown, said = await typed("order", "list", "--user", "alice", *none)
        assert (shown, said.splitlines()[0]) == ("", "alice has no such orders")


async def test_a_list_is_as_fresh_as_asked(typed):
    (order_id,) = await typed.searched.create("alice")
    for level in ("strong", "default", "eventual"):
        listed = await typed.json("order", "list", "--user", "alice", "--consistency", level)
        assert [each["orderId"] for each in listed] == [order_id]
    alone = ("order", "list", "--user", "alice", "--consistency", "at-least-as-fresh")
    _, said = await typed(*alone, code=4)
    assert "consistency_token: is needed" in said
    assert await typed.json(*alone, "--token", "czE6MTo3")
    _, said = await typed("order", "list", "--user", "alice", "--partial", code=4)
    assert "return_partial_success" in said
    partial = ("order", "list", "--user", "vip.1", "--consistency", "eventual", "--partial")
    assert await typed(*partial, code=4), "nobody knows what the shard that is away had"


async def test_a_list_from_the_shards_alone_is_complete_and_says_so(typed):
    (order_id,) = await typed.searched.create("alice")
    typed.searched.read_model.down = True
    shown, said = await typed("order", "list", "--user", "alice")
    assert order_id in shown
    assert "SQL_FALLBACK from sql:s1" in said
    assert "complete all the same" in said
    _, said = await typed("order", "list", "--user", "alice", "--text", "book", code=4)
    assert "READ_MODEL_UNAVAILABLE" in said


async def test_a_search_finds_everybodys_orders_and_ends_with_1_when_a_shard_said_nothing(typed):
    _, told = await typed("search", code=1)
    assert "READ_MODEL_ONLY from read_model; read model of unknown age" in told
    assert "incomplete: could not read shards/v1, what the read model never had" in told
    found = await typed.searched.create("alice", "bob", "carol")
    said = await typed.json("search", "--text", "book", code=1)
    assert [each["orderId"] for each in said["orders"]] == found
    assert said["readInfo"]["servedBy"] == "READ_MODEL_ONLY"
    assert said["unreachable"] == ["shards/v1"]
    shown, told = await typed("search", "--user", "bob", "--all", "--page-size", "1", code=1)
    assert [line.split()[1] for line in shown.splitlines()[1:]] == ["bob"]
    assert "incomplete: could not read shards/v1" in told
    typed.searched.read_model.down = True
    _, told = await typed("search", code=4)
    assert told.startswith("error: READ_MODEL_UNAVAILABLE")


async def test_an_explanation_is_a_page_to_read_and_says_whether_the_read_model_is_relied_on(typed):
    assert (await typed.json("explain-page", "alice", code=1))["shards"][0]["unreliable"]
    shown, _ = await typed("explain-page", "alice", code=1)
    assert "not relied on: stream partition" in shown
    assert "SQL_FALLBACK" in shown
    await typed.searched.create("alice")
    later = (await typed.searched.shard.create(user_id="alice")).order
    refused = (await typed.searched.shard.create(user_id="alice")).order
    await typed.searched.projection.quarantine(refused)
    shown, _ = await typed("explain-page", "alice")
    assert "MERGED from" in shown
    for title in ("shards", "watermarks", "overlay: changed", "quarantine: refused", "indices"):
        assert title in shown, shown
    assert str(later.order_id) in shown
    assert "refused by a test" in shown
    assert shown.splitlines()[-1].split()[-2:] == ["SERVING", "yes"]


async def an_old_order(shard: Shard) -> str:
    """An order of alice that is settled."""
    order = (await shard.create()).order
    await shard.decide(order, told(Seen(order, Tally(), None, order.created_at), Verdict.SUCCEEDED))
    return str(order.order_id)


async def test_a_list_ends_where_the_archive_begins_and_says_so_until_the_month_comes_back(typed):
    shard, leaving = typed.searched.shard, Leaving(typed.searched.shard)
    old = [await an_old_order(shard) for _ in range(2)]
    await shard.let_pass(timedelta(days=32))
    await shard.db.execute("SELECT ordermesh.ensure_partitions()")
    young = await typed.searched.create("alice", "alice")
    every = [*young, *reversed(old)]
    list_alices = ("order", "list", "--user", "alice")
    assert [each["orderId"] for each in await typed.json(*list_alices)] == every
    ask = partial(typed.searched.mesh.operator.ListOrders, timeout=CALL_S)
    before = await ask(pb.ListOrdersRequest(user_id="alice", page_size=3))
    assert not before.read_info.HasField("archived_before_time")

    month = await leaving.oldest()
    assert month is not None
    assert await leaving.commit(month) == []
    floor = await leaving.floor()
    after = await ask(pb.ListOrdersRequest(user_id="alice", page_size=3, page_token=before.next_page_token))
    assert (list(after.orders), after.next_page_token) == ([], "")
    assert after.read_info.archived_before_time.ToDatetime(tzinfo=UTC) == floor
    for clear_out in (leaving.detach, leaving.drop, None):
        shown, said = await typed(*list_alices, "--all", "--page-size", "1")
        assert [line.split()[0] for line in shown.splitlines()[1:]] == young
        assert f"archived before {floor:%Y-%m-%d}; a statement has that" in said
        _, said = await typed(*list_alices, "--from", f"{floor:%Y-%m-%d}")
        assert "archived" not in said, "nobody asked for older ones"
        found = await typed.json("search", "--user", "alice", code=1)
        assert [each["orderId"] for each in found["orders"]] == young
        assert found["readInfo"]["archivedBeforeTime"] == f"{floor:%Y-%m-%dT00:00:00Z}"
        shown, _ = await typed("explain-page", "alice")
        assert f"before {floor:%Y-%m-%d}" in shown
        if clear_out is not None:
            await clear_out(month)
    await leaving.restore(month)
    assert [each["orderId"] for each in await typed.json(*list_alices)] == every


@pytest.mark.parametrize(
    "wrong",
    [
        ("order", "list", "--user", "alice", "--status", "DONE"),
        ("order", "list", "--user", "alice", "--from", "yesterday"),
        ("order", "list", "--user", "alice", "--amount", "20..10EUR"),
        ("order", "list", "--user", "alice", "--amount", "EUR:20..10"),
        ("order", "list", "--user", "alice", "--page-size", "101"),
        ("order", "list", "--user", "alice", "--consistency", "sometimes"),
        ("search", "--until", "2026-13-01"),
        ("explain-page",),
    ],
)
async def test_what_cannot_be_meant_is_a_usage_error(wrong, tmp_path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ops", *wrong, "--state-dir", str(tmp_path)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(COMMAND_S_MAX):
        assert await process.wait() == 2
