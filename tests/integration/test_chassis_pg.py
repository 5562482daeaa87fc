"""Postgres through the chassis: typed errors by SQLSTATE, bounded waits, and the functions that exist
twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from prometheus_client import REGISTRY

from chassis import ids, pg
from chassis.errors import (
    Contended,
    DeadlineExceeded,
    InternalError,
    OrdermeshError,
    Overloaded,
    ShardUnavailable,
    StaleRoute,
)
from chassis.testing import eventually
from ops import ports
from ops.postgres import PostgresServer
from tests.databases import Databases

USERS = ["alice", "42", "vip.1", "a", "Z" * 64, "user:7", *(f"user-{number}" for number in range(300))]


@asynccontextmanager
async def opened(dsn: str, **settings: Any) -> AsyncIterator[pg.Database]:
    async with pg.open_database(pg.PgSettings(dsn=dsn, **settings), name="s1") as database:
        yield database


@pytest.fixture(scope="module")
async def place(databases: Databases) -> AsyncIterator[str]:
    """Where one shard database is that the tests of this module share; each uses buckets of its own."""
    database = await databases.create("shard")
    async with opened(database.dsn) as shard:
        await shard.execute("SELECT ordermesh.own_buckets(0, 10, 's1')")
    yield database.dsn
    await databases.drop(database)


@pytest.fixture
async def shard(place: str) -> AsyncIterator[pg.Database]:
    async with opened(place, pool_size=4, queue=4) as database:
        yield database


async def raised(database: pg.Database, sql: str, *args: object) -> OrdermeshError:
    with pytest.raises(OrdermeshError) as refused:
        await database.execute(sql, *args)
    return refused.value


def raising(sqlstate: str, detail: str = "") -> str:
    return f"DO $$ BEGIN RAISE 'canary' USING ERRCODE = '{sqlstate}', DETAIL = '{detail}'; END $$"


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("55P03", Contended),
        ("40001", Contended),
        ("40P01", Contended),
        ("57014", DeadlineExceeded),
        ("57P01", ShardUnavailable),
        ("53300", ShardUnavailable),
        ("08006", ShardUnavailable),
        ("23505", InternalError),
        ("23514", InternalError),
        ("22012", InternalError),
        ("25006", InternalError),
        ("P0001", InternalError),
        ("XX000", InternalError),
    ],
)
async def test_a_refusal_is_typed_by_its_sqlstate_and_keeps_its_text_inside(
    shard: pg.Database, sqlstate: str, expected: type[OrdermeshError]
) -> None:
    error = await raised(shard, raising(sqlstate))
    assert type(error) is expected
    assert "canary" not in f"{error} {error.facts}"


async def test_the_fences_refusal_says_bucket_epoch_owner_and_state(shard: pg.Database) -> None:
    await shard.execute("UPDATE bucket_fence SET state = 'MOVED', owner = 's2', epoch = 7 WHERE bucket = 5")
    error = await raised(
        shard,
        "INSERT INTO idempotency_keys"
        " (user_id, request_id, order_id, created_at, bucket, route_epoch, fingerprint)"
        " VALUES ('alice', gen_random_uuid(), $1, now(), 5, 6, '')",
        UUID(int=1),
    )
    assert isinstance(error, StaleRoute)
    assert error.facts == {"bucket": "5", "epoch": "7", "owner": "s2", "state": "MOVED", "left_epoch": "0"}


@pytest.mark.parametrize("detail", ["", "no json", '["a", "list"]', '"text"', "7"])
async def test_a_stale_route_without_readable_details_is_still_one(shard: pg.Database, detail: str) -> None:
    error = await raised(shard, raising("SH001", detail))
    assert isinstance(error, StaleRoute)
    assert error.facts == {}


async def test_wrong_arguments_are_our_fault_and_not_the_shards(shard: pg.Database) -> None:
    """Told that the shard is away, a caller would send the same wrong call again and again."""
    assert type(await raised(shard, "SELECT $1::int", "no number")) is InternalError
    assert type(await raised(shard, "SELECT $1::int")) is InternalError
    assert type(await raised(shard, "SELECT nonsense FROM nowhere")) is InternalError


@pytest.mark.parametrize(
    "broken",
    [
        ConnectionResetError("reset by u:hunter2"),
        FileNotFoundError("no socket"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("got result for unknown protocol state"),
        asyncpg.CannotConnectNowError("the database system is starting up"),
    ],
)
def test_all_that_a_driver_says_of_a_server_that_is_gone_means_unavailable(broken: Exception) -> None:
    with pytest.raises(ShardUnavailable) as refused, pg._typed_errors():
        raise broken
    assert "hunter2" not in f"{refused.value} {refused.value.facts}"


async def test_every_statement_has_an_end(shard: pg.Database) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await shard.fetchval("SELECT pg_sleep(30)", timeout_s=0.2)
    assert time.monotonic() - began < 2
    assert await shard.fetchval("SELECT 1") == 1


async def test_sessions_carry_the_limits_of_the_design(shard: pg.Database) -> None:
    wanted = {
        "search_path": "ordermesh, public",
        "statement_timeout": "5s",
        "lock_timeout": "1s",
        "idle_in_transaction_session_timeout": "10s",
        "plan_cache_mode": "force_generic_plan",
        "transaction_isolation": "read committed",
        "TimeZone": "UTC",
        "application_name": "ordermesh-s1",
    }
    rows = await shard.fetch(
        "SELECT name, current_setting(name) AS value FROM unnest($1::text[]) AS name", list(wanted)
    )
    assert {row["name"]: row["value"] for row in rows} == wanted


async def test_a_statement_that_is_given_more_time_has_it_from_the_server_too(shard: pg.Database) -> None:
    asked = "SELECT current_setting('statement_timeout')"
    assert await shard.fetchval(asked, timeout_s=60) == "1min"
    assert await shard.fetchval(asked) == "5s"


async def test_a_lock_that_is_held_is_contended_after_a_second(shard: pg.Database) -> None:
    async with shard.connection() as holder, holder.transaction():
        await holder.execute("SELECT * FROM bucket_fence WHERE bucket = 0 FOR UPDATE")
        began = time.monotonic()
        error = await raised(shard, "UPDATE bucket_fence SET epoch = 2 WHERE bucket = 0")
    assert isinstance(error, Contended)
    assert 0.9 < time.monotonic() - began < 3


async def test_a_read_only_database_refuses_to_write(place: str) -> None:
    async with opened(place, read_only=True) as replica:
        await raised(replica, "SELECT ordermesh.own_buckets(11, 11, 's1')")
        assert await replica.fetchval("SELECT count(*) FROM bucket_fence") == 11


async def test_beyond_pool_and_queue_a_statement_is_refused_at_once(place: str) -> None:
    async with opened(place, pool_size=2, queue=1) as database:
        slow = [asyncio.create_task(database.fetchval("SELECT pg_sleep(1)")) for _ in range(3)]
        await eventually(lambda: _true(database.limiter.free == 0 and len(database.limiter._waiting) == 1))
        began = time.monotonic()
        with pytest.raises(Overloaded) as refused:
            await database.fetchval("SELECT 1")
        assert time.monotonic() - began < 0.5
        assert refused.value.facts == {"limiter": "s1"}
        await asyncio.gather(*slow)


async def test_within_a_deadline_reads_end_and_writes_begin_and_those_begun_go_on(place: str) -> None:
    async with opened(place, pool_size=1, queue=4) as database:
        soon = time.monotonic() + 0.3
        with pytest.raises(DeadlineExceeded):
            await database.until(soon).fetchval("SELECT pg_sleep(2)")
        assert time.monotonic() - soon < 1, "the server was told to stop"
        soon = time.monotonic() + 0.1
        assert await database.begun_by(soon).fetchval("SELECT 1 FROM pg_sleep(0.4)") == 1
        for late in (database.begun_by(soon), database.until(soon)):
            with pytest.raises(DeadlineExceeded) as refused:
                await late.execute("SELECT 1")
            assert refused.value.facts == {"limiter": "caller"}
        async with database.connection():
            waiting = database.begun_by(time.monotonic() + 0.1)
            with pytest.raises(DeadlineExceeded):
                await waiting.execute("SELECT 1")
        assert await database.fetchval("SELECT 1") == 1


async def _true(claim: bool) -> bool:
    return claim


async def test_a_cancelled_statement_gives_its_connection_back(place: str) -> None:
    async with opened(place, pool_size=1, queue=4) as database:
        for _ in range(10):
            task = asyncio.create_task(database.fetchval("SELECT pg_sleep(10)"))
            await eventually(lambda: _true(database.limiter.taken == 1))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await database.fetchval("SELECT 1", timeout_s=2) == 1
        assert database.limiter.free == 1


async def test_a_server_that_is_away_is_unavailable_and_found_again(server_dir: Path) -> None:
    data = server_dir / "restarted"
    server = PostgresServer(data, ports.free_port(), durable=False)
    await server.start()
    try:
        async with opened(server.dsn("postgres"), pool_size=3) as database:
            await asyncio.gather(*(database.ping() for _ in range(3)))
            await server.stop()
            for _ in range(6):  # Every connection of the pool, and new ones.
                with pytest.raises(ShardUnavailable):
                    await database.ping()
            await server.start()
            await eventually(lambda: answers(database), within_s=3)
            assert await asyncio.gather(*(database.fetchval("SELECT 7") for _ in range(3))) == [7, 7, 7]
    finally:
        await server.stop()


async def answers(database: pg.Database) -> bool:
    try:
        await database.ping()
    except ShardUnavailable:
        return False
    return True


async def test_a_killed_backend_is_one_failed_call_and_not_a_broken_pool(shard: pg.Database) -> None:
    for _ in range(5):
        async with shard.connection() as connection:
            pid = await connection.fetchval("SELECT pg_backend_pid()")
        async with asyncio.timeout(5):
            await shard.fetchval("SELECT pg_terminate_backend($1) WHERE $1 <> pg_backend_pid()", pid)
    results = await asyncio.gather(*(shard.fetchval("SELECT 1") for _ in range(4)), return_exceptions=True)
    assert all(result == 1 or isinstance(result, ShardUnavailable) for result in results)
    assert await asyncio.gather(*(shard.fetchval("SELECT 1") for _ in range(4))) == [1] * 4


async def test_a_frozen_backend_holds_nobody_longer_than_twice_its_timeout(shard: pg.Database) -> None:
    async with shard.connection() as connection:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises((DeadlineExceeded, ShardUnavailable)):
            await shard.fetchval("SELECT 1", timeout_s=1)
        assert time.monotonic() - began < 2.5
        assert await shard.fetchval("SELECT 1", timeout_s=2) == 1, "the others go on"
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_closing_does_not_wait_for_a_frozen_backend(place: str) -> None:
    async with opened(place) as database:
        pid = await database.fetchval("SELECT pg_backend_pid()")
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < 7
    os.kill(pid, signal.SIGCONT)


async def test_nothing_listens_and_eager_says_so_at_start() -> None:
    nowhere = f"postgresql://u:hunter2@127.0.0.1:{ports.free_port()}/orders"
    with pytest.raises(ShardUnavailable) as refused:
        async with pg.open_database(pg.PgSettings(dsn=nowhere), eager=True):
            pass
    assert "hunter2" not in f"{refused.value} {refused.value.facts}"
    async with opened(nowhere) as lazy:
        with pytest.raises(ShardUnavailable):
            await lazy.ping()


def test_the_address_of_a_database_is_not_printed() -> None:
    assert "hunter2" not in repr(pg.PgSettings(dsn="postgresql://u:hunter2@db/orders"))


async def test_an_unknown_database_is_unavailable(shard: pg.Database, postgres: PostgresServer) -> None:
    async with opened(postgres.dsn("no_such_database")) as database:
        with pytest.raises(ShardUnavailable):
            await database.ping()


async def test_json_and_transaction_ids_come_as_python_values(shard: pg.Database) -> None:
    row = await shard.fetchrow("SELECT $1::jsonb AS labels, pg_current_xact_id() AS xid", {"b": 1, "a": "ä"})
    assert row is not None
    assert row["labels"] == {"b": 1, "a": "ä"}
    assert isinstance(row["xid"], int)


async def test_sql_and_python_agree_on_bucket_and_time(shard: pg.Database) -> None:
    rows = await shard.fetch(
        "SELECT u, ordermesh.user_bucket(u) AS bucket FROM unnest($1::text[]) AS u", USERS
    )
    assert {row["u"]: row["bucket"] for row in rows} == {user: ids.user_bucket(user) for user in USERS}
    assert {user: ids.user_bucket(user) for user in USERS[:3]} == {"alice": 701, "42": 1844, "vip.1": 4088}

    made = [
        ids.OrderIds(partial(int, ms)).new(bucket)
        for ms in (1, 1_767_225_600_123, 2**45 - 1)
        for bucket in (0, 1, 701, 4095, 4096, ids.BUCKETS - 1)
    ]
    rows = await shard.fetch(
        "SELECT ordermesh.id_bucket(id) AS bucket, ordermesh.id_time(id) AS at FROM unnest($1::uuid[]) AS id",
        made,
    )
    assert [(row["bucket"], row["at"]) for row in rows] == [(ids.id_bucket(i), ids.id_time(i)) for i in made]
    assert rows[6]["at"] == datetime(2026, 1, 1, 0, 0, 0, 123_000, tzinfo=UTC)


def test_named_statements_are_read_by_name_and_a_wrong_name_is_loud() -> None:
    queries = pg.queries("order_svc")
    assert queries.create_order.startswith("-- Write an order")
    with pytest.raises(AttributeError, match="no statement 'creat_order'"):
        _ = queries.creat_order


def test_errors_are_told_apart_by_state_since_the_drivers_classes_mislead() -> None:
    fatal = asyncpg.PostgresError.new({"C": "SH001", "M": "stale route", "S": "ERROR", "D": '{"bucket": 1}'})
    assert isinstance(pg.typed_error(fatal), StaleRoute)
    assert type(pg.typed_error(asyncpg.PostgresError("no state at all"))) is InternalError


async def test_waits_holds_failures_and_open_connections_are_counted(place: str) -> None:
    def value(name: str, **more: str) -> float:
        return REGISTRY.get_sample_value(name, {"pool": "s1", **more}) or 0.0

    before = {name: value(f"ordermesh_pg_{name}_seconds_count") for name in ("wait", "held")}
    late = value("ordermesh_pg_failures_total", reason="DEADLINE_EXCEEDED")
    async with opened(place, pool_size=2) as database:
        async with database.connection() as connection:
            await connection.fetchval("SELECT 1")
            assert value("ordermesh_pg_connections", state="busy") == 1
        assert value("ordermesh_pg_connections", state="busy") == 0
        assert value("ordermesh_pg_connections", state="idle") == 1
        with pytest.raises(DeadlineExceeded):
            await database.fetchval("SELECT pg_sleep(5)", timeout_s=0.05)
    for name in ("wait", "held"):
        assert value(f"ordermesh_pg_{name}_seconds_count") == before[name] + 2
    assert value("ordermesh_pg_failures_total", reason="DEADLINE_EXCEEDED") == late + 1
    assert (
        REGISTRY.get_sample_value("ordermesh_pg_failures_total", {"pool": "s1", "reason": "OVERLOADED"})
        is not None
    )
