"""The open loop: orders arrive when they are due, however slow the mesh is, and each is pursued until it is
acknowledged.

Bounded: at most IN_FLIGHT_MAX orders are pursued at once, and what arrives beyond that is counted as shed.
Latency counts from when an order was due, so that a stalled mesh, or a stalled generator, cannot hide
behind its own silence.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ops.load.log import Kind, acknowledged, unacknowledged
from ops.load.plan import IN_FLIGHT_MAX, Transport
from ops.load.senders import NobodyKnows, RefusedForGood
from ops.load.tallies import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ops.load.asks import Ask
    from ops.load.log import AckLog
    from ops.load.plan import Plan
    from ops.load.senders import Acknowledgement, Sender

BACKOFF_S = 0.1
BACKOFF_S_MAX = 2.0


def nobody(ask: Ask, ack: Acknowledgement) -> None:
    """Listen to nothing."""


@dataclass(slots=True)
class OpenLoop:
    """One run's arrivals. Read `tally` at any time. heard: told of each acknowledgement when it comes."""

    plan: Plan
    grpc: Sender
    rest: Sender
    log: AckLog
    heard: Callable[[Ask, Acknowledgement], None] = nobody
    tally: Tally = field(default_factory=Tally)
    _started: float = field(default=0.0, init=False)
    _pursuits: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _jitter: random.Random = field(default_factory=random.Random, init=False)

    @property
    def in_flight(self) -> int:
        """Orders that are being pursued now."""
        return len(self._pursuits)

    @property
    def elapsed_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    async def run(self, asks: Iterable[Ask]) -> None:
        """Send everything when it is due; returns when nothing is pursued any more."""
        self._jitter.seed(self.plan.seed)
        self._started = time.monotonic()
        try:
            for ask in asks:
                await asyncio.sleep(max(0.0, ask.due_s - self.elapsed_s))
                self._arrive(ask)
            await asyncio.gather(*self._pursuits)
        finally:
            for task in self._pursuits:
                task.cancel()

    def _arrive(self, ask: Ask) -> None:
        self.tally.arrived += 1
        self.tally.late_s_max = max(self.tally.late_s_max, self.elapsed_s - ask.due_s)
        if len(self._pursuits) >= IN_FLIGHT_MAX:
            self.tally.shed += 1
            return
        task = asyncio.create_task(self._pursue(ask), name=f"ask-{ask.number}")
        self._pursuits.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        # A failed pursuit stays, and gather at the end of the run raises what it failed with.
        if task.cancelled() or task.exception() is None:
            self._pursuits.discard(task)

    async def _pursue(self, ask: Ask) -> None:
        sender = self.rest if ask.over_rest else self.grpc
        give_up_s = ask.due_s + self.plan.give_up_s
        tries = 0
        while True:
            tries += 1
            known = {"tries": tries, "transport": sender.name, "at_s": round(self.elapsed_s, 3)}
            try:
                ack = await sender.create(ask, timeout_s=self.plan.try_timeout_s)
            except RefusedForGood as refused:
                self._end_unacknowledged(ask, str(refused), known)
                return
            except NobodyKnows as unclear:
                self.tally.fail(unclear.why)
                pause_s = self._pause_s(tries, unclear.retry_after_s)
                if self.elapsed_s + pause_s > give_up_s:
                    self.tally.unknown += 1
                    self.log.append(unacknowledged(Kind.INFO, ask, unclear.why, **known))
                    return
                self.tally.retries += 1
                await asyncio.sleep(pause_s)
            else:
                self.tally.acknowledge(sender.name, self.elapsed_s - ask.due_s)
                self.heard(ask, ack)
                self.log.append(acknowledged(Kind.OK, ask, ack, **known))
                if ask.replay:
                    await self._replay(ask)
                return

    def _end_unacknowledged(self, ask: Ask, why: str, known: dict[str, object]) -> None:
        """A refusal is final only when no earlier try of the same request may have been executed."""
        self.tally.fail(why)
        first = known["tries"] == 1
        self.tally.refused += first
        self.tally.unknown += not first
        self.log.append(unacknowledged(Kind.FAIL if first else Kind.INFO, ask, why, **known))

    async def _replay(self, ask: Ask) -> None:
        """Send an acknowledged request once more, over the other transport if both are used: it must give the
        same order.
        """
        other = ask.over_rest != (self.plan.transport is Transport.MIXED)
        sender = self.rest if other else self.grpc
        try:
            ack = await sender.create(ask, timeout_s=self.plan.try_timeout_s)
        except NobodyKnows as unclear:
            self.tally.fail(unclear.why)
        except RefusedForGood as refused:
            self.log.append(unacknowledged(Kind.REPLAY, ask, str(refused), transport=sender.name))
        else:
            self.tally.replayed += 1
            self.heard(ask, ack)
            self.log.append(acknowledged(Kind.REPLAY, ask, ack, transport=sender.name))

    def _pause_s(self, tries: int, at_least_s: float) -> float:
        """Full jitter over a doubling ceiling, and not before the mesh wants to be asked again."""
        ceiling = min(BACKOFF_S_MAX, BACKOFF_S * 2.0 ** min(tries - 1, 10))
        return float(max(at_least_s, 0.02) + self._jitter.uniform(0, ceiling))
