"""schema.sql is the sum of its migrations, of shards and read models; the comparison would notice if not."""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ops.postgres import PostgresServer
from ops.stack.databases import schema_of

DB = Path(__file__).parent.parent.parent / "db"
SHARD = DB / "shard"
CATALOG = {
    "columns": """
        SELECT c.relname, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               a.attcollation::regcollation::text, pg_get_expr(d.adbin, d.adrelid)
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
         WHERE c.relnamespace = 'ordermesh'::regnamespace AND c.relkind IN ('r', 'p')""",
    "tables": """
        SELECT c.relname, c.relkind, c.reloptions, pg_get_partkeydef(c.oid),
               pg_get_expr(c.relpartbound, c.oid), obj_description(c.oid)
          FROM pg_class c
         WHERE c.relnamespace = 'ordermesh'::regnamespace AND c.relkind IN ('r', 'p', 'S')""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
          FROM pg_constraint WHERE connamespace = 'ordermesh'::regnamespace""",
    "views": """
        SELECT c.relname, pg_get_viewdef(c.oid)
          FROM pg_class c WHERE c.relnamespace = 'ordermesh'::regnamespace AND c.relkind = 'v'""",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'ordermesh'",
    "functions": """
        SELECT proname, pg_get_functiondef(oid)
          FROM pg_proc WHERE pronamespace = 'ordermesh'::regnamespace""",
    "triggers": """
        SELECT t.tgrelid::regclass::text, t.tgname, t.tgenabled, pg_get_triggerdef(t.oid)
          FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
         -- Those of Postgres itself carry an oid in their name and follow from the foreign keys above.
         WHERE c.relnamespace = 'ordermesh'::regnamespace AND NOT t.tgisinternal""",
    "migrations": "SELECT name FROM ordermesh.schema_migrations",
}


async def catalog(dsn: str) -> dict[str, list[Any]]:
    """Everything a schema consists of, in an order of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        return {
            name: sorted(tuple(map(str, row)) for row in await connection.fetch(statement))
            for name, statement in CATALOG.items()
        }
    finally:
        await connection.close()


async def built(postgres: PostgresServer, name: str, *scripts: Traversable) -> str:
    await postgres.create_database(name)
    for script in scripts:
        await postgres.run_sql(name, script.read_text(encoding="utf-8"))
    return postgres.dsn(name)


@pytest.fixture(scope="module")
async def both(postgres: PostgresServer) -> Any:
    migrations = sorted((SHARD / "migrations").glob("*.sql"))
    yield (
        await built(postgres, "shard_by_schema", *schema_of("shard")),
        await built(postgres, "shard_by_migrations", *migrations),
    )
    for name in ("shard_by_schema", "shard_by_migrations"):
        await postgres.drop_database(name)


async def test_the_schema_is_the_sum_of_its_migrations(both: tuple[str, str]) -> None:
    by_schema, by_migrations = await catalog(both[0]), await catalog(both[1])
    for name in CATALOG:
        assert by_schema[name] == by_migrations[name], name
        assert by_schema[name], f"the comparison of {name} compares nothing"


async def test_the_read_models_schema_is_the_sum_of_its_migrations(postgres: PostgresServer) -> None:
    migrations = sorted((DB / "readmodel" / "migrations").glob("*.sql"))
    ways: dict[str, list[Traversable]] = {
        "by_schema": schema_of("readmodel"),
        "by_migrations": list(migrations),
    }
    found = []
    for name, scripts in ways.items():
        found.append(await catalog(await built(postgres, f"readmodel_{name}", *scripts)))
        await postgres.drop_database(f"readmodel_{name}")
    assert found[0] == found[1]
    assert found[0]["migrations"] == [(path.stem,) for path in migrations]


async def test_every_migration_says_its_name(both: tuple[str, str]) -> None:
    names = [path.stem for path in sorted((SHARD / "migrations").glob("*.sql"))]
    assert (await catalog(both[1]))["migrations"] == [(name,) for name in names]


@pytest.mark.parametrize(
    ("part", "drift"),
    [
        ("columns", "ALTER TABLE ordermesh.orders ADD COLUMN note text"),
        ("columns", "ALTER TABLE ordermesh.orders ALTER COLUMN description SET DEFAULT 'x'"),
        ("constraints", "ALTER TABLE ordermesh.order_timers DROP CONSTRAINT done_has_no_timer"),
        ("indexes", "CREATE INDEX ON ordermesh.orders (status)"),
        (
            "functions",
            "CREATE OR REPLACE FUNCTION ordermesh.clock() RETURNS timestamptz LANGUAGE sql RETURN now()",
        ),
        ("triggers", "ALTER TABLE ordermesh.outbox ENABLE TRIGGER fence"),
        ("tables", "ALTER TABLE ordermesh.order_timers SET (fillfactor = 100)"),
    ],
)
async def test_a_drift_would_be_noticed(
    postgres: PostgresServer, both: tuple[str, str], part: str, drift: str
) -> None:
    name = "shard_that_drifted"
    dsn = await built(postgres, name, *schema_of("shard"))
    try:
        await postgres.run_sql(name, drift)
        assert (await catalog(dsn))[part] != (await catalog(both[0]))[part]
    finally:
        await postgres.drop_database(name)
