"""What a failed wait says about its order."""

from uuid import uuid4

from order_svc.events import Verdict
from order_svc.order import Seen, Tally
from tests import shards, whereabouts
from tests.conftest import DatabaseFactory
from tests.unit.orders import told


async def test_a_failed_wait_can_say_where_its_order_stands_and_why(shard_database: DatabaseFactory) -> None:
    async with shards.opened(await shard_database()) as shard:
        order = (await shard.create()).order
        await shard.store.put_hold(uuid4(), "all", "an incident", "mira", None)

        waits = await whereabouts.in_shard(shard.dsn, str(order.order_id))
        await shard.decide(order, told(Seen(order, Tally(), None, order.created_at), Verdict.SUCCEEDED))
        settled = await whereabouts.in_shard(shard.dsn, str(order.order_id))
        elsewhere = await whereabouts.in_shard(shard.dsn, str(uuid4()))

    for fact in ("stage=SUBMITTING", "class=PROBE", "due_in=", "reason=an incident", "kind=OPENED"):
        assert fact in waits
    assert "timer: none" in settled
    assert "kind=SETTLED" in settled
    assert elsewhere == ""
