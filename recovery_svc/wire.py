"""Protos to recovery's own words and back. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import ids
from chassis.errors import InvalidField
from chassis.money import Money
from chassis.rpc import RemoteError
from ordermesh.order.v1 import order_pb2, order_service_pb2
from ordermesh.recovery.v1 import recovery_service_pb2 as pb
from ordermesh.upstream.v1 import upstream_service_pb2
from recovery_svc.domain import (
    REASON_CHARS_MAX,
    REF_CHARS_MAX,
    Answer,
    Claim,
    Finding,
    Verdict,
    bounded_pushback,
    classify,
    malformed,
    read,
)

PUSHBACK_HEADER = "grpc-retry-pushback-ms"
PUSHBACK_MS = re.compile(r"[0-9]{1,15}")
"""A longer number is nonsense, and no finding may be lost over nonsense."""
TTL_MAX = timedelta(days=366)


def claim(handed_out: order_pb2.Claim, shard: str) -> Claim:
    """Read a claim."""
    order = handed_out.order
    return Claim(
        shard=shard,
        order_id=order.order_id,
        leg=order.leg,
        attempt=order.attempt,
        upstream=handed_out.upstream,
        key=handed_out.idempotency_key,
        event_id=handed_out.event_id,
        lease_token=handed_out.lease_token,
        unfinished_count=handed_out.unfinished_count,
        traceparent=order.traceparent,
    )


def finding(body: bytes) -> Finding:
    """Judge the body of an OK answer to a probe."""
    response = upstream_service_pb2.ProbeResponse()
    try:
        response.ParseFromString(body)
    except DecodeError:
        return malformed("the body cannot be decoded")
    if not response.HasField("answer"):
        return read(None, 0, None)
    said = response.answer
    verdict = _verdict(said.verdict)
    answer = Answer(
        verdict=verdict or Verdict.UNKNOWN,
        # One character more than allowed shows that it was too long.
        upstream_ref=said.upstream_ref[: REF_CHARS_MAX + 1],
        amount=_money(said) if said.HasField("amount") else None,
        reason=said.reason[:REASON_CHARS_MAX],
        pushback_s=bounded_pushback(_seconds(said.pushback)),
    )
    return read(verdict, said.verdict, answer)


def failure(error: RemoteError, trailers: Iterable[tuple[str, str | bytes]]) -> Finding:
    """Judge a probe that ended with a gRPC error; the upstream may have said how long to leave it alone."""
    asked_s = error.retry_after_s
    for key, value in trailers:
        if key == PUSHBACK_HEADER and PUSHBACK_MS.fullmatch(str(value)):
            asked_s = int(value) / 1000
    return classify(error.code.name, message=error.reason or error.message, pushback_s=asked_s)


def report(found: Finding) -> order_pb2.ProbeReport:
    """Write a finding."""
    written = order_pb2.ProbeReport(
        probe_class=order_pb2.ProbeClass.Value(f"PROBE_CLASS_{found.probe_class.value}"), detail=found.detail
    )
    if found.answer is not None:
        written.answer.CopyFrom(_answer(found.answer))
    if found.pushback_s:
        written.pushback.FromTimedelta(timedelta(seconds=found.pushback_s))
    return written


def verdict_request(held: Claim, found: Finding) -> order_service_pb2.ReportVerdictRequest:
    """Write what is told to order_svc; the same bytes for every try."""
    return order_service_pb2.ReportVerdictRequest(
        order_id=held.order_id,
        event_id=held.event_id,
        lease_token=held.lease_token,
        leg=held.leg,
        attempt=held.attempt,
        report=report(found),
    )


def order_id(request: pb.ProbeOrderRequest) -> str:
    """Read the order to probe.

    Raises: OrderIdInvalid.
    """
    return str(ids.parse_order_id(request.order_id))


def request_id(text: str) -> UUID:
    """Read a request id.

    Raises: InvalidField.
    """
    return ids.parse_uuid(text, field_name="request_id")


def until(request: pb.PauseRecoveryRequest, at: datetime) -> Timestamp | None:
    """When a pause ends; None when somebody has to end it.

    Raises: InvalidField.
    """
    if not request.HasField("ttl"):
        return None
    seconds = _seconds(request.ttl)
    if not 0 < seconds <= TTL_MAX.total_seconds():
        raise InvalidField.of("ttl", f"must be positive and at most {TTL_MAX.days} days")
    end = Timestamp()
    end.FromDatetime(at + timedelta(seconds=seconds))
    return end


def shard_recovery(
    shard: str,
    status: order_service_pb2.GetShardStatusResponse | None,
    *,
    last_sweep: datetime | None,
    probe_count: int,
) -> pb.ShardRecovery:
    """Write how recovery does on one shard; status is None when the shard did not answer."""
    written = pb.ShardRecovery(shard=shard, reachable=status is not None, probe_count=probe_count)
    if last_sweep is not None:
        written.last_sweep_time.FromDatetime(last_sweep)
    if status is None:
        return written
    for stage, count in status.waiting_counts.items():
        written.waiting_counts[stage] = count
    written.overdue_count = status.overdue_count
    if status.HasField("oldest_overdue_age"):
        written.oldest_overdue_age.CopyFrom(status.oldest_overdue_age)
    written.open_dead_letter_count = status.open_dead_letter_count
    written.holds.extend(status.holds)
    return written


def most_overdue_first(
    pages: Iterable[order_service_pb2.ListDueOrdersResponse], size: int
) -> list[order_pb2.DueOrder]:
    """Merge pages of several shards."""
    due = [order for page in pages for order in page.due_orders]
    due.sort(key=lambda order: (order.due_time.seconds, order.due_time.nanos, order.order.order_id))
    return due[:size]


def _verdict(number: int) -> Verdict | None:
    """The verdict of a number; unspecified is read as UNKNOWN, one that the contract lacks as None."""
    if number == upstream_service_pb2.VERDICT_UNSPECIFIED:
        return Verdict.UNKNOWN
    named = upstream_service_pb2.Verdict.DESCRIPTOR.values_by_number.get(number)
    return Verdict(named.name.removeprefix("VERDICT_")) if named is not None else None


def _answer(answer: Answer) -> upstream_service_pb2.Answer:
    written = upstream_service_pb2.Answer(
        verdict=upstream_service_pb2.Verdict.Value(f"VERDICT_{answer.verdict.value}"),
        upstream_ref=answer.upstream_ref,
        reason=answer.reason,
    )
    if answer.amount is not None:
        written.amount.currency_code = answer.amount.currency_code
        written.amount.amount_minor = answer.amount.amount_minor
    if answer.pushback_s:
        written.pushback.FromTimedelta(timedelta(seconds=answer.pushback_s))
    return written


def _money(said: upstream_service_pb2.Answer) -> Money:
    return Money(said.amount.currency_code[:8], said.amount.amount_minor)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
