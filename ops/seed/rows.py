"""A life as rows of the shard's tables, in the order of COPY's columns. Pure."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ops.seed.lives import outcome_redriven
from order_svc import wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from ops.seed.lives import Life

KEY_LIFE = timedelta(hours=72)
"""A key outlives its order's settling by so long."""
Record = tuple[Any, ...]
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "orders": (
        "order_id", "created_at", "user_id", "bucket", "route_epoch", "read_routing", "version", "status",
        "stage", "kind", "legs", "leg", "attempt", "amount_minor", "currency_code", "currency_exp",
        "description", "labels", "upstream_ref", "failure_reason", "basis", "request_id", "updated_at",
        "settled_at",
    ),
    "order_journal": (
        "order_id", "created_at", "user_id", "bucket", "route_epoch", "version", "event_id", "kind",
        "from_status", "to_status", "from_stage", "to_stage", "leg", "attempt", "actor", "proof", "evidence",
        "at",
    ),
    "order_timers": (
        "order_id", "created_at", "user_id", "bucket", "route_epoch", "upstream", "stage", "class", "due_at",
        "probe_count", "silent_count", "fault_count", "malformed_count", "not_found_count",
        "first_not_found_at", "first_answer_at", "accepted_at", "first_sent_at", "last_sent_at",
    ),
    "dead_letters": (
        "dead_letter_id", "order_id", "created_at", "user_id", "bucket", "route_epoch", "reason", "severity",
        "evidence", "opened_at", "opened_version", "closed_at", "actor", "outcome", "close_reason",
        "close_event_id", "redrive_count",
    ),
    "idempotency_keys": (
        "user_id", "request_id", "order_id", "created_at", "bucket", "route_epoch", "fingerprint",
        "expires_at",
    ),
}  # fmt: skip
"""The tables that are written, in this order."""


def records(life: Life, epoch: int, now: datetime) -> dict[str, list[Record]]:
    """The rows of one life, by table. epoch: of the bucket's fence."""
    return {
        "orders": [_order(life, epoch)],
        "order_journal": list(_journal(life, epoch)),
        "order_timers": list(_timer(life, epoch)),
        "dead_letters": list(_cases(life, epoch)),
        "idempotency_keys": list(_key(life, epoch, now)),
    }


def _begin(life: Life, epoch: int) -> Record:
    order = life.order
    return (order.order_id, order.created_at, order.user_id, order.bucket, epoch)


def _order(life: Life, epoch: int) -> Record:
    order = life.order
    return (
        *_begin(life, epoch),
        order.read_routing,
        order.version,
        order.status,
        order.stage,
        order.kind,
        list(order.legs),
        order.leg,
        order.attempt,
        order.amount.amount_minor,
        order.amount.currency_code,
        order.amount.exponent,
        order.description,
        _json(order.labels),
        order.upstream_ref,
        order.failure_reason,
        order.basis,
        order.request_id,
        life.journal[-1][1],
        life.settled_at,
    )


def _journal(life: Life, epoch: int) -> Iterator[Record]:
    begin = _begin(life, epoch)
    for change, at in life.journal:
        before, after, entry = change.before, change.after, change.entry
        yield (
            *begin,
            after.version,
            entry.event_id,
            entry.kind,
            before.status if before else None,
            after.status,
            before.stage if before else None,
            after.stage,
            entry.leg,
            entry.attempt,
            entry.actor,
            entry.proof,
            _json(entry.evidence),
            at,
        )


def _timer(life: Life, epoch: int) -> Iterator[Record]:
    if life.timer is None:
        return
    tally = life.timer.tally
    yield (
        *_begin(life, epoch),
        life.order.upstream,
        life.order.stage,
        life.timer.timer_class,
        life.timer.due_at,
        tally.probe_count,
        tally.silent_count,
        tally.fault_count,
        tally.malformed_count,
        tally.not_found_count,
        tally.first_not_found_at,
        tally.first_answer_at,
        tally.accepted_at,
        tally.first_sent_at,
        tally.last_sent_at,
    )


def _cases(life: Life, epoch: int) -> Iterator[Record]:
    for case in life.cases:
        opened, closed = case.opened, case.closed
        yield (
            opened.dead_letter_id,
            *_begin(life, epoch),
            opened.reason,
            opened.severity,
            _json(opened.evidence),
            case.opened_at,
            case.opened_version,
            case.closed_at,
            closed.actor if closed else None,
            closed.outcome if closed else None,
            closed.reason if closed else None,
            case.close_event_id,
            int(outcome_redriven(case)),
        )


def _key(life: Life, epoch: int, now: datetime) -> Iterator[Record]:
    """The key of the order's request, unless it would have been reaped by now."""
    order = life.order
    expires_at = life.settled_at + KEY_LIFE if life.settled_at is not None else None
    if expires_at is not None and expires_at <= now:
        return
    begin = (order.user_id, order.request_id, order.order_id, order.created_at, order.bucket, epoch)
    asked = wire.Asked(
        user_id=order.user_id,
        request_id=order.request_id,
        kind=order.kind,
        amount=order.amount,
        description=order.description,
        labels=life.draft.wish.labels,
        wait_s=0,
    )
    yield (*begin, asked.fingerprint(), expires_at)


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, ensure_ascii=False)
