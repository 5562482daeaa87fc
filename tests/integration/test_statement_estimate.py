"""What a statement will read from the archive, before anything is read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from archive_svc.lifecycle import State
from archive_svc.statement.store import StatementStore
from tests.archiving import AUGUST, SEPTEMBER, Archive, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3

SINCE, UNTIL = datetime(2023, 8, 1, tzinfo=UTC), datetime(2023, 10, 1, tzinfo=UTC)
BUSY = "busy"


@pytest.fixture
async def archive(shard_database: DatabaseFactory) -> AsyncIterator[Archive]:
    database = await shard_database()
    async with InProcessS3.serving() as server, opened(database, Place.of(server)) as ready:
        for month in (AUGUST, SEPTEMBER):
            users = [BUSY] * 6 + [f"user.{number}" for number in range(40)]
            await fill(database, 600, month, seed=month.month, users=users)
        yield ready


async def test_the_estimate_is_the_row_groups_and_footers_of_the_user(archive: Archive) -> None:
    store = StatementStore("s1", archive.shard)
    assert await store.archive_bytes_of(BUSY, SINCE, UNTIL) == 0
    sizes = {}
    for month in (AUGUST, SEPTEMBER):
        await archive.want(month, State.COMMITTED)
        await archive.work(until=State.COMMITTED, month=month)
        found = [each.facts for each in await archive.segments(month) if each.table == "orders"]
        sizes[month] = sum(
            facts.footer_bytes + sum(facts.groups[place].size_bytes for place in facts.groups_of(BUSY))
            for facts in found
            if facts.first and facts.last and facts.first.user_id <= BUSY <= facts.last.user_id
        )
        assert sizes[month] > 0
    assert await store.archive_bytes_of(BUSY, SINCE, UNTIL) == sum(sizes.values())
    # Only what is within the period, to the instant.
    september = datetime(2023, 9, 1, tzinfo=UTC)
    assert await store.archive_bytes_of(BUSY, SINCE, september) == sizes[AUGUST]
    assert await store.archive_bytes_of(BUSY, september, UNTIL) == sizes[SEPTEMBER]
    assert await store.archive_bytes_of("zz", SINCE, UNTIL) < sum(sizes.values())
