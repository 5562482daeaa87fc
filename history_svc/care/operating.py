"""What each kind of operation does next, a step at a time. A step that fails, or that dies, is done again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid5

from chassis import faults
from history_svc import metrics
from history_svc.care.operation import Findings, Kind, Operation, Phase, State
from history_svc.care.verifying import Comparison
from history_svc.care.writing import OrderWriter
from history_svc.document import month_of
from history_svc.projector.domain import written_to

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import date
    from uuid import UUID

    from history_svc.care.parts import Parts

    Keep = Callable[[Operation], Awaitable[None]]

ROWS_AT_ONCE = 1000
PASSES_MAX = 4
"""So often a month is compared in one operation; each pass repairs what the one before found."""
ARCHIVED = "the month is archived; no list shows it"
AFTER_MAKE = faults.declare("care.after_make", "a new index is named and no operation says so")
AFTER_COPY = faults.declare("care.after_copy", "orders are copied and the operation does not say so")
BEFORE_SERVE = faults.declare("care.before_serve", "a month is built and proven, and its old index serves")
AFTER_SERVE = faults.declare("care.after_serve", "a new index serves and its operation is open")
AFTER_RESET = faults.declare("care.after_reset", "a shard's projection begins anew and its operation is open")


async def step(parts: Parts, operation: Operation, term: int, keep: Keep) -> Operation:
    """Do what is next, and say where the operation stands then; the caller keeps that.

    term: in which we lead the shard. keep: keeps how far a long step is.
    Raises: ReadModelUnavailable, EventsUnavailable, QuarantineFull, and what the store raises; then the step
    is done again.
    """
    if operation.month is not None and await parts.care.is_archived(operation.month):
        return _ended(operation, ARCHIVED)
    match operation.kind:
        case Kind.RESET:
            months = await parts.care.reset(operation.operation_id, term)
            if months is None:
                return operation  # It is somebody else's by now, who keeps what became of it.
            await faults.point(AFTER_RESET)
            return _ended(operation, f"{months} months are built again")
        case Kind.RETRY:
            return await _retry(parts, operation)
        case Kind.REBUILD:
            return await _rebuild(parts, operation, keep)
        case Kind.VERIFY:
            return await _verify(parts, operation, keep)


async def _rebuild(parts: Parts, operation: Operation, keep: Keep) -> Operation:
    if operation.phase is Phase.PLAN:
        return await _plan(parts, operation)
    if not await _is_there(parts, operation):
        return replace(operation, phase=Phase.PLAN, note="its index was replaced; from the beginning")
    if operation.phase is Phase.WAIT:
        assert operation.catalog_version is not None, "noted by the plan"
        if not await parts.care.knows(operation.catalog_version):
            return replace(operation, note="waits for every watermark to be written by the new catalog")
        return replace(operation, phase=Phase.COPY, copied_to=None, orders=0, note="")
    if operation.phase is Phase.COPY:
        return await _copy(parts, operation)
    return await _prove(parts, operation, keep)


async def _plan(parts: Parts, operation: Operation) -> Operation:
    """Have the month's new index made, and known to everybody who writes."""
    month = _month(operation)
    generation, name = await parts.care.plan(month, hides=False, fresh=False)
    identity = await parts.read_model.create(name)
    for index in (await parts.projection.catalog()).indices:
        if index.identity.name == name and index.identity.index_uuid and index.identity != identity:
            await parts.projection.doubt_index(index.identity)
    await parts.projection.name_index(identity)
    await faults.point(AFTER_MAKE)
    catalog = await parts.projection.catalog()
    if not any(index.identity == identity for index in catalog.indices):
        return replace(operation, note=f"{name} is made again")
    return replace(
        operation,
        phase=Phase.WAIT,
        generation=generation,
        index_name=name,
        index_uuid=identity.index_uuid,
        catalog_version=catalog.version,
        expected=await parts.care.count(*operation.bounds),
        note="",
    )


async def _copy(parts: Parts, operation: Operation) -> Operation:
    """Copy the next orders; after the last ones, make all of them searchable. Orders that come later are
    written by the projector, so a page that is not full is the last one.
    """
    name = _name(operation)
    rows = await parts.care.orders(*operation.bounds, operation.copied_to, ROWS_AT_ONCE)
    began = parts.clock.monotonic()
    put = await OrderWriter(parts).put(rows, {row.order_id: (name,) for row in rows}, again=False)
    await faults.point(AFTER_COPY)
    metrics.COPIED.labels(parts.care.shard).inc(len(rows))
    if len(rows) < ROWS_AT_ONCE:
        await parts.read_model.refresh([name])
    else:
        took = parts.clock.monotonic() - began
        await parts.clock.sleep(max(0.0, len(rows) / parts.pacing.copy_rate - took))
    return replace(
        operation,
        phase=Phase.COPY if len(rows) == ROWS_AT_ONCE else Phase.COMPARE,
        copied_to=rows[-1].order_id if rows else operation.copied_to,
        orders=operation.orders + len(rows),
        findings=operation.findings + Findings(refused=put.refused),
    )


async def _prove(parts: Parts, operation: Operation, keep: Keep) -> Operation:
    """Compare the new index with the shard, and let it serve when nothing differs."""
    found = await _compared(parts, operation, _name(operation), keep, repairs=True)
    if await parts.care.is_archived(_month(operation)):
        return _ended(operation, ARCHIVED)  # Its table may have gone while it was compared.
    after = replace(operation, passes=operation.passes + 1, findings=operation.findings + found)
    if found.differing and after.passes >= PASSES_MAX:
        return _ended(after, "the new index still differs", State.FAILED)
    if found.is_foreign:
        # What stood there before was written by somebody who knew more than the shard does now.
        await parts.care.plan(_month(operation), hides=False, fresh=True)
        return replace(
            after, phase=Phase.PLAN, note="the index held what the shard does not have; in another"
        )
    if found.differing:
        return after
    await faults.point(BEFORE_SERVE)
    assert operation.generation is not None, "noted by the plan"
    assert operation.index_uuid is not None, "noted by the plan"
    if not await parts.care.serve(_month(operation), operation.generation, operation.index_uuid):
        return replace(after, phase=Phase.PLAN, passes=0, note="the month was planned anew meanwhile")
    await faults.point(AFTER_SERVE)
    return _ended(after, f"{operation.index_name} serves")


async def _verify(parts: Parts, operation: Operation, keep: Keep) -> Operation:
    """Compare what serves; what only another index can help is built anew, and not read until then."""
    month = _month(operation)
    index = (await parts.projection.catalog()).serving().get(month)
    if index is None:
        if await parts.care.count(*operation.bounds):
            return _ended(operation, "the month is not served from an index", State.FAILED)
        return _ended(operation, "the shard has no orders of the month")
    operation = replace(
        operation, phase=Phase.COMPARE, generation=index.generation, index_name=index.identity.name
    )
    if not operation.expected:
        operation = replace(operation, expected=await parts.care.count(*operation.bounds))
    found = await _compared(parts, operation, index.identity.name, keep, repairs=operation.repairs)
    if await parts.care.is_archived(month):
        return _ended(operation, ARCHIVED)  # Its table may have gone while it was compared.
    after = replace(
        operation, passes=operation.passes + 1, findings=operation.findings + found, orders=operation.expected
    )
    if not found.differing:
        return _ended(
            after, "nothing differs" if not after.findings.differing else "all that differed is repaired"
        )
    if not operation.repairs:
        return _ended(after, "it differs; repair it")
    if found.is_foreign:
        await parts.care.plan(month, hides=True, fresh=True)
        await parts.care.open(
            uuid5(operation.operation_id, "rebuild"),
            Kind.REBUILD,
            month,
            repairs=False,
            actor=operation.actor,
            reason=f"{index.identity.name} knows more than the shard",
        )
        return _ended(after, "the index knows more than the shard; the month is built again")
    if after.passes >= PASSES_MAX:
        return _ended(after, "it still differs", State.FAILED)
    return after


async def _compared(parts: Parts, operation: Operation, name: str, keep: Keep, *, repairs: bool) -> Findings:
    async def seen(orders: int) -> None:
        if operation.kind is Kind.VERIFY:
            await keep(replace(operation, orders=orders))

    return await Comparison(parts, name, repairs=repairs).run(*operation.bounds, seen)


async def _retry(parts: Parts, operation: Operation) -> Operation:
    """Write the next orders in quarantine as they are now, into every index of their months."""
    waiting = await parts.care.quarantine(operation.copied_to, ROWS_AT_ONCE)
    if not waiting:
        found = operation.findings
        return _ended(operation, f"{found.repaired} orders left quarantine, {found.refused} stay")
    catalog = await parts.projection.catalog()
    rows = await parts.care.orders_of([each.order_id for each in waiting])
    indices = {
        row.order_id: [index.identity.name for index in written_to(catalog, month_of(row.created_at))]
        for row in rows
    }
    writer = OrderWriter(parts)
    put = await writer.put([row for row in rows if indices[row.order_id]], indices, again=True)
    if names := sorted({name for each in indices.values() for name in each}):
        await parts.read_model.refresh(names)
    gone = {each.order_id for each in waiting} - {row.order_id for row in rows}
    await parts.care.free(
        [*put.written, *((each.order_id, each.version) for each in waiting if each.order_id in gone)]
    )
    return replace(
        operation,
        copied_to=waiting[-1].order_id,
        orders=operation.orders + len(waiting),
        expected=max(operation.expected, operation.orders + len(waiting)),
        findings=operation.findings + Findings(refused=put.refused, repaired=len(put.written)),
    )


async def _is_there(parts: Parts, operation: Operation) -> bool:
    """Whether the index that the operation works on is still the one that it had made, and the newest."""
    name = _name(operation)
    catalog = await parts.projection.catalog()
    generations = {index.generation: index for index in catalog.indices if index.month == operation.month}
    index = generations.get(operation.generation or 0)
    if index is None or index.generation != max(generations):
        return False
    there = (await parts.read_model.identities([name])).get(name)
    return there == index.identity and there.index_uuid == operation.index_uuid


def _ended(operation: Operation, note: str, state: State = State.SUCCEEDED) -> Operation:
    return replace(operation, state=state, note=note)


def _month(operation: Operation) -> date:
    assert operation.month is not None, "the table asks for one"
    return operation.month


def _name(operation: Operation) -> str:
    assert operation.index_name is not None, "noted by the plan"
    return operation.index_name


def id_of(request_id: UUID, shard: str) -> UUID:
    """An operation's id: the same request to the same shard is the same operation."""
    return uuid5(request_id, shard)
