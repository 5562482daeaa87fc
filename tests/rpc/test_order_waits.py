"""An order that nothing and nobody holds goes on at once: no clock and no dead claim keeps it waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import grpc
import pytest

from chassis import faults
from chassis.testing import eventually
from order_svc.clocks import ShardClock
from order_svc.events import NotSent
from order_svc.order import Stage
from ordermesh.order.v1 import order_service_pb2 as pb
from tests import lanes, shards
from tests.conftest import DatabaseFactory
from tests.databases import Database
from tests.lanes import DONE, POLICY, RECOVERY, UNKNOWN, Lane, Order, armed
from tests.listeners import Trust

PATIENT = {**POLICY, "probes_max": 100}
HALF_AN_HOUR = timedelta(minutes=30)


@pytest.fixture(scope="session")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


async def recovered(lane: Lane, order: Order) -> Order:
    """The order once it is done, while recovery asks about what is due."""

    async def look() -> Order | None:
        for claim in await lane.claim():
            await lane.report(claim, lanes.answered(await lane.payments.probe(claim.idempotency_key)))
        found = await lane.get(order)
        return found if found.stage == DONE else None

    return await eventually(look, within_s=40.0, every_s=0.1)


async def test_a_clock_that_was_put_back_keeps_no_order_from_recovery(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    """Ids never go back, so they run ahead of the shard's clock for half an hour; nothing waits for that."""
    async with lanes.serving(trust, await shard_database(), tmp_path, policy=PATIENT) as lane:
        (clock,) = [loop for loop in lane.running.loops if isinstance(loop, ShardClock)]
        await lane.let_pass(HALF_AN_HOUR)
        await clock.sync()
        await lane.create(wait_s=5.0)
        await lane.sql("DELETE FROM clock_offset")
        await clock.sync()

        with armed("submit.before_call=raise"):
            order = (await lane.create()).order

            async def died() -> bool:
                return not faults.armed()

            await eventually(died)

        assert order.create_time.ToDatetime(UTC) > datetime.now(UTC) + HALF_AN_HOUR / 2, "or nothing is tried"
        done = await recovered(lane, order)
        assert done.status == Order.SUCCESS
        assert len(lane.payments.executions(f"{order.order_id}/0")) == 1


LEASE_S = 120.0
"""Far longer than any test here waits: who is left to a lease does not come in time."""


async def ready(database: Database, count: int) -> None:
    """Leave orders that are READY, as a process that died leaves them."""
    async with shards.opened(database) as shard:
        for _ in range(count):
            order = (await shard.create()).order
            event = NotSent(event_id=uuid4(), actor="-", leg=0, attempt=1, detail="-")
            assert (await shard.decide(order, event)).order.stage is Stage.READY


async def until_done(lane: Lane, count: int) -> None:
    async def done() -> bool:
        return len(await lane.sql("SELECT FROM orders WHERE stage = 'DONE'")) == count

    await eventually(done, within_s=LEASE_S / 3, every_s=0.1)


@asynccontextmanager
async def locked_orders(dsn: str) -> AsyncIterator[None]:
    """Somebody else's transaction holds the orders."""
    connection = await asyncpg.connect(dsn, server_settings={"search_path": "ordermesh"})
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM orders FOR UPDATE")
            yield
    finally:
        await connection.close()


async def test_a_burst_of_ready_orders_larger_than_the_pool_waits_for_no_lease(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    database = await shard_database()
    await ready(database, 40)
    narrow = {"pool_size": 2, "pool_queue": 22, "submit_lease_s": LEASE_S}
    async with lanes.serving(trust, database, tmp_path, **narrow) as lane:
        await until_done(lane, 40)
        assert len({execution.key for execution in lane.payments.executions()}) == 40
        assert len(lane.payments.executions()) == 40


async def test_a_claimed_order_that_finds_no_slot_is_given_back(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    """A create takes the only slot while the order is being claimed."""
    database = await shard_database()
    await ready(database, 1)
    with armed("claim.after_commit=pause:1:0.5"):
        async with lanes.serving(
            trust, database, tmp_path, submits_per_upstream=1, submit_lease_s=LEASE_S
        ) as lane:

            async def claimed() -> bool:
                return bool(await lane.sql("SELECT FROM order_timers WHERE claim_count = 1"))

            await eventually(claimed)
            await lane.payments.misbehave("SLOW", duration_s=0.8, limit=1)
            await lane.create()
            await until_done(lane, 2)
            assert len(lane.payments.executions()) == 2


async def test_a_claimed_order_whose_submission_cannot_be_journaled_is_given_back(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    database = await shard_database()
    await ready(database, 1)
    async with (
        locked_orders(database.dsn),
        lanes.serving(trust, database, tmp_path, submit_lease_s=LEASE_S) as lane,
    ):

        async def claimed_again() -> bool:
            return bool(await lane.sql("SELECT FROM order_timers WHERE claim_count > 1"))

        await eventually(claimed_again)
        assert lane.payments.executions() == []


async def test_a_process_that_stops_gives_back_what_it_just_claimed(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    database = await shard_database()
    await ready(database, 3)
    with armed("claim.after_commit=pause:1:0.3"):
        async with lanes.serving(trust, database, tmp_path, submit_lease_s=LEASE_S) as lane:

            async def claimed() -> bool:
                return len(await lane.sql("SELECT FROM order_timers WHERE lease_token IS NOT NULL")) == 3

            await eventually(claimed)
            await lane.running.driver.stop()

            async def given_back() -> bool:
                return len(await lane.sql("SELECT FROM order_timers WHERE lease_token IS NULL")) == 3

            await eventually(given_back)
            assert len(await lane.sql("SELECT FROM orders WHERE stage = 'READY'")) == 3
            assert lane.payments.executions() == []


async def test_a_claim_whose_caller_has_gone_is_given_back_and_makes_nobody_suspect(
    trust: Trust, shard_database: DatabaseFactory, tmp_path: Path
) -> None:
    async with lanes.serving(trust, await shard_database(), tmp_path) as lane:
        await lane.running.driver.stop()
        await lane.payments.misbehave("LOST_REPLY", method=1, limit=1)
        order = await lane.at((await lane.create()).order, UNKNOWN)
        await lane.let_pass(timedelta(minutes=1))
        request = pb.ClaimDueOrdersRequest(shard="s1", limit=10, claimed_by="r1")
        request.lease.FromTimedelta(timedelta(seconds=LEASE_S))

        with armed("claim.after_commit=pause:1:0.6"):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await lane.by(RECOVERY).call("ClaimDueOrders", request, timeout=0.4)
            assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            (claim,) = await eventually(lane.claim)

        assert (claim.order.order_id, claim.unfinished_count) == (order.order_id, 0)
        taken = await lane.sql("SELECT claim_count FROM order_timers")
        assert [row["claim_count"] for row in taken] == [2]
