"""Is a user moved to a dedicated bucket and back without anybody noticing, but for where new orders go?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from chassis.auth import MATRIX, ROLES_OF_PEERS, Role
from chassis.errors import Reason
from chassis.ids import id_bucket, user_bucket
from ops.audit import agreement, shards
from ops.audit.findings import Broken
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.order.v1.order_pb2 import Order
from ordermesh.routing.v1 import routing_service_pb2 as routing
from shard_proxy import journey
from shard_proxy.clients import Buckets
from tests import vips
from tests.conftest import DatabaseFactory
from tests.lanes import CALL_S, armed, refuses
from tests.proxies import Source
from tests.stack import retried
from tests.vips import World

ALICE = "alice"
HASHED = user_bucket(ALICE)
DEDICATED = 4096
Move = routing.VipMove


@pytest.fixture
async def world(
    tmp_path: Path, shard_database: DatabaseFactory, control_database: DatabaseFactory
) -> AsyncIterator[World]:
    async with vips.opened(tmp_path, shard_database, control_database) as opened:
        yield opened


def bucket_of(answer: pb.CreateOrderResponse) -> int:
    return id_bucket(UUID(answer.order.order_id))


async def test_new_orders_go_to_the_dedicated_bucket_and_earlier_ones_stay_where_they_are(
    world: World,
) -> None:
    first = await world.fresh.create(ALICE, labels={"cart": "7"})
    move = await world.fresh.promote(ALICE)
    second = await world.fresh.create(ALICE)

    assert (move.phase, move.kind, move.attempt) == (Move.DONE, Move.PROMOTE, 1)
    assert (move.old_bucket, move.old_shard, move.new_bucket, move.new_shard) == (
        HASHED,
        "s1",
        DEDICATED,
        "v1",
    )
    assert (move.reason, move.actor, move.copied_key_count) == ("grew", "dev", 1)
    assert 0 < move.frozen_ms < 1000
    assert (bucket_of(first), bucket_of(second)) == (HASHED, DEDICATED)
    assert await world.fence("s1", HASHED) == ("OWNED", 2)
    assert await world.fence("v1", DEDICATED) == ("OWNED", 1)
    change = pb.UpdateOrderRequest(
        order_id=first.order.order_id, request_id=str(uuid4()), labels={"shop": "3"}
    )
    changed = (await world.fresh.orders.UpdateOrder(change, timeout=CALL_S)).order
    assert await world.fresh.get(first.order.order_id) == changed
    ids = [second.order.order_id, first.order.order_id]
    assert await world.fresh.listed(ALICE) == ids
    assert await world.stale.listed(ALICE) == ids
    assert [one.move_id for one in await world.fresh.moves(ALICE)] == [move.move_id]


async def test_the_same_request_gives_the_same_order_across_promotion_and_demotion(world: World) -> None:
    on_hash = await world.fresh.create(ALICE, str(uuid4()))
    await world.fresh.promote(ALICE)
    on_vip = await world.fresh.create(ALICE, str(uuid4()))
    for proxy in (world.fresh, world.stale):
        for first in (on_hash, on_vip):
            again = await proxy.create(ALICE, first.order.request_id)
            assert (again.order, again.replayed) == (first.order, True)
            assert again.consistency_token
    with refuses(Reason.REQUEST_ID_REUSED):
        await world.fresh.create(ALICE, on_hash.order.request_id, amount_minor=1)

    back = await world.fresh.demote(ALICE)
    assert (back.phase, back.old_bucket, back.new_bucket) == (Move.DONE, DEDICATED, HASHED)
    third = await world.fresh.create(ALICE)
    assert bucket_of(third) == HASHED
    for proxy in (world.fresh, world.stale):
        for first in (on_hash, on_vip, third):
            assert (await proxy.create(ALICE, first.order.request_id)).order == first.order
    assert len(await world.orders_of(ALICE)) == 3
    ids = [one.order.order_id for one in (third, on_vip, on_hash)]
    assert await world.fresh.listed(ALICE) == await world.stale.listed(ALICE) == ids

    again = await world.fresh.promote(ALICE)
    assert (again.new_bucket, await world.fence("v1", DEDICATED)) == (DEDICATED, ("OWNED", 2))
    for first in (on_hash, on_vip, third):
        assert (await world.stale.create(ALICE, first.order.request_id)).order == first.order


async def test_a_request_that_is_pending_when_its_user_is_moved_is_still_found(world: World) -> None:
    request_id = str(uuid4())
    first = await world.fresh.create(ALICE, request_id, wait_s=0.0)
    await world.fresh.promote(ALICE)
    again = await world.fresh.create(ALICE, request_id)
    assert (again.order.order_id, again.order.status) == (first.order.order_id, Order.SUCCESS)
    assert await world.orders_of(ALICE) == {request_id: "s1"}


async def test_a_proxy_with_an_old_map_never_makes_an_order_in_the_bucket_that_was_left(world: World) -> None:
    await world.fresh.promote(ALICE)
    assert bucket_of(await world.stale.create(ALICE)) == DEDICATED
    await world.fresh.demote(ALICE)
    assert bucket_of(await world.stale.create(ALICE)) == HASHED
    # A neighbour in the same hashed bucket is refused once for the epoch, and does not notice.
    assert bucket_of(await world.stale.create(ALICE)) == HASHED


async def test_without_the_control_database_an_old_map_makes_no_order_and_shows_no_short_list(
    world: World,
) -> None:
    await world.fresh.promote(ALICE)
    made = await world.fresh.create(ALICE)

    world.stale.routes.book._source = Source(world.stale.routes.book.map, gone=True)
    with refuses(Reason.SHARD_UNAVAILABLE):
        await world.stale.create(ALICE)
    with refuses(Reason.SHARD_UNAVAILABLE):
        await world.stale.listed(ALICE)
    assert len(await world.orders_of(ALICE)) == 1
    with refuses(Reason.SHARD_UNAVAILABLE):
        await world.stale.get(made.order.order_id)


async def test_a_repeat_finds_the_same_move_and_another_wish_under_its_id_is_refused(world: World) -> None:
    request_id = str(uuid4())
    first = await world.fresh.promote(ALICE, request_id)
    assert await world.stale.promote(ALICE, request_id) == first
    for wrong in (world.fresh.demote(ALICE, request_id), world.fresh.promote("bob", request_id)):
        with refuses(Reason.REQUEST_ID_REUSED):
            await wrong
    assert len(await world.fresh.moves()) == 1


async def test_what_makes_no_sense_is_refused_and_moves_nobody(world: World) -> None:
    for fields in ({"reason": ""}, {"reason": "x" * 513}, {"request_id": "7"}, {"user_id": "a b"}):
        request = {"user_id": ALICE, "reason": "grew", **fields}
        with refuses(Reason.INVALID_FIELD):
            await world.fresh.promote(**request)
    with refuses(Reason.UNKNOWN_SHARD):
        await world.fresh.promote(ALICE, shard="s9")
    with refuses(Reason.NOT_A_VIP):
        await world.fresh.demote(ALICE)
    await world.fresh.promote(ALICE)
    with refuses(Reason.ALREADY_VIP):
        await world.fresh.promote(ALICE)
    assert len(await world.fresh.moves()) == 1


async def test_a_second_vip_gets_the_next_number_on_the_shard_that_was_asked_for(world: World) -> None:
    assert (await world.fresh.promote(ALICE)).new_bucket == DEDICATED
    other = await world.fresh.promote("bob", shard="s1")
    assert (other.new_bucket, other.new_shard) == (DEDICATED + 1, "s1")
    first = await world.fresh.create("bob")
    assert bucket_of(first) == DEDICATED + 1
    assert (await world.fresh.create("bob", first.order.request_id)).order == first.order


async def test_orders_made_during_a_move_wait_for_it_and_none_is_lost_or_doubled(world: World) -> None:
    requests = [str(uuid4()) for _ in range(40)]

    async def make(proxy: vips.Proxy, request_id: str) -> str:
        answer = await retried(lambda: proxy.create(ALICE, request_id, wait_s=0.0))
        return answer.order.order_id

    async def keep_making() -> dict[str, str]:
        made = {}
        for number, request_id in enumerate(requests):
            proxy = (world.fresh, world.stale)[number % 2]
            made[request_id] = await make(proxy, request_id)
        return made

    making = [asyncio.create_task(keep_making()) for _ in range(4)]
    for _ in range(2):
        assert (await world.fresh.promote(ALICE)).phase == Move.DONE
        assert (await world.fresh.demote(ALICE)).phase == Move.DONE
    answers = await asyncio.gather(*making)
    assert all(answer == answers[0] for answer in answers)
    assert (await world.orders_of(ALICE)).keys() == set(requests)


async def test_a_freeze_that_takes_too_long_is_taken_back_and_tried_again(world: World) -> None:
    with armed("vip.delta.before=pause:1:1.5"):
        moving = asyncio.create_task(world.fresh.promote(ALICE))
        move = await moving
    assert (move.phase, move.attempt) == (Move.DONE, 2)
    assert move.failure == "the freeze took longer than 1 s"
    assert await world.fence("s1", HASHED) == ("OWNED", 2)


async def test_a_bucket_that_is_never_free_gives_the_move_up_and_everything_is_as_before(
    world: World,
) -> None:
    blocker = await asyncpg.connect(world.dsns["s1"])
    async with blocker.transaction():
        await blocker.execute("SELECT pg_advisory_xact_lock_shared(71, $1)", HASHED)
        with refuses(Reason.MOVE_ABORTED) as facts:
            await world.fresh.promote(ALICE)
    await blocker.close()
    assert facts[0].metadata["failure"] == "CONTENDED"
    assert await world.fence("s1", HASHED) == ("OWNED", 1)
    assert bucket_of(await world.fresh.create(ALICE)) == HASHED
    assert (await world.fresh.promote(ALICE)).new_bucket == DEDICATED
    assert [each.phase for each in await world.fresh.moves(ALICE)] == [Move.DONE, Move.ABORTED]


@pytest.mark.parametrize(
    ("point", "epoch"),
    [("vip.freeze.after", 1), ("vip.delta.after", 1), ("vip.flip.after", 2), ("vip.thaw.after", 2)],
)
async def test_a_move_whose_mover_vanishes_is_finished_by_another_proxy(
    world: World, point: str, epoch: int
) -> None:
    with armed(f"{point}=raise"):
        asking = asyncio.create_task(world.stale.promote(ALICE))
        move = await asking
    assert move.phase == Move.DONE
    assert await world.fence("s1", HASHED) == ("OWNED", 2)
    assert move.attempt == (2 if epoch == 1 else 1)
    assert bucket_of(await world.fresh.create(ALICE)) == DEDICATED


async def nothing_copied(*_: object, **__: object) -> int:
    return 0


async def test_without_the_keys_a_repeat_makes_a_second_order_and_the_audit_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await world.fresh.create(ALICE)
    monkeypatch.setattr(Buckets, "bring", nothing_copied)
    await world.fresh.promote(ALICE)
    second = await world.fresh.create(ALICE, first.order.request_id)
    assert second.order.order_id != first.order.order_id
    assert [each.id for each in await across(world)] == [second.order.order_id]


async def test_if_the_fences_new_epoch_were_believed_the_audit_would_find_two_orders(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.fresh.promote(ALICE)
    made = await world.fresh.create(ALICE)
    assert await across(world) == []
    monkeypatch.setattr(journey, "_somebody_left", lambda *_: False)
    world.stale.routes.book._source = Source(world.stale.routes.book.map, gone=True)
    twin = await world.stale.create(ALICE, made.order.request_id)
    assert bucket_of(twin) == HASHED
    assert [each.id for each in await across(world)] == [twin.order.order_id]


async def across(world: World) -> list[Broken]:
    """What the audit says about one request with orders on several shards."""
    dsns = {shard: world.dsns[shard] for shard in vips.SHARDS}
    async with shards.opened(dsns) as opened:
        users = await shards.read_moved_users(world.dsns["control"])
        return list(agreement.across({shard.name: await shard.requests_of(users) for shard in opened}))


async def test_while_a_bucket_is_frozen_writes_wait_reads_go_on_and_in_the_end_say_so(world: World) -> None:
    order = (await world.fresh.create(ALICE)).order
    await world.sql("s1", "UPDATE bucket_fence SET state = 'FROZEN_W' WHERE bucket = $1", HASHED)
    assert await world.fresh.get(order.order_id) == order
    with refuses(Reason.BUCKET_FROZEN) as facts:
        await world.fresh.create(ALICE)
    assert facts[0].retry_after_s
    making = asyncio.create_task(world.fresh.create(ALICE))
    await asyncio.wait([making], timeout=0.3)
    assert not making.done()
    await world.sql("s1", "UPDATE bucket_fence SET state = 'OWNED' WHERE bucket = $1", HASHED)
    assert (await making).order.user_id == ALICE


async def test_only_the_proxy_itself_moves_buckets_and_only_operators_users(world: World) -> None:
    freeze: Any = world.fresh.channel.unary_unary("/ordermesh.order.v1.BucketService/FreezeBucket")
    with refuses(Reason.UNKNOWN_METHOD):
        await freeze(b"", timeout=CALL_S)
    assert MATRIX["/ordermesh.order.v1.BucketService/FreezeBucket"] == {Role.MOVER}
    assert not any(Role.MOVER in roles for roles in ROLES_OF_PEERS.values())
    assert MATRIX["/ordermesh.routing.v1.RoutingService/PromoteVip"] == {Role.OPERATOR}
