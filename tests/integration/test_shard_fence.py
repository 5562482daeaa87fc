"""Does the database itself keep out whoever was routed wrong, whatever the program thinks?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from chassis import ids
from chassis.errors import StaleRoute
from chassis.testing import eventually
from order_svc.domain import open_order
from order_svc.events import Told, Verdict
from order_svc.order import Order, Seen, Status, Tally
from tests.conftest import DatabaseFactory
from tests.shards import Shard, opened
from tests.unit.orders import rules, told

BUCKET = 701  # alice
ORDER_TABLES = {"orders", "order_journal", "outbox", "order_timers", "dead_letters", "idempotency_keys"}


@pytest.fixture
async def shard(shard_database: DatabaseFactory) -> AsyncIterator[Shard]:
    async with opened(await shard_database()) as opened_shard:
        yield opened_shard


@pytest.fixture
async def raw(shard: Shard) -> AsyncIterator[asyncpg.Connection]:
    """A session of somebody with psql: no settings of ours."""
    connection = await asyncpg.connect(shard.dsn, server_settings={"search_path": "ordermesh"})
    yield connection
    await connection.close()


def succeeded(order: Order) -> Told:
    return told(Seen(order, Tally(), None, order.created_at), Verdict.SUCCEEDED)


def detail_of(refused: asyncpg.PostgresError) -> dict[str, object]:
    assert refused.sqlstate == "SH001"
    detail: dict[str, object] = json.loads(refused.detail or "{}")
    return detail


async def test_a_stale_epoch_is_refused_with_sh001_and_the_owner(
    shard: Shard, raw: asyncpg.Connection
) -> None:
    order = (await shard.create()).order
    for statement in (
        "UPDATE orders SET description = 'x', route_epoch = 7 WHERE order_id = $1",
        "UPDATE order_timers SET due_at = now(), route_epoch = 7 WHERE order_id = $1",
    ):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await raw.execute(statement, order.order_id)
        assert detail_of(refused.value) == {
            "bucket": BUCKET,
            "epoch": 1,
            "owner": "s1",
            "state": "OWNED",
            "left_epoch": 0,
        }
    wish = await shard.wish()
    with pytest.raises(StaleRoute) as stale:
        await shard.store.create(open_order(wish, rules()), epoch=2, fingerprint=b"f")
    assert stale.value.facts.items() >= {"bucket": "701", "epoch": "1", "owner": "s1"}.items()
    assert (await shard.store.get(order.order_id)).description == "a book"


async def test_a_writer_who_says_no_epoch_gets_the_owners(shard: Shard, raw: asyncpg.Connection) -> None:
    order = (await shard.create()).order
    await raw.execute("UPDATE bucket_fence SET epoch = 5 WHERE bucket = $1", BUCKET)
    done = await shard.decide(order, succeeded(order))
    assert done.order.status is Status.SUCCESS
    assert await raw.fetchval("SELECT route_epoch FROM orders") == 5
    entries = await raw.fetch("SELECT route_epoch FROM order_journal ORDER BY version")
    assert [entry["route_epoch"] for entry in entries] == [1, 5]


async def test_a_bucket_that_is_not_ours_is_neither_written_nor_read_nor_deleted_from(
    shard: Shard, raw: asyncpg.Connection
) -> None:
    order = (await shard.create()).order
    await raw.execute(
        "UPDATE bucket_fence SET state = 'MOVED', owner = 's2', epoch = 2 WHERE bucket = $1", BUCKET
    )
    for table in sorted(ORDER_TABLES - {"dead_letters"}):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await raw.execute(f"DELETE FROM {table}")
        assert detail_of(refused.value)["owner"] == "s2"
    for write in (shard.decide(order, succeeded(order)), shard.store.get(order.order_id)):
        with pytest.raises(StaleRoute):
            await write
    await raw.execute("DELETE FROM bucket_fence WHERE bucket = $1", BUCKET)
    with pytest.raises(StaleRoute) as never_here:
        await shard.store.get(order.order_id)
    assert "owner" not in never_here.value.facts


async def test_the_fence_fires_for_replication_and_only_works_in_read_committed(
    shard: Shard, raw: asyncpg.Connection
) -> None:
    order = (await shard.create()).order
    await raw.execute("SET session_replication_role = replica")
    with pytest.raises(asyncpg.PostgresError) as refused:
        await raw.execute(
            "UPDATE orders SET description = 'x', route_epoch = 7 WHERE order_id = $1", order.order_id
        )
    assert refused.value.sqlstate == "SH001"
    await raw.execute("RESET session_replication_role")
    async with raw.transaction(isolation="repeatable_read"):
        with pytest.raises(asyncpg.PostgresError) as isolated:
            await raw.execute("UPDATE orders SET description = 'x', route_epoch = NULL")
    assert isolated.value.sqlstate == "25001"


async def test_every_order_table_and_partition_has_the_fence_always_on(raw: asyncpg.Connection) -> None:
    tables = await raw.fetch(
        """
        SELECT c.relname, t.tgenabled
          FROM pg_class c LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = 'fence'
         WHERE c.relnamespace = 'ordermesh'::regnamespace AND c.relkind IN ('r', 'p')
           AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'route_epoch')
        """
    )
    assert {row["relname"] for row in tables} >= ORDER_TABLES
    assert {row["relname"] for row in tables if row["tgenabled"] != b"A"} == set()


async def test_writers_that_wait_for_a_move_are_all_refused_when_it_commits(shard: Shard) -> None:
    orders = [(await shard.create()).order for _ in range(4)]
    mover = await asyncpg.connect(shard.dsn, server_settings={"search_path": "ordermesh"})
    async with mover.transaction():
        await mover.execute("SELECT pg_advisory_xact_lock(71, $1)", BUCKET)
        writers = [asyncio.create_task(shard.decide(order, succeeded(order))) for order in orders]

        async def all_wait() -> bool:
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            return int(await mover.fetchval(waiting)) == len(orders)

        await eventually(all_wait)
        await mover.execute("UPDATE bucket_fence SET state = 'FROZEN_W' WHERE bucket = $1", BUCKET)
    outcomes = await asyncio.gather(*writers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StaleRoute] * len(orders)
    await mover.execute("UPDATE bucket_fence SET state = 'OWNED' WHERE bucket = $1", BUCKET)
    await mover.close()
    assert {(await shard.store.get(order.order_id)).version for order in orders} == {1}


async def test_claims_leave_buckets_alone_that_moved_away_and_hand_out_the_others(shard: Shard) -> None:
    await shard.create(user_id="alice")
    mine = (await shard.create(user_id="bob")).order
    await shard.db.execute("UPDATE bucket_fence SET state = 'MOVED', owner = 's2' WHERE bucket = $1", BUCKET)
    await shard.let_pass(timedelta(minutes=1))
    claims = await shard.store.claim_probes(9, timedelta(seconds=30), "r1")
    assert [claim.order.order_id for claim in claims] == [mine.order_id]


async def test_ids_mean_the_same_in_sql_and_in_python(raw: asyncpg.Connection) -> None:
    for user, bucket in (("alice", 701), ("42", 1844), ("vip.1", 4088)):
        assert await raw.fetchval("SELECT ordermesh.user_bucket($1)", user) == bucket == ids.user_bucket(user)
    maker = ids.OrderIds(now_ms=lambda: 1_793_500_000_123)
    for bucket in (0, 1, 701, 4095, 4096, 40_000, 65_535):
        order_id = maker.new(bucket)
        row = await raw.fetchrow(
            "SELECT ordermesh.id_bucket($1) AS bucket, ordermesh.id_time($1) AS at", order_id
        )
        assert row is not None
        assert (row["bucket"], row["at"]) == (bucket, ids.id_time(order_id))
        assert ids.id_bucket(order_id) == bucket


async def test_a_row_cannot_lie_about_its_id(shard: Shard, raw: asyncpg.Connection) -> None:
    order = (await shard.create()).order
    for lie in ("created_at = created_at + interval '1 ms'", "bucket = 702"):
        with pytest.raises(asyncpg.CheckViolationError):
            await raw.execute(
                f"UPDATE orders SET {lie}, route_epoch = NULL WHERE order_id = $1", order.order_id
            )
    for nonsense in ("status = 'SUCCESS'", "stage = 'DONE'", "basis = 'UPSTREAM'"):
        with pytest.raises(asyncpg.CheckViolationError):
            await raw.execute(
                f"UPDATE orders SET {nonsense}, route_epoch = NULL WHERE order_id = $1", order.order_id
            )
    with pytest.raises(asyncpg.CheckViolationError):
        await raw.execute("UPDATE order_timers SET class = 'SUBMIT', route_epoch = NULL")


async def test_a_database_keeps_its_name(raw: asyncpg.Connection) -> None:
    assert await raw.fetchval("SELECT ordermesh.identify_shard('s1')") is False
    with pytest.raises(asyncpg.CheckViolationError):
        await raw.fetchval("SELECT ordermesh.identify_shard('s2')")
    assert await raw.fetchval("SELECT ordermesh.own_buckets(0, 4097, 's1')") == 1


def test_vectors_are_uuids_of_version_seven() -> None:
    order_id = ids.OrderIds(now_ms=lambda: 1).new(7)
    assert (UUID(str(order_id)).version, order_id.variant) == (7, uuid4().variant)
