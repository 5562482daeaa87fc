"""Is a statement what it would be if nothing had ever been archived, whatever the archive does meanwhile?

Hypothesis chooses a user and a period, how far two months have gone when the reading begins, after which
batch the archive goes on, and how far. The orders read have to be those that the tables held before.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from archive_svc.errors import MonthAhead, MonthInTables
from archive_svc.lifecycle import State
from archive_svc.statement import legs
from archive_svc.statement.rows import Row
from tests.archiving import AUGUST, SEPTEMBER, Archive, fill, opened
from tests.buckets import Place
from tests.databases import Databases
from tests.inprocess_s3 import InProcessS3
from tests.papers import SINCE, UNTIL, known_rows, reader, rows_of, waits_or_ends, wanted, within

EXAMPLES = int(os.environ.get("STATEMENT_TWIN_EXAMPLES", "90"))
OCTOBER = date(2023, 10, 1)
USERS = ("user.a", "user.b", "user.c")
BEFORE = (
    State.WANTED,
    State.FROZEN,
    State.PLANNED,
    State.EXPORTED,
    State.VERIFIED,
    State.COMMITTED,
    State.DETACHING,
    State.GRACE,
    State.DROPPED,
    State.RESTORED,
)
REACHES = (State.COMMITTED, State.GRACE, State.DROPPED, State.RESTORED)
ZONES = ("UTC", "Asia/Kolkata", "America/New_York", "Pacific/Apia")
EDGES = (timedelta(0), timedelta(microseconds=1), timedelta(milliseconds=-1), timedelta(days=9, seconds=1))
BATCH_ROWS = 7


@st.composite
def periods(draw: Any) -> tuple[datetime, datetime]:
    """From around one edge of a month, in some zone, to around another, or from one order's instant on."""

    def edge() -> datetime:
        zone = ZoneInfo(draw(st.sampled_from(ZONES)))
        month = draw(st.integers(7, 11))
        away: timedelta = draw(st.sampled_from(EDGES))
        return datetime(2023, month, 1, tzinfo=zone).astimezone(UTC) + away

    first, second = sorted((edge(), edge()))
    return first, second if first < second else first + timedelta(days=40)


class World:
    """One shard with three months, of which the first two come and go."""

    def __init__(self, archive: Archive, known: dict[str, list[Row]]) -> None:
        self.archive = archive
        self.known = known
        self.seen: set[str] = set()

    async def bring(self, month: date, state: State) -> None:
        """Take a month from wherever it stands to a state, by way of its tables."""
        await self.home(month)
        if state is State.RESTORED:
            await self.archive.want(month, State.COMMITTED)
            await self.archive.work(month=month)
            await self.home(month)
        else:
            await self.archive.want(month, State.DROPPED)
            assert (await self.archive.work(until=state, month=month)).state is state

    async def home(self, month: date) -> None:
        """Let a month's tables be read again."""
        there = {each.month: each for each in await self.archive.catalog.months()}
        if month not in there or there[month].state in (State.THAWED, State.RESTORED):
            return
        is_served = there[month].state in (State.COMMITTED, State.DETACHING, State.GRACE, State.DROPPED)
        home = State.RESTORED if is_served else State.THAWED
        await self.archive.want(month, home)
        assert (await self.archive.work(month=month)).state is home

    async def goes_on(self, month: date, reach: State) -> asyncio.Task[Any]:
        """Let the archive take a month on until it is there or waits for the reader."""
        with suppress(MonthAhead, MonthInTables):  # Then it goes where it was to go.
            await self.archive.want(month, reach)
        work = asyncio.create_task(self.archive.work(month=month), name="the archive goes on")

        await waits_or_ends(self.archive, work)
        self.seen.add("ended" if work.done() else "waited")
        return work


async def one_statement(world: World, told: dict[str, Any]) -> None:
    """One statement. Hypothesis has chosen everything in `told`."""
    archive, (since, until) = world.archive, told["period"]
    await world.home(SEPTEMBER)
    await world.bring(AUGUST, told["before"])
    if told["september"] and told["before"] in (State.COMMITTED, State.GRACE, State.DROPPED):
        await world.bring(SEPTEMBER, told["september"])
    wish = wanted(told["user"], since, until)
    going: list[asyncio.Task[Any]] = []

    async def after_batch(number: int) -> None:
        if number == told["pause"] and told["reach"]:
            going.append(await world.goes_on(AUGUST, told["reach"]))

    try:
        found = await rows_of([reader(archive.database.dsn, archive.store)], wish, after_batch=after_batch)
    finally:
        await asyncio.gather(*going)
    assert found == within(world.known[told["user"]], since, until)
    if found:
        world.seen.add(told["before"].value)
        event(told["before"].value)


async def world_of(stack: AsyncExitStack, databases: Databases) -> World:
    database = await databases.create("shard")
    stack.push_async_callback(databases.drop, database)
    server = await stack.enter_async_context(InProcessS3.serving())
    archive = await stack.enter_async_context(opened(database, Place.of(server), part_bytes=16 * 1024))
    await archive.shard.execute("SELECT ordermesh.ensure_month('2023-10-01Z')")
    for number, month in enumerate((AUGUST, SEPTEMBER, OCTOBER)):
        await fill(database, 60, month, seed=number, users=USERS)
    return World(archive, await known_rows(archive))


@pytest.mark.timeout(600 + 10 * EXAMPLES)
def test_a_statement_is_that_of_a_shard_from_which_nothing_was_archived(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legs, "BATCH_ROWS", BATCH_ROWS)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        world = runner.run(world_of(stack, databases))

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            user=st.sampled_from(USERS),
            period=periods(),
            before=st.sampled_from(BEFORE),
            september=st.sampled_from((None, State.VERIFIED, State.COMMITTED, State.DROPPED)),
            pause=st.integers(1, 5),
            reach=st.sampled_from((None, *REACHES)),
        )
        def hold(**told: Any) -> None:
            runner.run(one_statement(world, told))

        for state in BEFORE:
            whole = {"user": "user.a", "period": (SINCE, UNTIL), "before": state, "september": None}
            hold = example(**whole, pause=1, reach=State.DROPPED)(hold)
        try:
            hold()
            unseen = {state.value for state in BEFORE} - world.seen
            assert not unseen, "every state was met with orders to read"
            assert world.seen >= {"ended", "waited"}, "the archive went on meanwhile, and had to wait"
        finally:
            runner.run(stack.aclose())
