"""Between protos and months. Pure."""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from archive_svc.lifecycle import REACHES, State
from archive_svc.statement.amendments import Amend
from chassis.errors import InvalidField, OrderIdInvalid, Violation
from chassis.ids import USER_ID_PATTERN, parse_order_id
from ordermesh.archive.v1 import archive_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from archive_svc.entries import Control, Erasure, MonthView
    from archive_svc.foresee import Foreseen
    from archive_svc.holds import Hold
    from archive_svc.sweep import Stray, Sweep, Totals

REASON_CHARS_MAX = 512
STRAYS_MAX = 100
"""That one answer names; the others are counted."""
_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])", re.ASCII)


class Move(NamedTuple):
    """A checked wish for a month."""

    request_id: UUID
    shard: str
    month: date
    reach: State
    reason: str


def move(request: pb.MoveMonthRequest) -> Move:
    """Check a wish for a month.

    Raises: InvalidField with every wrong field.
    """
    wrong = [*why(request.reason)]
    request_id, month, reach = _uuid(request.request_id), parsed_month(request.month), _reach(request.reach)
    if request_id is None:
        wrong.append(Violation("request_id", "must be a UUID"))
    if month is None:
        wrong.append(Violation("month", "must be a month such as 2023-08"))
    if reach is None:
        wrong.append(Violation("reach", f"must be one of {', '.join(REACHES)}"))
    if wrong or request_id is None or month is None or reach is None:
        raise InvalidField(*wrong)
    return Move(request_id, request.shard, month, reach, request.reason)


def why(text: str) -> Iterator[Violation]:
    """What is wrong with a reason."""
    if not 1 <= len(text) <= REASON_CHARS_MAX:
        yield Violation("reason", f"must have 1 to {REASON_CHARS_MAX} characters")
    if "\0" in text:
        yield Violation("reason", "must not hold a NUL character")


def parsed_month(text: str) -> date | None:
    """The first day of a month; None when the text is none."""
    found = _MONTH.fullmatch(text)
    return date(int(found[1]), int(found[2]), 1) if found and int(found[1]) else None


def shard(
    name: str,
    control: Control,
    totals: Totals,
    floor: datetime | None,
    months: Sequence[MonthView],
    part_bytes: int,
) -> pb.ListMonthsResponse.Shard:
    """One shard's months."""
    return pb.ListMonthsResponse.Shard(
        shard=name,
        floor_time=_time(floor),
        halted=control.is_halted,
        actor=control.actor,
        reason=control.reason,
        holder=control.holder if control.lease_until > control.at else "",
        months=[month(name, view) for view in months],
        stray_count=totals.strays,
        stray_bytes=totals.stray_bytes,
        sweep_time=_time(totals.ended_at),
        sweep_refusal=totals.refusal,
        part_bytes=part_bytes,
    )


def month(name: str, view: MonthView) -> pb.Month:
    """A month. Months that nobody asked for are HOT."""
    return pb.Month(
        shard=name,
        month=f"{view.month:%Y-%m}",
        state=pb.Month.State.Value(view.state or "HOT"),
        reach=pb.Month.State.Value(view.reach) if view.reach else pb.Month.STATE_UNSPECIFIED,
        blockers=view.blockers,
        quarantined=view.quarantined,
        note=view.note,
        order_count=view.orders,
        table_bytes=view.table_bytes,
        row_bytes=view.row_bytes,
        stored_bytes=view.stored_bytes,
        part_count=view.parts,
        stored_count=view.segments,
        verified_count=view.verified,
        restored_count=view.restored,
        commit_time=_time(view.committed_at),
        detach_time=_time(view.detach_from),
        drop_time=_time(view.drop_from),
        actor=view.actor,
        reason=view.reason,
        verify_time=_time(view.verified_at),
        due_count=view.due,
        lock_time=_time(view.locked_until),
        legal_hold=view.legal_hold,
    )


class Erase(NamedTuple):
    """A checked wish to erase a user."""

    request_id: UUID
    user_id: str
    shard: str
    reason: str


def erase(request: pb.EraseUserRequest) -> Erase:
    """Check a wish to erase a user.

    Raises: InvalidField with every wrong field.
    """
    wrong = [*why(request.reason)]
    request_id = _uuid(request.request_id)
    if request_id is None:
        wrong.append(Violation("request_id", "must be a UUID"))
    if not USER_ID_PATTERN.fullmatch(request.user_id):
        wrong.append(Violation("user_id", "must be a user id"))
    if wrong or request_id is None:
        raise InvalidField(*wrong)
    return Erase(request_id, request.user_id, request.shard, request.reason)


def amend(request: pb.AmendOrderRequest) -> Amend:
    """Check a wish to amend an order.

    Raises: InvalidField with every wrong field.
    """
    wrong = [*why(request.reason)]
    request_id, order_id = _uuid(request.request_id), _order_id(request.order_id)
    if request_id is None:
        wrong.append(Violation("request_id", "must be a UUID"))
    if order_id is None:
        wrong.append(Violation("order_id", "must be the id of an order"))
    if not USER_ID_PATTERN.fullmatch(request.user_id):
        wrong.append(Violation("user_id", "must be a user id"))
    if not 1 <= len(request.note) <= REASON_CHARS_MAX:
        wrong.append(Violation("note", f"must have 1 to {REASON_CHARS_MAX} characters"))
    changes = {
        name: getattr(request, name) for name in ("upstream_ref", "description") if request.HasField(name)
    }
    wrong += [
        Violation(name, f"must have {REASON_CHARS_MAX} characters at most")
        for name, text in changes.items()
        if len(text) > REASON_CHARS_MAX
    ]
    if request.succeeded:
        changes["status"] = "SUCCESS"
        if not changes.get("upstream_ref"):
            wrong.append(Violation("upstream_ref", "must say by what the order succeeded"))
    wrong += [
        Violation(name, "must not hold a NUL character")
        for name, text in (("note", request.note), *changes.items())
        if "\0" in text
    ]
    if wrong or request_id is None or order_id is None:
        raise InvalidField(*wrong)
    return Amend(request_id, request.user_id, order_id, request.note, request.reason, changes)


class Keeping(NamedTuple):
    """A checked wish to keep a user or a month, or to let it go; one of them is None."""

    shard: str
    user_id: str | None
    month: date | None
    reason: str


def legal_hold(request: pb.PutLegalHoldRequest | pb.LiftLegalHoldRequest) -> Keeping:
    """Check whom or what a legal hold is of.

    Raises: InvalidField with every wrong field.
    """
    wrong = [*why(request.reason)]
    user_id, month = request.user_id or None, parsed_month(request.month)
    if bool(request.user_id) == bool(request.month):
        wrong.append(Violation("user_id", "must be given, or a month, and not both"))
    if user_id is not None and not USER_ID_PATTERN.fullmatch(user_id):
        wrong.append(Violation("user_id", "must be a user id"))
    if request.month and month is None:
        wrong.append(Violation("month", "must be a month such as 2023-08"))
    if wrong:
        raise InvalidField(*wrong)
    return Keeping(request.shard, user_id, month, request.reason)


def held(shard: str, hold: Hold) -> pb.LegalHold:
    """A legal hold."""
    return pb.LegalHold(
        shard=shard,
        user_id=hold.user_id or "",
        month=f"{hold.month:%Y-%m}" if hold.month else "",
        actor=hold.actor,
        reason=hold.reason,
        create_time=_time(hold.created_at),
        lift_actor=hold.lifted_by,
        lift_reason=hold.lift_reason,
        lift_time=_time(hold.lifted_at),
    )


class Sweeping(NamedTuple):
    """A checked wish to look for strays."""

    request_id: UUID
    shard: str
    deletes: bool
    reason: str


def sweep(request: pb.SweepStraysRequest) -> Sweeping:
    """Check a wish to look for strays.

    Raises: InvalidField with every wrong field.
    """
    wrong = [*why(request.reason)]
    request_id = _uuid(request.request_id)
    if request_id is None:
        wrong.append(Violation("request_id", "must be a UUID"))
    if wrong or request_id is None:
        raise InvalidField(*wrong)
    return Sweeping(request_id, request.shard, request.delete, request.reason)


def swept(shard: str, sweep: Sweep, strays: Sequence[Stray]) -> pb.SweepStraysResponse.Shard:
    """How far a walk over the objects of one shard is."""
    return pb.SweepStraysResponse.Shard(
        shard=shard,
        object_count=sweep.seen,
        deleted_count=sweep.deleted,
        refusal=sweep.refusal,
        end_time=_time(sweep.ended_at),
        strays=[
            pb.Stray(
                key=each.key,
                kind=each.kind,
                size_bytes=each.size_bytes,
                store_time=_time(each.stored_at),
                delete_time=_time(each.deleted_at),
            )
            for each in strays
        ],
    )


def erased(shard: str, erasure: Erasure) -> pb.EraseUserResponse.Shard:
    """How far the erasure of a user is on one shard."""
    return pb.EraseUserResponse.Shard(
        shard=shard, order_count=erasure.orders, end_time=_time(erasure.ended_at), note=erasure.note
    )


def foreseen(shard: str, months: Sequence[Foreseen]) -> pb.EraseUserResponse.Shard:
    """What an erasure would take out of one shard."""
    return pb.EraseUserResponse.Shard(
        shard=shard,
        months=[
            pb.EraseUserResponse.Month(
                month=f"{each.month:%Y-%m}",
                order_count=each.orders,
                object_count=each.objects,
                note=each.note,
            )
            for each in months
        ],
    )


def month_of_request(text: str) -> date:
    """A checked month. Raises: InvalidField."""
    found = parsed_month(text)
    if found is None:
        raise InvalidField.of("month", "must be a month such as 2023-08")
    return found


def _time(at: datetime | None) -> Timestamp | None:
    if at is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


def _reach(number: int) -> State | None:
    return next((each for each in REACHES if pb.Month.State.Value(each) == number), None)


def _order_id(text: str) -> UUID | None:
    try:
        return parse_order_id(text)
    except OrderIdInvalid:
        return None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
