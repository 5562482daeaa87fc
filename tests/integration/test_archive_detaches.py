"""What is decided between the two detaches of a month keeps the second table where it is."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from archive_svc import points
from archive_svc.errors import LeaseLost
from archive_svc.lifecycle import State
from chassis import faults
from tests.archiving import AUGUST, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3

FIRST, SECOND = "ordermesh.order_journal_2023_08", "ordermesh.orders_2023_08"
Change = Callable[[Archive], Awaitable[None]]


@pytest.fixture
async def archive(shard_database: DatabaseFactory) -> AsyncIterator[Archive]:
    database = await shard_database()
    async with InProcessS3.serving() as server, opened(database, Place.of(server)) as ready:
        await fill(database, 200)
        yield ready


async def halted(archive: Archive) -> None:
    await archive.catalog.halt(True, "a test", "stop")


async def replaced(archive: Archive) -> None:
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET fence = fence + 1")


async def held(archive: Archive) -> None:
    await archive.holds.put(None, AUGUST, "a test", "a court wants it")


async def decided_between(monkeypatch: pytest.MonkeyPatch, archive: Archive, change: Change) -> None:
    """Let August stand before its detach, and this happen when its first table is gone."""
    await archive.want(AUGUST)
    await archive.work(until=State.DETACHING)

    async def point(name: str) -> None:
        if name == points.BETWEEN_DETACHES:
            monkeypatch.undo()
            await change(archive)

    monkeypatch.setattr(faults, "point", point)


async def is_half_way(archive: Archive) -> bool:
    return not await archive.is_attached(FIRST) and await archive.is_attached(SECOND)


@pytest.mark.parametrize("change", [halted, replaced])
async def test_a_halt_and_a_newer_fence_keep_the_second_table(
    monkeypatch: pytest.MonkeyPatch, archive: Archive, change: Change
) -> None:
    await decided_between(monkeypatch, archive, change)
    with pytest.raises(LeaseLost):
        await archive.archiver.once(await archive.fence())
    assert await is_half_way(archive)
    assert (await archive.month(AUGUST)).state is State.DETACHING
    await archive.catalog.halt(False, "a test", "go on")
    assert (await archive.work()).state is State.DROPPED


async def test_a_legal_hold_keeps_the_second_table_until_it_is_lifted_or_the_month_comes_back(
    monkeypatch: pytest.MonkeyPatch, archive: Archive
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await decided_between(monkeypatch, archive, held)
    assert (await archive.work()).state is State.DETACHING
    assert await is_half_way(archive)
    note = await archive.value("SELECT note FROM ordermesh.archive_months")
    assert note == "LEGAL_HOLD of 2023-08 by a test: a court wants it"
    await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
    assert (await archive.work()).state is State.DETACHING
    assert await is_half_way(archive)

    await archive.want(AUGUST, State.RESTORED)
    assert (await archive.work()).state is State.RESTORED
    assert await twin.differences() == {}
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.COMMITTED
    await archive.holds.lift(None, AUGUST, "a test", "over")
    await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
    assert (await archive.work()).state is State.DROPPED


async def test_tables_that_are_not_what_was_proven_are_found_as_soon_as_they_stand_alone(
    archive: Archive,
) -> None:
    await archive.want(AUGUST)
    assert (await archive.work(until=State.DETACHING)).state is State.DETACHING
    await archive.shard.execute("ALTER TABLE ordermesh.orders_2023_08 DISABLE TRIGGER ALL")
    await archive.shard.execute(
        "UPDATE ordermesh.orders_2023_08 SET description = description || '!'"
        " WHERE order_id = (SELECT order_id FROM ordermesh.orders_2023_08 LIMIT 1)"
    )
    month = await archive.work()
    assert (month.state, month.drop_from) == (State.DETACHING, None)
    assert month.quarantined == "DETACH: the tables are not what was proven any more"
    for table in ("orders", "order_journal"):
        assert await archive.exists(f"{table}_2023_08")
        assert not await archive.is_attached(f"ordermesh.{table}_2023_08")
    # Somebody says that it may come back; then it is compared before readers turn to it.
    await archive.want(AUGUST, State.RESTORED)
    month = await archive.work()
    assert month.quarantined == "RESTORE: the tables are not what was proven"
