"""0026 waits for nobody who reads statements for long, and builds nothing while others wait for it."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from ops.postgres import PostgresServer

MIGRATIONS = Path(__file__).parents[2] / "db" / "shard" / "migrations"
NAME = "0026_wishes_and_sizes"
APPLIED = f"SELECT count(*) FROM ordermesh.schema_migrations WHERE name = '{NAME}'"
BEGUN_NINE_TIMES = """
INSERT INTO ordermesh.statements (
    statement_id, user_id, request_id, content_key, first_day, last_day, time_zone, locale, formats,
    since, until, as_of, placements, actor, asks, asked_at, created_at,
    state, ended_at, error_code, error_reason)
SELECT gen_random_uuid(), 'alice', gen_random_uuid(), sha256('a'), '2024-01-01', '2024-01-31',
       'UTC', 'en', '{CSV}', '2024-01-01Z', '2024-02-01Z', now(), '{}', 'alice', 9, now(), now(),
       'FAILED', now(), 9, 'ORDER_ARCHIVED'"""
INDEXES = "SELECT array_agg(indexrelid) FROM pg_index WHERE indrelid = 'ordermesh.statements'::regclass"


async def test_it_gives_up_where_somebody_reads_on_and_is_there_at_once_where_nobody_does(
    postgres: PostgresServer,
) -> None:
    name = "shard_of_wishes"
    script = (MIGRATIONS / f"{NAME}.sql").read_text(encoding="utf-8")
    await postgres.create_database(name)
    for path in sorted(MIGRATIONS.glob("*.sql")):
        if path.stem < NAME:
            await postgres.run_sql(name, path.read_text(encoding="utf-8"))
    reader = await asyncpg.connect(postgres.dsn(name))
    try:
        await reader.execute(BEGUN_NINE_TIMES)
        async with reader.transaction():
            assert await reader.fetchval("SELECT count(*) FROM ordermesh.statements") == 1
            with pytest.raises(asyncpg.LockNotAvailableError):
                await postgres.run_sql(name, script)
            assert await reader.fetchval(APPLIED) == 0
        before = await reader.fetchval(INDEXES)
        await postgres.run_sql(name, script)
        assert await reader.fetchval(APPLIED) == 1
        assert set(await reader.fetchval(INDEXES)) < set(before), "it built no index while writers waited"
        # Of what was begun before, the last time is known, and counts.
        asked = "SELECT ordermesh.statements_allowed_in('alice', clock_timestamp(), $1, 20)"
        assert await reader.fetchval(asked, 2) == 0
        assert await reader.fetchval(asked, 1) > 0
    finally:
        await reader.close()
        await postgres.drop_database(name)
