"""Whether stores agree with each other: orders with the upstreams' ledgers, the map with the fences. Pure.

A settled order that an operator vouched for is that person's word about a world we cannot see, and an open
case says that a disagreement is known; both are left out where the sentence says so.
"""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from chassis.ids import id_time
from ops.audit.findings import Broken

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from ops.audit.ledgers import Executed
    from ops.audit.shards import ArchivedMonth, CopiedKey, OrderRow, Request

KEY_LIVES = timedelta(hours=71, minutes=59)
"""After its order settled; the clocks of two shards differ by less than the minute that is missing."""
CHECKS = {
    "i7_copied": "A key that was copied with its user points at an order of that user and request.",
    "i7_across": "Of a user with several buckets, no two shards have orders of one live request.",
    "i16_once": "An upstream executed each leg of an order at most once.",
    "i16_success": "Each leg of a SUCCESS order was executed by its upstream, amount and reference as here "
    "(an operator's word aside).",
    "i16_failed": "Of a FAILED order nothing is executed that was not taken back "
    "(an operator's word or an open case aside).",
    "i16_leg": "A leg is executed only by the upstream the order names for it, under its own key, "
    "and not beyond the leg where the order ended.",
    "i16_known": "Every order that an upstream executed exists on a shard; of an archived month, no more "
    "were executed than its archive holds.",
    "i17_one_shard": "No order is on two shards.",
    "i17_map": "Every order is on the shard that owns its bucket by the control database.",
    "i17_fence": "Map and fences agree: each bucket is OWNED at the map's epoch by its shard, by no other.",
}
"""What is compared between stores, in the order of the report."""
QUIET_CHECKS = {
    "i16_quiet": "With nothing in motion, no executed leg belongs to an order PENDING and not parked.",
}


def copied(shard: str, keys: Iterable[CopiedKey], orders: Mapping[UUID, Request]) -> Iterator[Broken]:
    """Copied keys that point at no order, or at one of another user or request. orders: of all shards."""
    for key in keys:
        order = orders.get(key.order_id)
        if order is None and key.is_over:
            continue
        if order is None or (order.user_id, order.request_id) != (key.user_id, key.request_id):
            what = "no order" if order is None else "another order"
            yield Broken(shard, str(key.order_id), f"key {key.request_id} of {key.user_id} points at {what}")


def across(requests: Mapping[str, Sequence[Request]]) -> Iterator[Broken]:
    """Orders of the same user and request on several shards, of which the later was made while the key of
    the earlier one lived. requests: by shard.
    """
    by_request: dict[tuple[str, UUID], list[tuple[Request, str]]] = {}
    for shard, found in requests.items():
        for each in found:
            by_request.setdefault((each.user_id, each.request_id), []).append((each, shard))
    for same in by_request.values():
        ordered = sorted(same, key=lambda pair: (pair[0].created_at, pair[0].order_id))
        for (first, _), (later, shard) in pairwise(ordered):
            if first.settled_at is None or later.created_at < first.settled_at + KEY_LIVES:
                yield Broken(
                    shard, str(later.order_id), f"a second order for the request of {first.order_id}"
                )


def of_order(order: OrderRow, executed: Sequence[Executed], *, quiet: bool) -> Iterator[tuple[str, str]]:
    """Disagreements of one order with everything its upstreams did, as (check, fact)."""
    standing = [one for one in executed if one.verdict == "SUCCEEDED" and not one.reversed]
    for one in executed:
        expected = order.legs[one.leg] if 0 <= one.leg < len(order.legs) else "no upstream"
        if (one.upstream, one.key) != (expected, f"{order.order_id}/{one.leg}"):
            yield "i16_leg", f"leg {one.leg} belongs to {expected}, executed by {one.upstream} as {one.key}"
        elif order.stage == "DONE" and one.leg > order.leg:
            yield "i16_leg", f"leg {one.leg} was executed, the order ended at leg {order.leg}"
    if order.basis == "OPERATOR":
        return
    if order.status == "SUCCESS":
        yield from (("i16_success", fact) for fact in _missing(order, standing))
    if order.status == "FAILED" and standing and not order.has_open_case:
        legs = ", ".join(str(one.leg) for one in standing)
        yield "i16_failed", f"FAILED by {order.basis}, executed leg {legs}"
    if quiet and order.stage not in ("DONE", "PARKED") and any(one.leg >= order.leg for one in standing):
        yield "i16_quiet", f"executed leg {order.leg}, the order is {order.stage}"


def _missing(order: OrderRow, standing: Sequence[Executed]) -> Iterator[str]:
    """What a SUCCESS order lacks at its upstreams."""
    for leg, upstream in enumerate(order.legs):
        found = [one for one in standing if one.leg == leg and one.upstream == upstream]
        if not found:
            yield f"leg {leg} was not executed by {upstream}"
        elif (found[0].amount_minor, found[0].currency_code) != (order.amount_minor, order.currency_code):
            yield f"leg {leg} was executed with {found[0].amount_minor} {found[0].currency_code}"
        elif leg == len(order.legs) - 1 and found[0].upstream_ref != order.upstream_ref:
            yield f"reference {order.upstream_ref}, the ledger says {found[0].upstream_ref}"


def unknown(missing: Mapping[UUID, str], archived: Sequence[ArchivedMonth]) -> Iterator[Broken]:
    """Executed orders that no shard has and no archive can have. missing: orders that no shard has, and who
    executed them. archived: of all shards; an archive is not opened, but it was proven how many it holds.
    """
    room: dict[tuple[datetime, datetime], int] = {}
    for month in archived:
        bounds = month.begins_at, month.ends_at
        room[bounds] = room.get(bounds, 0) + month.order_count
    of_month: dict[tuple[datetime, datetime], list[UUID]] = {bounds: [] for bounds in room}
    for order_id, upstream in sorted(missing.items()):
        at = id_time(order_id)
        held = next((each for each in room if each[0] <= at < each[1]), None)
        if held is None:
            yield Broken(upstream, str(order_id), "no shard has it")
        else:
            of_month[held].append(order_id)
    for bounds, order_ids in of_month.items():
        if len(order_ids) > room[bounds]:
            fact = f"{len(order_ids)} orders were executed, the archive has {room[bounds]}"
            yield Broken("the archive", f"{bounds[0]:%Y-%m}", fact)


def misplaced(
    shard: str, orders: Iterable[OrderRow], owners: Mapping[int, tuple[str, int]]
) -> Iterator[Broken]:
    """Orders on a shard that does not own their bucket."""
    for order in orders:
        owner = owners.get(order.bucket, ("nobody", 0))[0]
        if owner != shard:
            yield Broken(shard, str(order.order_id), f"bucket {order.bucket} is owned by {owner}")


def fences(
    owners: Mapping[int, tuple[str, int]], by_shard: Mapping[str, Mapping[int, tuple[str, int]]]
) -> Iterator[Broken]:
    """Buckets of which map and fences say different things."""
    for bucket, (owner, epoch) in owners.items():
        state, here = by_shard.get(owner, {}).get(bucket, ("missing", 0))
        if (state, here) != ("OWNED", epoch):
            yield Broken(owner, f"bucket {bucket}", f"fence {state} epoch {here}, map epoch {epoch}")
    for shard, fence in by_shard.items():
        for bucket, (state, epoch) in fence.items():
            owner = owners.get(bucket, ("nobody", 0))[0]
            if state == "OWNED" and owner != shard:
                yield Broken(shard, f"bucket {bucket}", f"OWNED here at epoch {epoch}, by the map of {owner}")
