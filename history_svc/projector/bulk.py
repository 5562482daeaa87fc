"""Writes drafts into the read model until each one is stored, stale or refused; what is only not possible now
is tried again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import structlog

from history_svc.errors import ReadModelUnavailable, TooMuchAtOnce
from history_svc.metrics import BULK_ITEMS, BULK_SECONDS
from history_svc.readmodel.port import Outcome, Verdict, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chassis.clock import Clock
    from history_svc.readmodel.port import ReadModel

log = structlog.get_logger("bulk")
ITEMS_MAX = 1000
"""Documents of one request; about 0.7 MB."""
IN_FLIGHT_MAX = 2
"""Requests of one shard at a time, whatever number of batches they belong to."""
TIMEOUT_S = 10.0
AGAIN_S_MIN = 0.1
AGAIN_S_MAX = 10.0


class BulkWriter:
    """Writes for one shard; a read model that is slow for it delays no other shard."""

    def __init__(self, read_model: ReadModel, clock: Clock, jitter: Callable[[], float]) -> None:
        self._read_model = read_model
        self._clock = clock
        self._jitter = jitter
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def write(self, writes: Sequence[Write]) -> list[Outcome]:
        """The final outcome of each write, in the same order: STORED, STALE, MISSING or REFUSED.

        Goes on until there is one for each, however long the read model is away.
        If cancelled here: any of them may have been stored; writing them again is harmless.
        """
        chunks = [writes[start : start + ITEMS_MAX] for start in range(0, len(writes), ITEMS_MAX)]

        async def one(chunk: Sequence[Write]) -> list[Outcome]:
            async with self._slots:
                return await self._persist(chunk)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(chunk)) for chunk in chunks]
        return [outcome for task in tasks for outcome in task.result()]

    async def _persist(self, chunk: Sequence[Write]) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(chunk)
        left = list(range(len(chunk)))
        tries = 0
        size = len(chunk)
        while left:
            now, later = left[:size], left[size:]
            answered = await self._once([chunk[number] for number in now])
            if isinstance(answered, int):
                size = answered
                continue
            again = []
            because = ""
            for number, outcome in zip(now, answered, strict=True):
                if outcome.verdict is Verdict.LATER:
                    again.append(number)
                    because = outcome.reason
                else:
                    outcomes[number] = outcome
            left = later + again
            if again:
                if because:
                    log.warning("documents_wait", documents=len(again), because=because)
                await self._wait(tries)
                tries += 1
        return [outcome for outcome in outcomes if outcome is not None]

    async def _once(self, writes: Sequence[Write]) -> list[Outcome] | int:
        """One request's outcomes; LATER for all when nothing is known; or how many to send at most."""
        started = self._clock.monotonic()
        try:
            outcomes = await self._read_model.write(writes, timeout_s=TIMEOUT_S)
        except TooMuchAtOnce as refused:
            if len(writes) == 1:
                return [Outcome(Verdict.REFUSED, str(refused) or "too large")]
            return max(1, len(writes) // 2)
        except ReadModelUnavailable as away:
            log.warning("read_model_away", because=str(away.facts), documents=len(writes))
            return [Outcome(Verdict.LATER)] * len(writes)
        BULK_SECONDS.observe(self._clock.monotonic() - started)
        for verdict, count in Counter(outcome.verdict for outcome in outcomes).items():
            BULK_ITEMS.labels(verdict.value).inc(count)
        return outcomes

    async def _wait(self, tries: int) -> None:
        ceiling = min(AGAIN_S_MAX, AGAIN_S_MIN * 2 ** min(tries, 10))
        await self._clock.sleep(ceiling * (0.5 + 0.5 * self._jitter()))
