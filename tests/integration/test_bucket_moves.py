"""Does a fence freeze and thaw for whoever drives the move alone, and is a copied key true everywhere?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from chassis.errors import Contended, StaleRoute
from chassis.ids import user_bucket
from order_svc.bucket_store import BucketStore, Fence, RequestKey
from order_svc.domain import open_order
from order_svc.errors import MoveSuperseded, OrderElsewhere, OrderNotFound, RequestIdReused
from order_svc.events import Verdict
from order_svc.order import Order, Seen
from tests.conftest import DatabaseFactory
from tests.shards import EPOCH, Shard, opened
from tests.unit.orders import rules, told

BUCKET, DEDICATED = user_bucket("alice"), 4096
EVER = datetime(1970, 1, 1, tzinfo=UTC)
FIRST = UUID(int=0)


@pytest.fixture
async def shard(shard_database: DatabaseFactory) -> AsyncIterator[Shard]:
    async with opened(await shard_database()) as opened_shard:
        yield opened_shard


@pytest.fixture
def buckets(shard: Shard) -> BucketStore:
    return BucketStore(shard.db)


async def test_a_frozen_bucket_is_read_and_not_written_and_goes_on_under_a_new_epoch(
    shard: Shard, buckets: BucketStore
) -> None:
    order = (await shard.create()).order
    assert await buckets.freeze(BUCKET, EPOCH, 7) == Fence(BUCKET, EPOCH, "FROZEN_W", 7)
    assert await shard.store.get(order.order_id) == order
    with pytest.raises(StaleRoute) as frozen:
        await shard.create()
    assert frozen.value.is_passing
    assert (await shard.create(user_id="bob")).order.user_id == "bob"

    assert await buckets.thaw(BUCKET, EPOCH + 1, 7) == Fence(BUCKET, EPOCH + 1, "OWNED", 7)
    with pytest.raises(StaleRoute) as stale:
        await shard.create()
    assert not stale.value.is_passing
    assert stale.value.facts["left_epoch"] == str(EPOCH + 1)
    change = open_order(await shard.wish(), rules())
    assert (await shard.store.create(change, epoch=EPOCH + 1, fingerprint=b"f")).order.bucket == BUCKET


async def test_a_step_may_be_repeated_and_a_late_or_overtaken_mover_leaves_no_trace(
    shard: Shard, buckets: BucketStore
) -> None:
    assert await buckets.freeze(BUCKET, EPOCH, 7) == await buckets.freeze(BUCKET, EPOCH, 7)
    with pytest.raises(MoveSuperseded):
        await buckets.freeze(BUCKET, EPOCH, 8)
    with pytest.raises(MoveSuperseded):
        await buckets.thaw(BUCKET, EPOCH, 6)
    assert await buckets.thaw(BUCKET, EPOCH, 7) == await buckets.thaw(BUCKET, EPOCH, 7)
    # The freeze that was sent before its own end, and comes after it.
    with pytest.raises(MoveSuperseded):
        await buckets.freeze(BUCKET, EPOCH, 7)
    await buckets.thaw(BUCKET, EPOCH, 9)
    with pytest.raises(MoveSuperseded):
        await buckets.freeze(BUCKET, EPOCH, 8)
    await buckets.freeze(BUCKET, EPOCH, 10)
    await buckets.thaw(BUCKET, EPOCH + 1, 10)
    for late in (buckets.thaw(BUCKET, EPOCH, 11), buckets.freeze(BUCKET, EPOCH, 11)):
        with pytest.raises(MoveSuperseded):
            await late
    (fence,) = await shard.rows("SELECT state, epoch FROM bucket_fence WHERE bucket = $1", BUCKET)
    assert (fence["state"], fence["epoch"]) == ("OWNED", EPOCH + 1)


async def test_a_freeze_waits_for_writers_that_passed_and_not_for_long(
    shard: Shard, buckets: BucketStore
) -> None:
    writer = await asyncpg.connect(shard.dsn, server_settings={"search_path": "ordermesh"})
    order = (await shard.create()).order
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute("UPDATE orders SET route_epoch = NULL WHERE order_id = $1", order.order_id)
    with pytest.raises(Contended):
        await buckets.freeze(BUCKET, EPOCH, 7)
    freezing = asyncio.create_task(buckets.freeze(BUCKET, EPOCH, 7))
    await asyncio.wait([freezing], timeout=0.1)
    assert not freezing.done()
    await transaction.commit()
    assert (await freezing).state == "FROZEN_W"
    await writer.close()


async def test_a_bucket_is_owned_once_and_never_taken_from_whoever_has_it(
    shard: Shard, buckets: BucketStore
) -> None:
    assert await buckets.own(5000) == await buckets.own(5000) == Fence(5000, 1, "OWNED", 0)
    assert (await buckets.own(BUCKET)).epoch == EPOCH
    await buckets.freeze(BUCKET, EPOCH, 7)
    with pytest.raises(StaleRoute):
        await buckets.own(BUCKET)
    with pytest.raises(StaleRoute):
        await buckets.freeze(6000, EPOCH, 7)


async def test_live_keys_are_listed_in_pages_and_a_copy_outlives_a_settled_order(
    shard: Shard, buckets: BucketStore
) -> None:
    pending, settled = (await shard.create()).order, (await shard.create()).order
    done = (await shard.decide(settled, told(seen(settled), Verdict.SUCCEEDED))).order
    await shard.create(user_id="bob")

    first = await buckets.export_keys("alice", EVER, FIRST, 1)
    rest = await buckets.export_keys("alice", EVER, first.keys[0].request_id, 10)
    found = {key.order_id: key for key in (*first.keys, *rest.keys)}
    assert found.keys() == {pending.order_id, settled.order_id}
    assert found[pending.order_id].expires_at is None
    assert done.settled_at is not None
    assert found[settled.order_id].expires_at == done.settled_at + timedelta(days=33)
    assert (await buckets.export_keys("alice", first.at + timedelta(minutes=1), FIRST, 10)).keys == []
    await shard.let_pass(timedelta(hours=73))
    assert [key.order_id for key in (await buckets.export_keys("alice", EVER, FIRST, 10)).keys] == [
        pending.order_id
    ]


async def test_a_copied_key_leads_to_its_order_and_the_key_of_a_later_order_stays(
    shard: Shard, buckets: BucketStore
) -> None:
    elsewhere = await shard.wish(bucket=2)
    key = RequestKey(elsewhere.request_id, elsewhere.order_id, b"f", None)
    assert await buckets.import_keys("alice", DEDICATED, [key]) == 1
    assert await buckets.import_keys("alice", DEDICATED, [key]) == 0

    again = replace(await shard.wish(bucket=DEDICATED), request_id=elsewhere.request_id)
    with pytest.raises(OrderElsewhere) as led:
        await shard.store.create(open_order(again, rules()), epoch=EPOCH, fingerprint=b"f")
    assert led.value.facts["order_id"] == str(elsewhere.order_id)
    with pytest.raises(RequestIdReused):
        await shard.store.create(open_order(again, rules()), epoch=EPOCH, fingerprint=b"g")

    mine = (await shard.create()).order
    older = RequestKey(mine.request_id, elsewhere.order_id, b"old", None)
    assert await buckets.import_keys("alice", DEDICATED, [older]) == 0
    (kept,) = await shard.rows("SELECT order_id FROM idempotency_keys WHERE request_id = $1", mine.request_id)
    assert kept["order_id"] == mine.order_id


async def test_a_key_that_comes_home_lives_as_long_as_its_order_says(
    shard: Shard, buckets: BucketStore
) -> None:
    order = (await shard.create()).order
    done = (await shard.decide(order, told(seen(order), Verdict.SUCCEEDED))).order
    await shard.db.execute("DELETE FROM idempotency_keys")
    key = RequestKey(order.request_id, order.order_id, b"f", None)
    assert await buckets.import_keys("alice", DEDICATED, [key]) == 1
    (row,) = await shard.rows("SELECT bucket, expires_at FROM idempotency_keys")
    assert done.settled_at is not None
    assert (row["bucket"], row["expires_at"]) == (BUCKET, done.settled_at + timedelta(hours=72))


async def test_a_replay_returns_the_order_of_this_user_and_request_only(shard: Shard) -> None:
    order = (await shard.create()).order
    found = await shard.store.replay(order.order_id, "alice", order.request_id)
    assert (found.order, found.replayed) == (order, True)
    for user_id, request_id in (("bob", order.request_id), ("alice", uuid4())):
        with pytest.raises(OrderNotFound):
            await shard.store.replay(order.order_id, user_id, request_id)


def seen(order: Order) -> Seen:
    """Enough of a situation to make events for an order."""
    return Seen(order, None, None, order.created_at)  # type: ignore[arg-type]
