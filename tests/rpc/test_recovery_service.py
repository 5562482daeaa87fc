"""RecoveryService on the wire: what operators see and steer, also when shards are out of reach."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from chassis import rpc
from chassis.auth import Role
from ordermesh.order.v1 import order_pb2
from ordermesh.recovery.v1 import recovery_service_pb2 as pb
from tests.rpc.recovery_mesh import MeshScript, Recovery, Trust, new_order, recovering, scripted, served
from tests.upstreams import Upstream, simulated


@contextmanager
def refuses(code: grpc.StatusCode, reason: str):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        yield
    assert (refused.value.code(), rpc.error_of(refused.value).reason) == (code, reason)


@pytest.fixture(scope="module")
def trust(tmp_path_factory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


@pytest.fixture
async def payments(tmp_path: Path, trust: Trust) -> AsyncIterator[Upstream]:
    async with simulated(tmp_path, trust.tls_dir, name="payments") as upstream:
        yield upstream


@pytest.fixture
async def mesh() -> MeshScript:
    return scripted("s1", "s2")


@pytest.fixture
async def recovery(mesh: MeshScript, payments: Upstream, trust: Trust) -> AsyncIterator[Recovery]:
    """A recovery_svc that does not sweep, so that only the calls of a test do something."""
    async with (
        served(mesh, trust) as proxy,
        recovering(proxy, {"payments": payments.target}, trust, sweeping=False) as process,
    ):
        yield process


async def test_an_order_is_probed_at_once_and_the_answer_shows_what_was_found(
    recovery: Recovery, mesh: MeshScript, payments: Upstream
) -> None:
    order_id = new_order()
    executed = await payments.execute(order_id)
    mesh.owe("s2", order_id=order_id)

    answer = await recovery.ask("ProbeOrder", pb.ProbeOrderRequest(order_id=order_id))

    assert answer.report.answer == executed
    assert (answer.order.order_id, answer.order.version) == (order_id, 2)
    assert mesh.report_of(order_id) == answer.report


async def test_an_order_that_cannot_be_claimed_is_returned_as_it_is(
    recovery: Recovery, mesh: MeshScript
) -> None:
    settled = new_order()
    mesh.settled[settled] = order_pb2.Order(order_id=settled, status=order_pb2.Order.SUCCESS, version=2)

    answer = await recovery.ask("ProbeOrder", pb.ProbeOrderRequest(order_id=settled))

    assert answer.order.status == order_pb2.Order.SUCCESS
    assert not answer.HasField("report")
    with refuses(grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND"):
        await recovery.ask("ProbeOrder", pb.ProbeOrderRequest(order_id=new_order()))
    with refuses(grpc.StatusCode.INVALID_ARGUMENT, "ORDER_ID_INVALID"):
        await recovery.ask("ProbeOrder", pb.ProbeOrderRequest(order_id=str(uuid4())))


async def test_a_probe_whose_caller_gave_up_is_reported_all_the_same(
    recovery: Recovery, mesh: MeshScript, payments: Upstream
) -> None:
    await payments.misbehave("SLOW", duration_s=0.6)
    order_id = mesh.owe("s1")

    with pytest.raises(grpc.aio.AioRpcError) as gave_up:
        await recovery.ask("ProbeOrder", pb.ProbeOrderRequest(order_id=order_id), timeout_s=0.3)
    await recovery.process.owned.drain(5.0)

    assert gave_up.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await mesh.taken_about(order_id)


async def test_hanging_orders_of_all_shards_come_most_overdue_first_and_silent_shards_are_named(
    recovery: Recovery, mesh: MeshScript
) -> None:
    first = [mesh.owe("s1") for _ in range(3)]
    second = [mesh.owe("s2") for _ in range(3)]

    both = await recovery.ask("ListHangingOrders", pb.ListHangingOrdersRequest())
    page = await recovery.ask("ListHangingOrders", pb.ListHangingOrdersRequest(page_size=4))
    one = await recovery.ask("ListHangingOrders", pb.ListHangingOrdersRequest(shard="s2"))
    mesh.shards["s1"].hangs = True
    partial = await recovery.ask("ListHangingOrders", pb.ListHangingOrdersRequest())

    assert {due.order.order_id for due in both.due_orders[:2]} == {first[0], second[0]}
    assert [due.due_time.seconds for due in both.due_orders] == [1000, 1000, 1001, 1001, 1002, 1002]
    assert [due.due_time.seconds for due in page.due_orders] == [1000, 1000, 1001, 1001]
    assert [due.order.order_id for due in one.due_orders] == second
    assert [due.order.order_id for due in partial.due_orders] == second
    assert list(partial.unreachable) == ["s1"]
    with refuses(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await recovery.ask("ListHangingOrders", pb.ListHangingOrdersRequest(page_size=101))


async def test_a_shard_that_refuses_is_an_error_and_not_out_of_reach(
    recovery: Recovery, mesh: MeshScript
) -> None:
    mesh.shards["s1"].refuses_with = grpc.StatusCode.NOT_FOUND

    with refuses(grpc.StatusCode.NOT_FOUND, ""):
        await recovery.ask("ListHangingOrders", pb.ListHangingOrdersRequest(shard="s1"))


async def test_a_pause_is_a_hold_in_each_shard_with_the_name_of_who_asked_and_ends_by_resuming(
    recovery: Recovery, mesh: MeshScript
) -> None:
    pause = pb.PauseRecoveryRequest(request_id=str(uuid4()), reason="bank is down", upstream="payments")
    pause.ttl.seconds = 600
    resume = pb.ResumeRecoveryRequest(request_id=str(uuid4()), reason="bank is back", upstream="payments")

    paused = await recovery.ask("PauseRecovery", pause)
    held = {shard: script.holds["upstream:payments"] for shard, script in mesh.shards.items()}
    status = await recovery.ask("GetRecoveryStatus", pb.GetRecoveryStatusRequest())
    resumed = await recovery.ask("ResumeRecovery", resume)
    again = await recovery.ask("ResumeRecovery", resume)

    assert list(paused.shards) == ["s1", "s2"]
    assert {hold.reason for hold in held.values()} == {"mira: bank is down"}
    until = held["s1"].until_time.ToDatetime(tzinfo=UTC)
    assert timedelta(seconds=550) < until - datetime.now(UTC) <= timedelta(seconds=600)
    assert [hold.scope for shard in status.shards for hold in shard.holds] == ["upstream:payments"] * 2
    assert (list(resumed.shards), list(again.shards)) == (["s1", "s2"], [])


async def test_a_pause_says_where_recovery_may_go_on(recovery: Recovery, mesh: MeshScript) -> None:
    mesh.shards["s2"].refuses_with = grpc.StatusCode.UNAVAILABLE
    pause = pb.PauseRecoveryRequest(request_id=str(uuid4()), reason="storm")

    paused = await recovery.ask("PauseRecovery", pause)

    assert (list(paused.shards), list(paused.unreachable)) == (["s1"], ["s2"])
    assert set(mesh.shards["s1"].holds) == {"all"}
    assert not mesh.shards["s1"].holds["all"].HasField("until_time")


@pytest.mark.parametrize("wrong", ["request_id", "reason", "upstream", "ttl"])
async def test_a_pause_that_makes_no_sense_is_refused_and_holds_nothing(
    recovery: Recovery, mesh: MeshScript, wrong: str
) -> None:
    pause = pb.PauseRecoveryRequest(
        request_id="nonsense" if wrong == "request_id" else str(uuid4()),
        reason="" if wrong == "reason" else "storm",
        upstream="nobody" if wrong == "upstream" else "",
    )
    if wrong == "ttl":
        pause.ttl.seconds = -1

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await recovery.ask("PauseRecovery", pause)

    assert [violation.field for violation in rpc.error_of(refused.value).violations] == [wrong]
    assert not any(script.holds for script in mesh.shards.values())


async def test_the_status_counts_what_waits_and_marks_what_is_out_of_reach(
    recovery: Recovery, mesh: MeshScript
) -> None:
    mesh.owe("s1")
    mesh.shards["s2"].hangs = True

    status = await recovery.ask("GetRecoveryStatus", pb.GetRecoveryStatusRequest())

    s1, s2 = status.shards
    assert (s1.shard, s1.reachable, s1.overdue_count, dict(s1.waiting_counts)) == (
        "s1",
        True,
        1,
        {"UNKNOWN": 1},
    )
    assert (s2.shard, s2.reachable) == ("s2", False)


async def test_only_operators_behind_the_proxy_may_steer(recovery: Recovery) -> None:
    request = pb.GetRecoveryStatusRequest()

    for role in (Role.USER, Role.SERVICE, Role.RECOVERY):
        with refuses(grpc.StatusCode.PERMISSION_DENIED, "ROLE_REQUIRED"):
            await recovery.calls.GetRecoveryStatus(
                request, timeout=5, metadata=recovery.trust.subject("x", role)
            )
    with refuses(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await recovery.calls.GetRecoveryStatus(request, timeout=5)
    with refuses(grpc.StatusCode.INVALID_ARGUMENT, "DEADLINE_REQUIRED"):
        await recovery.calls.GetRecoveryStatus(request, metadata=recovery.trust.subject("x", Role.OPERATOR))
