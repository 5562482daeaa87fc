"""The doctor reads a real shard: when its last partitions end, by the catalog alone."""

from datetime import UTC, datetime, timedelta

from chassis import pg
from ops.doctor import stack
from ops.doctor.findings import Word
from ops.stack.endpoints import DatabaseEndpoint
from tests.conftest import DatabaseFactory


async def test_the_ends_of_partitions_are_read_from_the_catalog(shard_database: DatabaseFactory) -> None:
    database = await shard_database()
    async with pg.open_database(pg.PgSettings(dsn=database.dsn, pool_size=1, queue=1)) as shard:
        empty = {row["name"]: row["ends_at"] for row in await shard.fetch(stack.QUERIES.partitions_end)}
        await shard.fetchval("SELECT ordermesh.ensure_partitions()")
        made = {row["name"]: row["ends_at"] for row in await shard.fetch(stack.QUERIES.partitions_end)}
    assert {"orders", "order_journal", "outbox"} <= set(made)
    assert all(end > datetime.now(UTC) + timedelta(days=2) for end in made.values())
    assert set(empty) == set(made)
    assert stack.partitions("s1", made, datetime.now(UTC)).word is Word.OK


async def test_a_shard_that_does_not_answer_is_a_finding_and_no_failure(
    shard_database: DatabaseFactory,
) -> None:
    database = await shard_database()
    missing = database.dsn.replace(database.name, "no_such_database")
    [found] = await stack._database(DatabaseEndpoint(role="shard", shard="s1", dsn=missing), "postgres.s1")
    assert found.word is Word.BAD
    assert "ordermesh start postgres.s1" in found.fix
