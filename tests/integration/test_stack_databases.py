"""Does a stack that kept the data of an earlier release come up with today's tables?"""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from ops.postgres import PostgresServer
from ops.stack import databases, layout

DB = Path(__file__).parents[2] / "db"


@pytest.mark.parametrize("kind", ["control", "shard"])
async def test_the_data_of_an_earlier_release_get_the_migrations_that_are_missing(
    postgres: PostgresServer, kind: str
) -> None:
    name = "control" if kind == "control" else layout.SHARDS[0]
    await postgres.create_database(name)
    scripts = sorted((DB / kind / "migrations").glob("*.sql"))
    await postgres.run_sql(name, scripts[0].read_text(encoding="utf-8"))
    prepare = databases.prepare_control if kind == "control" else databases.prepare_shard
    for _ in range(2):
        await (prepare(postgres) if kind == "control" else prepare(postgres, name))  # type: ignore[call-arg]
    connection = await asyncpg.connect(postgres.dsn(name))
    try:
        rows = await connection.fetch("SELECT name FROM ordermesh.schema_migrations ORDER BY name")
    finally:
        await connection.close()
        await postgres.drop_database(name)
    assert [row["name"] for row in rows] == [script.stem for script in scripts]
