"""Makes the statements of one shard, one after the other: claims, has the file made, stores it, says so.

A worker may keep to small ones, so that these never wait for one that takes an hour. What a statement reads
of the archive is known when it is asked for; what of the tables is found out, and then the worker leaves it.

A turn is a lease with a fence. Whoever loses it, to a cancellation or to another worker after a pause, stops
at once and writes nothing more; a file that was stored in vain is taken away later (see `sweeper`). So a
worker may die anywhere: after the lease the statement is made from the beginning.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from grpc import StatusCode

from archive_svc.errors import StorageUnavailable, TurnLost
from archive_svc.statement import metrics, points
from archive_svc.statement.files import key_of
from archive_svc.statement.outbox import TRIED_FOR
from archive_svc.statement.store import Failure
from archive_svc.statement.wish import Progress
from chassis import faults
from chassis.errors import DeadlineExceeded, InternalError, OrdermeshError, StaleRoute
from chassis.s3 import PUT_BYTES_MAX, S3Error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from archive_svc.statement.places import Whereabouts
    from archive_svc.statement.store import Statement, StatementStore
    from archive_svc.statement.wakes import Wakes
    from archive_svc.statement.wish import Bundle, Maker
    from chassis.clock import Clock
    from chassis.s3 import ObjectStore, Stored

log = structlog.get_logger("statements")
ZIP = "application/zip"
CHUNK_BYTES = 1024 * 1024
TELL_S = 0.5
"""Progress within a month is written no more often."""
FOR_GOOD = frozenset(
    {
        StatusCode.DATA_LOSS,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.INVALID_ARGUMENT,
        StatusCode.UNIMPLEMENTED,
    }
)
"""What goes wrong with these codes goes wrong each time."""


@dataclass(frozen=True, slots=True)
class Turns:
    """How statements are tried.

    lease:        how long a worker that died keeps a statement. beat_s: how often a living one says so, and
                  finds out that it was cancelled.
    look_s:       how often statements are looked for.
    attempts_max: turns at one statement; the pauses between grow from pause_s up to pause_s_max.
    make_s_max:   of one turn; far below the time for which a detached month stays, so that what was planned
                  can be read.
    kept, mailed: how long a file is kept, and how long its mail is tried.
    small_orders_max: what a worker that keeps to small ones makes; some seconds' worth.
    moved_pauses_s: before each time that a turn asks where a user is that moved; proxies look each second.
    """

    lease: timedelta = timedelta(seconds=30)
    beat_s: float = 2.0
    look_s: float = 1.0
    attempts_max: int = 10
    pause_s: float = 5.0
    pause_s_max: float = 300.0
    make_s_max: float = 7200.0
    kept: timedelta = timedelta(days=7)
    mailed: timedelta = TRIED_FOR
    small_orders_max: int = 100_000
    moved_pauses_s: tuple[float, ...] = (0.0, 0.25, 1.0, 2.0)


class GrewLarge(Exception):
    """More orders are there than a worker takes that keeps to small statements."""


class Worker:
    """A loop that makes the statements of one shard. jitter: gives 0 to 1. only_small: leave large ones."""

    def __init__(
        self,
        store: StatementStore,
        objects: ObjectStore,
        maker: Maker,
        turns: Turns,
        places: Whereabouts,
        wakes: Wakes,
        clock: Clock,
        jitter: Callable[[], float],
        *,
        holder: str,
        only_small: bool = False,
    ) -> None:
        self.name = f"statements.{store.shard}"
        self._only_small = only_small
        self._store = store
        self._objects = objects
        self._maker = maker
        self._turns = turns
        self._places = places
        self._wakes = wakes
        self._clock = clock
        self._jitter = jitter
        self._holder = holder

    async def run(self) -> None:
        """Make statements until cancelled; a shard that does not answer is asked again."""
        while True:
            try:
                found_one = await self.once()
            except OrdermeshError as failed:
                log.warning("statements_not_seen", shard=self._store.shard, reason=failed.reason)
                found_one = False
            if not found_one:
                await self._wakes.sleep(self._store.shard, self._turns.look_s * (0.5 + 0.5 * self._jitter()))

    async def once(self) -> bool:
        """Have one turn at one statement; whether there was one.

        If cancelled here: the turn is given back, so that another worker begins at once.
        Raises: what chassis.pg raises; the turn ends with its lease then.
        """
        mine = await self._store.claim(self._holder, self._turns.lease, only_small=self._only_small)
        if mine is None:
            return False
        await faults.point(points.AFTER_CLAIM)
        began = self._clock.monotonic()
        try:
            outcome = await self._turn(mine)
        except TurnLost:
            outcome = "lost"
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(mine))
            raise
        metrics.TURNS.labels(self._store.shard, outcome).inc()
        metrics.SECONDS.labels(outcome).observe(self._clock.monotonic() - began)
        log.info("statement_turn", shard=self._store.shard, id=_id(mine), fence=mine.fence, outcome=outcome)
        return True

    async def _turn(self, mine: Statement) -> str:
        """Make a statement; what came of it. Raises: TurnLost."""
        if mine.attempts > self._turns.attempts_max:
            # Those who had the turns before died of it, or they would have said why.
            await self._store.fail(mine, _failure(InternalError()))
            return "failed"
        try:
            async with asyncio.timeout(self._turns.make_s_max):
                await self._while_mine(mine)
            return "ready"
        except TurnLost:
            raise
        except GrewLarge:
            await self._store.leave(mine)
            self._wakes.wake(self._store.shard)
            return "left"
        except (OrdermeshError, S3Error, OSError, TimeoutError) as failed:
            return await self._failed(mine, failed)
        except Exception as unexpected:
            log.error("statement_broke", shard=self._store.shard, id=_id(mine), exc_info=unexpected)
            return await self._failed(mine, InternalError())

    async def _make(self, mine: Statement) -> None:
        made, telling = await self._made(mine)
        try:
            await faults.point(points.AFTER_RENDER)
            await self._store.progress(mine, "STORING", telling.last, self._turns.lease)
            stored = await self._put(key_of(self._store.shard, mine.wanted.statement_id, mine.fence), made)
            await faults.point(points.AFTER_PUT)
            await self._store.ready(mine, stored, made, kept=self._turns.kept, mailed=self._turns.mailed)
        finally:
            await asyncio.to_thread(made.path.unlink, missing_ok=True)
        metrics.FILE_BYTES.observe(made.size_bytes)
        self._wakes.wake(f"mails.{self._store.shard}")
        await faults.point(points.AFTER_READY)

    async def _made(self, mine: Statement) -> tuple[Bundle, Telling]:
        """Have the file made, and what was told last meanwhile.

        A shard that does not have the user's buckets as they were known is believed: the proxy is asked where
        the orders are by now, and all of them are read again.
        """
        wanted = mine.wanted
        for pause_s in (*self._turns.moved_pauses_s, None):
            telling = Telling(self._store, mine, self._turns, self._clock, only_small=self._only_small)
            try:
                return await self._maker.make(wanted, telling), telling
            except StaleRoute as stale:
                log.info("statement_user_moved", id=_id(mine), **{"shard": self._store.shard, **stale.facts})
                if pause_s is None:
                    raise
                # While the user moves, the map and the shard say the same as before for some moments.
                await self._clock.sleep(pause_s)
                wanted = replace(wanted, placements=await self._places.of(wanted.user_id))
                await self._store.re_place(mine, wanted.placements)
        raise AssertionError("the last try raises or returns")

    async def _put(self, key: str, made: Bundle) -> Stored:
        """Store the file; the key is of this turn alone, so nobody else's is there."""
        if made.size_bytes <= PUT_BYTES_MAX:
            body = await asyncio.to_thread(made.path.read_bytes)
            return await self._objects.create(key, body, content_type=ZIP)
        return await self._objects.upload(key, lambda: _chunks(made.path), content_type=ZIP)

    async def _while_mine(self, mine: Statement) -> None:
        """Make it while the turn is kept. Raises: what ended it; TurnLost at once when the turn is lost."""
        beating = asyncio.create_task(self._beat(mine), name=f"{self.name}.beat")
        making = asyncio.create_task(self._make(mine), name=f"{self.name}.make")
        try:
            await asyncio.wait((beating, making), return_when=asyncio.FIRST_COMPLETED)
            if making.done():
                making.result()
            else:
                beating.result()
        finally:
            for task in (making, beating):
                task.cancel()
            await asyncio.gather(making, beating, return_exceptions=True)

    async def _beat(self, mine: Statement) -> None:
        """Keep the turn until it is lost. Raises: TurnLost; why a shard is silent for a whole lease."""
        kept_at = self._clock.monotonic()
        while True:
            await self._clock.sleep(self._turns.beat_s)
            try:
                await self._store.keep(mine, self._turns.lease)
            except TurnLost:
                raise
            except OrdermeshError:
                if self._clock.monotonic() - kept_at > self._turns.lease.total_seconds():
                    raise
            else:
                kept_at = self._clock.monotonic()

    async def _failed(self, mine: Statement, failed: Exception) -> str:
        """Try again later, or give it up; which of them. Raises: TurnLost."""
        why = _failure(failed)
        is_final = _is_for_good(failed) or mine.attempts >= self._turns.attempts_max
        log.warning(
            "statement_failed",
            shard=self._store.shard,
            id=_id(mine),
            attempt=mine.attempts,
            is_final=is_final,
            reason=why.reason,
            key=failed.facts.get("key") if isinstance(failed, OrdermeshError) else None,
            error=f"{type(failed).__name__}: {failed}"[:300],
        )
        if is_final:
            await self._store.fail(mine, why)
            return "failed"
        longest_s = min(self._turns.pause_s_max, self._turns.pause_s * 2.0 ** (mine.attempts - 1))
        await self._store.put_off(mine, timedelta(seconds=longest_s * (0.5 + 0.5 * self._jitter())), why)
        return "put_off"

    async def _give_back(self, mine: Statement) -> None:
        try:
            await self._store.give_back(mine)
        except OrdermeshError as failed:
            log.info("turn_not_given_back", shard=self._store.shard, id=_id(mine), reason=failed.reason)


class Telling:
    """Hears how far the file's maker got, and writes it down. Raises TurnLost and GrewLarge to end it."""

    def __init__(
        self, store: StatementStore, mine: Statement, turns: Turns, clock: Clock, *, only_small: bool
    ) -> None:
        self.last = Progress()
        self._only_small = only_small
        self._store = store
        self._mine = mine
        self._turns = turns
        self._clock = clock
        self._state = ""
        self._at = clock.monotonic()

    async def __call__(self, so_far: Progress) -> None:
        """Write a new month down at once, and what is less from time to time."""
        if self._only_small and so_far.rows > self._turns.small_orders_max:
            raise GrewLarge
        state = "RENDERING" if so_far.months >= so_far.months_in_all else "READING"
        is_news = state != self._state or so_far.months > self.last.months
        if not is_news and self._clock.monotonic() - self._at < TELL_S:
            return
        is_plan, has_leg = not self._state, so_far.months > self.last.months
        self._state, self.last, self._at = state, so_far, self._clock.monotonic()
        await self._store.progress(self._mine, state, so_far, self._turns.lease)
        if is_plan:
            await faults.point(points.AFTER_PLAN)
        if has_leg:
            await faults.point(points.AFTER_LEG)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


def _is_for_good(failed: Exception) -> bool:
    return isinstance(failed, OrdermeshError) and failed.code in FOR_GOOD


def _failure(failed: Exception) -> Failure:
    """What the owner of a statement is told: never a driver's text."""
    if isinstance(failed, OrdermeshError):
        error = failed
    elif isinstance(failed, S3Error):
        error = StorageUnavailable()
    else:
        error = DeadlineExceeded() if isinstance(failed, TimeoutError) else InternalError()
    return Failure(error.code.value[0], error.reason.value, error.sentence()[:512])


def _id(mine: Statement) -> str:
    return str(mine.wanted.statement_id)
