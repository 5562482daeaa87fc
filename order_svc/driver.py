"""Submits legs: the only place where an order meets an upstream's Execute.

Owns the submission slots of each upstream and the loop that claims READY orders. A slot is taken before
anything is written, so overload refuses early and stores nothing. The call belongs to the process and not to
whoever asked. It is only made by the process whose statement journaled the submission, at once, and never
after the deadline that was
journaled with it: what a frozen process would send later could be executed twice.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, repeat
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import structlog

from chassis import faults, logs, traces
from chassis.errors import Contended, DeadlineExceeded, Overloaded, ShardUnavailable, StaleRoute, Stopping
from chassis.limits import Limiter
from order_svc import metrics, points
from order_svc.clients import Ambiguity, Upstreams
from order_svc.domain import transition
from order_svc.errors import IdNotTaken
from order_svc.events import Answer, AnyEvent, NotSent, Source, SubmitBegun, Told, Unsure
from order_svc.order import Change, Decision, Order, Seen, Stage, Tally

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import datetime

    from opentelemetry.trace import Span

    from chassis.clock import Clock
    from chassis.supervise import OwnedTasks
    from order_svc.contract import Rules
    from order_svc.rows import Claim
    from order_svc.store import Created, Decided, OrderStore

log = structlog.get_logger("driver")
ACTOR = "order_svc"
SETTLE_PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Between tries to write a verdict; then the order's timer leads recovery to ask the upstream again."""
SUBMIT_S_MIN = 0.05
"""A shorter call would only be cut off."""
PASSING = (Contended, DeadlineExceeded, Overloaded, ShardUnavailable)
"""What may be better in a moment."""
SAME_TRACE = timedelta(minutes=10)
"""A submission that comes later than this after its order was made is a trace of its own."""
BEGINS_WAITING = 4096
"""Claimed orders that wait to be begun or given back; the slots of the upstreams bound them first."""


@dataclass(frozen=True, slots=True)
class _Written:
    """What this process just wrote and need not read back. begun_at: from before the statement."""

    order: Order
    tally: Tally
    begun_at: float

    def seen(self, now: float) -> Seen:
        """The situation, unless somebody changed it; its instant is never before the shard's."""
        assert self.order.updated_at is not None
        at = self.order.updated_at + timedelta(seconds=now - self.begun_at)
        return Seen(self.order, self.tally, None, at)


class LegDriver:
    """Creates orders and submits their legs. jitter: draws a number in [0, 1).

    measure_clock: measures the shard's clock, by which ids are made.
    begins_at_once: claimed orders that are written at once. No more than there are connections: a burst of
    claims must not fill the queue before them, where creates and verdicts wait.
    """

    name = "submit"

    def __init__(
        self,
        orders: OrderStore,
        upstreams: Upstreams,
        rules: Rules,
        slots: Mapping[str, Limiter],
        owned: OwnedTasks,
        *,
        claimed_by: str,
        lease: timedelta,
        tick_s: float,
        begins_at_once: int,
        clock: Clock,
        jitter: Callable[[], float],
        measure_clock: Callable[[], Awaitable[None]],
    ) -> None:
        self._orders = orders
        self._upstreams = upstreams
        self._rules = rules
        self._slots = slots
        self._owned = owned
        self._claimed_by = claimed_by
        self._lease = lease
        self._tick_s = tick_s
        self._clock = clock
        self._jitter = jitter
        self._measure_clock = measure_clock
        self._begins = Limiter(begins_at_once, BEGINS_WAITING, name="begin")
        self._nudged = asyncio.Event()
        self._stopped = False

    async def create(
        self, upstream: str, make: Callable[[], Change], *, epoch: int, fingerprint: bytes, deadline: float
    ) -> Created:
        """Record an order and begin to submit its first leg; returns once it is recorded.

        deadline: of the call, on the monotonic clock; what has not begun by then is not recorded.
        make: makes the first change when the slot is there, so that the id's time is the time of the
        submission. If cancelled here: the order may be recorded, and is then submitted; the same request
        finds it.
        Raises: Overloaded when the upstream's slots and their queue are taken; what the store raises.
        """
        slot = self._slots[upstream]
        await slot.acquire(max(0.0, deadline - self._clock.monotonic()))
        try:
            work = self._create(upstream, make, epoch, fingerprint, deadline)
            task = self._owned.start(work, name="create")
        except (Stopping, Overloaded):
            slot.release()
            raise
        return await asyncio.shield(task)

    async def _create(
        self, upstream: str, make: Callable[[], Change], epoch: int, fingerprint: bytes, deadline: float
    ) -> Created:
        begun_at = self._clock.monotonic()
        submitting = False
        try:
            orders = self._orders.until(deadline)
            try:
                created = await orders.create(make(), epoch=epoch, fingerprint=fingerprint)
            except IdNotTaken:
                # It waited long for a connection, or a clock was set, which is measured before the next one.
                await self._measure_clock()
                created = await orders.create(make(), epoch=epoch, fingerprint=fingerprint)
            if created.tally is not None:
                written = _Written(created.order, created.tally, begun_at)
                submitting = await self._start(written, span_of(created.order, self._clock.now()))
            return created
        finally:
            if not submitting:
                self._slots[upstream].release()

    async def _start(self, written: _Written, span: Span) -> bool:
        """Submit in a task of its own, that gives the slot back; False when this process stops or is full.

        span: of the submission, begun.
        """
        order = written.order
        try:
            self._owned.start(self._submit(written, span), name=f"submit {order.order_id}")
        except (Stopping, Overloaded):
            await self._settle(order.order_id, self._not_sent(order, "stopping"), None)
            return False
        return True

    async def _submit(self, written: _Written, span: Span) -> None:
        order = written.order
        try:
            with traces.last(span):
                logs.bind(order_id=str(order.order_id))
                event = await self._call(order, written.begun_at)
                settling_at = self._clock.monotonic()
                decided = await self._settle(order.order_id, event, written.seen(settling_at))
        finally:
            self._slots[order.upstream].release()
        if decided is not None and _goes_on(decided.decision):
            await self._go_on(decided.order, _written(decided, settling_at))

    async def _call(self, order: Order, begun_at: float) -> AnyEvent:
        """Call the upstream within the time that was journaled; an event that says how it went."""
        await faults.point(points.SUBMIT_BEFORE_CALL)
        timeout_s = self._rules.contract(order.upstream).submit_timeout_s
        left_s = timeout_s - (self._clock.monotonic() - begun_at)
        if left_s < SUBMIT_S_MIN:
            return self._not_sent(order, "too late to call")
        heard = await self._upstreams.execute(order, timeout_s=left_s)
        await faults.point(points.SUBMIT_AFTER_CALL)
        return self._heard(order, heard)

    def _heard(self, order: Order, heard: Answer | Ambiguity) -> AnyEvent:
        event_id, leg, attempt, trace = uuid4(), order.leg, order.attempt, traces.traceparent()
        if isinstance(heard, Ambiguity):
            return Unsure(
                event_id=event_id,
                actor=ACTOR,
                traceparent=trace,
                leg=leg,
                attempt=attempt,
                detail=heard.detail,
            )
        return Told(
            event_id=event_id,
            actor=ACTOR,
            traceparent=trace,
            leg=leg,
            attempt=attempt,
            answer=heard,
            source=Source.SUBMIT,
        )

    def _not_sent(self, order: Order, detail: str) -> NotSent:
        metrics.SUBMITS.labels(order.upstream, "NOT_SENT").inc()
        return NotSent(event_id=uuid4(), actor=ACTOR, leg=order.leg, attempt=order.attempt, detail=detail)

    async def _settle(self, order_id: UUID, event: AnyEvent, known: Seen | None) -> Decided | None:
        """Write what is known, trying for a few seconds; None when it could not be written."""
        reason = ""
        for pause_s in (0.0, *SETTLE_PAUSES_S):
            await self._clock.sleep(pause_s)
            try:
                return await self._decide(order_id, event, points.SETTLE, known)
            except PASSING as failed:
                # Perhaps it was written: from now on the journal is asked first.
                reason, known = failed.reason, None
            except StaleRoute as moved:
                reason, known = moved.reason, None
                if not moved.is_passing:
                    break
        metrics.VERDICTS_LOST.labels(reason).inc()
        log.warning("verdict_not_written", order_id=str(order_id), reason=reason)
        return None

    async def _decide(
        self, order_id: UUID, event: AnyEvent, at: points.Commit, known: Seen | None
    ) -> Decided:
        def rule(seen: Seen) -> Decision:
            return transition(seen, event, self._rules, jitter=self._jitter())

        return await self._orders.decide(order_id, event.event_id, rule, at=at, known=known)

    async def _go_on(self, order: Order, known: _Written) -> None:
        """Begin the next leg of an order that this process just made READY, and that nobody has claimed."""
        slot = self._free_slot(order)
        if slot is None:
            self._nudged.set()
        else:
            await self._begin(order, slot, known)

    async def _begin_claimed(self, claim: Claim) -> None:
        """Begin a claimed order; one that cannot be begun now is given back rather than left to its lease."""
        ends_at = self._clock.monotonic() + self._lease.total_seconds()
        slot, begun = self._free_slot(claim.order), False
        if slot is not None:
            try:
                async with self._begins.slot(self._lease.total_seconds()):
                    begun = await self._begin(claim.order, slot)
            except (DeadlineExceeded, Overloaded):
                slot.release()
        if not begun:
            await self._give_back(claim, until=ends_at)

    def _free_slot(self, order: Order) -> Limiter | None:
        """A slot of the order's upstream, taken; None when there is none, or when this process stops."""
        slot = self._slots.get(order.upstream)
        return slot if slot is not None and not self._stopped and slot.try_acquire() else None

    async def _begin(self, order: Order, slot: Limiter, known: _Written | None = None) -> bool:
        """Journal the submission of a READY order and make the call, unless somebody else was first.

        slot: taken; given back when no call is made. False when it could not be journaled.
        """
        submitting = False
        try:
            begun_at = self._clock.monotonic()
            # Of a submission that is not made it is never ended, and so never shown.
            span = span_of(order, self._clock.now())
            parent = traces.traceparent_of(span)
            event = SubmitBegun(event_id=uuid4(), actor=ACTOR, traceparent=parent)
            seen = None if known is None else known.seen(begun_at)
            decided = await self._decide(order.order_id, event, points.BEGIN, seen)
            if decided.is_written and decided.order.stage is Stage.SUBMITTING:
                submitting = await self._start(_written(decided, begun_at), span)
        except (*PASSING, StaleRoute) as failed:
            # Perhaps journaled, certainly not called: its timer leads to a probe, or a READY one to a claim.
            log.warning("submission_not_begun", order_id=str(order.order_id), reason=failed.reason)
            return False
        finally:
            if not submitting:
                slot.release()
        return True

    async def _give_back(self, claim: Claim, *, until: float) -> None:
        """Let whoever looks next have a claimed order; if that cannot be written, when its lease is over.

        until: on the monotonic clock; there is one try at least.
        """
        pauses_s = chain(SETTLE_PAUSES_S, repeat(SETTLE_PAUSES_S[-1]))
        wait, lease_s = timedelta(seconds=self._tick_s), self._lease.total_seconds()
        while True:
            pause_s = next(pauses_s)
            try:
                async with self._begins.slot(lease_s):
                    return await self._orders.give_back(claim, wait)
            except (*PASSING, StaleRoute) as failed:
                gone = isinstance(failed, StaleRoute) and not failed.is_passing
                if gone or self._clock.monotonic() + pause_s > until:
                    order_id = str(claim.order.order_id)
                    log.warning("claim_not_given_back", order_id=order_id, reason=failed.reason)
                    return None
            await self._clock.sleep(pause_s)

    def nudge(self, order: Order) -> None:
        """Look for READY orders now rather than at the next tick, if this is one."""
        if order.stage is Stage.READY:
            self._nudged.set()

    async def stop(self) -> None:
        """Claim no more; what was begun goes on."""
        self._stopped = True

    async def run(self) -> None:
        """Claim READY orders and submit them, until cancelled."""
        while True:
            try:
                await self._claim()
            except (*PASSING, StaleRoute) as failed:
                log.warning("claim_failed", reason=failed.reason)
            try:
                async with asyncio.timeout(self._tick_s):
                    await self._nudged.wait()
            except TimeoutError:
                pass
            # At most ten rounds a second, however often somebody nudges.
            await self._clock.sleep(min(0.1, self._tick_s))
            self._nudged.clear()

    async def _claim(self) -> None:
        for upstream, slot in self._slots.items():
            if self._stopped or not slot.free:
                continue
            claims = await self._orders.claim_submissions(slot.free, self._lease, self._claimed_by, upstream)
            metrics.CLAIMED.labels("SUBMIT").inc(len(claims))
            for claim in claims:
                try:
                    self._owned.start(self._begin_claimed(claim), name=f"begin {claim.order.order_id}")
                except (Stopping, Overloaded):
                    await self._give_back(claim, until=self._clock.monotonic())


def span_of(order: Order, at: datetime) -> Span:
    """The span of a submission, begun: soon after the order's creation part of its trace, later linked to
    it. What is journaled of the submission points at it.
    """
    about = {"order_id": str(order.order_id), "upstream": order.upstream}
    if at - order.created_at < SAME_TRACE:
        return traces.begun_work("submit", order.traceparent, about)
    return traces.begun_span("submit", [order.traceparent], always=True, attributes=about)


def _written(decided: Decided, begun_at: float) -> _Written:
    """What a decision wrote about an order that is not done."""
    assert isinstance(decided.decision, Change)
    assert decided.decision.wake is not None
    return _Written(decided.order, decided.decision.wake.tally, begun_at)


def _goes_on(decision: Decision | None) -> bool:
    """Whether this process just made the next leg ready and nothing says to wait."""
    if not isinstance(decision, Change) or decision.wake is None:
        return False
    return decision.after.stage is Stage.READY and not decision.wake.wake_in
