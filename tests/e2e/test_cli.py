"""The `ordermesh` command as an operator uses it: each against the whole stack, as a process of its own."""

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest

from chassis.testing import eventually
from ops.cli.options import os_user
from ordermesh.order.v1.order_pb2 import Order
from ordermesh.upstream.v1 import simulator_service_pb2 as sim
from tests.stack import World

COMMAND_S_MAX = 60.0


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err)["error"]


@dataclass(frozen=True)
class Operator:
    """Types commands."""

    world: World

    async def types(self, *words: str) -> Ran:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ops", *words, "--state-dir", str(self.world.state_dir)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(COMMAND_S_MAX):
            out, err = await process.communicate()
        ran = Ran(await process.wait(), out.decode(), err.decode())
        assert "Traceback" not in ran.err, ran.err
        return ran

    async def gets(self, *words: str) -> Any:
        """The JSON of a command that must succeed."""
        ran = await self.types(*words, "-o", "json")
        assert ran.exit_code == 0, ran
        return ran.json


@pytest.fixture
def operator(world: World) -> Operator:
    return Operator(world)


async def parked(world: World, user: str) -> Order:
    """An order of a user whose upstream kept answering UNKNOWN; the fault is gone again."""
    async with world.fault("payments", kind=sim.Fault.UNKNOWN, user_id_prefix=user):
        made = await world.create(user)
        return await world.until_stage(made.order_id, Order.PARKED)


async def test_an_order_is_created_once_and_can_be_read_in_every_way(operator: Operator) -> None:
    request_id = str(uuid4())
    words = ("order", "create", "--user", "cli.reader", "--kind", "purchase", "--amount", "12.50EUR")
    ask = (*words, "--wait", "10s", "--request-id", request_id, "--label", "shop=7")
    made, again = await operator.gets(*ask), await operator.gets(*ask)
    order_id = made["order"]["orderId"]
    assert (made["replayed"], again["replayed"]) == (False, True)
    assert again["order"]["orderId"] == order_id
    assert made["order"]["amount"] == {"currencyCode": "EUR", "amountMinor": "1250"}

    watched = await operator.types("order", "watch", order_id, "--within", "30s", "-o", "json")
    assert watched.exit_code == 0
    assert json.loads(watched.out.splitlines()[-1])["status"] == "SUCCESS"
    found, listed, journal = await asyncio.gather(
        operator.gets("order", "get", order_id),
        operator.gets("order", "list", "--user", "cli.reader", "--status", "SUCCESS"),
        operator.gets("order", "journal", order_id),
    )
    assert found["labels"] == {"shop": "7"}
    assert [each["orderId"] for each in listed] == [order_id]
    assert [int(each["version"]) for each in journal] == list(range(1, len(journal) + 1))

    changed = await operator.gets("order", "label", order_id, "cart=9", "note=late", "shop-")
    assert (changed["labels"], changed["status"]) == ({"cart": "9", "note": "late"}, "SUCCESS")
    assert int(changed["version"]) == len(journal) + 1
    alone = await operator.gets("order", "label", order_id, "--replace", "a=b")
    assert alone["labels"] == {"a": "b"}
    unnamed = await operator.types("order", "label", order_id, "=x", "-o", "json")
    assert (unnamed.exit_code, unnamed.error["reason"]) == (4, "INVALID_FIELD")

    shows = (operator.types("order", word, order_id) for word in ("get", "watch", "journal"))
    for shown in await asyncio.gather(*shows):
        assert shown.exit_code == 0
        assert "SUCCESS" in shown.out
        assert shown.err == ""


async def test_a_user_is_moved_to_a_bucket_of_their_own_and_back(operator: Operator) -> None:
    user = f"cli.vip.{uuid4().hex[:8]}"
    words = ("--reason", "a big one", "--request-id", str(uuid4()))
    made = await operator.gets("vip", "promote", user, *words)
    again = await operator.gets("vip", "promote", user, *words)
    assert (made["phase"], made["kind"], made["newShard"]) == ("DONE", "PROMOTE", "v1")
    assert again == made
    assert user in [each["userId"] for each in await operator.gets("vip", "list")]
    twice = await operator.types("vip", "promote", user, "--reason", "again", "-o", "json")
    assert (twice.exit_code, twice.error["reason"]) == (4, "ALREADY_VIP")
    back = await operator.gets("vip", "demote", user, "--reason", "small again")
    assert (back["oldBucket"], back["newBucket"]) == (made["newBucket"], made["oldBucket"])
    assert user not in [each["userId"] for each in await operator.gets("vip", "list")]
    moves = await operator.gets("vip", "show", user)
    assert [(each["kind"], each["actor"], each["reason"]) for each in moves] == [
        ("DEMOTE", moves[0]["actor"], "small again"),
        ("PROMOTE", moves[0]["actor"], "a big one"),
    ]
    shown = await operator.types("vip", "show", user)
    assert (shown.exit_code, shown.err) == (0, "")
    assert "DONE" in shown.out


async def test_a_refusal_is_one_typed_error_and_exit_code_4(operator: Operator) -> None:
    request_id = str(uuid4())
    words = ("order", "create", "--user", "cli.refused", "--request-id", request_id, "-o", "json", "--amount")
    assert (await operator.types(*words, "1EUR")).exit_code == 0
    reused = await operator.types(*words, "2EUR")
    assert (reused.exit_code, reused.error["reason"], reused.out) == (4, "REQUEST_ID_REUSED", "")
    unknown = await operator.types("order", "get", "01939c5e-7a3b-7000-8af5-0123456789ab")
    assert unknown.exit_code == 4
    assert unknown.err.startswith("error: ORDER_")
    nonsense = await operator.types(
        "order", "create", "--user", "no spaces", "--amount", "1EUR", "-o", "json"
    )
    assert nonsense.exit_code == 4
    assert [each["field"] for each in nonsense.error["violations"]] == ["user_id"]


async def test_a_dead_letter_is_listed_shown_and_redriven(operator: Operator) -> None:
    order_id = (await parked(operator.world, "cli.redrive")).order_id
    assert order_id in [each["orderId"] for each in await operator.gets("dlq", "list")]
    assert (await operator.gets("dlq", "show", order_id))["order"]["stage"] == "PARKED"
    request_id = str(uuid4())
    given = ("--reason", "upstream is back", "--request-id", request_id, "--actor", "mira")
    redrive = ("dlq", "redrive", order_id, *given)
    first, again = await operator.gets(*redrive), await operator.gets(*redrive)
    assert first["deadLetter"]["outcome"] == again["deadLetter"]["outcome"] == "REDRIVEN"
    assert first["deadLetter"]["actor"] == "ops:mira"
    assert (await operator.types("order", "watch", order_id, "--within", "30s")).exit_code == 0
    assert order_id not in [each["orderId"] for each in await operator.gets("dlq", "list")]
    assert order_id in [each["orderId"] for each in await operator.gets("dlq", "list", "--all")]
    twice = await operator.types("dlq", "redrive", order_id, "--reason", "again", "-o", "json")
    assert (twice.exit_code, twice.error["reason"]) == (4, "ORDER_NOT_PARKED")


async def test_a_dead_letter_is_resolved_only_with_evidence(operator: Operator) -> None:
    order_id = (await parked(operator.world, "cli.resolve")).order_id
    resolve = ("dlq", "resolve", order_id, "--outcome", "success", "--reason", "bank called", "-o", "json")
    alone = await operator.types(*resolve, "--evidence", "bank file 42, line 7")
    assert (alone.exit_code, alone.error["reason"]) == (4, "EVIDENCE_REQUIRED")
    settled = await operator.types(
        *resolve, "--evidence", "bank file 42, line 7", "--upstream-ref", "bank-42-7"
    )
    assert settled.exit_code == 0
    assert (settled.json["order"]["status"], settled.json["order"]["basis"]) == ("SUCCESS", "OPERATOR")
    assert settled.json["deadLetter"]["actor"] == f"ops:{os_user()}"


async def test_where_says_the_shard_and_the_reason(operator: Operator) -> None:
    made = await operator.world.create("vip.1")
    vip, alice, order, shown = await asyncio.gather(
        operator.gets("where", "vip.1"),
        operator.gets("where", "alice"),
        operator.gets("where", made.order_id),
        operator.types("where", "vip.1"),
    )
    assert (vip["placement"]["shard"], vip["placement"]["reason"]) == ("v1", "VIP")
    assert alice["placement"]["bucket"] == 701
    assert (order["placement"]["shard"], order["placement"]["reason"]) == ("v1", "ORDER_ID")
    assert "v1 (VIP)" in shown.out


async def test_recovery_is_paused_and_resumed_on_every_shard(operator: Operator) -> None:
    status = await operator.gets("recovery", "status")
    assert sorted(each["shard"] for each in status["shards"]) == ["s1", "s2", "v1"]
    at = ("--upstream", "fulfilment", "--reason", "a test of the command")
    try:
        paused = await operator.gets("recovery", "pause", *at, "--for", "60s")
        holds = [each["holds"] for each in (await operator.gets("recovery", "status"))["shards"]]
        assert all([hold["scope"] for hold in each] == ["upstream:fulfilment"] for each in holds)
    finally:
        resumed = await operator.gets("recovery", "resume", *at)
    assert sorted(paused["shards"]) == sorted(resumed["shards"]) == ["s1", "s2", "v1"]


async def test_an_order_that_hangs_is_listed_and_probed_by_hand(operator: Operator) -> None:
    user, world = "cli.hanging", operator.world
    async with world.fault(
        "payments", kind=sim.Fault.LOST_REPLY, user_id_prefix=user, method=sim.Fault.EXECUTE
    ):
        try:
            await operator.gets("recovery", "pause", "--reason", "let it hang")
            made = await world.create(user)

            async def hangs() -> bool:
                return made.order_id in [
                    each["order"]["orderId"] for each in await operator.gets("recovery", "hanging")
                ]

            await eventually(hangs, within_s=30, every_s=0.5)
            probed = await operator.gets("recovery", "probe", made.order_id)
        finally:
            await operator.gets("recovery", "resume", "--reason", "seen enough")
    assert probed["order"]["orderId"] == made.order_id
    assert (await world.until_settled(made.order_id)).status == Order.SUCCESS


async def test_a_token_opens_the_rest_door(operator: Operator) -> None:
    minted = await operator.types("token", "--user", "cli.token")
    assert minted.exit_code == 0
    headers = {"Authorization": f"Bearer {minted.out.strip()}"}
    async with httpx.AsyncClient(base_url=operator.world.endpoints.gateway, timeout=10) as client:
        assert (await client.get("/v1/orders", headers=headers)).status_code == httpx.codes.OK
        assert (await client.get("/v1/orders")).status_code == httpx.codes.UNAUTHORIZED


async def test_the_doctor_is_content_with_a_healthy_stack(operator: Operator) -> None:
    async def content() -> Any:
        ran = await operator.types("doctor", "-o", "json")
        return ran.json if ran.exit_code == 0 else None

    found = await eventually(content, within_s=30, every_s=0.5)
    checks = {each["check"]: each["word"] for each in found}
    assert {"python", "postgres", "stack", "processes", "databases", "map", "certificates"} <= set(checks)
    assert "bad" not in checks.values()
    assert (await operator.types("doctor")).exit_code == 0
