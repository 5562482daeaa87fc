"""The business gauges come from the read replica, in bounds, and are gone while nobody can look."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY

from chassis import pg
from chassis.money import Money
from chassis.testing import FakeClock, eventually
from history_svc import lookback, metrics
from history_svc.lookback import AGES, Lookback
from ops import ports
from ops.doctor import servers
from ops.doctor.findings import Word
from order_svc.events import Answer, Source, Told, Verdict
from order_svc.order import Order
from tests.replicas import Replicated, replicated

pytestmark = pytest.mark.timeout(300)
LONG_S = 3.0
"""Longer than an order of a test waits until it is looked at."""
GAUGES = ("orders_pending_oldest_seconds", "orders_hanging", "orders_hanging_oldest_seconds", "holds")


def shown(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"ordermesh_{name}", {"shard": "s1", **labels})


def ages() -> dict[str, float | None]:
    return {age: shown("orders_pending", age=age) for age in AGES}


@dataclass
class Looking:
    """A shard with a replica, and who looks at the replica."""

    both: Replicated
    lookback: Lookback
    database: pg.Database

    async def look(self) -> bool:
        await self.both.caught_up()
        return await self.lookback.once()


@pytest.fixture
async def looking(server_dir: Path, clean_machine: None) -> AsyncIterator[Looking]:
    async with replicated(server_dir) as both:
        wanted = pg.PgSettings(dsn=both.replica_dsn, pool_size=2, read_only=True)
        async with pg.open_database(wanted, name="replica-s1") as database:
            looks = Lookback("s1", database, FakeClock(), lambda: 0.5, every_s=15)
            yield Looking(both, looks, database)


async def test_orders_that_wait_are_shown_by_age_and_those_overdue_are_hanging(looking: Looking) -> None:
    assert await looking.look()
    assert ages() == dict.fromkeys(AGES, 0.0)
    assert (shown("orders_hanging"), shown("orders_pending_oldest_seconds")) == (0, 0)

    await looking.both.shard.create()
    assert await looking.look()
    assert ages() == {**dict.fromkeys(AGES, 0.0), "younger_than_1m": 1.0}
    assert shown("lookback_up") == 1
    assert shown("lookback_is_capped") == 0

    # A row of the timers says when an order is looked at next; one whose time has passed is hanging.
    await looking.both.shard.value(
        "WITH late AS (UPDATE ordermesh.order_timers SET due_at = clock_timestamp() - interval '90 seconds'"
        " RETURNING 1) SELECT count(*) FROM late"
    )
    assert await looking.look()
    assert shown("orders_hanging") == 1
    overdue = shown("orders_hanging_oldest_seconds")
    assert overdue is not None
    assert 90 <= overdue < 600


async def test_open_cases_are_shown_by_reason_and_closed_ones_are_not(looking: Looking) -> None:
    assert await looking.look()
    assert shown("dead_letters_oldest_seconds") == 0
    await looking.both.shard.create()
    await looking.both.shard.value(
        "WITH parked AS (INSERT INTO ordermesh.dead_letters (dead_letter_id, order_id, created_at, user_id,"
        " bucket, reason, severity, evidence, opened_at, opened_version) SELECT gen_random_uuid(), order_id,"
        " created_at, user_id, bucket, 'PROBES_EXHAUSTED', 2, '{}', clock_timestamp() - interval '1 hour', 1"
        " FROM ordermesh.orders RETURNING 1) SELECT count(*) FROM parked"
    )
    assert await looking.look()
    assert shown("dead_letters_open", reason="PROBES_EXHAUSTED", severity="2") == 1
    oldest = shown("dead_letters_oldest_seconds")
    assert oldest is not None
    assert 3600 <= oldest < 4200
    await looking.both.shard.value(
        "WITH closed AS (UPDATE ordermesh.dead_letters SET closed_at = clock_timestamp(), actor = 'ops:test',"
        " outcome = 'EVIDENCE', close_reason = 'seen' RETURNING 1) SELECT count(*) FROM closed"
    )
    assert await looking.look()
    assert shown("dead_letters_open", reason="PROBES_EXHAUSTED", severity="2") == 0
    assert shown("dead_letters_oldest_seconds") == 0


async def test_the_first_look_of_a_process_says_of_which_reasons_nobody_has_to_be_woken(
    looking: Looking,
) -> None:
    """Who looked here before may have said 1 last, and that would count whenever nobody can look."""

    def money() -> dict[str, float | None]:
        return {
            reason: shown("dead_letters_open", reason=reason, severity=lookback.MONEY)
            for reason in lookback.CASE_REASONS
        }

    metrics.CASES_OPEN.clear()
    await looking.both.shard.create()
    await looking.both.shard.value(
        "WITH parked AS (INSERT INTO ordermesh.dead_letters (dead_letter_id, order_id, created_at, user_id,"
        " bucket, reason, severity, evidence, opened_at, opened_version) SELECT gen_random_uuid(), order_id,"
        " created_at, user_id, bucket, 'CONTRADICTED', 1, '{}', clock_timestamp(), 1"
        " FROM ordermesh.orders RETURNING 1) SELECT count(*) FROM parked"
    )
    await looking.both.caught_up()
    await looking.both.standby.stop()
    assert not await looking.lookback.once()
    assert set(money().values()) == {None}, "what nobody saw is not 0"
    await looking.both.standby.start()
    await eventually(looking.lookback.once, within_s=30, every_s=0.2)
    assert money() == dict.fromkeys(lookback.CASE_REASONS, 0.0) | {"CONTRADICTED": 1.0}


async def test_an_order_of_which_the_upstream_names_two_executions_is_shown_until_its_case_is_closed(
    looking: Looking,
) -> None:
    shard = looking.both.shard

    async def decide(order: Order, verdict: Verdict, **answer: Any) -> Order:
        """What the rules make of the upstream's word."""
        event = Told(
            event_id=uuid4(),
            actor="recovery_svc",
            leg=order.leg,
            attempt=order.attempt,
            answer=Answer(verdict=verdict, **answer),
            source=Source.PROBE,
        )
        return (await shard.decide(order, event)).order

    async def cases() -> tuple[float | None, float | None, float | None]:
        assert await looking.look()
        return (
            shown("orders_executed_twice"),
            shown("dead_letters_open", reason="CONTRADICTED", severity="1"),
            shown("dead_letters_open", reason="VERDICT_MISMATCH", severity="1"),
        )

    settled, waits, wrong = [(await shard.create()).order for _ in range(3)]
    settled = await decide(settled, Verdict.SUCCEEDED, upstream_ref="one")
    waits = await decide(waits, Verdict.IN_PROGRESS, upstream_ref="one")
    await decide(wrong, Verdict.SUCCEEDED, upstream_ref="one", amount=Money("EUR", 1))
    assert await cases() == (0, 0, 1), "another amount is one execution"
    await decide(settled, Verdict.SUCCEEDED, upstream_ref="another")
    assert await cases() == (1, 1, 1)
    await decide(waits, Verdict.SUCCEEDED, upstream_ref="another")
    assert await cases() == (2, 1, 2)
    await shard.value(
        "WITH closed AS (UPDATE ordermesh.dead_letters SET closed_at = clock_timestamp(), actor = 'ops:test',"
        " outcome = 'EVIDENCE', close_reason = 'seen' RETURNING 1) SELECT count(*) FROM closed"
    )
    assert await cases() == (0, 0, 0)


async def test_it_looks_at_the_replica_and_says_how_far_that_is_behind(
    looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    await looking.both.shard.create()
    assert await looking.look()
    assert shown("replica_lag_seconds") == 0, "all that was received is replayed, however long ago it came"
    await looking.both.session.execute("SELECT pg_wal_replay_pause()")
    try:
        await looking.both.shard.create()

        async def behind() -> bool:
            assert await looking.lookback.once()
            return (shown("replica_lag_seconds") or 0.0) > LONG_S

        await eventually(behind, within_s=20)
        assert ages()["younger_than_1m"] == 1, "the second order is not on the replica yet"
        oldest = shown("orders_pending_oldest_seconds")
        assert oldest is not None
        assert oldest < LONG_S, "it may be settled by now: it is as old as when the replica stopped"
        monkeypatch.setattr(servers, "LAG_WARN_S", LONG_S)
        found = await servers.replica("s1", looking.both.replica_dsn)
        assert (found.word, found.detail.split()[0]) == (Word.WARN, "lags"), "the doctor says the same"
    finally:
        await looking.both.session.execute("SELECT pg_wal_replay_resume()")
    assert await looking.look()
    assert ages()["younger_than_1m"] == 2
    assert shown("replica_lag_seconds") == 0


async def test_a_replica_that_lost_its_primary_is_behind_although_it_replayed_everything(
    looking: Looking,
) -> None:
    assert await looking.look()
    await looking.both.session.execute("ALTER SYSTEM SET primary_conninfo = 'port=1'")
    await looking.both.session.execute("SELECT pg_reload_conf()")

    async def behind() -> bool:
        assert await looking.lookback.once()
        return (shown("replica_lag_seconds") or 0) > 0

    await eventually(behind, within_s=30, every_s=0.2)


async def test_more_than_a_look_counts_is_said(looking: Looking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookback, "ORDERS_MAX", 2)
    for _ in range(3):
        await looking.both.shard.create()
    assert await looking.look()
    assert ages()["younger_than_1m"] == 2
    assert shown("lookback_is_capped") == 1


async def test_gauges_are_gone_while_nobody_answers_and_come_back(looking: Looking) -> None:
    await looking.both.shard.create()
    assert await looking.look()
    assert all(shown(name) is not None for name in GAUGES)
    await looking.both.standby.stop()
    assert not await looking.lookback.once()
    assert [name for name in GAUGES if shown(name) is not None] == []
    assert set(ages().values()) == {None}
    assert shown("lookback_up") == 0
    await looking.both.standby.start()
    await eventually(looking.lookback.once, within_s=30, every_s=0.2)
    assert all(shown(name) is not None for name in GAUGES)
    assert shown("lookback_up") == 1


async def test_another_shard_at_the_address_is_not_believed(looking: Looking) -> None:
    other = Lookback("s2", looking.database, FakeClock(), lambda: 0.5, every_s=15)
    assert not await other.once()
    assert REGISTRY.get_sample_value("ordermesh_lookback_up", {"shard": "s2"}) == 0
    metrics.LOOKBACK_UP.remove_by_labels({"shard": "s2"})


async def test_a_server_that_is_nowhere_costs_a_bounded_time(server_dir: Path) -> None:
    wanted = pg.PgSettings(dsn=f"postgresql://nobody@127.0.0.1:{ports.free_port()}/{uuid4().hex}")
    async with pg.open_database(wanted, name="replica-s1") as database:
        assert not await Lookback("s1", database, FakeClock(), lambda: 0.5, every_s=15).once()
