"""Protos to the simulator's own words and back. Pure; a request that makes no sense is an InvalidField."""

from __future__ import annotations

from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import ids, money
from chassis.errors import InvalidField, Violation
from chassis.money import Money
from ops.upstream.domain import (
    DURATION_S_MAX,
    METHODS_OF,
    TIMED,
    Answer,
    Fault,
    Kind,
    Method,
    Scope,
    Submission,
    Verdict,
)
from ops.upstream.ledger import Execution, Reversal
from ordermesh.money.v1 import money_pb2
from ordermesh.upstream.v1 import simulator_service_pb2 as sim
from ordermesh.upstream.v1 import upstream_service_pb2 as pb

KEY_CHARS_MAX = 80
LEGS_MAX = 8
GARBLED_VERDICT = 99
"""A verdict that no version of the contract has."""


def submission(request: pb.ExecuteRequest) -> Submission:
    """Read an Execute.

    Raises: InvalidField, OrderIdInvalid.
    """
    order_id = str(ids.parse_order_id(request.order_id))
    ids.parse_user_id(request.user_id)
    if not 0 <= request.leg < LEGS_MAX:
        raise InvalidField.of("leg", f"must be 0 to {LEGS_MAX - 1}")
    if request.attempt < 1:
        raise InvalidField.of("attempt", "must be 1 or more")
    if request.idempotency_key != f"{order_id}/{request.leg}":
        raise InvalidField.of("idempotency_key", "must be <order_id>/<leg>")
    return Submission(
        key=request.idempotency_key,
        order_id=order_id,
        leg=request.leg,
        attempt=request.attempt,
        user_id=request.user_id,
        amount=money.asked_for(request.amount.currency_code, request.amount.amount_minor),
    )


def key(text: str, *, field_name: str = "idempotency_key") -> str:
    """Check a key.

    Raises: InvalidField.
    """
    if not 0 < len(text) <= KEY_CHARS_MAX:
        raise InvalidField.of(field_name, f"must have 1 to {KEY_CHARS_MAX} characters")
    return text


def answer(word: Answer) -> pb.Answer:
    """Write an answer; a garbled one carries a verdict that does not exist."""
    said = pb.Answer(upstream_ref=word.upstream_ref, reason=word.reason)
    # Open enums travel as numbers; the stubs know only those that have a name.
    said.verdict = GARBLED_VERDICT if word.garbled else _verdict(word.verdict)  # type: ignore[assignment]
    if word.amount is not None:
        said.amount.CopyFrom(_money(word.amount))
    if word.pushback_s:
        said.pushback.FromTimedelta(timedelta(seconds=word.pushback_s))
    return said


def fault(request: sim.SetFaultRequest) -> Fault:
    """Read a fault.

    Raises: InvalidField.
    """
    asked = request.fault
    kind = _kind(asked)
    wrong = list(_violations(asked, kind))
    if wrong:
        raise InvalidField(*wrong)
    return Fault(
        kind=kind,
        scope=Scope(asked.order_id, asked.user_id_prefix, asked.idempotency_key, _method(asked)),
        probability=asked.probability or 1.0,
        seed=asked.seed,
        duration_s=_seconds(asked.duration),
        limit=asked.limit,
    )


def fault_id(text: str) -> int | None:
    """Read the id of a fault; empty means all.

    Raises: InvalidField.
    """
    if not text:
        return None
    if not text.isdecimal() or len(text) > 18:  # Below 2^63, where SQLite's integers end.
        raise InvalidField.of("fault_id", "must be an id that SetFault gave")
    return int(text)


def written_fault(kept: Fault) -> sim.Fault:
    """Write a fault."""
    scope = kept.scope
    written = sim.Fault(
        fault_id=str(kept.fault_id),
        kind=sim.Fault.Kind.Value(kept.kind.value),
        order_id=scope.order_id,
        user_id_prefix=scope.user_id_prefix,
        idempotency_key=scope.key,
        probability=kept.probability,
        seed=kept.seed,
        limit=kept.limit,
        strike_count=kept.strike_count,
    )
    if scope.method is not None:
        written.method = sim.Fault.Method.Value(scope.method.value)
    if kept.duration_s:
        written.duration.FromTimedelta(timedelta(seconds=kept.duration_s))
    return written


def execution(row: Execution) -> sim.Execution:
    """Write one row of the ledger."""
    return sim.Execution(
        sequence=row.seq,
        idempotency_key=row.key,
        order_id=row.order_id,
        leg=row.leg,
        attempt=row.attempt,
        user_id=row.user_id,
        amount=_money(row.amount),
        rejected=row.verdict is Verdict.FAILED,
        upstream_ref=row.upstream_ref,
        execute_time=_timestamp(row.at),
    )


def reversal(row: Reversal) -> sim.Reversal:
    """Write one reversal."""
    return sim.Reversal(
        idempotency_key=row.key,
        original_key=row.original_key,
        upstream_ref=row.upstream_ref,
        execute_time=_timestamp(row.at),
    )


def ledger_scope(request: sim.GetLedgerRequest) -> tuple[str, str]:
    """Read (order_id, key) of which exactly one is there.

    Raises: InvalidField.
    """
    if bool(request.order_id) == bool(request.idempotency_key):
        raise InvalidField.of("order_id", "give either order_id or idempotency_key")
    return request.order_id, request.idempotency_key


def _violations(asked: sim.Fault, kind: Kind) -> list[Violation]:
    method = _method(asked)
    wrong = {
        "fault.probability": None if 0 <= asked.probability <= 1 else "must be 0 to 1",
        "fault.limit": None if asked.limit >= 0 else "must not be negative",
        "fault.duration": _wrong_duration(asked, kind),
        "fault.method": None if method in {None, *METHODS_OF[kind]} else f"{kind} makes no sense there",
    }
    return [Violation(field, description) for field, description in wrong.items() if description]


def _wrong_duration(asked: sim.Fault, kind: Kind) -> str | None:
    seconds = _seconds(asked.duration)
    if kind in TIMED and not 0 < seconds <= DURATION_S_MAX:
        return f"{kind} needs one, up to {DURATION_S_MAX:.0f} s"
    if kind not in TIMED and asked.HasField("duration"):
        return f"{kind} has none"
    return None


def _kind(asked: sim.Fault) -> Kind:
    if asked.kind not in set(sim.Fault.Kind.values()) - {sim.Fault.KIND_UNSPECIFIED}:
        raise InvalidField.of("fault.kind", f"must be one of {', '.join(Kind)}")
    return Kind(sim.Fault.Kind.Name(asked.kind))


def _method(asked: sim.Fault) -> Method | None:
    if asked.method not in sim.Fault.Method.values():
        raise InvalidField.of("fault.method", f"must be one of {', '.join(Method)}")
    return Method(sim.Fault.Method.Name(asked.method)) if asked.method else None


def _verdict(verdict: Verdict) -> pb.Verdict.ValueType:
    return pb.Verdict.Value(f"VERDICT_{verdict.value}")


def _money(amount: Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=amount.currency_code, amount_minor=amount.amount_minor)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _timestamp(at: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
