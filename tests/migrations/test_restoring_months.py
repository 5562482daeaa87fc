"""A month that comes back has its indexes before it is attached, also one that began to before 0019."""

from __future__ import annotations

from pathlib import Path

import pytest

from archive_svc.lifecycle import State
from ops.postgres import PostgresServer
from tests.archiving import AUGUST, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.databases import Database
from tests.inprocess_s3 import InProcessS3

MIGRATIONS = sorted((Path(__file__).parents[2] / "db" / "shard" / "migrations").glob("*.sql"))
NAME = "shard_whose_month_comes_back"
INDEXES = "SELECT count(*) FROM pg_index WHERE indrelid = to_regclass('ordermesh.' || $1)"
PARENTS = ("orders", "order_journal")


async def migrate(postgres: PostgresServer, *, since: str = "", until: str = "9") -> None:
    for script in MIGRATIONS:
        if since <= script.name < until:
            await postgres.run_sql(NAME, script.read_text(encoding="utf-8"))


async def lacks_indexes(archive: Archive) -> list[bool]:
    """Whether August's tables have fewer than what they are to hang on."""
    return [
        await archive.value(INDEXES, f"{parent}_2023_08") < await archive.value(INDEXES, parent)
        for parent in PARENTS
    ]


@pytest.mark.parametrize(("at", "begins_again"), [("0019", True), ("0022", False)])
async def test_a_month_that_comes_back_without_indexes_begins_once_more(
    postgres: PostgresServer, at: str, begins_again: bool
) -> None:
    await postgres.create_database(NAME)
    try:
        await migrate(postgres, until=at)
        database = Database(NAME, postgres.dsn(NAME))
        async with InProcessS3.serving() as server, opened(database, Place.of(server)) as archive:
            await fill(database, 300)
            twin = Twin(archive)
            await twin.remember()
            await archive.want(AUGUST)
            await archive.work()
            await archive.want(AUGUST, State.RESTORED)
            month = await archive.work(until=State.RESTORING)
            await archive.archiver._restorer.copy_back(month, await archive.fence())
            assert await lacks_indexes(archive) == [begins_again, begins_again]

            await migrate(postgres, since=at)
            assert (await archive.month(AUGUST)).state is (State.DROPPED if begins_again else State.RESTORING)
            await archive.work(until=State.RESTORING)
            assert await lacks_indexes(archive) == [False, False]
            assert (await archive.work()).state is State.RESTORED
            assert await twin.differences() == {}
    finally:
        await postgres.drop_database(NAME)
