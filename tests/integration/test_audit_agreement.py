"""Disagreements between shards, the map and upstreams' ledgers, each made on purpose and reported."""

from collections.abc import Awaitable, Callable
from uuid import UUID

import asyncpg
import pytest

from chassis.ids import id_time
from ops.audit.shards import StoreUnreadable
from tests.audits import BUCKET, ORDER, Stores, stores

__all__ = ["stores"]

Plant = Callable[[Stores], Awaitable[UUID | str]]


async def twice(stores: Stores) -> UUID:
    stores.executed(stores.settled, "payments-2")
    return stores.settled


async def never(stores: Stores) -> UUID:
    stores.ledger_sql("DELETE FROM executions")
    return stores.settled


async def another_amount(stores: Stores) -> UUID:
    stores.ledger_sql("UPDATE executions SET amount_minor = 701")
    return stores.settled


async def another_reference(stores: Stores) -> UUID:
    stores.ledger_sql("UPDATE executions SET upstream_ref = 'payments-9'")
    return stores.settled


async def failed_all_the_same(stores: Stores) -> UUID:
    await stores.sql(
        "s1", "UPDATE orders SET status = 'FAILED', failure_reason = 'REFUSED' WHERE order_id = :settled"
    )
    return stores.settled


async def another_key(stores: Stores) -> UUID:
    stores.ledger_sql("UPDATE executions SET key = 'made up'")
    return stores.settled


async def another_leg(stores: Stores) -> UUID:
    stores.ledger_sql("UPDATE executions SET leg = 1, key = order_id || '/1'")
    return stores.settled


async def unknown_order(stores: Stores) -> str:
    stranger = "019b7000-0000-7000-8000-000000000000"
    stores.ledger_sql(
        "UPDATE executions SET order_id = :stranger, key = :stranger || '/0'", stranger=stranger
    )
    return stranger


async def copied_to_another_shard(stores: Stores) -> UUID:
    await stores.sql(
        "s2",
        f"SELECT ordermesh.own_buckets({BUCKET}, {BUCKET}, 's2')",
        "CREATE TEMP TABLE wanted AS SELECT :settled::uuid AS id",
        ORDER.replace("VALUES (", "SELECT ")
        .replace("$1", "id")
        .replace("$2", "'alice'")
        .replace("$3", "1")
        .replace("$4", "'PENDING'")
        .replace("$5", "'READY'")
        .replace("$6", "''")
        .replace("$7", "NULL")
        .replace("$8", "gen_random_uuid()")
        .replace("$9)", "NULL::timestamptz FROM wanted"),
    )
    return stores.settled


async def bucket_of_another_shard(stores: Stores) -> UUID:
    await stores.sql("control", f"UPDATE buckets SET shard = 's2', epoch = 2 WHERE bucket = {BUCKET}")
    return stores.settled


async def fence_ahead_of_the_map(stores: Stores) -> str:
    await stores.sql("s1", f"UPDATE bucket_fence SET epoch = 2 WHERE bucket = {BUCKET}")
    return f"bucket {BUCKET}"


async def fence_of_two_owners(stores: Stores) -> str:
    await stores.sql("s2", f"SELECT ordermesh.own_buckets({BUCKET}, {BUCKET}, 's2')")
    return f"bucket {BUCKET}"


async def executed_and_forgotten(stores: Stores) -> UUID:
    await stores.sql(
        "s1",
        "UPDATE orders SET stage = 'UNKNOWN' WHERE order_id = :parked",
        "UPDATE order_timers SET stage = 'UNKNOWN' WHERE order_id = :parked",
    )
    stores.executed(stores.parked, "payments-2")
    return stores.parked


async def copied_key_of_nobodys_order(stores: Stores) -> UUID:
    await stores.sql(
        "s2",
        "INSERT INTO idempotency_keys (user_id, request_id, order_id, created_at, bucket, route_epoch,"
        " fingerprint) SELECT 'bob', gen_random_uuid(), id, ordermesh.id_time(id), 3000, NULL, '\\x00'"
        " FROM (SELECT :settled::uuid AS id) wanted",
    )
    return stores.settled


async def two_orders_of_one_request(stores: Stores) -> UUID:
    await copied_to_another_shard(stores)
    await stores.sql(
        "control",
        f"INSERT INTO user_bucket (user_id, bucket) VALUES ('alice', {BUCKET})",
    )
    session = await asyncpg.connect(stores.shards["s1"])
    request_id = await session.fetchval(
        "SELECT request_id FROM ordermesh.orders WHERE order_id = $1", stores.parked
    )
    await session.close()
    await stores.sql("s2", f"UPDATE orders SET request_id = '{request_id}'")
    return stores.parked


CASES: list[tuple[str, Plant]] = [
    ("i7_copied", copied_key_of_nobodys_order),
    ("i7_across", two_orders_of_one_request),
    ("i16_once", twice),
    ("i16_success", never),
    ("i16_success", another_amount),
    ("i16_success", another_reference),
    ("i16_failed", failed_all_the_same),
    ("i16_leg", another_key),
    ("i16_leg", another_leg),
    ("i16_known", unknown_order),
    ("i17_one_shard", copied_to_another_shard),
    ("i17_map", bucket_of_another_shard),
    ("i17_fence", bucket_of_another_shard),
    ("i17_fence", fence_ahead_of_the_map),
    ("i17_fence", fence_of_two_owners),
    ("i16_quiet", executed_and_forgotten),
]
REPORTED = {check for check, _ in CASES}


@pytest.mark.parametrize(("check", "plant"), CASES, ids=lambda part: getattr(part, "__name__", part))
async def test_a_disagreement_is_reported(stores: Stores, check: str, plant: Plant):
    wrong = await plant(stores)

    found = (await stores.broken(quiet=check == "i16_quiet"))[check]

    expected = f"bucket {BUCKET}" if check == "i17_fence" else str(wrong)
    assert expected in {each.id for each in found.first}


async def test_an_order_in_motion_is_a_violation_only_when_all_is_said_to_be_quiet(stores: Stores):
    await executed_and_forgotten(stores)
    assert "i16_quiet" not in await stores.broken()


async def test_a_failed_order_may_stand_executed_when_it_was_taken_back_or_a_case_is_open(stores: Stores):
    await failed_all_the_same(stores)
    assert "i16_failed" in await stores.broken()

    stores.ledger_sql(
        "INSERT INTO reversals SELECT key || '/reverse', key, order_id, 'back-1', at FROM executions"
    )
    assert "i16_failed" not in await stores.broken()


async def test_an_operators_word_stands_without_an_execution(stores: Stores):
    await never(stores)
    await stores.sql("s1", "UPDATE orders SET basis = 'OPERATOR' WHERE order_id = :settled")
    assert "i16_success" not in await stores.broken()


async def test_a_store_that_cannot_be_read_is_said_so_and_never_passes(stores: Stores):
    stores.ledger.rename(stores.ledger.with_suffix(".gone"))
    with pytest.raises(StoreUnreadable, match="ledger of payments"):
        await stores.broken()


ARCHIVED = """
INSERT INTO archive_months
    (month, archive_id, state, reach, begins_at, ends_at, orders_oid, journal_oid, order_count, journal_count,
     orders_hash, journal_hash, manifest_key, committed_at, actor, reason, created_at, updated_at)
SELECT m.begins_at::date, gen_random_uuid(), 'DETACHING', 'GRACE', m.begins_at,
       m.begins_at + interval '1 month', leaf_of('orders', m.begins_at),
       leaf_of('order_journal', m.begins_at), 1, 2, 0, 0, 'm',
       clock_timestamp(), 'a test', 'it is old', clock_timestamp(), clock_timestamp()
  FROM (SELECT date_trunc('month', ordermesh.id_time(:settled), 'UTC') AS begins_at) m
"""


async def test_a_month_in_the_archive_is_missed_by_nobody_but_an_order_that_is_in_neither_is(stores: Stores):
    tables = ("dead_letters", "order_timers", "idempotency_keys", "outbox", "order_journal", "orders")
    await stores.sql("s1", *(f"DELETE FROM {table} WHERE order_id = :parked" for table in tables))
    month = f"{id_time(stores.settled):%Y_%m}"
    await stores.sql("s1", "SET timezone = 'UTC'", ARCHIVED)
    for table in ("orders", "order_journal"):
        assert await stores.broken(quiet=True) == {}
        await stores.sql("s1", f"ALTER TABLE {table} DETACH PARTITION {table}_{month}")
    assert await stores.broken(quiet=True) == {}

    stores.executed(stores.parked, "payments-2")
    found = await stores.broken(quiet=True)
    assert found.keys() == {"i16_known"}
    (broken,) = found["i16_known"].first
    assert (broken.id, broken.fact) == (
        month.replace("_", "-"),
        "2 orders were executed, the archive has 1",
    )
