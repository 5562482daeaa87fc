"""What a replica says of itself on the dashboard of shards, also when nothing comes any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from chassis.testing import eventually
from ops import ports
from telemetry.dashboards.statements import statement
from tests.replicas import Replicated, replicated
from tests.telemetry import grafana

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def both(server_dir: Path, clean_machine: None) -> AsyncIterator[Replicated]:
    async with replicated(server_dir) as pair:
        yield pair


@pytest.fixture
async def dashboards(both: Replicated) -> AsyncIterator[Any]:
    """A session of the dashboards' role on the replica."""
    await grafana.make_role(both.database.dsn)
    await both.caught_up()
    session = await asyncpg.connect(grafana.as_role(both.replica_dsn))
    yield session
    await session.close(timeout=5)


async def cut_off(both: Replicated) -> None:
    """Let nothing reach the replica any more."""
    nowhere = f"host=127.0.0.1 port={ports.free_port()}"
    await both.session.execute(f"ALTER SYSTEM SET primary_conninfo = '{nowhere}'")
    await both.session.execute("SELECT pg_reload_conf()")

    async def nothing_comes() -> bool:
        return not await both.session.fetchval("SELECT EXISTS (SELECT FROM pg_stat_wal_receiver)")

    await eventually(nothing_comes, within_s=30)


async def test_on_a_replica_that_stands_still_only_what_was_overdue_then_hangs(
    both: Replicated, dashboards: Any
) -> None:
    late, soon = await both.shard.create(), await both.shard.create()
    moved = "UPDATE order_timers SET due_at = clock_timestamp() + $2 WHERE order_id = $1"
    await both.shard.rows(moved, late.order.order_id, -timedelta(hours=1))
    await both.shard.rows(moved, soon.order.order_id, timedelta(seconds=5))
    await both.caught_up()
    await cut_off(both)

    async def is_past() -> bool:
        due = "SELECT bool_and(due_at < clock_timestamp()) FROM ordermesh.order_timers"
        return bool(await both.session.fetchval(due))

    await eventually(is_past, within_s=20)
    hanging = await dashboards.fetch(statement("hanging_orders"))
    assert [row["order_id"] for row in hanging] == [late.order.order_id]
    assert 3590 < hanging[0]["overdue_seconds"] <= 3605
    (waiting,) = await dashboards.fetch(statement("waiting_orders"))
    assert (waiting["orders"], waiting["overdue_seconds"] <= 3605) == (2, True)


async def test_a_replica_that_receives_nothing_says_so_and_is_not_called_up_to_date(
    both: Replicated, dashboards: Any
) -> None:
    async def place() -> dict[str, Any]:
        return dict(await dashboards.fetchrow(statement("replica_place")))

    first = await both.shard.create()
    await both.caught_up()
    seen = await place()
    assert (seen["shard"], seen["is_replica"], seen["receives"]) == ("s1", True, True)
    assert seen["behind_seconds"] == 0
    assert seen["newest_waiting_order"] == first.order.created_at

    # What it received is replayed; only that nothing comes any more is wrong.
    await cut_off(both)
    await both.shard.create()
    assert await both.session.fetchval("SELECT pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()")

    async def behind() -> dict[str, Any] | None:
        found = await place()
        return found if found["behind_seconds"] > 0 else None

    seen = await eventually(behind)
    assert seen["newest_waiting_order"] == first.order.created_at
