"""The histories that a load walks: found on real shards, or refused with the command that makes them."""

import asyncpg
import pytest

from ops import seed
from ops.load.walk import grounds
from ops.load.walk.book import Book, Freshness
from ops.load.walk.grounds import NoGround
from ops.seed import Plan
from tests.audits import Stores, stores

__all__ = ["stores"]

PLAN = Plan(users=4, orders=1600, months=4, seed=5)


async def on_every_shard(stores: Stores, statement: str) -> None:
    for dsn in stores.shards.values():
        session = await asyncpg.connect(dsn, server_settings={"search_path": "ordermesh, public"})
        await session.execute(statement)
        await session.close()


async def test_without_seeded_users_the_command_that_makes_them_is_named(stores: Stores) -> None:
    await grounds.served(stores.shards, within_s=0.0)
    with pytest.raises(NoGround, match="`ordermesh seed --users 8 --orders 4000 --months 4`"):
        await grounds.seeded_users(stores.shards, 4)


async def test_months_that_the_read_model_lacks_are_named_until_it_has_them(stores: Stores) -> None:
    outcome = await seed.run(PLAN, stores.shards, {})
    months = " ".join(f"--month {month:%Y-%m}" for month in outcome.months)
    with pytest.raises(NoGround, match=f"`ordermesh index rebuild {months} --reason seeded`"):
        await grounds.served(stores.shards, within_s=0.0)
    await on_every_shard(stores, "UPDATE projection_index SET state = 'SERVING'")
    await grounds.served(stores.shards, within_s=0.0)


async def test_users_with_old_orders_are_walked_and_promised_everything_that_they_have(
    stores: Stores,
) -> None:
    await seed.run(PLAN, stores.shards, {})
    everybody = await grounds.seeded_users(stores.shards, 10)
    assert set(everybody) <= set(PLAN.user_ids())
    assert await grounds.seeded_users(stores.shards, 1) == everybody[:1]

    held = await grounds.held(stores.shards, everybody)
    book = Book(everybody)
    grounds.enter(book, held, at=1.0)
    for user in everybody:
        own = {each.order_id: each for each in held if each.user_id == user}
        assert len(own) > grounds.ORDERS_MIN
        promised = book.promised(user, asked_at=1.0, freshness=Freshness.STRONG, above="", below="")
        assert [(each.order_id, each.version) for each in promised] == [
            (order_id, own[order_id].version) for order_id in sorted(own, reverse=True)
        ]
    assert any(each.labels for each in held)
    assert all(book.labels(each.user_id, each.order_id, each.version) == each.labels for each in held)
