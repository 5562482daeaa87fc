"""What every process tells of a shard's archive, whoever holds the lease: times, counts, nothing stale."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY

from archive_svc.catalog import Catalog
from archive_svc.lifecycle import State, manifest_prefix
from archive_svc.standing import COUNTS, TIMES, Standing, Standings
from archive_svc.sweep import Sweeps
from chassis import pg
from chassis.looking import Looking
from chassis.testing import FakeClock
from ops import ports
from tests.archiving import AUGUST, PACING, SEPTEMBER, STEPS_MAX, Archive, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3

OCTOBER = date(2023, 10, 1)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
USER = "user.1"


@pytest.fixture
async def archive(shard_database: DatabaseFactory) -> AsyncIterator[Archive]:
    database = await shard_database()
    async with InProcessS3.serving() as server, opened(database, Place.of(server)) as ready:
        await fill(database, 100)
        yield ready


@pytest.fixture(autouse=True)
def nothing_told() -> None:
    """What tests before this one told of their shards is gone."""
    for gauge in (*TIMES, *COUNTS):
        gauge.remove_by_labels({"shard": "s1"})


def looking(archive: Archive, shard: pg.Database | None = None, reach: State | None = None) -> Looking:
    """Somebody who looks, and never has the lease."""
    database = shard or archive.shard
    standing = Standing(
        Standings("s1", database),
        Catalog("s1", database),
        Sweeps("s1", database),
        replace(PACING, reach=reach),
    )
    return Looking(standing, FakeClock(), lambda: 0.5)


def shown(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"ordermesh_archive_{name}", {"shard": "s1", **labels})


async def told(archive: Archive, name: str, reach: State | None = None) -> datetime | None:
    """A time as it is told; None for the present."""
    before = await archive.value("SELECT clock_timestamp()")
    assert await looking(archive, reach=reach).once()
    value = shown(f"{name}_until_seconds")
    assert value is not None
    at = datetime.fromtimestamp(value, UTC)
    return at if abs(at - before) > timedelta(minutes=5) else None


async def asked(archive: Archive, month: date, at: datetime) -> None:
    await archive.shard.execute(
        "UPDATE ordermesh.archive_months SET created_at = $2 WHERE month = $1", month, at
    )


async def test_a_month_that_was_asked_for_is_late_until_it_is_committed(archive: Archive) -> None:
    assert await told(archive, "archived") is None
    await archive.want(AUGUST)
    assert await told(archive, "archived") is None, "it was asked for just now"
    await asked(archive, AUGUST, LONG_AGO)
    assert await told(archive, "archived") == LONG_AGO
    assert shown("months", state="WANTED") == 1
    await archive.work(until=State.COMMITTED)
    assert await told(archive, "archived") is None
    assert (shown("months", state="WANTED"), shown("months", state="COMMITTED")) == (0, 1)


async def test_a_month_that_waits_behind_one_that_came_back_is_late_since_then(archive: Archive) -> None:
    for month in (AUGUST, SEPTEMBER):
        await archive.want(month)
        await archive.work(month=month)
    await archive.want(AUGUST, State.RESTORED)
    assert (await archive.work()).state is State.RESTORED
    assert await told(archive, "archived", State.DROPPED) is None, "it came back just now"
    await archive.shard.execute(
        "UPDATE ordermesh.archive_months SET committed_at = committed_at - interval '1 year', "
        "created_at = $1::timestamptz - interval '1 year', restored_at = $1",
        LONG_AGO,
    )
    assert await told(archive, "archived", State.DROPPED) == LONG_AGO
    assert await told(archive, "archived") is None, "nobody asked for a month that waits behind it"
    await archive.shard.execute("SELECT ordermesh.ensure_month('2023-10-15Z')")
    await archive.want(OCTOBER)
    await asked(archive, OCTOBER, LONG_AGO + timedelta(days=1))
    assert (await archive.work(month=OCTOBER)).state is State.WANTED
    assert await told(archive, "archived") == LONG_AGO + timedelta(days=1)


async def test_a_month_that_was_thawed_is_late_since_then_where_months_go_by_themselves(
    archive: Archive,
) -> None:
    assert await told(archive, "archived", State.DROPPED) == datetime(2025, 9, 8, tzinfo=UTC)
    await archive.want(AUGUST, State.VERIFIED)
    await archive.work()
    await archive.want(AUGUST, State.THAWED)
    await archive.work()
    await archive.shard.execute("SELECT ordermesh.ensure_month(clock_timestamp())")
    await archive.shard.execute("DROP TABLE ordermesh.orders_2023_09, ordermesh.order_journal_2023_09")
    assert await told(archive, "archived", State.DROPPED) is None
    await archive.shard.execute(
        "UPDATE ordermesh.archive_months SET updated_at = $1, created_at = $1", LONG_AGO
    )
    assert await told(archive, "archived", State.DROPPED) == LONG_AGO


async def test_an_erasure_is_late_from_when_it_was_asked_for_until_it_ends(archive: Archive) -> None:
    await archive.want(AUGUST, State.GRACE)
    await archive.work()
    assert await told(archive, "erased") is None
    await archive.catalog.want_erasure(uuid4(), USER, "a test", "they asked for it")
    await archive.work()
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET created_at = $1", LONG_AGO)
    assert await told(archive, "erased") == LONG_AGO
    await archive.want(AUGUST)
    await archive.work()
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET not_before = 'epoch'")
    await archive.work()
    assert await told(archive, "erased") is None


@pytest.mark.parametrize("user_id", [USER, None])
async def test_an_erasure_that_a_legal_hold_keeps_is_not_late(archive: Archive, user_id: str | None) -> None:
    await archive.want(AUGUST)
    await archive.work()
    month = None if user_id else AUGUST
    await archive.holds.put(user_id, month, "a test", "a court said so")
    await archive.catalog.want_erasure(uuid4(), USER, "a test", "they asked for it")
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET created_at = $1", LONG_AGO)
    assert await told(archive, "erased") == LONG_AGO, "nobody looked at it yet"
    await archive.work()
    assert await told(archive, "erased") is None
    await archive.holds.lift(user_id, month, "a test", "it is over")
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET not_before = 'epoch'")
    await archive.work()
    assert await archive.value("SELECT count(*) FROM ordermesh.archive_erasures WHERE ended_at IS NULL") == 0


async def test_the_kill_switch_shows_since_when_it_is_on(archive: Archive) -> None:
    assert (await told(archive, "unhalted"), shown("halted")) == (None, 0)
    await archive.catalog.halt(True, "a test", "stop")
    await archive.shard.execute("UPDATE ordermesh.archive_lease SET changed_at = $1", LONG_AGO)
    assert (await told(archive, "unhalted"), shown("halted")) == (LONG_AGO, 1)
    await archive.catalog.halt(False, "a test", "go on")
    assert (await told(archive, "unhalted"), shown("halted")) == (None, 0)


async def test_a_walk_that_is_refused_shows_until_another_is_not(archive: Archive) -> None:
    key = f"{manifest_prefix('s1')}{AUGUST:%Y-%m}/{uuid4()}-{'0' * 16}-{1:010}.json"
    stored = await archive.store.create(key, b"{}")
    for is_refused in (True, False):
        walk = await archive.sweeps.want(uuid4(), "a test", "what is there?", deletes=False)
        for _ in range(STEPS_MAX):
            if not await archive.archiver.once(await archive.fence()):
                break
        assert (await archive.sweeps.totals()).ended_at is not None, walk
        assert await looking(archive).once()
        assert shown("sweep_refused") == is_refused
        if is_refused:
            await archive.store.delete(stored)


async def test_what_was_mended_is_told_by_whoever_looks_and_does_not_archive(archive: Archive) -> None:
    """As a process does that had the lease when it went wrong, and lost it since."""
    await archive.want(AUGUST)
    change = "UPDATE ordermesh.archive_months SET failures = $1, quarantined = $2"
    for failures, why, expected in ((3, "", (1, 0)), (3, "it differs", (0, 1)), (0, "", (0, 0))):
        await archive.shard.execute(change, failures, why)
        assert await looking(archive).once()
        assert (shown("months_failing"), shown("months_quarantined")) == expected


async def test_what_cannot_be_seen_is_not_shown_and_times_grow_old(archive: Archive) -> None:
    assert await told(archive, "archived") is None
    seen = {name: shown(f"{name}_until_seconds") for name in ("archived", "erased", "unhalted")}
    away = pg.PgSettings(dsn=f"postgresql://nobody@127.0.0.1:{ports.free_port()}/nothing", pool_size=1)
    async with pg.open_database(away, name="away") as database:
        assert not await looking(archive, database).once()
    assert {name: shown(f"{name}_until_seconds") for name in seen} == seen
    assert shown("months_quarantined") is shown("months_failing") is shown("halted") is None
    assert shown("months", state="WANTED") is shown("strays") is shown("sweep_refused") is None
    assert await looking(archive).once()
    assert shown("months_failing") == 0
