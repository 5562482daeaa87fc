"""A month that comes back has its indexes before it is attached, also one that began to before 0019."""

from __future__ import annotations

from pathlib import Path

import pytest

from archive_svc.lifecycle import State
from tests.archiving import AUGUST, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3

MIGRATIONS = Path(__file__).parents[2] / "db" / "shard" / "migrations"
INDEXES = "SELECT count(*) FROM pg_index WHERE indrelid = to_regclass('ordermesh.' || $1)"
PARENTS = ("orders", "order_journal")


def of_migration(name: str, first: str, last: str) -> str:
    """A piece of a migration."""
    script = (MIGRATIONS / name).read_text(encoding="utf-8")
    start = script.index(first)
    return script[start : script.index(last, start)] + last


def begin_restore(migration: str) -> str:
    """The function as a migration makes it."""
    made = of_migration(migration, "FUNCTION ordermesh.begin_restore(", "END $$;")
    return f"CREATE OR REPLACE {made}"


async def lacks_indexes(archive: Archive) -> list[bool]:
    """Whether August's tables have fewer than what they are to hang on."""
    return [
        await archive.value(INDEXES, f"{parent}_2023_08") < await archive.value(INDEXES, parent)
        for parent in PARENTS
    ]


@pytest.mark.parametrize(
    ("began_with", "begins_again"), [("0011_archive_upkeep", True), ("0019_archive_locks", False)]
)
async def test_a_month_that_comes_back_without_indexes_begins_once_more(
    shard_database: DatabaseFactory, began_with: str, begins_again: bool
) -> None:
    database = await shard_database()
    async with InProcessS3.serving() as server, opened(database, Place.of(server)) as archive:
        await fill(database, 300)
        twin = Twin(archive)
        await twin.remember()
        await archive.want(AUGUST)
        await archive.work()
        await archive.shard.execute(begin_restore(f"{began_with}.sql"))
        await archive.want(AUGUST, State.RESTORED)
        month = await archive.work(until=State.RESTORING)
        await archive.archiver._restorer.copy_back(month, await archive.fence())
        assert await lacks_indexes(archive) == [begins_again, begins_again]

        await archive.shard.execute(begin_restore("0019_archive_locks.sql"))
        again = of_migration("0022_recalls_and_rebuilds.sql", "DO $again$", "END $again$;")
        await archive.shard.execute(again)
        month = await archive.month(AUGUST)
        assert month.state is (State.DROPPED if begins_again else State.RESTORING)
        await archive.work(until=State.RESTORING)
        assert await lacks_indexes(archive) == [False, False]
        assert (await archive.work()).state is State.RESTORED
        assert await twin.differences() == {}
