"""Is the promise kept on the wire? A real order_svc, real stubs, real Postgres, real upstreams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
from prometheus_client import REGISTRY

from chassis import faults, rpc
from chassis.errors import Reason
from chassis.ids import user_bucket
from chassis.testing import eventually
from ordermesh.order.v1 import order_service_pb2 as pb
from tests import lanes
from tests.conftest import DatabaseFactory
from tests.lanes import DONE, MIRA, READY, UNKNOWN, Lane, Order, armed, as_user, create_request, refuses
from tests.listeners import Trust


@pytest.fixture(scope="session")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


@pytest.fixture
async def lane(trust: Trust, shard_database: DatabaseFactory, tmp_path: Path) -> AsyncIterator[Lane]:
    async with lanes.serving(trust, await shard_database(), tmp_path) as serving:
        yield serving


async def test_an_order_is_executed_once_and_settled_while_the_caller_waits(lane: Lane) -> None:
    answer = await lane.create(wait_s=5)
    order = answer.order
    assert (order.status, order.stage, order.version) == (Order.SUCCESS, DONE, 2)
    assert (order.basis, order.leg, order.attempt) == (Order.UPSTREAM, 0, 1)
    (execution,) = lane.payments.executions(f"{order.order_id}/0")
    assert execution.upstream_ref == order.upstream_ref
    assert await lane.journal(order) == ["OPENED", "SETTLED"]
    assert answer.consistency_token
    assert await lane.get(order) == order


async def test_without_wait_the_answer_is_pending_at_once_and_the_order_settles_anyway(lane: Lane) -> None:
    await lane.payments.misbehave("SLOW", duration_s=0.5)
    answer = await lane.create()
    assert (answer.order.status, answer.order.stage) == (Order.PENDING, Order.SUBMITTING)
    assert (await lane.at(answer.order, DONE)).status == Order.SUCCESS


async def test_an_order_counts_as_made_when_it_is_written_down_however_long_its_caller_waits(
    lane: Lane,
) -> None:
    def made() -> float:
        return REGISTRY.get_sample_value("ordermesh_order_create_seconds_count") or 0.0

    async def is_made() -> bool:
        return made() == before + 1

    before = made()
    await lane.payments.misbehave("SLOW", duration_s=20.0)
    waiting = asyncio.create_task(lane.create(wait_s=30, timeout=60))
    await eventually(is_made)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_wait_that_expires_is_ok_with_pending(lane: Lane) -> None:
    await lane.payments.misbehave("SLOW", duration_s=0.9)
    answer = await lane.create(wait_s=0.2)
    assert answer.order.status == Order.PENDING
    by_deadline = await lane.create(wait_s=30, timeout=0.6)
    assert by_deadline.order.status == Order.PENDING


async def test_a_refusal_of_the_upstream_fails_the_order_with_its_words(lane: Lane) -> None:
    await lane.payments.misbehave("REJECT")
    order = (await lane.create(wait_s=5)).order
    assert (order.status, order.basis) == (Order.FAILED, Order.UPSTREAM)
    assert order.failure_reason


async def test_two_legs_are_executed_in_order_each_once(lane: Lane) -> None:
    order = (await lane.create(kind="purchase", wait_s=5)).order
    assert (order.status, order.leg, list(order.legs)) == (Order.SUCCESS, 1, ["payments", "fulfilment"])
    assert len(lane.payments.executions(f"{order.order_id}/0")) == 1
    (last,) = lane.fulfilment.executions(f"{order.order_id}/1")
    assert last.upstream_ref == order.upstream_ref
    assert await lane.journal(order) == ["OPENED", "LEG_DONE", "SUBMITTED", "SETTLED"]


async def test_a_repeat_returns_the_same_order_and_another_body_is_refused(lane: Lane) -> None:
    request_id = str(uuid4())
    first = await lane.create(request_id=request_id, wait_s=5)
    again = await lane.create(request_id=request_id, wait_s=5)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.order == first.order
    with refuses(Reason.REQUEST_ID_REUSED):
        await lane.create(request_id=request_id, amount_minor=1)
    with refuses(Reason.REQUEST_ID_REUSED):
        await lane.create(request_id=request_id, labels={"a": "b"})
    assert len(lane.payments.executions()) == 1


async def test_racing_repeats_make_one_order_that_is_executed_once(lane: Lane) -> None:
    request_id = str(uuid4())
    answers = await asyncio.gather(*(lane.create(request_id=request_id, wait_s=5) for _ in range(20)))
    assert len({answer.order.order_id for answer in answers}) == 1
    assert [answer.replayed for answer in answers].count(False) == 1
    assert len(lane.payments.executions()) == 1


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"user_id": ""}, "user_id"),
        ({"user_id": "a b"}, "user_id"),
        ({"request_id": "7"}, "request_id"),
        ({"kind": ""}, "kind"),
        ({"amount_minor": 0}, "amount.amount_minor"),
        ({"amount_minor": 10**15 + 1}, "amount.amount_minor"),
        ({"description": "x" * 513}, "description"),
        ({"description": "a\0b"}, "description"),
        ({"labels": {"a": "x" * 4096}}, "labels"),
        ({"labels": {"": "x"}}, "labels"),
        ({"labels": {"a": "\0"}}, "labels"),
        ({"wait_s": -1.0}, "wait"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_stored(
    lane: Lane, fields: dict[str, object], wrong: str
) -> None:
    request = create_request(**fields)  # type: ignore[arg-type]
    with refuses(Reason.INVALID_FIELD) as facts:
        await lane.call("CreateOrder", request, user_id="alice")
    assert [violation.field for violation in facts[0].violations] == [wrong]
    assert await lane.sql("SELECT FROM orders") == []


async def test_all_wrong_fields_are_named_at_once_and_an_unknown_kind_is_refused(lane: Lane) -> None:
    with refuses(Reason.INVALID_FIELD) as facts:
        await lane.call("CreateOrder", pb.CreateOrderRequest(), user_id="alice")
    assert [each.field for each in facts[0].violations] == ["user_id", "request_id", "kind", "amount"]
    with refuses(Reason.UNKNOWN_KIND):
        await lane.create(kind="gift")


async def test_everything_a_caller_may_say_comes_back_as_it_was_said(lane: Lane) -> None:
    order = (
        await lane.create(description="ä" * 512, labels={"k": '"\\ü', "empty": ""}, amount_minor=10**15)
    ).order
    found = await lane.get(order)
    assert (found.description, dict(found.labels)) == ("ä" * 512, {"k": '"\\ü', "empty": ""})
    assert found.amount.amount_minor == 10**15
    assert found.request_id == order.request_id


async def test_an_id_that_comes_too_late_is_replaced_by_one_of_the_shards_own_time(lane: Lane) -> None:
    await lane.let_pass(timedelta(seconds=30))
    order = (await lane.create()).order
    (shard,) = await lane.sql("SELECT ordermesh.clock() - created_at AS late FROM orders")
    assert order.version >= 1
    assert timedelta(0) <= shard["late"] < timedelta(seconds=30)


async def test_a_create_needs_the_proxys_route_and_a_stale_one_is_refused(lane: Lane) -> None:
    request = create_request()
    with refuses(Reason.ROUTING_KEY_MISSING):
        await lane.call("CreateOrder", request)
    with refuses(Reason.ROUTING_KEY_MISMATCH):
        await lane.by(lanes.SERVICE, bucket="7").call("CreateOrder", request, user_id="alice")
    with refuses(Reason.STALE_ROUTE) as facts:
        await lane.by(lanes.SERVICE, epoch="2").call("CreateOrder", request, user_id="alice")
    assert dict(facts[0].metadata).items() >= {"bucket": "701", "epoch": "1", "owner": "s1"}.items()
    assert await lane.sql("SELECT FROM idempotency_keys") == []
    dedicated = await lane.by(lanes.SERVICE, bucket="4096").call("CreateOrder", request, user_id="alice")
    assert dedicated.order.user_id == "alice"
    assert await lane.sql("SELECT FROM orders WHERE bucket = 4096")


async def test_a_bucket_that_moved_away_is_a_stale_route_for_reads_and_never_not_found(lane: Lane) -> None:
    order = (await lane.create(wait_s=5)).order
    await lane.sql(
        "UPDATE bucket_fence SET state = 'MOVED', owner = 's2', epoch = 2 WHERE bucket = $1",
        user_bucket("alice"),
    )
    calls = [
        ("GetOrder", pb.GetOrderRequest(order_id=order.order_id)),
        ("BatchGetOrders", pb.BatchGetOrdersRequest(order_ids=[order.order_id])),
        ("ListOrderEvents", pb.ListOrderEventsRequest(order_id=order.order_id)),
        ("GetDeadLetter", pb.GetDeadLetterRequest(order_id=order.order_id)),
    ]
    for method, request in calls:
        with refuses(Reason.STALE_ROUTE) as facts:
            await lane.by(MIRA if method == "GetDeadLetter" else lanes.SERVICE).call(method, request)
        assert dict(facts[0].metadata).items() >= {"owner": "s2", "epoch": "2", "state": "MOVED"}.items()
    with refuses(Reason.STALE_ROUTE):
        await lane.create(request_id=order.request_id)
    with refuses(Reason.STALE_ROUTE):
        async for _ in lane.stub.WatchOrder(
            pb.WatchOrderRequest(order_id=order.order_id), timeout=5, metadata=lane.metadata()
        ):
            pass


async def test_a_user_makes_and_sees_only_their_own_orders(lane: Lane) -> None:
    alice, bob = lane.by(as_user("alice")), lane.by(as_user("bob"))
    order = (await alice.create(wait_s=5)).order
    with refuses(Reason.NOT_YOUR_ORDER):
        await bob.create(user_id="alice")
    with refuses(Reason.NOT_YOUR_ORDER):
        await bob.call("GetOrder", pb.GetOrderRequest(order_id=order.order_id))
    with refuses(Reason.NOT_YOUR_ORDER):
        await bob.call("ListOrderEvents", pb.ListOrderEventsRequest(order_id=order.order_id))
    with refuses(Reason.NOT_YOUR_ORDER):
        async for _ in bob.stub.WatchOrder(
            pb.WatchOrderRequest(order_id=order.order_id), timeout=5, metadata=bob.metadata()
        ):
            pass
    assert (await alice.call("GetOrder", pb.GetOrderRequest(order_id=order.order_id))).order == order


async def test_what_does_not_exist_is_not_found_and_what_is_no_id_is_invalid(lane: Lane) -> None:
    order = (await lane.create(wait_s=5)).order
    absent = order.order_id[:-4] + "0000"
    for method, request_class in (
        ("GetOrder", pb.GetOrderRequest),
        ("ListOrderEvents", pb.ListOrderEventsRequest),
    ):
        with refuses(Reason.ORDER_NOT_FOUND):
            await lane.call(method, request_class(order_id=absent))
        with refuses(Reason.ORDER_ID_INVALID):
            await lane.call(method, request_class(order_id=str(uuid4())))
    batch = pb.BatchGetOrdersRequest(order_ids=[order.order_id, absent, order.order_id])
    found = await lane.call("BatchGetOrders", batch)
    assert ([each.order_id for each in found.orders], list(found.missing_order_ids)) == (
        [order.order_id],
        [absent],
    )
    for wrong in ([], [order.order_id] * 101):
        with refuses(Reason.INVALID_FIELD):
            await lane.call("BatchGetOrders", pb.BatchGetOrdersRequest(order_ids=wrong))


def update(order: Order, **fields: Any) -> pb.UpdateOrderRequest:
    return pb.UpdateOrderRequest(**{"order_id": order.order_id, "request_id": str(uuid4()), **fields})


async def test_labels_are_replaced_once_and_a_repeat_returns_the_order(lane: Lane) -> None:
    order = (await lane.create(wait_s=5, labels={"cart": "7"})).order
    ask = update(order, labels={"shop": "3"}, expected_version=order.version)

    first = await lane.call("UpdateOrder", ask)
    again = await lane.call("UpdateOrder", ask)

    assert again.order == first.order == await lane.get(order)
    assert (dict(first.order.labels), first.order.version) == ({"shop": "3"}, order.version + 1)
    assert (first.order.status, first.order.settle_time) == (order.status, order.settle_time)
    assert first.consistency_token
    assert await lane.journal(order) == ["OPENED", "SETTLED", "RELABELLED"]
    with refuses(Reason.REQUEST_ID_REUSED):
        await lane.call("UpdateOrder", update(order, request_id=ask.request_id, labels={"shop": "4"}))
    with refuses(Reason.VERSION_MISMATCH) as facts:
        await lane.call("UpdateOrder", update(order, labels={}, expected_version=order.version))
    assert facts[0].metadata["version"] == str(first.order.version)
    assert not (await lane.call("UpdateOrder", update(order))).order.labels


async def test_an_order_in_flight_takes_labels_and_settles_all_the_same(lane: Lane) -> None:
    await lane.payments.misbehave("SLOW", duration_s=0.4)
    order = (await lane.create()).order
    changed = (await lane.call("UpdateOrder", update(order, labels={"a": "b"}))).order
    assert (changed.stage, changed.version) == (Order.SUBMITTING, 2)
    done = await lane.at(order, DONE)
    assert (done.status, dict(done.labels)) == (Order.SUCCESS, {"a": "b"})
    assert await lane.journal(order) == ["OPENED", "RELABELLED", "SETTLED"]
    assert len(lane.payments.executions()) == 1


async def test_a_change_that_makes_no_sense_or_is_not_yours_changes_nothing(lane: Lane) -> None:
    order = (await lane.create(wait_s=5)).order
    for wrong in (
        {"request_id": "7"},
        {"labels": {"": "x"}},
        {"labels": {"a": "\0"}},
        {"labels": {"a": "x" * 4096}},
        {"labels": {str(n): "" for n in range(257)}},
        {"expected_version": -1},
    ):
        with refuses(Reason.INVALID_FIELD):
            await lane.call("UpdateOrder", update(order, **wrong))
    with refuses(Reason.ORDER_NOT_FOUND):
        await lane.call("UpdateOrder", update(order, order_id=order.order_id[:-4] + "0000"))
    with refuses(Reason.NOT_YOUR_ORDER):
        await lane.by(as_user("bob")).call("UpdateOrder", update(order, labels={"a": "b"}))
    with refuses(Reason.ROLE_REQUIRED):
        await lane.by(lanes.RECOVERY).call("UpdateOrder", update(order, labels={"a": "b"}))
    assert await lane.get(order) == order


async def test_racing_changes_of_one_version_let_one_through(lane: Lane) -> None:
    order = (await lane.create(wait_s=5)).order
    asks = [update(order, labels={"n": str(n)}, expected_version=order.version) for n in range(8)]
    answers = await asyncio.gather(*(lane.call("UpdateOrder", ask) for ask in asks), return_exceptions=True)
    (won,) = [answer for answer in answers if isinstance(answer, pb.UpdateOrderResponse)]
    assert await lane.get(order) == won.order
    lost = [rpc.error_of(each).reason for each in answers if isinstance(each, grpc.aio.AioRpcError)]
    assert lost == [Reason.VERSION_MISMATCH] * 7


async def watched(lane: Lane, order: Order, after_version: int = 0) -> list[int]:
    request = pb.WatchOrderRequest(order_id=order.order_id, after_version=after_version)
    stream = lane.stub.WatchOrder(request, timeout=8, metadata=lane.metadata())
    return [answer.order.version async for answer in stream]


async def test_a_watch_shows_every_change_and_ends_with_the_settled_order(lane: Lane) -> None:
    await lane.payments.misbehave("SLOW", duration_s=0.5)
    order = (await lane.create()).order
    assert await watched(lane, order) == [1, 2]
    assert await watched(lane, order, after_version=1) == [2]
    assert await watched(lane, order, after_version=2) == []


async def test_a_watch_sees_what_another_process_changed(lane: Lane) -> None:
    await lane.payments.misbehave("UNKNOWN")
    order = await lane.at((await lane.create()).order, UNKNOWN)
    request = pb.WatchOrderRequest(order_id=order.order_id)
    stream = lane.stub.WatchOrder(request, timeout=8, metadata=lane.metadata())
    versions = stream.__aiter__()
    assert (await anext(versions)).order.version == 2
    await lane.sql("UPDATE orders SET version = 3, route_epoch = NULL")
    assert (await anext(versions)).order.version == 3
    stream.cancel()


async def test_a_watch_ends_with_the_callers_deadline(lane: Lane) -> None:
    await lane.payments.misbehave("UNKNOWN")
    order = await lane.at((await lane.create()).order, UNKNOWN)
    stream = lane.stub.WatchOrder(
        pb.WatchOrderRequest(order_id=order.order_id), timeout=0.5, metadata=lane.metadata()
    )
    with pytest.raises(grpc.aio.AioRpcError) as late:
        async for _ in stream:
            pass
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_the_journal_is_paged_and_tokens_belong_to_their_query(lane: Lane) -> None:
    order = (await lane.create(kind="purchase", wait_s=5)).order
    kinds, token = [], ""
    while True:
        page = await lane.call(
            "ListOrderEvents",
            pb.ListOrderEventsRequest(order_id=order.order_id, page_size=3, page_token=token),
        )
        kinds += [event.kind for event in page.events]
        token = page.next_page_token
        if not token:
            break
        kept = token
    assert kinds == ["OPENED", "LEG_DONE", "SUBMITTED", "SETTLED"]
    other = (await lane.create(wait_s=5)).order
    for wrong in (kept, "nonsense", "AAAA"):
        with refuses(Reason.PAGE_TOKEN_INVALID):
            await lane.call(
                "ListOrderEvents", pb.ListOrderEventsRequest(order_id=other.order_id, page_token=wrong)
            )


async def test_a_lost_reply_is_never_sent_again_blind(lane: Lane) -> None:
    await lane.payments.misbehave("LOST_REPLY", method=1)
    order = await lane.at((await lane.create()).order, UNKNOWN)
    assert await lane.journal(order) == ["OPENED", "UNSURE"]
    assert (await lane.probe(order)).status == Order.SUCCESS
    assert len(lane.payments.executions()) == 1


async def test_a_slow_upstream_is_given_its_time_and_then_left_to_recovery(lane: Lane) -> None:
    await lane.payments.misbehave("LATE", method=1)
    order = await lane.at((await lane.create()).order, UNKNOWN)
    assert (await lane.probe(order)).status == Order.SUCCESS


async def test_an_upstream_that_is_down_leaves_the_order_unknown(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    async with lanes.serving(
        trust,
        await shard_database(),
        tmp_path,
        upstream_targets={"payments": "127.0.0.1:9", "fulfilment": "127.0.0.1:9"},
    ) as lane:
        order = await lane.at((await lane.create()).order, UNKNOWN)
        events = await lane.call("ListOrderEvents", pb.ListOrderEventsRequest(order_id=order.order_id))
        assert "UNAVAILABLE" in events.events[-1].evidence_json


async def test_overload_is_refused_before_anything_is_written(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    async with lanes.serving(
        trust, await shard_database(), tmp_path, submits_per_upstream=2, submit_queue=1
    ) as lane:
        await lane.payments.misbehave("SLOW", duration_s=0.8)
        outcomes = await asyncio.gather(*(lane.create(wait_s=5) for _ in range(10)), return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
        assert {each.code() for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        stored = await lane.sql("SELECT FROM orders")
        assert len(stored) == 10 - len(refused) == 3


async def test_a_cancelled_create_is_still_recorded_and_executed(lane: Lane) -> None:
    request = create_request()
    with armed("create.after_commit=pause:1:0.3"):
        asking = asyncio.create_task(lane.call("CreateOrder", request, user_id="alice"))
        await eventually(lambda: _stored(lane))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await eventually(lambda: _executed(lane))
    again = await lane.call("CreateOrder", request, user_id="alice")
    assert again.replayed
    assert (await lane.at(again.order, DONE)).status == Order.SUCCESS


async def _stored(lane: Lane) -> bool:
    return bool(await lane.sql("SELECT FROM orders"))


async def _fired() -> bool:
    return not faults.armed()


async def _executed(lane: Lane) -> bool:
    return bool(lane.payments.executions())


async def test_a_process_that_was_frozen_before_its_call_does_not_make_it_too_late(lane: Lane) -> None:
    with armed("submit.before_call=pause:1:1.2"):
        order = (await lane.create()).order
        await eventually(lambda: _kinds(lane, order, "NOT_SENT"))
    done = await lane.at(order, DONE)
    assert (done.status, done.attempt) == (Order.SUCCESS, 2)
    assert await lane.journal(order) == ["OPENED", "NOT_SENT", "SUBMITTED", "SETTLED"]
    assert [execution.attempt for execution in lane.payments.executions()] == [2]


async def _kinds(lane: Lane, order: Order, kind: str) -> bool:
    return kind in await lane.journal(order)


async def test_a_verdict_that_cannot_be_written_is_found_again_by_a_probe(lane: Lane) -> None:
    with armed("settle.before_commit=raise"):
        order = (await lane.create()).order
        await eventually(_fired)
    assert (await lane.get(order)).stage == Order.SUBMITTING
    done = await lane.probe(order)
    assert done.status == Order.SUCCESS
    assert len(lane.payments.executions()) == 1


async def test_ready_orders_left_by_a_dead_process_are_submitted_by_the_next(lane: Lane) -> None:
    with armed("begin.before_commit=raise"):
        order = (await lane.create(kind="purchase")).order
        await eventually(lambda: _kinds(lane, order, "LEG_DONE"))
    assert (await lane.at(order, DONE, READY)).order_id == order.order_id
    assert (await lane.at(order, DONE)).status == Order.SUCCESS
    assert len(lane.fulfilment.executions()) == 1


async def test_another_shards_database_is_not_served(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match="does not serve that shard"):
        async with lanes.serving(trust, await shard_database(), tmp_path, shard="s2"):
            pass


async def test_a_process_that_stops_finishes_what_it_began_and_takes_no_more(lane: Lane) -> None:
    await lane.payments.misbehave("SLOW", duration_s=0.4)
    order = (await lane.create()).order
    await lane.running.driver.stop()
    await lane.running.owned.drain(5.0)
    assert (await lane.get(order)).status == Order.SUCCESS
    with refuses(Reason.STOPPING):
        await lane.create()
    assert len(await lane.sql("SELECT FROM orders")) == 1


async def test_the_order_service_stops_within_its_drain_and_leaves_nothing_half_done(lane: Lane) -> None:
    orders = [(await lane.create(kind="purchase")).order for _ in range(5)]
    await lane.running.driver.stop()
    await lane.running.owned.drain(5.0)
    for order in orders:
        found = await lane.get(order)
        assert found.stage in (DONE, READY), "no submission is left in doubt by an orderly stop"


@asynccontextmanager
async def locked(lane: Lane, statement: str) -> AsyncIterator[None]:
    """Somebody else's transaction holds what the statement locks."""
    connection = await asyncpg.connect(lane.dsn, server_settings={"search_path": "ordermesh"})
    try:
        async with connection.transaction():
            await connection.execute(statement)
            yield
    finally:
        await connection.close()


def redrive(order: Order) -> pb.RedriveDeadLetterRequest:
    return pb.RedriveDeadLetterRequest(order_id=order.order_id, request_id=str(uuid4()), reason="well again")


async def _nothing_owned(lane: Lane) -> bool:
    return not len(lane.running.owned)


async def test_a_write_that_could_not_begin_before_its_callers_deadline_never_does(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    async with lanes.serving(
        trust, await shard_database(), tmp_path, pool_size=1, submit_tick_s=60, unserved_s=3600
    ) as lane:
        order = await lane.parked()
        async with locked(lane, "LOCK TABLE orders IN ACCESS EXCLUSIVE MODE"):
            busy = asyncio.create_task(
                lane.by(MIRA).call("GetOrder", pb.GetOrderRequest(order_id=order.order_id))
            )
            await eventually(lambda: _taken(lane))
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await lane.by(MIRA).call("RedriveDeadLetter", redrive(order), timeout=0.3)
            assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            # The server's deadline is a little after the client's; the connection is free only then.
            await eventually(lambda: _nothing_owned(lane))
        await asyncio.gather(busy, return_exceptions=True)
        assert (await lane.get(order)).version == order.version


async def _taken(lane: Lane) -> bool:
    waiting = "SELECT FROM pg_locks WHERE NOT granted"
    return bool(await lane.sql(waiting))


async def test_a_write_that_has_begun_is_finished_after_its_callers_deadline(lane: Lane) -> None:
    order = await lane.parked()
    async with locked(lane, "SELECT FROM orders FOR UPDATE"):
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await lane.by(MIRA).call("RedriveDeadLetter", redrive(order), timeout=0.3)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await lane.at(order, UNKNOWN)).version == order.version + 1
