"""The keeper on a real shard: what is missing is made, once, beside traffic, whoever is in the way."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from prometheus_client import REGISTRY

from archive_svc.domain import TABLES, Ahead, Making, missing, period_of, strange
from archive_svc.keeper import Keeper
from archive_svc.store import PartitionStore
from chassis.errors import Contended
from chassis.testing import FakeClock, eventually
from ops import ca
from order_svc import app
from order_svc.errors import PartitionsMissing
from tests.conftest import DatabaseFactory
from tests.databases import Database
from tests.shards import Shard, opened

AHEAD = Ahead(months=3, days=7)
NAMES = [table.name for table in TABLES]


@pytest.fixture
async def database(shard_database: DatabaseFactory) -> Database:
    return await shard_database()


@pytest.fixture
async def shard(database: Database) -> AsyncIterator[Shard]:
    async with opened(database) as ready:
        yield ready


@pytest.fixture
async def raw(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """A session beside the keeper's."""
    connection = await asyncpg.connect(database.dsn, server_settings={"search_path": "ordermesh"})
    yield connection
    await connection.close()


class Kept:
    """One shard with its keeper; pauses pass in no time."""

    def __init__(self, shard: Shard, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.store = PartitionStore("s1", shard.db)
        self.keeper = Keeper(self.store, AHEAD, self.clock, lambda: 1.0, look_s=600, again_s=30)

    async def missing(self) -> list[Making]:
        return missing(await self.store.partitions(), AHEAD, await self.store.now())

    async def lacks(self) -> int:
        return len(await self.missing())

    async def ahead(self) -> list[int]:
        """How many periods after the current one end when partitions are shown to end; -1 for none."""
        at = await self.store.now()
        counts = []
        for table in TABLES:
            labels = {"shard": "s1", "table": table.name}
            until = REGISTRY.get_sample_value("ordermesh_partitions_until_seconds", labels)
            assert until is not None
            span, count = period_of(table.period, at), -1
            while span.ends.timestamp() <= until:
                span, count = period_of(table.period, span.ends), count + 1
            assert until in (0, span.begins.timestamp())
            counts.append(count)
        return counts


async def test_the_keeper_knows_every_partitioned_table_of_a_shard(shard: Shard) -> None:
    kept = Kept(shard)
    assert sorted(await kept.store.partitions()) == sorted(NAMES)
    assert strange(await kept.store.partitions()) == []
    assert await kept.keeper.once()
    assert await kept.lacks() == 0


async def test_partitions_are_made_ahead_once_also_by_racing_keepers(shard: Shard) -> None:
    racing = [Kept(shard) for _ in range(4)]
    await shard.let_pass(timedelta(days=40))
    assert await racing[0].lacks() >= 2 + 8
    assert all(await asyncio.gather(*(kept.keeper.once() for kept in racing)))
    assert await racing[0].lacks() == 0
    assert await racing[0].ahead() == [3, 3, 7]
    created = await shard.create(user_id="bob")
    assert created.order.created_at.month != (await shard.value("SELECT now()")).month


async def test_partitions_that_ended_are_shown_to_have_ended(shard: Shard, raw: asyncpg.Connection) -> None:
    """Who may not make any still shows until when there are some, and that there are none any more."""
    kept = Kept(shard)
    assert await kept.keeper.once()
    await raw.execute("CREATE TABLE orders_rest PARTITION OF orders DEFAULT")
    await shard.let_pass(timedelta(days=150))
    assert not await kept.keeper.once()
    assert await kept.ahead() == [-1, 3, 7]


async def test_what_a_keeper_makes_is_what_the_schema_makes(shard: Shard, raw: asyncpg.Connection) -> None:
    """Triggers, indexes and the check of its range: as on the partitions of a new database."""
    first = await shard.value("SELECT min(c.relname) FROM pg_class c WHERE relname ~ '^orders_[0-9_]+$'")
    await shard.let_pass(timedelta(days=40))
    assert await Kept(shard).keeper.once()
    last = await shard.value("SELECT max(c.relname) FROM pg_class c WHERE relname ~ '^orders_[0-9_]+$'")
    assert first != last
    for what in (
        "SELECT count(*) FROM pg_trigger WHERE tgrelid = $1::regclass",
        "SELECT count(*) FROM pg_index WHERE indrelid = $1::regclass",
        "SELECT count(*) FROM pg_constraint WHERE conrelid = $1::regclass",
        "SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute WHERE attrelid = $1::regclass",
    ):
        assert await raw.fetchval(what, first) == await raw.fetchval(what, last), what


async def test_who_holds_a_table_is_waited_for_in_short_tries(shard: Shard, raw: asyncpg.Connection) -> None:
    """A transaction has the table locked: the keeper gives way, and orders are written all the while."""
    held = raw.transaction()

    class Releasing(FakeClock):
        async def sleep(self, seconds: float) -> None:
            await held.rollback()
            await super().sleep(seconds)

    kept = Kept(shard, Releasing())
    await shard.let_pass(timedelta(days=2))
    (making, *_) = [making for making in await kept.missing() if making.table.name == "outbox"]
    await held.start()
    await raw.execute("LOCK TABLE outbox IN SHARE UPDATE EXCLUSIVE MODE")
    waiting = asyncio.create_task(kept.store.make(making))
    await shard.create()
    with pytest.raises(Contended):
        await waiting
    assert await kept.keeper.once()
    assert kept.clock.monotonic() > 0, "it was tried again"
    assert await kept.lacks() == 0


async def test_beside_a_default_partition_nothing_is_made(shard: Shard, raw: asyncpg.Connection) -> None:
    kept = Kept(shard)
    await raw.execute("CREATE TABLE orders_rest PARTITION OF orders DEFAULT")
    await shard.let_pass(timedelta(days=40))
    assert not await kept.keeper.once()
    assert (await kept.ahead())[0] in (1, 2), "those that were made before time passed"
    assert (await kept.ahead())[1:] == [3, 7]
    await raw.execute("DROP TABLE orders_rest")
    assert await kept.keeper.once()
    assert await kept.ahead() == [3, 3, 7]


async def test_a_name_that_is_taken_is_reported_and_keeps_nobody_else_waiting(
    shard: Shard, raw: asyncpg.Connection
) -> None:
    kept = Kept(shard)
    await shard.let_pass(timedelta(days=40))
    making = (await kept.missing())[-1]
    taken = f"{making.table.name}_{making.suffix}"
    await raw.execute(f"CREATE TABLE {taken} (it int)")
    assert not await kept.keeper.once()
    assert await kept.lacks() == 1
    await raw.execute(f"DROP TABLE {taken}")
    assert await kept.keeper.once()


async def test_order_svc_refuses_to_start_on_a_shard_without_room(shard: Shard) -> None:
    await app._must_have_room(shard.store)
    await shard.let_pass(timedelta(days=9))
    with pytest.raises(PartitionsMissing, match="archive_svc makes them") as refused:
        await app._must_have_room(shard.store)
    assert refused.value.facts == {"tables": "outbox"}
    await shard.let_pass(timedelta(days=150))
    with pytest.raises(PartitionsMissing) as refused:
        await app._must_have_room(shard.store)
    assert refused.value.facts == {"tables": "order_journal,orders,outbox"}
    assert await Kept(shard).keeper.once()
    await app._must_have_room(shard.store)


async def test_a_killed_keeper_is_followed_up(database: Database, shard: Shard, tmp_path: Path) -> None:
    await shard.let_pass(timedelta(days=40))
    lacked = await Kept(shard).lacks()
    fired = tmp_path / "fired"
    ca.renew_due(tmp_path)
    ca.ensure_subject_keys(tmp_path)
    environment = {
        **os.environ,
        "ORDERMESH_SHARDS": json.dumps({"s1": database.dsn}),
        "ORDERMESH_TLS_DIR": str(tmp_path),
        "ORDERMESH_SUBJECT_DIR": str(tmp_path),
        "ORDERMESH_FAULTS_FIRED": str(fired),
    }
    command = (sys.executable, "-m", "archive_svc")
    victim = await asyncio.create_subprocess_exec(
        *command, env={**environment, "ORDERMESH_FAULTS": "keeper.after_make=kill:2"}
    )
    assert await victim.wait() == -signal.SIGKILL
    assert "keeper.after_make" in fired.read_text(encoding="utf-8")
    assert await Kept(shard).lacks() == lacked - 2

    heir = await asyncio.create_subprocess_exec(*command, env=environment)
    try:

        async def done() -> bool:
            return await Kept(shard).lacks() == 0

        assert await eventually(done, within_s=60, every_s=0.2)
    finally:
        heir.terminate()
        assert await heir.wait() == 0
