"""The control database: every change of the map moves its version, and some changes are refused by the
database itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from chassis import pg
from chassis.ids import user_bucket
from shard_proxy.domain import Owner, Shard
from shard_proxy.store import MapStore
from tests.conftest import DatabaseFactory
from tests.databases import Databases

CONTROL = Path(__file__).parents[2] / "db" / "control"


@pytest.fixture
async def control(control_database: DatabaseFactory) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A control database with two shards, a VIP shard, and dealt buckets."""
    connection = await asyncpg.connect((await control_database()).dsn)
    await connection.execute("SET search_path = ordermesh")
    await connection.execute(
        "SELECT put_shard('s1', false, 'h:1', 'h:9'), put_shard('s2', false, 'h:2', 'h:9'),"
        " put_shard('v1', true, 'h:3', 'h:9'), put_service('recovery_svc', 'h:8'), deal_buckets('s1', 's2')"
    )
    yield connection
    await connection.close()


async def version(control: asyncpg.Connection[Any]) -> int:
    return int(await control.fetchval("SELECT version FROM map_head"))


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO shards (shard, lane_target, history_target) VALUES ('s3', 'h:4', 'h:9')",
        "UPDATE shards SET lane_target = 'h:7' WHERE shard = 's1'",
        "DELETE FROM services",
        "UPDATE buckets SET shard = 's2', epoch = epoch + 1 WHERE bucket = 3",
        "DELETE FROM buckets WHERE bucket = 3",
        "INSERT INTO vip_users (user_id, buckets) VALUES ('a', '{4096}')",
        "INSERT INTO user_bucket (user_id, bucket) VALUES ('a', 1)",
        "SELECT place_vip('a', 4096, 'v1')",
        "SELECT put_service('recovery_svc', 'h:5')",
        "TRUNCATE vip_users",
    ],
)
async def test_every_change_of_the_map_moves_its_version_in_the_same_transaction(
    control: asyncpg.Connection[Any], change: str
) -> None:
    before = await version(control)
    transaction = control.transaction()
    await transaction.start()
    await control.execute(change)
    assert await version(control) > before
    await transaction.rollback()
    assert await version(control) == before


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ("UPDATE buckets SET shard = 's2' WHERE bucket = 3", "23514"),
        ("UPDATE buckets SET epoch = epoch - 1 WHERE bucket = 3", "23514"),
        ("UPDATE user_bucket SET bucket = 2", "55000"),
        ("DELETE FROM user_bucket", "55000"),
        ("TRUNCATE user_bucket", "55000"),
        ("INSERT INTO map_head (version, changed_at) VALUES (1, now())", "23505"),
        ("INSERT INTO vip_users (user_id, buckets) VALUES ('a b', '{4096}')", "23514"),
        ("INSERT INTO vip_users (user_id, buckets) VALUES ('a', '{4096,4097}')", "23514"),
        ("INSERT INTO vip_users (user_id, buckets) VALUES ('a', '{}')", "23514"),
        ("SELECT place_vip('a', 701, 'v1')", "23514"),
        ("SELECT place_vip('a', 4096, 's9')", "23503"),
        ("INSERT INTO buckets (bucket, shard) VALUES (65536, 's1')", "23514"),
        ("SELECT put_shard('S1', false, 'h:1', 'h:2')", "23514"),
        ("SELECT put_service('x', 'no port')", "23514"),
    ],
)
async def test_what_would_break_the_map_is_refused(
    control: asyncpg.Connection[Any], change: str, state: str
) -> None:
    before = await version(control)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await control.execute(change)
    assert refused.value.sqlstate == state
    assert await version(control) == before


async def test_buckets_are_dealt_once_in_equal_runs(control: asyncpg.Connection[Any]) -> None:
    runs = await control.fetch(
        "SELECT shard, min(bucket), max(bucket), count(*) FROM buckets GROUP BY 1 ORDER BY 1"
    )
    assert [tuple(run) for run in runs] == [("s1", 0, 2047, 2048), ("s2", 2048, 4095, 2048)]
    before = await version(control)
    assert await control.fetchval("SELECT deal_buckets('s1', 's2', 'v1')") == 0
    assert await version(control) == before


async def test_a_vip_is_placed_once_and_keeps_every_bucket_it_ever_had(
    control: asyncpg.Connection[Any],
) -> None:
    hashed = user_bucket("big")
    assert await control.fetchval("SELECT place_vip('big', 4096, 'v1')") == [4096, hashed]
    before = await version(control)
    assert await control.fetchval("SELECT place_vip('big', 4096, 'v1')") == [4096, hashed]
    assert await version(control) == before
    assert await control.fetchval("SELECT place_vip('big', 4097, 'v1')") == [4097, 4096, hashed]
    assert await control.fetchval("SELECT buckets FROM vip_users") == [4097]
    with pytest.raises(asyncpg.UniqueViolationError):
        await control.execute("SELECT place_vip('other', 4097, 'v1')")


@pytest.mark.parametrize("user_id", ["alice", "42", "vip.1", "a" * 64, "x:y_z-1.2"])
async def test_the_hash_is_the_same_in_sql_and_in_python(
    control: asyncpg.Connection[Any], user_id: str
) -> None:
    assert await control.fetchval("SELECT user_bucket($1)", user_id) == user_bucket(user_id)


async def test_saying_the_same_again_moves_nothing(control: asyncpg.Connection[Any]) -> None:
    before = await version(control)
    assert not await control.fetchval("SELECT put_shard('s1', false, 'h:1', 'h:9')")
    assert not await control.fetchval("SELECT put_service('recovery_svc', 'h:8')")
    assert await version(control) == before
    assert await control.fetchval("SELECT put_shard('s1', false, 'h:6', 'h:9')")


async def test_the_proxy_reads_the_whole_map_of_one_version(control_database: DatabaseFactory) -> None:
    database = await control_database()
    settings = pg.PgSettings(dsn=database.dsn, pool_size=2, read_only=True)
    connection = await asyncpg.connect(database.dsn, server_settings={"search_path": "ordermesh"})
    async with pg.open_database(settings) as opened:
        store = MapStore(opened)
        empty = await store.read()
        assert (empty.version, empty.shards, empty.owners) == (0, {}, {})
        await connection.execute(
            "SELECT put_shard('s1', false, 'h:1', 'h:9'), put_shard('v1', true, 'h:3', 'h:9'),"
            " put_service('recovery_svc', 'h:8'), deal_buckets('s1')"
        )
        await connection.execute("SELECT place_vip('big', 4096, 'v1')")
        map_ = await store.read()
        assert map_.version == await store.version() > 0
    await connection.close()
    assert map_.shards["v1"] == Shard("v1", True, "h:3", "h:9")
    assert map_.services == {"recovery_svc": "h:8"}
    assert (len(map_.owners), map_.owners[4096]) == (4097, Owner("v1", 1))
    assert map_.vips["big"].buckets == (4096,)
    assert map_.ever["big"] == (4096, user_bucket("big"))
    assert abs((map_.vips["big"].since - map_.read_at).total_seconds()) < 60


async def test_the_schema_is_the_sum_of_its_migrations(
    control_database: DatabaseFactory, databases: Databases
) -> None:
    migrated = await control_database()
    at_once = await control_database()
    connection = await asyncpg.connect(migrated.dsn)
    await connection.execute("DROP SCHEMA ordermesh CASCADE")
    for migration in sorted((CONTROL / "migrations").glob("*.sql")):
        await connection.execute(migration.read_text(encoding="utf-8"))
    await connection.close()
    assert await catalog(migrated.dsn) == await catalog(at_once.dsn)


async def catalog(dsn: str) -> list[tuple[Any, ...]]:
    """Everything in the schema, as the database itself describes it."""
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch(
        """
        SELECT 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull::text,
               pg_get_expr(d.adbin, d.adrelid)
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
          LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
         WHERE c.relnamespace = 'ordermesh'::regnamespace
        UNION ALL SELECT 'function', proname, pg_get_functiondef(oid), '', '', '' FROM pg_proc
         WHERE pronamespace = 'ordermesh'::regnamespace
        UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', ''
          FROM pg_constraint WHERE connamespace = 'ordermesh'::regnamespace
        UNION ALL SELECT 'trigger', tgrelid::regclass::text, pg_get_triggerdef(oid), '', '', ''
          FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT 'index', tablename, indexdef, '', '', ''
          FROM pg_indexes WHERE schemaname = 'ordermesh'
        UNION ALL SELECT 'comment', objoid::regclass::text, description, '', '', '' FROM pg_description
         WHERE classoid = 'pg_class'::regclass
           AND objoid IN (SELECT oid FROM pg_class WHERE relnamespace = 'ordermesh'::regnamespace)
         ORDER BY 1, 2, 3, 4
        """
    )
    await connection.close()
    return [tuple(row) for row in rows]
