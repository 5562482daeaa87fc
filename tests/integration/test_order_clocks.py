"""Ids take the shard's time, and none are made when clocks disagree."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from chassis.ids import OrderIds, id_time
from chassis.testing import FakeClock
from order_svc.clocks import ShardClock
from order_svc.errors import ClockSkew
from order_svc.events import Verdict
from order_svc.housekeeping import Housekeeping
from order_svc.order import Seen, Tally
from tests.conftest import DatabaseFactory
from tests.shards import Shard, opened
from tests.unit.orders import told


@pytest.fixture
async def shard(shard_database: DatabaseFactory) -> AsyncIterator[Shard]:
    async with opened(await shard_database()) as opened_shard:
        yield opened_shard


@pytest.mark.parametrize("behind_s", [-4.0, 0.0, 4.0])
async def test_ids_carry_the_shards_time_though_our_clock_is_off(shard: Shard, behind_s: float) -> None:
    here = FakeClock(datetime.now(UTC) - timedelta(seconds=behind_s))
    clock = ShardClock(shard.store, here)
    await clock.sync()
    at = id_time(OrderIds(clock.now_ms).new(7))
    real = await shard.value("SELECT clock_timestamp()")
    assert abs((at - real).total_seconds()) < 1.5


@pytest.mark.parametrize("behind_s", [-7.0, 7.0])
async def test_no_ids_are_made_while_clocks_differ_by_more_than_five_seconds(
    shard: Shard, behind_s: float
) -> None:
    clock = ShardClock(shard.store, FakeClock(datetime.now(UTC) - timedelta(seconds=behind_s)))
    await clock.sync()
    with pytest.raises(ClockSkew):
        clock.now_ms()
    agreeing = ShardClock(shard.store, FakeClock(datetime.now(UTC)))
    await agreeing.sync()
    assert agreeing.now_ms() > 0


async def test_time_that_only_tests_let_pass_is_no_skew(shard: Shard) -> None:
    await shard.let_pass(timedelta(hours=3))
    clock = ShardClock(shard.store, FakeClock(datetime.now(UTC)))
    await clock.sync()
    ahead = clock.now_ms() / 1000 - datetime.now(UTC).timestamp()
    assert ahead == pytest.approx(3 * 3600, abs=5)


async def test_a_slow_answer_is_no_skew(shard: Shard) -> None:
    here = FakeClock(datetime.now(UTC))
    clock = ShardClock(shard.store, here)
    await clock.sync()
    before = clock.now_ms()
    slow = here.now
    said = iter([slow() - timedelta(seconds=14), slow()])
    here.now = lambda: next(said, slow())  # type: ignore[method-assign]
    await clock.sync()
    here.now = slow  # type: ignore[method-assign]
    assert clock.now_ms() == before


async def test_housekeeping_deletes_expired_keys(shard: Shard) -> None:
    order = (await shard.create()).order
    seen = Seen(order, Tally(), None, order.created_at)
    await shard.decide(order, told(seen, Verdict.SUCCEEDED))
    await shard.let_pass(timedelta(days=4))
    await Housekeeping(shard.store, FakeClock()).once()
    assert await shard.value("SELECT count(*) FROM idempotency_keys") == 0
    assert await shard.value("SELECT count(*) FROM orders") == 1
