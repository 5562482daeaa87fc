"""The only SQL of order_svc: one method per question or change, one round trip each.

`decide` is the only read-decide-write loop. Reads look at the bucket's fence in the same statement, so an
order that was moved away is a StaleRoute and never missing. All methods raise what chassis.pg raises:
Overloaded, Contended, ShardUnavailable, DeadlineExceeded, StaleRoute.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from chassis import faults, pg
from chassis.errors import FROZEN_W, Contended, OrderArchived, StaleRoute
from chassis.ids import id_bucket, id_time
from chassis.store_spans import traced
from order_svc import points, rows
from order_svc.errors import (
    DeadLetterNotFound,
    IdNotTaken,
    OrderElsewhere,
    OrderNotFound,
    RequestIdReused,
)
from order_svc.order import Change, Decision, Kind, Order, Outcome, Rewait, Seen, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime
    from uuid import UUID

    from order_svc.rows import (
        Claim,
        Clocks,
        DeadLetter,
        DueOrder,
        Hold,
        Identity,
        OrderEvent,
        Position,
        Waiting,
    )

DECIDE_TRIES_MAX = 8
"""Others that keep being first change the order each time; eight in a row is a storm, and the caller may
come again.
"""
SUSPECTS_SHARE = 4
"""One in so many claimed orders may be a suspect of killing processes."""

READABLE = frozenset({"OWNED", FROZEN_W})
"""States of a fence whose bucket is all here, whether it is written just now or not."""

queries = pg.queries("order_svc")


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of a decision: the order as it is now, where its change stands in the log, and who made it.

    decision: None when the event had happened before, so the rule was not asked.
    """

    order: Order
    position: Position
    decision: Decision | None

    @property
    def is_written(self) -> bool:
        """Whether this very call changed the order."""
        return isinstance(self.decision, Change)


@dataclass(frozen=True, slots=True)
class Created:
    """The order of a request, and what was written about its first leg: None when an earlier call made it."""

    order: Order
    position: Position
    tally: Tally | None

    @property
    def replayed(self) -> bool:
        """Whether an earlier call made the order."""
        return self.tally is None


@traced
class OrderStore:
    """The orders of one shard. changed: told every change that this process wrote.

    writes: the same database with other bounds, for what is not cut off once it has begun.
    """

    def __init__(
        self,
        database: pg.Database,
        changed: Callable[[Change, Order], None] = lambda _, __: None,
        *,
        writes: pg.Database | None = None,
    ) -> None:
        self._db = database
        self._writes = writes or database
        self._changed = changed

    def until(self, deadline: float) -> OrderStore:
        """The same orders for one call: its reads end by its deadline, and its writes begin by then.

        deadline: on the monotonic clock.
        """
        writes = self._writes.begun_by(deadline)
        return OrderStore(self._db.until(deadline), self._changed, writes=writes)

    async def create(self, change: Change, *, epoch: int, fingerprint: bytes) -> Created:
        """Write a new order, or return the one that this request made before.

        epoch: of the route the proxy took; an older one than the fence's is refused.
        Raises: RequestIdReused when the request_id was used with another request; OrderElsewhere when its
        order is in a bucket that the user left; IdNotTaken, to be tried with another id; StaleRoute.
        """
        await faults.point(points.CREATE.before)
        row = await self._writes.fetchrow(queries.create_order, *rows.creation(change, epoch, fingerprint))
        if row is None:
            return await self._replayed(change.after, fingerprint)
        await faults.point(points.CREATE.after)
        created = Created(rows.order(row), rows.position(row), rows.opened(row))
        self._changed(change, created.order)
        return created

    async def _replayed(self, wanted: Order, fingerprint: bytes) -> Created:
        row = await self._db.fetchrow(queries.find_key, wanted.user_id, wanted.request_id, wanted.bucket)
        row = _owned(row, wanted.bucket)
        if row["key_order_id"] is None:
            # It expired between the two statements, or the id came too late.
            raise IdNotTaken(request_id=wanted.request_id)
        if row["fingerprint"] != fingerprint:
            raise RequestIdReused(request_id=wanted.request_id)
        if row["order_id"] is None:
            raise OrderElsewhere(order_id=row["key_order_id"])
        return Created(rows.order(row), rows.position(row), None)

    async def replay(self, order_id: UUID, user_id: str, request_id: UUID) -> Created:
        """The order of a request whose key is on another shard, which named the order.

        Raises: OrderNotFound when that is no order of this request; StaleRoute.
        """
        row = await self._see(order_id, request_id)
        found = Created(rows.order(row), rows.position(row), None)
        if (found.order.user_id, found.order.request_id) != (user_id, request_id):
            raise OrderNotFound(order_id=order_id)
        return found

    async def get(self, order_id: UUID) -> Order:
        """One order as it is now.

        Raises: OrderNotFound; OrderArchived; StaleRoute when its bucket is not ours.
        """
        row = await self._db.fetchrow(queries.get_order, order_id, id_time(order_id), id_bucket(order_id))
        return rows.order(_found(row, order_id))

    async def get_many(self, order_ids: Sequence[UUID]) -> list[Order]:
        """Those of some orders that exist, in no order.

        Raises: StaleRoute when the bucket of any of them is not ours.
        """
        times = [id_time(order_id) for order_id in order_ids]
        buckets = [id_bucket(order_id) for order_id in order_ids]
        found = await self._db.fetch(queries.get_orders, list(order_ids), times, buckets)
        return [rows.order(row) for row in found if _owned(row, row["asked"])["order_id"] is not None]

    async def decide(
        self,
        order_id: UUID,
        event_id: UUID,
        rule: Callable[[Seen], Decision],
        *,
        at: points.Commit,
        lease_token: UUID | None = None,
        known: Seen | None = None,
    ) -> Decided:
        """Apply a rule to an order as it is now, once per event; read again when somebody else was first.

        event_id: names this event for ever. When the journal already has it, the change has happened: the
        order is returned as it is and the rule is not asked. So a repeat, or a lost COMMIT answer, is
        harmless.
        rule: a pure function; asked at most DECIDE_TRIES_MAX times.
        lease_token: from the claim; a Rewait moves the timer only while it is valid.
        known: the situation as this process wrote it a moment ago; saves the first read of an event that was
        never tried before. When it is out of date the version says so.
        Raises: whatever the rule raises; OrderNotFound; OrderArchived; StaleRoute; Contended when the tries
        are spent.
        """
        if known is not None and isinstance(guess := rule(known), Change):
            written = await self._apply(guess, at)
            if written is not None:
                return written
        for _ in range(DECIDE_TRIES_MAX):
            row = await self._see(order_id, event_id)
            if row["happened"]:
                return Decided(rows.order(row), rows.position(row), None)
            decision = rule(rows.seen(row))
            if not isinstance(decision, Change):
                if isinstance(decision, Rewait) and lease_token is not None:
                    await self._rewait(order_id, lease_token, decision, at)
                return Decided(rows.order(row), rows.position(row), decision)
            written = await self._apply(decision, at)
            if written is not None:
                return written
        raise Contended(order_id=order_id)

    async def _see(self, order_id: UUID, event_id: UUID) -> Any:
        key = (order_id, id_time(order_id), id_bucket(order_id))
        return _found(await self._db.fetchrow(queries.see_order, *key, event_id), order_id)

    async def _apply(self, change: Change, at: points.Commit) -> Decided | None:
        await faults.point(at.before)
        row = await self._writes.fetchrow(queries.apply_change, *rows.change(change))
        if row is None:
            return None
        await faults.point(at.after)
        written = Decided(rows.order(row), rows.position(row), change)
        self._changed(change, written.order)
        return written

    async def _rewait(self, order_id: UUID, lease_token: UUID, rewait: Rewait, at: points.Commit) -> None:
        await faults.point(at.before)
        counted = (int(rewait.silent), int(rewait.fault))
        await self._writes.execute(queries.rewait, order_id, lease_token, rewait.wake_in, *counted)
        await faults.point(at.after)

    async def claim_probes(self, limit: int, lease: timedelta, claimed_by: str) -> list[Claim]:
        """Lease orders that are due for a probe, never more than `limit`."""
        suspects = max(1, limit // SUSPECTS_SHARE)
        return await self._claim(queries.claim_due, "PROBE", limit, suspects, lease, claimed_by, None)

    async def claim_submissions(
        self, limit: int, lease: timedelta, claimed_by: str, upstream: str
    ) -> list[Claim]:
        """Lease orders that are READY for one upstream, never more than `limit`."""
        return await self._claim(queries.claim_due, "SUBMIT", limit, limit, lease, claimed_by, upstream)

    async def claim_one(self, order_id: UUID, lease: timedelta, claimed_by: str) -> list[Claim]:
        """Lease one order for a probe, due or not; empty when somebody has it or it waits for no probe."""
        return await self._claim(queries.claim_one, order_id, claimed_by, lease)

    async def _claim(self, sql: str, *arguments: object) -> list[Claim]:
        claims = [rows.claim(row) for row in await self._writes.fetch(sql, *arguments)]
        await faults.point(points.CLAIM_AFTER_COMMIT)
        return claims

    async def give_back(self, claim: Claim, wait: timedelta) -> None:
        """End a lease that nobody works under; the order is due after `wait`.

        A lease that was lost is somebody else's, and stays.
        """
        await self._writes.execute(queries.give_back, claim.order.order_id, claim.lease_token, wait)

    async def unserved(self, known: Collection[str], overdue: timedelta, limit: int) -> list[UUID]:
        """Orders that are READY for an upstream not among those known, and past their time for so long."""
        found = await self._db.fetch(queries.list_unserved, sorted(known), overdue, limit)
        return [row["order_id"] for row in found]

    async def list_due(
        self, after: tuple[datetime, UUID], *, overdue_only: bool, limit: int
    ) -> list[DueOrder]:
        """Orders that wait, the most overdue first, after a position."""
        found = await self._db.fetch(queries.list_due, *after, overdue_only, limit)
        return [rows.due_order(row) for row in found]

    async def events(self, order_id: UUID, after_version: int, limit: int) -> list[OrderEvent]:
        """The journal after a version, oldest first.

        Raises: OrderNotFound when there is none at all; OrderArchived; StaleRoute.
        """
        bucket = id_bucket(order_id)
        key = (order_id, id_time(order_id), bucket)
        found = await self._db.fetch(queries.list_events, *key, after_version, limit)
        events = [
            rows.event(row) for row in found if _hot(_owned(row, bucket), order_id)["version"] is not None
        ]
        if not events and after_version == 0:
            raise OrderNotFound(order_id=order_id)
        return events

    async def dead_letters(
        self, after: tuple[datetime, UUID], *, include_closed: bool, limit: int
    ) -> list[DeadLetter]:
        """Cases, the oldest first, after a position."""
        found = await self._db.fetch(queries.list_dead_letters, *after, include_closed, limit)
        return [rows.dead_letter(row) for row in found]

    async def dead_letter(self, order_id: UUID) -> DeadLetter:
        """The open case of an order, else the last closed one.

        Raises: DeadLetterNotFound, StaleRoute.
        """
        bucket = id_bucket(order_id)
        row = _owned(await self._db.fetchrow(queries.get_dead_letter, order_id, bucket), bucket)
        if row["dead_letter_id"] is None:
            raise DeadLetterNotFound(order_id=order_id)
        return rows.dead_letter(row)

    async def closed_case(self, order_id: UUID, event_id: UUID, outcome: Outcome) -> DeadLetter:
        """The case that an event closed, as it was closed.

        Raises: RequestIdReused when the event was something else than closing a case with this outcome.
        """
        row = await self._db.fetchrow(queries.get_closed_case, order_id, event_id)
        if row is None or row["outcome"] != outcome:
            raise RequestIdReused(request_id=event_id)
        return rows.dead_letter(row)

    async def must_be_relabelling(self, order_id: UUID, event_id: UUID, labels_digest: str) -> None:
        """Make sure that an event of the past was this change of labels.

        Raises: RequestIdReused when it was something else, or gave other labels.
        """
        row = await self._db.fetchrow(queries.get_event, order_id, id_time(order_id), event_id)
        if row is None or row["kind"] != Kind.RELABELLED or row["evidence"]["digest"] != labels_digest:
            raise RequestIdReused(request_id=event_id)

    async def put_hold(
        self, hold_id: UUID, scope: str, reason: str, actor: str, until: datetime | None
    ) -> Hold:
        """Keep claims away from some orders; a repeat with the same id changes nothing."""
        return rows.hold(await self._writes.fetchrow(queries.put_hold, hold_id, scope, reason, actor, until))

    async def lift_hold(self, request_id: UUID, scope: str, actor: str, reason: str) -> Hold | None:
        """End a hold; None when there is none."""
        row = await self._writes.fetchrow(queries.lift_hold, request_id, scope, actor, reason)
        return None if row is None else rows.hold(row)

    async def holds(self) -> list[Hold]:
        """The holds in force."""
        return [rows.hold(row) for row in await self._db.fetch(queries.list_holds)]

    async def waiting(self) -> list[Waiting]:
        """Orders that wait, by stage."""
        return [rows.waiting(row) for row in await self._db.fetch(queries.count_waiting)]

    async def open_cases(self) -> int:
        """How many cases are open."""
        return int(await self._db.fetchval(queries.count_cases))

    async def clocks(self) -> Clocks:
        """The database's clocks."""
        return rows.clocks(await self._db.fetchrow(queries.read_clocks))

    async def identity(self) -> Identity | None:
        """Which shard this database says it is; None when nobody named it."""
        row = await self._db.fetchrow(queries.identity)
        return None if row is None else rows.identity(row)

    async def tables_without_room(self) -> list[str]:
        """Tables that would refuse the rows of this moment, as the partition for it is missing."""
        return [row["name"] for row in await self._db.fetch(queries.tables_without_room)]

    async def reap_keys(self, limit: int) -> int:
        """Delete expired keys, at most `limit`; how many."""
        return int(await self._db.fetchval(queries.reap_keys, limit))


def _owned(row: Any, bucket: int) -> Any:
    """The row, if its bucket is ours.

    Raises: StaleRoute.
    """
    if row["fence_state"] not in READABLE:
        said = {name: row[f"fence_{name}"] for name in ("epoch", "owner", "state", "left_epoch")}
        raise StaleRoute(bucket=bucket, **{name: value for name, value in said.items() if value is not None})
    return row


def _hot(row: Any, order_id: UUID) -> Any:
    """The row, if its month is served from here.

    Raises: OrderArchived, whether or not there was such an order.
    """
    if row["is_archived"]:
        raise OrderArchived(order_id=order_id, month=f"{id_time(order_id):%Y-%m}")
    return row


def _found(row: Any, order_id: UUID) -> Any:
    if _hot(_owned(row, id_bucket(order_id)), order_id)["order_id"] is None:
        raise OrderNotFound(order_id=order_id)
    return row
