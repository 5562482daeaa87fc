"""An order that nothing and nobody holds goes on at once: no clock and no dead claim keeps it waiting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from chassis import faults
from chassis.testing import eventually
from order_svc.clocks import ShardClock
from tests import lanes
from tests.conftest import DatabaseFactory
from tests.lanes import DONE, POLICY, Lane, Order, armed
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

    return await eventually(look, within_s=20.0, every_s=0.1)


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
