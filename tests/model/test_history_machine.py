"""Is a user's history sound, whatever happens between the shards and the read model?

Hypothesis invents lives: orders are made and changed, also long after, transactions stay open, time passes,
projectors die at their awaits, the read model refuses, delays, stays away and loses indices, users become
VIPs on a shard of their own, one shard reads another generation of a month than the other, months are
archived on one shard or on both, given up and brought back, and readers walk their lists meanwhile. Every
page is held to what the shards say before and after it.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from history_svc.page import Filter
from history_svc.settings import HistorySettings
from history_svc.store import Shards
from order_svc.events import Verdict
from tests.databases import Databases
from tests.leaving import Leaving
from tests.model.history_world import DEDICATED, DEDICATED_BASE, SIZES, USERS, Walk, World
from tests.shards import opened
from tests.unit.orders import relabelled

FILTERS = (
    Filter(),
    Filter(),
    Filter(status="PENDING"),
    Filter(status="SUCCESS"),
    Filter(asked=("red",)),
    Filter(asked=("b",), status="FAILED"),
    Filter(currency_code="EUR", amount_min=1000, amount_max=1250),
)
ANY = st.integers(0, 1 << 16)
EXAMPLES = int(os.environ.get("HISTORY_TWIN_EXAMPLES", "100"))
"""Of months that come and go; `make nightly` has time for more."""
GROWN_MAX = 2


class HistoryMachine(RuleBasedStateMachine):
    """Two shards with two users."""

    runner: asyncio.Runner
    databases: Databases
    alter: Any = staticmethod(lambda world: None)
    seen: dict[str, int]

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    @initialize()
    def open(self) -> None:
        self.stack = AsyncExitStack()
        self.walks: list[Walk] = []
        self.grown = 0
        self.do(self._open())

    async def _open(self) -> None:
        homes = {}
        for name, base in (("s1", 0), ("v1", DEDICATED_BASE)):
            database = await self.databases.create("shard")
            self.stack.push_async_callback(self.databases.drop, database)
            homes[name] = await self.stack.enter_async_context(
                opened(database, pool_size=2, partition_base=base)
            )
        wanted = HistorySettings(
            tls_dir=Path(),
            subject_dir=Path(),
            profile="local",
            pool_size=1,
            shards={name: home.dsn for name, home in homes.items()},
        )
        shards = await self.stack.enter_async_context(Shards.open(wanted))
        self.world = World(homes["s1"], shards, homes["v1"])
        self.stack.push_async_callback(self.world.close)
        self.alter(self.world)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            for served_by, count in self.world.served.items():
                self.seen[served_by.value] = self.seen.get(served_by.value, 0) + count
            self.seen["overlaid"] = self.seen.get("overlaid", 0) + self.world.overlaid
            self.seen["floor"] = self.seen.get("floor", 0) + self.world.ended_at_floor
            self.seen["narrowed"] = self.seen.get("narrowed", 0) + self.world.read_model.narrowed
            self.do(self.stack.aclose())

    @rule(user=st.sampled_from(USERS), count=st.integers(1, 4))
    def create(self, user: str, count: int) -> None:
        for _ in range(count):
            self.do(self.world.create(user))

    @rule(which=ANY, verdict=st.sampled_from([Verdict.SUCCEEDED, Verdict.FAILED, Verdict.IN_PROGRESS]))
    def settle(self, which: int, verdict: Verdict) -> None:
        pending = [each for each in self.world.free() if self.world.orders[each].status == "PENDING"]
        if pending:
            order_id = pending[which % len(pending)]
            self.do(self.world.change(order_id, self.world.settling(order_id, verdict)))

    @rule(which=ANY)
    def relabel(self, which: int) -> None:
        free = self.world.free()
        if free:
            self.do(self.world.change(free[which % len(free)], relabelled({"n": str(which)})))

    @precondition(lambda self: len(self.world.open) < 2)
    @rule(user=st.sampled_from(USERS))
    def begin(self, user: str) -> None:
        self.do(self.world.begin(user))

    @precondition(lambda self: self.world.open)
    @rule(which=ANY, commit=st.booleans())
    def end(self, which: int, commit: bool) -> None:
        self.do(self.world.end(which, commit=commit))

    @rule()
    def index(self) -> None:
        self.do(self.world.index())

    @rule(dies_at=st.integers(1, 12))
    def index_and_die(self, dies_at: int) -> None:
        self.do(self.world.index(dies_at=dies_at))

    @precondition(lambda self: len(self.world.orders) < 12 and not self.world.open)
    @rule(user=st.sampled_from(USERS), changes=st.integers(0, 2))
    def grow_old(self, user: str, changes: int) -> None:
        """Orders are made and indexed, time passes, and some of them change after all."""
        for _ in range(4):
            self.do(self.world.create(user))
        self.do(self.world.pass_time(timedelta(hours=2)))
        self.do(self.world.index())
        for order_id in self.world.free()[:changes]:
            self.do(self.world.change(order_id, relabelled({"old": "yes"})))

    @rule(time=st.sampled_from([timedelta(minutes=50), timedelta(hours=30), timedelta(days=24)]))
    def wait(self, time: timedelta) -> None:
        if not self.world.open:
            self.do(self.world.pass_time(time))

    @rule(which=ANY)
    def trouble(self, which: int) -> None:
        self.world.read_model.down = which % 5 == 0 and not self.world.read_model.down
        self.world.read_model.later = which % 3

    @rule(which=ANY, heal=st.booleans())
    def poison(self, which: int, heal: bool) -> None:
        if heal:
            self.world.read_model.refuses.clear()
        elif free := self.world.free():
            self.world.read_model.refuses.add(str(free[which % len(free)]))

    @rule(which=ANY)
    def lose(self, which: int) -> None:
        names = sorted(self.world.read_model.stored)
        if names and which % 8 == 0:
            self.world.read_model.lose(names[which % len(names)])

    @rule(user=st.sampled_from(USERS))
    def promote(self, user: str) -> None:
        if len(self.world.buckets[user]) == 1:
            self.world.buckets[user].append(DEDICATED)

    @rule(name=st.sampled_from(("s1", "v1")), which=ANY)
    def change_over(self, name: str, which: int) -> None:
        self.do(self.world.change_over(name, which))

    @precondition(lambda self: len(self.world.orders) < 12 and not self.world.open)
    @rule(user=st.sampled_from(USERS), name=st.sampled_from(("s1", "v1")), shown=st.sampled_from(FILTERS))
    def part_ways(self, user: str, name: str, shown: Filter) -> None:
        """A user has old orders on both shards, and one of these has a month of them built again."""
        self.do(self.world.create(user))
        self.promote(user)
        self.do(self.world.create(user))
        self.do(self.world.pass_time(timedelta(hours=2)))
        self.do(self.world.index())
        self.do(self.world.change_over(name))
        self.do(self.world.looked(user, shown, 100))

    @rule(user=st.sampled_from(USERS), shown=st.sampled_from(FILTERS), size=st.sampled_from(SIZES))
    def page(self, user: str, shown: Filter, size: int) -> None:
        self.do(self.world.looked(user, shown, size))

    @rule(user=st.sampled_from(USERS), shown=st.sampled_from(FILTERS))
    def whole_list(self, user: str, shown: Filter) -> None:
        walk = self.do(self.world.start_walk(user, shown, 3))
        for _ in range(20):
            if walk.before is not None:
                self.do(self.world.walk_on(walk))

    @rule(user=st.sampled_from(USERS), shown=st.sampled_from(FILTERS), size=st.sampled_from(SIZES), which=ANY)
    def page_while_it_is_indexed(self, user: str, shown: Filter, size: int, which: int) -> None:
        """Between the shard's answer and the search, an order changes and the read model catches up."""
        free = [each for each in self.world.free() if self.world.orders[each].user_id == user]
        if free:
            self.do(
                self.world.looked(user, shown, size, meanwhile=lambda: self.overtake(free[which % len(free)]))
            )

    async def overtake(self, order_id: UUID) -> None:
        await self.world.change(order_id, relabelled({"n": "overtaken"}))
        await self.world.index()

    @precondition(lambda self: len(self.walks) < 2)
    @rule(user=st.sampled_from(USERS), shown=st.sampled_from(FILTERS), size=st.sampled_from(SIZES[1:4]))
    def start_walk(self, user: str, shown: Filter, size: int) -> None:
        self.walks.append(self.do(self.world.start_walk(user, shown, size)))

    @precondition(lambda self: self.walks)
    @rule(which=ANY, pages=st.integers(1, 3))
    def walk_on(self, which: int, pages: int) -> None:
        walk = self.walks[which % len(self.walks)]
        for _ in range(pages):
            if walk.before is not None:
                self.do(self.world.walk_on(walk))
        if walk.before is None:
            self.walks.remove(walk)


class ArchivingMachine(HistoryMachine):
    """The same, and months that leave the shards and come back."""

    @precondition(lambda self: not self.world.open)
    @rule(name=st.sampled_from(("s1", "v1")), which=ANY)
    def archive(self, name: str, which: int) -> None:
        """Orders grow older than a month, which is archived, mostly on one shard before the other."""
        if self.grown < GROWN_MAX and self.do(Leaving(self.world.homes[name]).oldest()) is None:
            self.grown += 1
            for user in USERS:
                self.do(self.world.create(user))
            self.do(self.world.pass_time(timedelta(days=32)))
            self.do(self.world.index())
        self.do(self.world.archive(name))
        if which % 3 == 0:
            self.do(self.world.archive("v1" if name == "s1" else "s1"))
        for user in USERS:
            self.do(self.world.looked(user, FILTERS[which % len(FILTERS)], 100))

    @precondition(lambda self: self.world.archived and not self.world.open)
    @rule(which=ANY, restores=st.booleans())
    def move_archived(self, which: int, restores: bool) -> None:
        names = sorted({name for name, _ in self.world.archived})
        step = self.world.restore if restores else self.world.clear_out
        self.do(step(names[which % len(names)]))

    @precondition(lambda self: self.world.archived)
    @rule()
    def keep_up(self) -> None:
        self.do(self.world.keep_up())


def run(
    databases: Databases,
    runner: asyncio.Runner,
    alter: Any,
    *,
    examples: int,
    steps: int,
    machine: type[HistoryMachine] = HistoryMachine,
) -> dict[str, int]:
    """Run the machine in a world that was altered; how its pages were served."""
    seen: dict[str, int] = {}
    altered = type(
        "AlteredMachine",
        (machine,),
        {"runner": runner, "databases": databases, "alter": staticmethod(alter), "seen": seen},
    )
    run_state_machine_as_test(
        altered,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
    return seen


@pytest.mark.timeout(600)
def test_every_page_shows_what_the_shard_says_whatever_happens_on_the_way(databases: Databases) -> None:
    with asyncio.Runner() as runner:
        seen = run(databases, runner, lambda world: None, examples=70, steps=40)
    assert seen.keys() >= {"SQL", "READ_MODEL", "MERGED", "SQL_FALLBACK"}, (
        "the machine sees every kind of page"
    )
    assert seen["overlaid"] > 20
    assert seen["narrowed"] > 20, "and shards that serve different generations"


@pytest.mark.timeout(600 + 10 * EXAMPLES)
def test_every_list_ends_where_the_archive_begins_and_nowhere_else(databases: Databases) -> None:
    with asyncio.Runner() as runner:
        seen = run(
            databases, runner, lambda world: None, examples=EXAMPLES, steps=40, machine=ArchivingMachine
        )
    assert seen.keys() >= {"SQL", "READ_MODEL", "MERGED", "SQL_FALLBACK"}
    assert seen["floor"] > 20, "lists that end where the archive begins"
