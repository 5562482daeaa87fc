"""A checker that never fails proves nothing: each invariant is broken once, on purpose, and must be
reported.
"""

from dataclasses import replace

import asyncpg
import pytest

from ops.audit import agreement, shards
from ops.audit.findings import EXAMPLES_MAX
from ops.audit.invariants import invariants
from tests.audits import BUCKET, Stores, stores

__all__ = ["stores"]

PLANTED: dict[str, tuple[str, ...]] = {
    "i1_timer": ("DELETE FROM order_timers WHERE order_id = :parked",),
    "i2_status": (
        "ALTER TABLE orders DROP CONSTRAINT settled_has_a_time",
        "UPDATE orders SET settled_at = NULL WHERE order_id = :settled",
    ),
    "i3_versions": ("DELETE FROM order_journal WHERE order_id = :parked AND version = 2",),
    "i3_chain": ("UPDATE order_journal SET from_stage = 'READY' WHERE order_id = :settled AND version = 2",),
    "i4_events": (
        "ALTER TABLE order_journal DROP CONSTRAINT order_journal_order_id_created_at_event_id_key",
        "UPDATE order_journal SET event_id = :settled WHERE order_id = :settled",
    ),
    "i5_success": (
        "ALTER TABLE order_journal DROP CONSTRAINT success_is_never_left",
        """UPDATE order_journal SET from_status = 'SUCCESS', to_status = 'FAILED'
            WHERE order_id = :settled AND version = 2""",
    ),
    "i6_proof": ("UPDATE order_journal SET proof = NULL WHERE order_id = :settled",),
    "i7_keys": (
        """UPDATE orders SET request_id = (SELECT request_id FROM orders WHERE order_id = :settled)
            WHERE order_id = :parked""",
    ),
    "i7_expiry": ("DELETE FROM idempotency_keys WHERE order_id = :parked",),
    "i8_ids": (
        "ALTER TABLE orders DROP CONSTRAINT bucket_is_in_the_id",
        "UPDATE orders SET bucket = bucket + 1 WHERE order_id = :settled",
    ),
    "i9_fence": (f"UPDATE bucket_fence SET state = 'MOVED', owner = 's2' WHERE bucket = {BUCKET}",),
    "i10_outbox": ("DELETE FROM outbox WHERE order_id = :settled AND version = 2",),
    "i11_cases": (
        """UPDATE dead_letters SET closed_at = clock_timestamp(), actor = 'mira', outcome = 'EVIDENCE',
                                   close_reason = 'enough'
            WHERE order_id = :parked""",
    ),
    "i12_overdue": (
        "UPDATE order_timers SET due_at = clock_timestamp() - interval '2 minutes' WHERE order_id = :parked",
    ),
    "i13_attempts": (
        "UPDATE order_journal SET kind = 'SUBMITTED' WHERE order_id = :settled AND version = 2",
    ),
}
"""Statements on shard s1 that break one invariant of it; constraints that would refuse are dropped first."""


async def test_healthy_stores_break_nothing(stores: Stores):
    assert await stores.broken(quiet=True) == {}


@pytest.mark.parametrize("name", PLANTED)
async def test_a_broken_row_is_reported_with_its_order(stores: Stores, name: str):
    await stores.sql("s1", *PLANTED[name])

    found = (await stores.broken())[name]

    assert found.count >= 1
    assert {each.where for each in found.first} == {"s1"}
    assert {each.id for each in found.first} <= {str(stores.settled), str(stores.parked)}


async def test_a_session_idle_in_a_transaction_is_reported(stores: Stores):
    (idle,) = [each for each in invariants() if each.name == "i14_sessions"]
    at_once = replace(idle, statement=idle.statement.replace("15 seconds", "0 seconds"))
    assert at_once != idle
    session = await asyncpg.connect(stores.shards["s1"])
    async with session.transaction(), shards.opened({"s1": stores.shards["s1"]}) as (shard,):
        count, first = await shard.breaks(at_once)
        assert (count, first[0].id) == (1, str(session.get_server_pid()))
        assert await shard.breaks(idle) == (0, ())
    await session.close()


def test_every_invariant_is_broken_once():
    assert {each.name for each in invariants()} == {*PLANTED, "i14_sessions"}
    assert all(each.says.endswith(".") for each in invariants())


async def test_a_hold_explains_what_is_overdue_until_it_ends(stores: Stores):
    hold = (
        "INSERT INTO holds (hold_id, scope, reason, actor, created_at, until_at) VALUES "
        "(gen_random_uuid(), 'upstream:payments', 'maintenance', 'mira', clock_timestamp(), {})"
    )
    await stores.sql("s1", *PLANTED["i12_overdue"], hold.format("clock_timestamp() + interval '1 hour'"))
    assert await stores.broken() == {}

    await stores.sql("s1", "UPDATE holds SET until_at = clock_timestamp() - interval '2 minutes'")
    assert set(await stores.broken()) == {"i12_overdue"}


async def test_the_count_is_complete_and_the_examples_are_few(stores: Stores):
    await stores.sql(
        "s1",
        """INSERT INTO outbox (event_id, order_id, created_at, user_id, bucket, route_epoch, stream_partition,
                               read_routing, version, kind, occurred_at, payload)
           SELECT gen_random_uuid(), order_id, created_at, user_id, bucket, NULL, 0, user_id, twin, 'TWIN',
                  clock_timestamp(), '{}'
             FROM orders, generate_series(10, 21) AS twin, generate_series(1, 2)
            WHERE order_id = :settled""",
    )
    found = (await stores.broken())["i10_outbox"]
    assert (found.count, len(found.first)) == (12, EXAMPLES_MAX)


def test_the_checks_between_stores_have_tests_of_their_own():
    import tests.integration.test_audit_agreement as other

    tested = {name for name in agreement.CHECKS | agreement.QUIET_CHECKS if name in other.REPORTED}
    assert tested == set(agreement.CHECKS | agreement.QUIET_CHECKS)
