"""Following months on their way into the archive and back."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from ops.mesh import TIMEOUT_S, CallFailed
from ordermesh.archive.v1 import archive_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from google.protobuf.message import Message

    from ops.mesh import Mesh

    Tell = Callable[[Sequence[pb.Month]], None]

Ended = TypeVar("Ended", pb.EraseUserResponse, pb.SweepStraysResponse)
LOOK_EVERY_S = 0.3
Month = pb.Month
READY = frozenset({Month.HOT, Month.THAWED, Month.RESTORED})
"""States of months that are in their shard and could leave it."""
_STAYS = READY | {Month.WANTED}
"""States of months that younger ones wait for, besides of those that come back."""
_WAY = (Month.VERIFIED, Month.COMMITTED, Month.DETACHING, Month.GRACE, Month.DROPPED)
BEYOND = {goal: _WAY[_WAY.index(goal) + 1 :] for goal in _WAY}
"""By where a month is to be: where it went further already."""
GIB = 1024**3
S3_USD_PER_GIB_MONTH = 0.0245
"""STANDARD in Frankfurt; list prices of 2025."""
DISK_USD_PER_GIB_MONTH = 0.115
COPIES = 3
"""Of the database's disk: primary, replica, backup."""
PER_STORED_BYTE = 4.0
"""Bytes of tables and indexes for one byte of segments, before it is known; seeded months had 4 to 6."""


async def listed(mesh: Mesh, shard: str = "") -> pb.ListMonthsResponse:
    """Every month of every shard, or of one.

    Raises: CallFailed.
    """
    return await mesh.archive.ListMonths(pb.ListMonthsRequest(shard=shard), timeout=TIMEOUT_S)


def ready(shard: pb.ListMonthsResponse.Shard) -> list[Month]:
    """The months that could leave now, the oldest first: an older one that cannot holds the others up."""
    found: list[Month] = []
    for month in shard.months:
        if month.state not in READY:
            if _comes_back(month):
                break
            continue
        blockers = [each for each in month.blockers if each != "OLDER_MONTH_FIRST"]
        if blockers:
            break
        found.append(month)
    return found


def kept(
    shard: pb.ListMonthsResponse.Shard, chosen: Sequence[Month], goal: Month.State.ValueType
) -> dict[str, list[str]]:
    """What keeps each of the chosen months when all of them are asked for; nothing of those that go."""
    found: dict[str, list[str]] = {}
    going: set[str] = set()
    # Tables are frozen and taken off; what is between only copies.
    leaves = goal not in (Month.VERIFIED, Month.COMMITTED)
    for month in sorted(chosen, key=lambda each: each.month):
        holds_up = any(
            each.month < month.month
            and each.month not in going
            and (each.state in _STAYS or _comes_back(each))
            for each in shard.months
        )
        why = [each for each in month.blockers if each != "OLDER_MONTH_FIRST" or holds_up]
        why += ["COMES_BACK"] if month.state == Month.RESTORING else []
        why += ["HALTED"] if shard.halted and (leaves or month.state in _STAYS) else []
        why += ["LEGAL_HOLD"] if month.legal_hold and leaves else []
        if why:
            found[month.month] = why
        else:
            going.add(month.month)
    return found


def _comes_back(month: Month) -> bool:
    """Whether a month is on its way into the tables."""
    return month.state == Month.RESTORING or (month.state != Month.RESTORED and month.reach == Month.RESTORED)


def is_there(month: Month) -> bool:
    """Whether a month is where it is to be, or waits for a person."""
    return month.state == month.reach or bool(month.quarantined)


def is_read(month: Month) -> bool:
    """Whether no segment of a month waits to be read back once more; a person may have to look yet."""
    return not month.due_count


async def followed(
    mesh: Mesh,
    begun: Collection[Month],
    *,
    wait_s: float,
    tell: Tell,
    is_over: Callable[[Month], bool] = is_there,
) -> list[Month]:
    """Months as they are when each is over, or when the time is; told again and again.

    A mesh that does not answer meanwhile is asked again.
    """
    known = {(each.shard, each.month): each for each in begun}
    end = time.monotonic() + wait_s
    while time.monotonic() < end and not all(map(is_over, known.values())):
        try:
            answer = await listed(mesh)
        except CallFailed:
            await asyncio.sleep(LOOK_EVERY_S)
            continue
        for shard in answer.shards:
            for month in shard.months:
                if (month.shard, month.month) in known:
                    known[month.shard, month.month] = month
        tell(list(known.values()))
        await asyncio.sleep(LOOK_EVERY_S)
    return list(known.values())


def stored_estimate(month: Month) -> float:
    """About how many bytes a month takes up in S3; exactly, when it is stored."""
    return month.stored_bytes or month.table_bytes / PER_STORED_BYTE


def parts_estimate(month: Month, part_bytes: int) -> int:
    """About how many parts a month is cut into, before it is. part_bytes: of rows in a part."""
    return max(1, -(-month.row_bytes // max(part_bytes, 1)))


def stored_usd(month: Month) -> float:
    """About what its copy in S3 costs a month."""
    return stored_estimate(month) / GIB * S3_USD_PER_GIB_MONTH


def orders_told(month: Month) -> str:
    """How many orders a month has: counted, as the planner thinks (`~`), or `?` where that does not know."""
    if month.part_count:
        return f"{month.order_count:,}"
    if month.row_bytes and not month.order_count:
        return "?"
    return f"~{month.order_count:,}"


def not_there(answer: pb.ListMonthsResponse, months: Sequence[str]) -> list[str]:
    """Which of some months no shard that answered knows."""
    known = {each.month for part in answer.shards for each in part.months}
    return [month for month in months if month not in known]


def saved_usd(month: Month) -> float:
    """About what a month less in the database saves in a month, in US dollars, at list prices."""
    disk = month.table_bytes / GIB * DISK_USD_PER_GIB_MONTH * COPIES
    return disk - stored_usd(month)


async def ended(
    call: Callable[..., Awaitable[Ended]],
    request: Message,
    who: tuple[tuple[str, str], ...],
    *,
    wait_s: float,
    tell: Callable[[Ended], None],
) -> Ended:
    """What a call answers that says how far something is, when it is over on each shard, or when the time is.

    tell: called with each answer.

    Raises: CallFailed when the first call fails; later ones are repeated.
    """
    end = time.monotonic() + wait_s
    answer = await call(request, timeout=TIMEOUT_S, metadata=who)
    tell(answer)
    while time.monotonic() < end and not all(each.HasField("end_time") for each in answer.shards):
        await asyncio.sleep(LOOK_EVERY_S)
        with suppress(CallFailed):
            answer = await call(request, timeout=TIMEOUT_S, metadata=who)
            tell(answer)
    return answer
