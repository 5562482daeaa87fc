"""The care for a small world's projection: operations are carried on step by step, beside its projector."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from uuid import uuid4

from chassis.clock import SYSTEM_CLOCK
from history_svc.care.caretaker import Caretaker
from history_svc.care.operation import Kind, Operation, State
from history_svc.care.parts import Pacing, Parts
from history_svc.care.store import CareStore
from history_svc.care.upkeep import Upkeep
from history_svc.document import month_of
from history_svc.projector.store import ProjectionStore
from tests.model.history_world import QUARANTINE_MAX, World

TERM = 1
STEPS_MAX = 60
FAST = Pacing(every_s=0.0, copy_rate=1_000_000, settle_s=10.0, grace=timedelta(), verify_every=timedelta())


class Keeper:
    """The care for one world. Its watermark only moves while the world indexes, so it does between steps."""

    def __init__(self, world: World, pacing: Pacing = FAST) -> None:
        self.world = world
        self.store = CareStore("s1", world.shard.db)
        self.projection = ProjectionStore("s1", world.shard.db)
        self.parts = Parts(
            care=self.store,
            projection=self.projection,
            read_model=world.read_model,
            clock=SYSTEM_CLOCK,
            jitter=random.Random(1).random,
            pacing=pacing,
            quarantine_max=QUARANTINE_MAX,
        )
        self.caretaker = Caretaker(self.parts, leadership=None)  # type: ignore[arg-type]
        self.upkeep = Upkeep({"s1": self.parts})
        self._one_projector = asyncio.Lock()

    async def lead(self) -> None:
        """Take the term that the steps are done in."""
        await self.world.shard.db.execute(
            "INSERT INTO relay_lease (term, holder, taken_at) VALUES ($1, 'a test', clock_timestamp())"
            " ON CONFLICT DO NOTHING",
            TERM,
        )

    async def ask(self, kind: Kind, *, repairs: bool = False) -> Operation:
        """Open an operation for the month of the world's first order."""
        month = None
        if kind in (Kind.REBUILD, Kind.VERIFY):
            month = month_of(await self.world.shard.value("SELECT min(created_at) FROM orders"))
        return await self.store.open(
            uuid4(), kind, month, repairs=repairs, actor="a test", reason="a test asks for it"
        )

    async def step(self) -> bool:
        """One step of the care; whether there was one to do."""
        return await self.caretaker.step(TERM)

    async def work(self) -> list[Operation]:
        """Carry everything on until nothing is open, while the projector goes on. All operations."""
        for _ in range(STEPS_MAX):
            if not await self.step() and not [each for each in await self.all() if each.state is State.OPEN]:
                break
            await self.index()
        return await self.all()

    async def index(self) -> None:
        """Let the world's one projector work until it has nothing to do."""
        async with self._one_projector:
            await self.world.index()

    @asynccontextmanager
    async def indexing(self) -> AsyncIterator[None]:
        """The projector works while the context lives."""

        async def work() -> None:
            while True:
                await self.index()

        task = asyncio.create_task(work())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.world.end_indexing()  # They were cut off anywhere.

    async def create(self, count: int, user: str = "alice") -> None:
        """Some orders, all of them indexed."""
        for _ in range(count):
            await self.world.create(user)
        await self.index()

    async def all(self) -> list[Operation]:
        """All operations, the newest first."""
        return await self.store.operations(100)

    async def projection_months(self) -> set[object]:
        """The months that the catalog knows."""
        return {index.month for index in (await self.projection.catalog()).indices}

    async def states(self) -> dict[int, str]:
        """State of each generation of the month of the world's first order."""
        rows = await self.world.shard.rows(
            "SELECT generation, state FROM projection_index"
            " WHERE month = (SELECT min(month) FROM projection_index) ORDER BY 1"
        )
        return {row["generation"]: row["state"] for row in rows}
