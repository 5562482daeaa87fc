"""The care for the read model through the whole mesh: by the command line and by gRPC, with kills."""

import asyncio
import json
import sys
from functools import partial
from typing import Any
from uuid import uuid4

import grpc
import pytest

from chassis.testing import eventually
from ordermesh.history.v1 import history_service_pb2 as history
from ordermesh.history.v1 import projection_service_pb2 as pb
from tests.faults.points import CARE_POINTS
from tests.stack import World, reason_of, retried

PROCESS_S_MAX = 120.0
ORDERS = 600
SEED = 77
pytestmark = pytest.mark.timeout(300)
Kind = pb.Operation


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


async def walked(world: World, user: str) -> tuple[list[str], set[int]]:
    """A user's whole list, and who served its pages."""
    orders: list[str] = []
    served: set[int] = set()
    token = ""
    while True:
        request = history.ListOrdersRequest(user_id=user, page_size=50, page_token=token)
        page = await retried(partial(world.mesh.history.ListOrders, request, timeout=5.0))
        orders += [order.order_id for order in page.orders]
        served.add(page.read_info.served_by)
        token = page.next_page_token
        if not token:
            return orders, served


async def seeded(world: World) -> str:
    """A user with a history in the read model."""
    code, outcome, err = await typed(
        world,
        "seed",
        "--users",
        "3",
        "--orders",
        str(ORDERS),
        "--months",
        "2",
        "--seed",
        str(SEED),
        "--heavy-user",
        "0.5",
    )
    assert code == 0, err
    assert outcome["added"] in (0, ORDERS)
    return f"seed.{SEED}.heavy"


@pytest.mark.parametrize("point", CARE_POINTS)
async def test_a_projector_that_is_killed_builds_every_month_in_the_end_and_loses_nothing(
    world: World, point: str
) -> None:
    user = await seeded(world)
    before, served = await walked(world, user)
    assert len(before) == len(set(before)) >= ORDERS // 4
    assert history.ReadInfo.SQL_FALLBACK not in served
    old_pid = await world.arm("projector", None, f"{point}=kill:1")
    code, ended, err = await typed(world, "index", "reset", "--reason", "a test", "--yes")
    assert (code, {each["state"] for each in ended}) == (0, {"SUCCEEDED"}), err
    assert world.fired(old_pid) == [point]
    after, served = await walked(world, user)
    assert (after, history.ReadInfo.SQL_FALLBACK in served) == (before, False)
    code, compared, err = await typed(world, "index", "verify")
    assert code == 0, err
    assert {each["state"] for each in compared} == {"SUCCEEDED"}


async def test_an_operation_is_started_once_watched_listed_and_ended_by_operators_only(world: World) -> None:
    await world.create("care.somebody")

    async def known() -> Any:
        code, status, _ = await typed(world, "index", "status")
        return status if code == 0 and all(part.get("indices") for part in status["shards"]) else None

    status = await eventually(known, within_s=60.0)
    month = status["shards"][0]["indices"][0]["month"]
    request_id = str(uuid4())
    ended: list[dict[str, Any]] = []
    for _ in range(2):
        code, ended, err = await typed(
            world,
            "index",
            "rebuild",
            "--month",
            month,
            "--shard",
            "s1",
            "--reason",
            "a test",
            "--request-id",
            request_id,
        )
        assert (code, [each["state"] for each in ended]) == (0, ["SUCCEEDED"]), err
    code, listed, _ = await typed(world, "index", "list", "--shard", "s1")
    mine = [each for each in listed if each["operationId"] == ended[0]["operationId"]]
    assert (code, len(mine), mine[0]["reason"]) == (0, 1, "a test")
    code, cancelled, _ = await typed(
        world, "index", "cancel", mine[0]["operationId"], "--shard", "s1", "--reason", "too late"
    )
    assert (code, cancelled["state"]) == (0, "SUCCEEDED")
    code, replayed, _ = await typed(world, "index", "replay", "--reason", "a test")
    assert (code, len(replayed)) == (0, 3)


@pytest.mark.parametrize(
    ("asked", "code", "reason"),
    [
        ({"kind": Kind.REBUILD, "month": "2026-13"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ({"kind": Kind.REBUILD}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ({"kind": Kind.RESET, "month": "2026-09"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ({"kind": Kind.RETRY, "repairs": True}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ({"kind": 77, "month": "2026-09"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ({"kind": Kind.RETRY, "request_id": "x"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ({"kind": Kind.RETRY, "reason": ""}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ({"kind": Kind.RETRY, "reason": "x" * 513}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ({"kind": Kind.RETRY, "shard": "s9"}, grpc.StatusCode.NOT_FOUND, "UNKNOWN_SHARD"),
    ],
    ids=str,
)
async def test_what_cannot_be_started_is_refused_and_leaves_nothing(
    world: World, asked: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    request = pb.StartOperationRequest(
        **{"request_id": str(uuid4()), "reason": "nonsense of a test", **asked}
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.mesh.projection.StartOperation(request, timeout=10.0)
    assert (refused.value.code(), reason_of(refused.value)) == (code, reason)
    listed = await world.mesh.projection.ListOperations(pb.ListOperationsRequest(page_size=100), timeout=10.0)
    assert "nonsense of a test" not in {each.reason for each in listed.operations}


async def test_an_operation_that_is_not_there_cannot_be_ended(world: World) -> None:
    asked = pb.CancelOperationRequest(shard="s1", operation_id=str(uuid4()), reason="a test")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.mesh.projection.CancelOperation(asked, timeout=10.0)
    assert reason_of(refused.value) == "OPERATION_NOT_FOUND"
