"""Everybody who walks in one run, and what they share: the book, the counts, and the orders that are changed
meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from ops import mesh
from ops.load.http import Http
from ops.load.senders import Bearers
from ops.load.walk import grounds
from ops.load.walk.book import Book, Freshness
from ops.load.walk.changes import Relabeller, Resolver
from ops.load.walk.figures import Walked
from ops.load.walk.readers import GrpcReader, RestReader
from ops.load.walk.walkers import Walker
from ops.stack.layout import Places

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence
    from pathlib import Path

    from ops.load.asks import Ask
    from ops.load.plan import Plan
    from ops.load.senders import Acknowledgement
    from ops.mesh import Mesh
    from ops.stack.endpoints import Endpoints

OLD_PER_USER: Final = 100
"""Orders of each user whose labels are changed: so many that are two months old, and so many younger ones."""
RELABELS_PER_ORDER: Final = 4.0
"""So many old orders are changed for each new one, that most pages have something to overlay."""
SERVED_WITHIN_S: Final = 60.0
"""What was just seeded is being built by the projector."""
FINAL_FRESH: Final = (Freshness.STRONG, Freshness.TOKEN, Freshness.AT_LEAST)
FINAL_CONNECTIONS: Final = 4
FINAL_TRIES: Final = 4
FINAL_PAUSE_S: Final = 5.0


@dataclass(slots=True)
class Party:
    """Made by `gathered`. users: who is walked; seeded: those of them who were given a history."""

    plan: Plan
    seeded: Sequence[str]
    book: Book
    old: Sequence[tuple[str, str]]
    walked: Walked = field(default_factory=Walked)

    def asked(self, asks: Iterator[Ask]) -> Iterator[Ask]:
        """The run's orders, each noted as it is asked for."""
        for ask in asks:
            self.book.ask(ask.user_id, str(ask.request_id))
            yield ask

    def hear(self, ask: Ask, ack: Acknowledgement) -> None:
        """Note an acknowledgement of the run."""
        self.book.tell(ask.user_id, ack.order_id, ack.version, at=time.monotonic(), token=ack.token)

    def works(
        self, stubs: Mesh, http: Http, bearers: Bearers, shards: Sequence[str]
    ) -> dict[str, Coroutine[Any, Any, None]]:
        """What goes on beside the load until it ends, by name."""
        readers = (GrpcReader(stubs.history), RestReader(http, bearers))
        works = {
            f"walk-{number}": Walker(self.book, readers, self.walked, self._draw(f"walk {number}")).run()
            for number in range(self.plan.walkers)
        }
        rate = RELABELS_PER_ORDER * self.plan.rate
        relabeller = Relabeller(http, bearers, self.book, self.walked, self.old, rate, self._draw("relabel"))
        resolver = Resolver(stubs.orders, shards, self.book, self.walked, self._draw("resolve"))
        return {**works, "relabel": relabeller.run(), "resolve": resolver.run()}

    async def compare(self, state_dir: Path, endpoints: Endpoints) -> None:
        """Walk every history once more when nothing changes, and hold it against the shards themselves.

        Raises: StoreUnreadable.
        """
        grounds.enter(
            self.book, await grounds.held(endpoints.shard_dsns(), self.book.users), time.monotonic()
        )
        async with AsyncExitStack() as stack:
            stubs = await stack.enter_async_context(mesh.connect(endpoints))
            http = await stack.enter_async_context(Http(endpoints.gateway, FINAL_CONNECTIONS))
            readers = (GrpcReader(stubs.history), RestReader(http, Bearers(Places(state_dir).issuer)))
            draw = self._draw("compare")
            # With nothing in motion there is nothing to merge, so these pages say nothing about the others.
            walker = Walker(self.book, readers, self.walked, draw, pause_s=0.0, is_counted=False)
            self.walked.to_compare = len(self.book.users)
            for user in self.book.users:
                self.walked.compared += await self._compared(walker, user)

    async def _compared(self, walker: Walker, user: str) -> bool:
        """Whether a history could be read to its end; what was killed last may be coming up only now."""
        for _ in range(FINAL_TRIES):
            if await walker.walk(user, FINAL_FRESH):
                return True
            await asyncio.sleep(FINAL_PAUSE_S)
        return False

    def _draw(self, what: str) -> random.Random:
        return random.Random(f"{self.plan.seed}/{what}")


async def gathered(endpoints: Endpoints, plan: Plan, vips: Sequence[str]) -> Party:
    """Find the users to walk, and promise them what they have.

    Raises: NoGround when there is no seeded history; StoreUnreadable.
    """
    dsns = endpoints.shard_dsns()
    await grounds.served(dsns, SERVED_WITHIN_S)
    seeded = await grounds.seeded_users(dsns, plan.users)
    book = Book([*seeded, *(vip for vip in vips if vip not in seeded)])
    held = await grounds.held(dsns, book.users)
    grounds.enter(book, held, time.monotonic())
    until = datetime.now(UTC) - grounds.AGE_MIN
    old: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for order in held:
        some = old[order.user_id, order.created_at < until]
        if order.stage == "DONE" and len(some) < OLD_PER_USER:
            some.append(order.order_id)
    return Party(plan, seeded, book, [(user, each) for (user, _), ids in old.items() for each in ids])
