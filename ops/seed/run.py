"""One seeding from start to end: find out what is there, then month by month, all shards side by side."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chassis.ids import user_bucket
from ops.seed.drafts import Drafts
from ops.seed.ledgers import Ledgers
from ops.seed.lives import lived
from ops.seed.plan import PlanRefused, latest_end
from ops.seed.rows import COLUMNS, records
from ops.seed.shard import checked, opened
from order_svc.settings import OrderSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import date, datetime
    from pathlib import Path

    from ops.seed.drafts import Draft
    from ops.seed.lives import Life
    from ops.seed.plan import Plan
    from ops.seed.rows import Record
    from ops.seed.shard import SeedMonth, SeedShard

BATCH = 1000
"""Orders of one shard in memory at once."""
PAUSE = 100
"""Orders that are lived in one go."""
KINDS: dict[str, tuple[str, ...]] = OrderSettings.model_fields["kinds"].default


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a seeding did. stages: of the orders it added, where they stand. until: the end of its time."""

    plan: Plan
    until: datetime
    months: tuple[date, ...]
    added: int
    there_before: int
    stages: dict[str, int]
    seconds: float

    @property
    def rate(self) -> float:
        """Orders a second."""
        return self.added / self.seconds if self.seconds else 0.0


async def run(
    plan: Plan,
    shards: Mapping[str, str],
    ledgers: Mapping[str, Path],
    progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Make the histories of a plan, as far as they are not there.

    shards:   addresses of the databases by name; together they own the hashed buckets.
    ledgers:  files of the upstreams' ledgers by name; empty where nobody audits them.
    progress: told how many orders of the plan are done with.
    If cancelled here: the months that are not committed are not there; the next run writes them.
    Raises: PlanRefused; ShardRefused.
    """
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        fleet = Fleet(
            {name: await stack.enter_async_context(opened(name, dsn)) for name, dsn in shards.items()}
        )
        books = Ledgers(ledgers)
        now = await fleet.now()
        drafts = await _drafts(plan, fleet, books, now)
        seeding = Seeding(drafts, fleet, books, progress)
        for shard in fleet.shards.values():
            seeding.there[shard.name] = await shard.months_there(drafts.months)
        for month in drafts.months:
            await seeding.month(month, plan.user_ids())
        for shard in fleet.shards.values():
            await shard.ensure_months(drafts.months)
    return Outcome(
        plan,
        drafts.until,
        drafts.months,
        added=seeding.stages.total(),
        there_before=plan.orders - seeding.stages.total(),
        stages=dict(sorted(seeding.stages.items())),
        seconds=round(time.monotonic() - started, 2),
    )


async def _drafts(plan: Plan, fleet: Fleet, books: Ledgers, now: datetime) -> Drafts:
    """The orders of a plan, dated as those that an earlier run began with.

    The first order's shard is committed before the others, so it alone says when that was.
    """
    drafts = Drafts(plan, latest_end(now), KINDS)
    first = drafts.user(0)
    origin = checked(await fleet.of(first).origin_of(first), plan.mark, plan.seed)
    if origin is None:
        await books.forget(plan.user_ids())
        return drafts
    return Drafts(plan, origin.until, KINDS)


class Fleet:
    """All shards, and whose orders belong where."""

    def __init__(self, shards: Mapping[str, SeedShard]) -> None:
        self.shards = shards
        self._owners = {bucket: shard for shard in shards.values() for bucket in shard.epochs}

    def of(self, user_id: str) -> SeedShard:
        """The shard of a user's hashed bucket.

        Raises: PlanRefused when none of the shards owns it.
        """
        bucket = user_bucket(user_id)
        owner = self._owners.get(bucket)
        if owner is None:
            raise PlanRefused(f"none of {', '.join(self.shards)} owns bucket {bucket} of user {user_id}.")
        return owner

    async def now(self) -> datetime:
        """The earliest of the shards' clocks."""
        return min([await shard.now() for shard in self.shards.values()])


@dataclass(slots=True)
class Seeding:
    """What is being done. stages: of the orders that were added. there: months with partitions, by shard."""

    drafts: Drafts
    fleet: Fleet
    books: Ledgers
    progress: Callable[[int], None]
    stages: Counter[str] = field(default_factory=Counter)
    there: dict[str, set[date]] = field(default_factory=dict)

    async def month(self, month: date, user_ids: Sequence[str]) -> None:
        """Write one month on every shard that does not have it."""
        numbers = self.drafts.numbers(month)
        owned: dict[str, list[str]] = {name: [] for name in self.fleet.shards}
        for user_id in user_ids:
            owned[self.fleet.of(user_id).name].append(user_id)
        missing = [
            shard
            for name, shard in self.fleet.shards.items()
            if owned[name] and not await shard.has_month(month, owned[name])
        ]
        # Contexts end in the opposite order: the first order's shard commits before all others.
        first = self.fleet.of(self.drafts.user(numbers.start)) if numbers else None
        missing.sort(key=lambda shard: shard is first)
        now = await self.fleet.now()
        async with AsyncExitStack() as stack:
            writers = {}
            for shard in missing:
                written = await stack.enter_async_context(
                    shard.month(month, aside=month not in self.there[shard.name])
                )
                writers[shard.name] = writer = Writer(shard, written, self, now)
                stack.push_async_callback(writer.end)
            await self._fill(numbers if writers else range(0), writers)
        for writer in writers.values():
            self.stages.update(writer.stages)

    async def _fill(self, numbers: range, writers: Mapping[str, Writer]) -> None:
        for number in numbers:
            draft = self.drafts.draft(number)
            writer = writers.get(self.fleet.of(draft.wish.user_id).name)
            if writer is not None:
                await writer.add(draft)
            if number % PAUSE == 0:
                self.progress(number)
                await asyncio.sleep(0)  # Whoever writes gets to send what is ready.
        for writer in writers.values():
            await writer.flush()
        self.progress(numbers.stop)


@dataclass(slots=True)
class Writer:
    """The orders of one shard's month, some of them still in memory. now: when the month was begun."""

    shard: SeedShard
    written: SeedMonth
    seeding: Seeding
    now: datetime
    stages: Counter[str] = field(default_factory=Counter)
    _lives: list[Life] = field(default_factory=list, init=False)
    _writing: asyncio.Task[None] | None = field(default=None, init=False)

    async def add(self, draft: Draft) -> None:
        """Live one order's life, and write it with others while the next ones are lived."""
        self._lives.append(lived(draft, until=self.seeding.drafts.until, now=self.now))
        if len(self._lives) >= BATCH:
            await self._written_before()
            self._writing = asyncio.create_task(self._write(self._lives), name=f"seed-{self.shard.name}")
            self._lives = []

    async def flush(self) -> None:
        """Write what is in memory."""
        await self._written_before()
        await self._write(self._lives)
        self._lives = []

    async def end(self) -> None:
        """Leave nothing behind that still writes, however the month ended."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _written_before(self) -> None:
        if self._writing is not None:
            await self._writing
            self._writing = None

    async def _write(self, lives: Sequence[Life]) -> None:
        """The ledgers first, so that no order lacks what was executed for it."""
        await self.seeding.books.remember([each for life in lives for each in life.executed])
        rows: dict[str, list[Record]] = {table: [] for table in COLUMNS}
        for life in lives:
            self.stages[life.order.stage if life.settled_at is None else life.order.status] += 1
            for table, found in records(life, self.shard.epochs[life.order.bucket], self.now).items():
                rows[table] += found
        await self.written.copy(rows)
