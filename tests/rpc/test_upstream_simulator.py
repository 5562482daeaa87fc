"""The simulated upstream on the wire: what each fault makes it say, and that its ledger never lies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from chassis import ids, rpc
from chassis.testing import eventually
from ops import ports
from ops.upstream.domain import Verdict
from ordermesh.money.v1 import money_pb2
from ordermesh.upstream.v1 import simulator_service_pb2 as sim
from ordermesh.upstream.v1 import upstream_service_pb2 as pb
from tests.upstreams import CALL_S, Upstream, identities, reached, simulated

order_ids = ids.OrderIds(lambda: 1_767_225_600_000)


def new_order() -> str:
    return str(order_ids.new(bucket=701))


@contextmanager
def fails(code: grpc.StatusCode, reason: str = ""):
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        yield
    assert failed.value.code() is code
    assert rpc.error_of(failed.value).reason == reason


@pytest.fixture(scope="module")
def tls_dir(tmp_path_factory) -> Path:
    return identities(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def payments(tmp_path: Path, tls_dir: Path) -> AsyncIterator[Upstream]:
    """An upstream that executes again when it is asked again."""
    async with simulated(tmp_path, tls_dir, name="payments", idempotent=False) as upstream:
        yield upstream


@pytest.fixture
async def fulfilment(tmp_path: Path, tls_dir: Path) -> AsyncIterator[Upstream]:
    """An upstream that executes a key once."""
    async with simulated(tmp_path, tls_dir, name="fulfilment", idempotent=True) as upstream:
        yield upstream


async def test_what_was_executed_is_in_the_ledger_and_a_probe_finds_it(payments: Upstream) -> None:
    order = new_order()

    answer = await payments.execute(order, amount_minor=995)
    (row,) = payments.executions()

    assert answer.verdict == pb.VERDICT_SUCCEEDED
    assert answer.upstream_ref == row.upstream_ref
    assert (row.key, row.order_id, row.leg, row.attempt) == (f"{order}/0", order, 0, 1)
    assert (row.amount.amount_minor, row.amount.currency_code, row.verdict) == (995, "EUR", Verdict.SUCCEEDED)
    assert await payments.probe(f"{order}/0") == answer
    assert (await payments.probe(f"{order}/1")).verdict == pb.VERDICT_NOT_FOUND


async def test_a_repeated_key_executes_again_exactly_when_the_contract_is_not_idempotent(
    payments: Upstream, fulfilment: Upstream
) -> None:
    order = new_order()

    twice = [await payments.execute(order), await payments.execute(order, attempt=2)]
    once = [await fulfilment.execute(order), await fulfilment.execute(order, attempt=2)]

    assert twice[0].upstream_ref != twice[1].upstream_ref
    assert [row.attempt for row in payments.executions(f"{order}/0")] == [1, 2]
    assert once[0] == once[1]
    assert [row.attempt for row in fulfilment.executions(f"{order}/0")] == [1]


async def test_a_lost_reply_looks_like_an_upstream_that_is_down_but_the_order_was_executed(
    payments: Upstream,
) -> None:
    lost, refused = new_order(), new_order()
    await payments.misbehave("LOST_REPLY", order_id=lost)
    await payments.misbehave("DOWN", order_id=refused)

    for order in (lost, refused):
        with fails(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"):
            await payments.execute(order)

    assert [row.order_id for row in payments.executions()] == [lost]
    assert (await payments.probe(f"{lost}/0")).verdict == pb.VERDICT_SUCCEEDED
    with fails(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"):
        await payments.probe(f"{refused}/0")


async def test_a_late_answer_misses_the_deadline_of_its_caller_and_the_execution_stays(
    payments: Upstream,
) -> None:
    order = new_order()
    await payments.misbehave("LATE", method=sim.Fault.EXECUTE)

    with fails(grpc.StatusCode.DEADLINE_EXCEEDED):
        await payments.execute(order, timeout=0.3)

    assert (await payments.probe(f"{order}/0")).verdict == pb.VERDICT_SUCCEEDED
    assert len(payments.executions(f"{order}/0")) == 1


async def test_a_slow_upstream_answers_after_its_time_and_within_it_only_the_deadline_helps(
    payments: Upstream,
) -> None:
    order = new_order()
    await payments.misbehave("SLOW", duration_s=0.4)

    with fails(grpc.StatusCode.DEADLINE_EXCEEDED):
        await payments.execute(order, timeout=0.2)
    started = asyncio.get_running_loop().time()
    answer = await payments.probe(f"{order}/0")

    assert answer.verdict == pb.VERDICT_SUCCEEDED
    assert asyncio.get_running_loop().time() - started >= 0.4


async def test_a_rejected_order_is_refused_for_good(payments: Upstream) -> None:
    order = new_order()
    await payments.misbehave("REJECT", user_id_prefix="poor.")

    refused = await payments.execute(order, user_id="poor.bob")
    accepted = await payments.execute(new_order(), user_id="alice")
    await payments.behave()

    assert (refused.verdict, refused.reason) == (pb.VERDICT_FAILED, "declined")
    assert accepted.verdict == pb.VERDICT_SUCCEEDED
    assert (await payments.probe(f"{order}/0")).verdict == pb.VERDICT_FAILED
    assert [row.verdict for row in payments.executions(f"{order}/0")] == [Verdict.FAILED]


async def test_an_order_in_progress_says_so_and_for_how_long_until_it_is_executed(payments: Upstream) -> None:
    order = new_order()
    await payments.misbehave("IN_PROGRESS", duration_s=0.3)

    first = await payments.execute(order)
    executed_at_first = payments.executions()

    async def succeeded() -> bool:
        return (await payments.probe(f"{order}/0")).verdict == pb.VERDICT_SUCCEEDED

    assert first.verdict == pb.VERDICT_IN_PROGRESS
    assert 0 < first.pushback.ToTimedelta().total_seconds() <= 0.3
    assert executed_at_first == []
    assert await eventually(succeeded, within_s=3)
    assert len(payments.executions(f"{order}/0")) == 1


async def test_an_upstream_that_lies_not_found_executes_in_the_end_without_being_asked_again(
    payments: Upstream,
) -> None:
    order = new_order()
    await payments.misbehave("NOT_FOUND_BUT_EXECUTES", duration_s=0.3, idempotency_key=f"{order}/0")

    with fails(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"):
        await payments.execute(order)
    denied = await payments.probe(f"{order}/0")
    pending = await payments.control.GetLedger(sim.GetLedgerRequest(order_id=order), timeout=CALL_S)

    async def executed() -> bool:
        return bool(payments.executions(f"{order}/0"))

    assert denied.verdict == pb.VERDICT_NOT_FOUND
    assert (pending.pending_count, len(pending.executions)) == (1, 0)
    assert await eventually(executed, within_s=3)
    assert (await payments.probe(f"{order}/0")).verdict == pb.VERDICT_SUCCEEDED


async def test_an_upstream_that_cannot_say_tells_the_truth_once_the_fault_is_cleared(
    payments: Upstream,
) -> None:
    order = new_order()
    await payments.misbehave("UNKNOWN", order_id=order)

    said = [(await payments.execute(order)).verdict, (await payments.probe(f"{order}/0")).verdict]
    await payments.behave()

    assert said == [pb.VERDICT_UNKNOWN, pb.VERDICT_UNKNOWN]
    assert (await payments.probe(f"{order}/0")).verdict == pb.VERDICT_SUCCEEDED
    assert len(payments.executions(f"{order}/0")) == 1


async def test_a_wrong_amount_is_really_executed_and_stays_wrong(payments: Upstream) -> None:
    order = new_order()
    await payments.misbehave("WRONG_AMOUNT", limit=1)

    answer = await payments.execute(order, amount_minor=1000)
    right = await payments.execute(new_order(), amount_minor=1000)

    assert (answer.amount.amount_minor, right.amount.amount_minor) == (1001, 1000)
    assert (await payments.probe(f"{order}/0")).amount.amount_minor == 1001
    assert payments.executions(f"{order}/0")[0].amount.amount_minor == 1001


async def test_malformed_answers_come_in_both_shapes(payments: Upstream) -> None:
    await payments.misbehave("MALFORMED")

    answers = [await payments.execute(new_order()) for _ in range(20)]

    assert any(answer.verdict not in pb.Verdict.values() for answer in answers)
    assert any(answer.verdict == pb.VERDICT_SUCCEEDED and not answer.upstream_ref for answer in answers)
    assert len(payments.executions()) == 20


async def test_a_fault_by_rate_strikes_its_share_and_the_same_keys_each_time(payments: Upstream) -> None:
    await payments.misbehave("UNKNOWN", probability=0.3, seed=7)
    orders = [new_order() for _ in range(150)]

    async def fate(order: str) -> bool:
        return (await payments.execute(order)).verdict == pb.VERDICT_UNKNOWN

    struck = {order for order in orders if await fate(order)}
    probed = {order for order in orders if (await payments.probe(f"{order}/0")).verdict == pb.VERDICT_UNKNOWN}

    assert 20 <= len(struck) <= 70
    assert probed == struck


async def test_reversing_takes_an_execution_back_once_and_says_so_when_probed(payments: Upstream) -> None:
    order, never = new_order(), new_order()
    await payments.execute(order, amount_minor=700)

    async def reverse(of: str) -> pb.Answer:
        request = pb.ReverseRequest(idempotency_key=f"{of}/0/reverse", original_key=f"{of}/0")
        return (await payments.calls.Reverse(request, timeout=CALL_S)).answer

    first, again = await reverse(order), await reverse(order)
    shown = await payments.control.GetLedger(sim.GetLedgerRequest(order_id=order), timeout=CALL_S)

    assert first == again
    assert (first.verdict, first.amount.amount_minor) == (pb.VERDICT_SUCCEEDED, 700)
    assert await payments.probe(f"{order}/0/reverse") == first
    assert [row.original_key for row in shown.reversals] == [f"{order}/0"]
    assert len(shown.executions) == 1
    assert (await reverse(never)).verdict == pb.VERDICT_NOT_FOUND


async def test_faults_can_be_listed_counted_limited_and_cleared_one_by_one(payments: Upstream) -> None:
    once = await payments.misbehave("LOST_REPLY", limit=1)
    kept = await payments.misbehave("SLOW", duration_s=0.01)
    gone = await payments.misbehave("DOWN", order_id=new_order())

    with fails(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"):
        await payments.execute(new_order())
    answer = await payments.execute(new_order())
    await payments.control.ClearFaults(sim.ClearFaultsRequest(fault_id=gone.fault_id), timeout=CALL_S)
    listed = (await payments.control.ListFaults(sim.ListFaultsRequest(), timeout=CALL_S)).faults

    assert answer.verdict == pb.VERDICT_SUCCEEDED
    assert [(fault.fault_id, fault.strike_count) for fault in listed] == [(kept.fault_id, 2)]
    assert once.fault_id not in {fault.fault_id for fault in listed}


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        (sim.Fault(), "fault.kind"),
        (sim.Fault(kind=sim.Fault.SLOW), "fault.duration"),
        (sim.Fault(kind=sim.Fault.DOWN, duration=Duration(seconds=1)), "fault.duration"),
        (sim.Fault(kind=sim.Fault.IN_PROGRESS, duration=Duration(seconds=3601)), "fault.duration"),
        (sim.Fault(kind=sim.Fault.DOWN, probability=1.5), "fault.probability"),
        (sim.Fault(kind=sim.Fault.DOWN, probability=float("nan")), "fault.probability"),
        (sim.Fault(kind=sim.Fault.DOWN, limit=-1), "fault.limit"),
        (sim.Fault(kind=sim.Fault.REJECT, method=sim.Fault.PROBE), "fault.method"),
    ],
)
async def test_a_fault_that_makes_no_sense_is_refused_with_its_field(
    payments: Upstream, fault: sim.Fault, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await payments.control.SetFault(sim.SetFaultRequest(fault=fault), timeout=CALL_S)

    assert [violation.field for violation in rpc.error_of(refused.value).violations] == [field]


@pytest.mark.parametrize("broken", ["key", "order", "amount", "attempt"])
async def test_an_execute_that_makes_no_sense_is_refused_and_executes_nothing(
    payments: Upstream, broken: str
) -> None:
    order = new_order()
    request = pb.ExecuteRequest(
        idempotency_key=f"{order}/1" if broken == "key" else f"{order}/0",
        order_id="nonsense" if broken == "order" else order,
        attempt=0 if broken == "attempt" else 1,
        user_id="alice",
        amount=money_pb2.Money(currency_code="EUR", amount_minor=0 if broken == "amount" else 1),
    )

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await payments.calls.Execute(request, timeout=CALL_S)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert payments.executions() == []


async def test_only_operators_steer_and_only_order_svc_executes(tmp_path: Path, tls_dir: Path) -> None:
    async with simulated(tmp_path, tls_dir, caller="recovery_svc") as seen_by_recovery:
        with fails(grpc.StatusCode.PERMISSION_DENIED, "ROLE_REQUIRED"):
            await seen_by_recovery.execute(new_order())
        assert (await seen_by_recovery.probe("x/0")).verdict == pb.VERDICT_NOT_FOUND
    async with simulated(tmp_path, tls_dir, caller="gateway") as seen_by_gateway:
        with fails(grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED"):
            await seen_by_gateway.probe("x/0")


async def test_faults_executions_and_what_is_put_off_survive_a_kill_of_the_process(
    tmp_path: Path, tls_dir: Path
) -> None:
    executed, late = new_order(), new_order()
    path, port = tmp_path / "ledger.db", ports.free_port()
    environment = os.environ | {
        "ORDERMESH_LISTEN": f"127.0.0.1:{port}",
        "ORDERMESH_LEDGER": str(path),
        "ORDERMESH_IDEMPOTENT": "false",
        "ORDERMESH_TLS_DIR": str(tls_dir),
        "ORDERMESH_SUBJECT_DIR": str(tls_dir),
    }

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "ops.upstream"], env=environment)

    async with AsyncExitStack() as stack:
        upstream = await reached(stack, f"127.0.0.1:{port}", path, tls_dir, "order_svc")

        async def up() -> bool:
            try:
                await upstream.control.ListFaults(sim.ListFaultsRequest(), timeout=1)
            except grpc.aio.AioRpcError:
                return False
            return True

        process = start()
        stack.callback(lambda: process.kill())
        await eventually(up, within_s=20)
        await upstream.misbehave("NOT_FOUND_BUT_EXECUTES", duration_s=1, order_id=late)
        await upstream.misbehave("LOST_REPLY", order_id=executed)
        for order in (executed, late):
            with fails(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"):
                await upstream.execute(order)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)

        process = start()
        await eventually(up, within_s=20)
        with fails(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"):
            await upstream.execute(executed, attempt=2)

        async def both() -> bool:
            return {row.order_id for row in upstream.executions()} == {executed, late}

        assert await eventually(both, within_s=10)
        assert [row.attempt for row in upstream.executions(f"{executed}/0")] == [1, 2]
        process.terminate()
        assert process.wait(timeout=10) == 0
