"""Between protos and what history_svc works with. Pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from chassis.errors import InvalidField, Violation
from chassis.ids import USER_ID_PATTERN
from history_svc.page import NEWEST, OLDEST, Filter, Key, Page, Window, effective_page_size
from ordermesh.history.v1 import history_service_pb2 as pb
from ordermesh.money.v1 import money_pb2
from ordermesh.order.v1 import order_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

CONSISTENCY_TOKEN_CHARS_MAX = 1024
_NIL = UUID(int=0)


class Ask(NamedTuple):
    """A checked request. query: names the list, so that a page token fits only the list it came from."""

    user_id: str
    page_size: int
    page_token: str
    status: str | None
    not_before: datetime
    until: datetime | None
    query: str

    def window(self, after: Key | None) -> Window:
        """The orders that this page may show; `after` is the last key of the page before."""
        bounds = [NEWEST]
        if self.until is not None:
            bounds.append(Key(self.until, _NIL))
        if after is not None:
            bounds.append(after)
        return Window(self.user_id, min(bounds), self.not_before, Filter(status=self.status))


def ask(request: pb.ListOrdersRequest) -> Ask:
    """Check a request.

    Raises: InvalidField with every wrong field.
    """
    wrong = list(_violations(request))
    if wrong:
        raise InvalidField(*wrong)
    status = order_pb2.Order.Status.Name(request.status) if request.status else None
    not_before = max(_instant(request, "from_time") or OLDEST, OLDEST)
    until = _instant(request, "until_time")
    facts = [request.user_id, status, not_before.isoformat(), until.isoformat() if until else None]
    return Ask(
        user_id=request.user_id,
        page_size=effective_page_size(request.page_size),
        page_token=request.page_token,
        status=status,
        not_before=not_before,
        until=until,
        query=json.dumps(facts),
    )


def _violations(request: pb.ListOrdersRequest) -> Iterable[Violation]:
    if not USER_ID_PATTERN.fullmatch(request.user_id):
        yield Violation("user_id", "must match [A-Za-z0-9_.:-]{1,64}")
    if request.page_size < 0:
        yield Violation("page_size", "must not be negative")
    if request.status not in order_pb2.Order.Status.values():
        yield Violation("status", "must be PENDING, SUCCESS or FAILED")
    if len(request.consistency_token) > CONSISTENCY_TOKEN_CHARS_MAX:
        yield Violation("consistency_token", f"must be at most {CONSISTENCY_TOKEN_CHARS_MAX} characters")
    for name in ("from_time", "until_time"):
        if request.HasField(name) and not _is_instant(getattr(request, name)):
            yield Violation(name, "must be a time between the years 1 and 9999")


def _is_instant(stamp: Timestamp) -> bool:
    try:
        stamp.ToDatetime()
    except (ValueError, OverflowError):
        return False
    return True


def _instant(request: pb.ListOrdersRequest, name: Literal["from_time", "until_time"]) -> datetime | None:
    """A bound of the list; none when it is not set, which the first instant of 1970 is not."""
    return getattr(request, name).ToDatetime(tzinfo=UTC) if request.HasField(name) else None


def listed(page: Page, next_page_token: str, shards: Iterable[str]) -> pb.ListOrdersResponse:
    """The answer of a page."""
    return pb.ListOrdersResponse(
        orders=[order(row.columns) for row in page.rows],
        next_page_token=next_page_token,
        read_info=pb.ReadInfo(sources=[f"sql:{shard}" for shard in sorted(shards)]),
    )


def order(columns: Any) -> order_pb2.Order:
    """An order from its row."""
    return order_pb2.Order(
        order_id=str(columns["order_id"]),
        user_id=columns["user_id"],
        status=order_pb2.Order.Status.Value(columns["status"]),
        stage=order_pb2.Order.Stage.Value(columns["stage"]),
        kind=columns["kind"],
        legs=columns["legs"],
        leg=columns["leg"],
        attempt=columns["attempt"],
        amount=money_pb2.Money(currency_code=columns["currency_code"], amount_minor=columns["amount_minor"]),
        description=columns["description"] or "",
        labels=columns["labels"] or {},
        version=columns["version"],
        create_time=_stamp(columns["created_at"]),
        update_time=_stamp(columns["updated_at"]),
        settle_time=_stamp(columns["settled_at"]),
        failure_reason=columns["failure_reason"] or "",
        basis=order_pb2.Order.Basis.Value(columns["basis"] or "BASIS_UNSPECIFIED"),
        upstream_ref=columns["upstream_ref"] or "",
        request_id=str(columns["request_id"]),
        traceparent=columns["traceparent"] or "",
    )


def _stamp(instant: datetime | None) -> Timestamp | None:
    if instant is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(instant)
    return stamp
