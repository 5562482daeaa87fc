"""Between protos and operations. Pure."""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from chassis.errors import InvalidField, Violation
from history_svc.care.operation import Kind
from ordermesh.history.v1 import projection_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from history_svc.care.operation import Operation
    from history_svc.care.store import Status

REASON_CHARS_MAX = 512
PAGE_DEFAULT, PAGE_MAX = 20, 100
OPEN_SHOWN_MAX = 20
_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])", re.ASCII)
_KIND_NAMES: Mapping[int, str] = {number: name for name, number in pb.Operation.Kind.items()}
_OF_A_MONTH = frozenset({Kind.REBUILD, Kind.VERIFY})


class Start(NamedTuple):
    """A checked request for an operation. month: its first day, for those of a month."""

    request_id: UUID
    kind: Kind
    shard: str
    month: date | None
    repairs: bool
    reason: str


def start(request: pb.StartOperationRequest) -> Start:
    """Check a request for an operation.

    Raises: InvalidField with every wrong field.
    """
    request_id, kind, month = _uuid(request.request_id), _kind(request.kind), parsed_month(request.month)
    wrong = [*_reason(request.reason)]
    if request_id is None:
        wrong.append(Violation("request_id", "must be a UUID"))
    if kind is None:
        wrong.append(Violation("kind", "must be REBUILD, VERIFY, RETRY or RESET"))
    elif kind in _OF_A_MONTH and month is None:
        wrong.append(Violation("month", "must be a month such as 2026-09"))
    elif kind not in _OF_A_MONTH and request.month:
        wrong.append(Violation("month", "is for REBUILD and VERIFY only"))
    if request.repairs and kind is not Kind.VERIFY:
        wrong.append(Violation("repairs", "is for VERIFY only"))
    if wrong or request_id is None or kind is None:
        raise InvalidField(*wrong)
    return Start(request_id, kind, request.shard, month, request.repairs, request.reason)


def page_size(asked: int) -> int:
    """A checked page size.

    Raises: InvalidField.
    """
    if not 0 <= asked <= PAGE_MAX:
        raise InvalidField.of("page_size", f"must be 1 to {PAGE_MAX}, or 0 for {PAGE_DEFAULT}")
    return asked or PAGE_DEFAULT


def cancel(request: pb.CancelOperationRequest) -> tuple[str, UUID, str]:
    """Check a wish to end an operation: shard, id, reason.

    Raises: InvalidField with every wrong field.
    """
    wrong = [*_reason(request.reason)]
    operation_id = _uuid(request.operation_id)
    if operation_id is None:
        wrong.append(Violation("operation_id", "must be a UUID"))
    if not request.shard:
        wrong.append(Violation("shard", "must be the name of a shard"))
    if wrong or operation_id is None:
        raise InvalidField(*wrong)
    return request.shard, operation_id, request.reason


def parsed_month(text: str) -> date | None:
    """The first day of a month written as `2026-09`; None for anything else."""
    found = _MONTH.fullmatch(text)
    if found is None or found[1] == "0000":
        return None
    return date(int(found[1]), int(found[2]), 1)


def operation(shard: str, found: Operation) -> pb.Operation:
    """An operation on the wire."""
    seen = found.findings
    return pb.Operation(
        operation_id=str(found.operation_id),
        shard=shard,
        kind=pb.Operation.Kind.Value(found.kind.value),
        month=f"{found.month:%Y-%m}" if found.month else "",
        repairs=found.repairs,
        state=pb.Operation.State.Value(found.state.value),
        phase=pb.Operation.Phase.Value(found.phase.value),
        index=found.index_name or "",
        order_count=found.orders,
        expected_count=found.expected,
        findings=pb.Operation.Findings(
            missing_count=seen.missing,
            stale_count=seen.stale,
            ahead_count=seen.ahead,
            extra_count=seen.extra,
            refused_count=seen.refused,
            repaired_count=seen.repaired,
        ),
        note=found.note,
        actor=found.actor,
        reason=found.reason,
        create_time=_stamp(found.created_at),
        update_time=_stamp(found.updated_at),
        end_time=_stamp(found.ended_at),
    )


def shard_part(status: Status, opened: Sequence[Operation]) -> pb.GetProjectionStatusResponse.ShardPart:
    """One shard's part on the wire."""
    lag = None
    if status.indexed_until is not None:
        lag = Duration()
        lag.FromTimedelta(max(status.at, status.indexed_until) - status.indexed_until)
    return pb.GetProjectionStatusResponse.ShardPart(
        shard=status.shard,
        lag=lag,
        quarantined_count=status.quarantined,
        indices=[
            pb.GetProjectionStatusResponse.Index(
                month=f"{index.month:%Y-%m}",
                generation=index.generation,
                name=index.identity.name,
                state=index.state.value,
            )
            for index in status.catalog.indices
        ],
        operations=[operation(status.shard, each) for each in opened],
        archived_before_time=_stamp(status.archived_to),
    )


def _kind(asked: int) -> Kind | None:
    name = _KIND_NAMES.get(asked, "")
    return Kind(name) if name in Kind.__members__ else None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _reason(text: str) -> Iterator[Violation]:
    if not 1 <= len(text) <= REASON_CHARS_MAX or not text.isprintable():
        yield Violation("reason", f"must have 1 to {REASON_CHARS_MAX} printable characters")


def _stamp(at: datetime | None) -> Timestamp | None:
    if at is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
