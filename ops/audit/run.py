"""One audit: every invariant on every shard, then what stores say about each other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ops.audit import agreement
from ops.audit.findings import Broken, Finding, Findings
from ops.audit.invariants import invariants
from ops.audit.ledgers import LedgerFile
from ops.audit.shards import BATCH, opened, read_map, read_moved_users

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from uuid import UUID

    from ops.audit.ledgers import Executed
    from ops.audit.shards import OrderRow, Shard
    from ops.stack.endpoints import Endpoints

LOOKS_MAX = 3
LOOK_AGAIN_S = 1.0


async def run(endpoints: Endpoints, *, quiet: bool = False) -> list[Finding]:
    """Audit a stack; every check is in the result, with how often it is broken.

    quiet: nothing is in motion, so what was executed must be settled or parked.
    Raises: StoreUnreadable when a database or a ledger cannot be read.
    """
    says = {each.name: each.says for each in invariants()} | agreement.CHECKS
    found = Findings(says | agreement.QUIET_CHECKS if quiet else says)
    ledgers = ledgers_of(endpoints)
    async with opened(endpoints.shard_dsns()) as shards:
        for shard in shards:
            await _hold(shard, found)
        await _one_place(shards, endpoints.control_dsn, found)
        await _keys(shards, endpoints.control_dsn, found)
        for shard in shards:
            async for orders in shard.orders():
                await _compare(shard.name, orders, ledgers, found, quiet=quiet)
        await _known(ledgers, shards, found)
    return found.all()


def ledgers_of(endpoints: Endpoints) -> list[LedgerFile]:
    """The ledgers of all upstreams."""
    return [LedgerFile(upstream.name, upstream.ledger) for upstream in endpoints.upstreams]


async def _hold(shard: Shard, found: Findings) -> None:
    for invariant in invariants():
        count, first = await shard.breaks(invariant)
        found.add(invariant.name, *first, count=count)


async def _one_place(shards: Sequence[Shard], control_dsn: str, found: Findings) -> None:
    owners = await read_map(control_dsn)
    for shard in shards:
        async for orders in shard.orders():
            found.add("i17_map", *agreement.misplaced(shard.name, orders, owners))
    disagree = list(agreement.fences(owners, {shard.name: await shard.fence() for shard in shards}))
    for _ in range(LOOKS_MAX):
        # A user who is moved just now lets map and fence differ for some milliseconds.
        if not disagree:
            break
        await asyncio.sleep(LOOK_AGAIN_S)
        owners = await read_map(control_dsn)
        now = agreement.fences(owners, {shard.name: await shard.fence_now() for shard in shards})
        still = {(each.where, each.id): each for each in now}
        disagree = [still[each.where, each.id] for each in disagree if (each.where, each.id) in still]
    found.add("i17_fence", *disagree)
    async for order_id, where in _twice(shards):
        found.add("i17_one_shard", Broken(", ".join(where), str(order_id), f"on {len(where)} shards"))


async def _keys(shards: Sequence[Shard], control_dsn: str, found: Findings) -> None:
    """Follow keys that were copied, and compare the requests of users who were moved."""
    for shard in shards:
        async for keys in shard.copied_keys():
            ids = [key.order_id for key in keys]
            orders = {one.order_id: one for other in shards for one in await other.requests_now(ids)}
            found.add("i7_copied", *agreement.copied(shard.name, keys, orders))
    users = await read_moved_users(control_dsn)
    requests = {shard.name: await shard.requests_of(users) for shard in shards}
    found.add("i7_across", *agreement.across(requests))


async def _twice(shards: Sequence[Shard]) -> AsyncIterator[tuple[UUID, list[str]]]:
    """Orders on more than one shard: a merge of ascending ids, so that memory stays small."""
    streams = {shard.name: shard.order_ids() for shard in shards}
    heads = {name: await anext(stream, None) for name, stream in streams.items()}
    while waiting := {name: head for name, head in heads.items() if head is not None}:
        lowest = min(waiting.values())
        where = [name for name, head in waiting.items() if head == lowest]
        if len(where) > 1:
            yield lowest, where
        for name in where:
            heads[name] = await anext(streams[name], None)


async def _compare(
    shard: str, orders: Sequence[OrderRow], ledgers: Sequence[LedgerFile], found: Findings, *, quiet: bool
) -> None:
    """Hold a batch of orders against all ledgers, which are read after the orders."""
    wanted = [str(order.order_id) for order in orders]
    by_order: dict[str, list[Executed]] = {each: [] for each in wanted}
    for ledger in ledgers:
        for executed in await ledger.of_orders(wanted):
            by_order[executed.order_id].append(executed)
    for order in orders:
        for check, fact in agreement.of_order(order, by_order[str(order.order_id)], quiet=quiet):
            found.add(check, Broken(shard, str(order.order_id), fact))


async def _known(ledgers: Sequence[LedgerFile], shards: Sequence[Shard], found: Findings) -> None:
    missing: dict[UUID, str] = {}
    for ledger in ledgers:
        for order_id, leg, times in await ledger.doubles():
            found.add("i16_once", Broken(ledger.upstream, order_id, f"leg {leg} was executed {times} times"))
        async for order_ids in ledger.order_ids():
            missing |= dict.fromkeys(await _missing(shards, order_ids), ledger.upstream)
    archived = [month for shard in shards for month in await shard.archived_now()]
    # Once more: a month may have come back meanwhile.
    ids = list(missing)
    still: set[UUID] = set()
    for first in range(0, len(ids), BATCH):
        still |= await _missing(shards, ids[first : first + BATCH])
    found.add("i16_known", *agreement.unknown({each: missing[each] for each in still}, archived))


async def _missing(shards: Sequence[Shard], order_ids: Sequence[UUID]) -> set[UUID]:
    """Those of some orders that no shard has now."""
    missing = set(order_ids)
    for shard in shards:
        missing -= await shard.known_now(sorted(missing))
    return missing
