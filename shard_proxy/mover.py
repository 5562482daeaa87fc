"""Drives users to their dedicated bucket and back, online, phase by phase; whoever dies on the way is
succeeded.

The steps: own the new bucket; copy the user's request keys while everything goes on; freeze the old bucket
for writes; copy what came in between; change the map, which also gives the old bucket a new epoch; let the
old bucket go on under it. The freeze is short and bounded: an attempt that takes longer is taken back. A
bucket is never opened because time passed, only because the control database says at which epoch it goes on.
"""

from __future__ import annotations

import asyncio
import random
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import faults
from chassis.errors import Contended, OrdermeshError, Stopping
from chassis.ids import user_bucket
from shard_proxy import metrics, moves, points
from shard_proxy.clients import KEYS_MAX, ShardRefused
from shard_proxy.errors import MoveAborted, RequestIdReused
from shard_proxy.moves import Move, Phase, Wish

if TYPE_CHECKING:
    from uuid import UUID

    from chassis.clock import Clock
    from chassis.supervise import OwnedTasks
    from shard_proxy.book import RouteBook
    from shard_proxy.clients import Buckets
    from shard_proxy.move_store import MoveStore

log = structlog.get_logger("vip-moves")
LOOK_EVERY_S = 0.5
"""How often moves are looked for that nobody drives."""
ASK_S = 1.0
"""Time of one call to a shard while nothing is frozen."""
FREEZE_S_MAX = 1.0
"""From the first word of the freeze to the last of the change of the map; then the attempt is taken back."""
BACKOFF_S = 0.05
PAUSE_S = 0.25
"""After a shard or the control database did not answer where only forward or only back is left."""
DRIVE_TRIES_MAX = 40
"""Ten seconds and the timeouts between; then the lease runs out, and the loop claims the move again."""
PLAN_TRIES_MAX = 5
WAIT_EVERY_S = 0.1
ANSWER_RESERVE_S = 0.2
CLOCKS_APART = timedelta(seconds=30)
"""An order may be this much older, by its id, than the moment in which its key was written."""


class Overtaken(Exception):
    """Somebody else drives this move by now."""


class VipMover:
    """Plans moves, drives them, and takes over those that nobody drives; as a loop it looks for these."""

    name = "vip-moves"

    def __init__(
        self, store: MoveStore, buckets: Buckets, book: RouteBook, owned: OwnedTasks, clock: Clock
    ) -> None:
        self._store = store
        self._buckets = buckets
        self._book = book
        self._owned = owned
        self._clock = clock
        self._driving: dict[UUID, asyncio.Task[None]] = {}

    async def move(self, wish: Wish, timeout_s: float) -> Move:
        """Move a user; the move once it is over, or as it is when the time is up.

        A repeat of the same wish finds the first move. If cancelled here: the move goes on.
        Raises: InvalidField, RequestIdReused, MoveAborted; as moves.plan; Contended; what chassis.pg raises.
        """
        planned = await self._store.find(wish.checked().move_id) or await self._plan(wish)
        if not planned.is_for(wish):
            raise RequestIdReused(request_id=wish.move_id)
        return await self._until_over(planned, time.monotonic() + timeout_s - ANSWER_RESERVE_S)

    async def run(self) -> None:
        """Look for moves whose mover fell silent, until cancelled; a dead control database is waited for."""
        while True:
            try:
                found = await self._store.claim(self._driving.keys())
                if found is not None:
                    log.warning("vip_move_taken_over", move_id=str(found.move_id), phase=found.phase.value)
                    self._start(found)
            except (OrdermeshError, Stopping) as failed:
                log.warning("vip_moves_not_looked_for", reason=failed.reason.value)
            await self._clock.sleep(LOOK_EVERY_S)

    async def _plan(self, wish: Wish) -> Move:
        for _ in range(PLAN_TRIES_MAX):
            situation = await self._store.situation(wish.user_id)
            hashed_shard = await self._store.owner(user_bucket(wish.user_id))
            route = moves.plan(situation, wish, hashed_shard)
            planned = await self._store.plan(situation.map_version, wish, route)
            if planned is not None:
                log.info("vip_move_planned", move_id=str(planned.move_id), kind=planned.kind.value)
                self._start(planned)
                return planned
        raise Contended(user_id=wish.user_id)

    async def _until_over(self, move: Move, end: float) -> Move:
        """The move when it is over, whoever drives it, or as it is at the end of the time."""
        while not move.phase.is_over and (left_s := end - time.monotonic()) > 0:
            driving = self._driving.get(move.move_id)
            if driving is not None:
                await asyncio.wait([driving], timeout=left_s)
            else:
                await self._clock.sleep(min(WAIT_EVERY_S, left_s))
            move = await self._store.find(move.move_id) or move
        if move.phase is Phase.ABORTED:
            raise MoveAborted(user_id=move.user_id, failure=move.failure)
        return move

    def _start(self, move: Move) -> None:
        task = self._owned.start(self._drive(move), name=f"vip move {move.move_id}")
        self._driving[move.move_id] = task
        task.add_done_callback(lambda _: self._driving.pop(move.move_id, None))

    async def _drive(self, move: Move) -> None:
        """Bring a move to its end, as far as shards and control database answer; its row says where it is,
        and whoever claims it next goes on from there.
        """
        for _ in range(DRIVE_TRIES_MAX):
            try:
                while not move.phase.is_over:
                    move = await self._next(move)
            except Overtaken:
                log.warning("vip_move_overtaken", move_id=str(move.move_id))
                return
            except (ShardRefused, OrdermeshError) as failed:
                log.warning("vip_move_waits", move_id=str(move.move_id), reason=str(failed.reason))
                move = await self._waited(move)
            else:
                metrics.VIP_MOVES.labels(move.kind, move.phase).inc()
                log.info("vip_move_over", move_id=str(move.move_id), phase=move.phase.value)
                return
        log.error("vip_move_left", move_id=str(move.move_id), phase=move.phase.value)

    async def _waited(self, move: Move) -> Move:
        """The move as its row stands after a pause, its lease renewed if the control database answers."""
        await self._clock.sleep(PAUSE_S)
        try:
            now = await self._current(move)
            return await self._advanced(now, now.phase)
        except (Overtaken, OrdermeshError):
            return move

    async def _next(self, move: Move) -> Move:
        if move.phase is Phase.FLIPPED:
            return await self._forward(move, None)
        if move.phase is not Phase.PLANNED:
            return await self._back(move, move.failure or "its mover fell silent")
        frozen_at: float | None = None
        try:
            since = await self._copy(move)
            move = await self._advanced(move, Phase.FREEZING)
            frozen_at = time.monotonic()
            copied = await self._switch(move, since, frozen_at + FREEZE_S_MAX)
        except (ShardRefused, OrdermeshError) as refused:
            return await self._back(move, str(refused.reason))
        except TimeoutError:
            return await self._back(move, f"the freeze took longer than {FREEZE_S_MAX:g} s")
        flipped = await self._current(move)
        if flipped.phase is not Phase.FLIPPED:
            return await self._back(flipped, "the map was not changed")
        return await self._forward(flipped, frozen_at, copied)

    async def _copy(self, move: Move) -> Timestamp:
        """Own both buckets and copy the keys there are, page by page; since when there may be others."""
        await faults.point(points.OWN.before)
        await self._buckets.own(move.new_shard, move.new_bucket, timeout_s=ASK_S)
        await faults.point(points.OWN.after)
        await faults.point(points.COPY.before)
        page = await self._buckets.export(move.old_shard, move.user_id, None, "", timeout_s=ASK_S)
        since = Timestamp()
        since.FromDatetime(page.read_time.ToDatetime() - CLOCKS_APART)
        while page.keys:
            copied = await self._buckets.bring(
                move.new_shard, move.new_bucket, move.user_id, page, timeout_s=ASK_S
            )
            await self._advanced(move, Phase.PLANNED, keys_copied=copied)
            if len(page.keys) < KEYS_MAX:
                break
            after = page.keys[-1].request_id
            page = await self._buckets.export(move.old_shard, move.user_id, None, after, timeout_s=ASK_S)
        await faults.point(points.COPY.after)
        return since

    async def _switch(self, move: Move, since: Timestamp, end: float) -> int:
        """Freeze the old bucket, copy the keys of the last moment, change the map; how many keys that were.

        Raises: TimeoutError when it takes too long; what became of the map is then to be asked.
        """
        async with asyncio.timeout(max(0.0, end - time.monotonic())):
            await faults.point(points.FREEZE.before)
            await self._buckets.freeze(
                move.old_shard, move.old_bucket, move.old_epoch, move.token, timeout_s=end - time.monotonic()
            )
            await faults.point(points.FREEZE.after)
            await faults.point(points.DELTA.before)
            copied, after = 0, ""
            while True:
                left_s = end - time.monotonic()
                page = await self._buckets.export(
                    move.old_shard, move.user_id, since, after, timeout_s=left_s
                )
                if page.keys:
                    copied += await self._buckets.bring(
                        move.new_shard, move.new_bucket, move.user_id, page, timeout_s=left_s
                    )
                if len(page.keys) < KEYS_MAX:
                    break
                after = page.keys[-1].request_id
            await faults.point(points.DELTA.after)
            await faults.point(points.FLIP.before)
            await self._store.flip(move, max(0.05, end - time.monotonic()))
            await faults.point(points.FLIP.after)
            return copied

    async def _forward(self, move: Move, frozen_at: float | None, copied: int = 0) -> Move:
        """The map says so: open the old bucket at its new epoch."""
        await faults.point(points.THAW.before)
        await self._buckets.thaw(
            move.old_shard, move.old_bucket, move.old_epoch + 1, move.token, timeout_s=ASK_S
        )
        frozen_s = None if frozen_at is None else time.monotonic() - frozen_at
        if frozen_s is not None:
            metrics.VIP_FROZEN_SECONDS.observe(frozen_s)
        await faults.point(points.THAW.after)
        done = await self._advanced(
            move, Phase.DONE, keys_copied=copied, frozen_ms=None if frozen_s is None else 1000 * frozen_s
        )
        await self._book.reread()
        return done

    async def _back(self, move: Move, failure: str) -> Move:
        """Take an attempt back, unless the map says that there is no way back any more.

        The old bucket is visited even when it was not frozen: so a freeze that is still on its way finds a
        later word there than its own.
        """
        if move.phase in moves.TAKEN_BACK:
            taken = await self._store.advance(move, Phase.ABORTING, failure=failure)
            move = taken or await self._current(move)
        if move.phase is Phase.FLIPPED:
            return move
        await faults.point(points.BACK.before)
        await self._buckets.thaw(move.old_shard, move.old_bucket, move.old_epoch, move.token, timeout_s=ASK_S)
        await self._buckets.own(move.new_shard, move.new_bucket, timeout_s=ASK_S)
        await faults.point(points.BACK.after)
        log.warning("vip_move_taken_back", move_id=str(move.move_id), attempt=move.attempt, reason=failure)
        if move.attempt >= moves.ATTEMPTS_MAX:
            return await self._advanced(move, Phase.ABORTED)
        await self._clock.sleep(BACKOFF_S * 2**move.attempt * random.uniform(0.5, 1))
        return await self._advanced(move, Phase.PLANNED, attempt=move.attempt + 1)

    async def _advanced(self, move: Move, to: Phase, **changes: object) -> Move:
        """The move at its next phase. Raises: Overtaken."""
        advanced = await self._store.advance(move, to, **changes)  # type: ignore[arg-type]
        if advanced is None:
            raise Overtaken
        return advanced

    async def _current(self, move: Move) -> Move:
        """The move as its row stands, still ours. Raises: Overtaken."""
        now = await self._store.find(move.move_id)
        if now is None or now.token != move.token:
            raise Overtaken
        return now
