"""Between protos and what history_svc works with. Pure."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import consistency
from chassis.errors import InvalidField, Violation
from chassis.ids import USER_ID_PATTERN
from history_svc.page import NEWEST, OLDEST, Filter, Key, Window, effective_page_size
from history_svc.parts import REPLICA_LAG_S_MAX
from history_svc.reader import Wish
from history_svc.text import ASKED_WORDS_MAX, words
from ordermesh.history.v1 import history_service_pb2 as pb
from ordermesh.money.v1 import money_pb2
from ordermesh.order.v1 import order_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from history_svc.finder import Found
    from history_svc.reader import Served

TEXT_CHARS_MAX = 128
_KIND = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
_NIL = UUID(int=0)


class Ask(NamedTuple):
    """A checked request. query: names the list, so that a page token fits only the list it came from.

    user_id: None for everybody's orders.
    """

    user_id: str | None
    page_size: int
    page_token: str
    filter: Filter
    not_before: datetime
    until: datetime | None
    query: str
    tokens: consistency.Seen
    level: int
    partial: bool

    def window(self, after: Key | None) -> Window:
        """The orders that this page may show; `after` is the last key of the page before."""
        bounds = [NEWEST]
        if self.until is not None:
            bounds.append(Key(self.until, _NIL))
        if after is not None:
            bounds.append(after)
        return Window(self.user_id, min(bounds), self.not_before, self.filter)

    def wish(self, after: Key | None) -> Wish:
        """The page that is asked for."""
        return Wish(
            window=self.window(after),
            size=self.page_size,
            replica=self.level != pb.CONSISTENCY_STRONG,
            lag_max=_REPLICA_LAG_MAX if self.level in _FRESH else None,
            tokens=self.tokens,
            partial=self.partial,
        )


_FRESH = frozenset({pb.CONSISTENCY_UNSPECIFIED, pb.CONSISTENCY_DEFAULT})
_REPLICA_LAG_MAX = timedelta(seconds=REPLICA_LAG_S_MAX)


def ask(request: pb.ListOrdersRequest) -> Ask:
    """Check a request for a user's orders.

    Raises: InvalidField with every wrong field.
    """
    merged = pb.OrderFilter()
    merged.CopyFrom(request.filter)
    wrong = [*_user(request.user_id, required=True), *_size(request.page_size)]
    wrong += _shorthands(request, merged)
    wrong += _filter_violations(merged)
    wrong += _consistency_violations(request)
    if wrong:
        raise InvalidField(*wrong)
    tokens = consistency.opened(request.consistency_token) or {}
    return _ask(request, merged, tokens, request.consistency, request.return_partial_success)


def ask_all(request: pb.SearchOrdersRequest) -> Ask:
    """Check a request for anybody's orders.

    Raises: InvalidField with every wrong field.
    """
    wrong = [*_user(request.user_id, required=False), *_size(request.page_size)]
    wrong += _filter_violations(request.filter, own="filter.")
    if wrong:
        raise InvalidField(*wrong)
    return _ask(request, request.filter, {}, pb.CONSISTENCY_EVENTUAL, False)


def user(user_id: str) -> str:
    """A checked user id.

    Raises: InvalidField.
    """
    wrong = _user(user_id, required=True)
    if wrong:
        raise InvalidField(*wrong)
    return user_id


def _ask(
    request: pb.ListOrdersRequest | pb.SearchOrdersRequest,
    wanted: pb.OrderFilter,
    tokens: consistency.Seen,
    level: int,
    partial: bool,
) -> Ask:
    not_before = max(_instant(wanted, "from_time") or OLDEST, OLDEST)
    until = _instant(wanted, "until_time")
    shown = _filter(wanted)
    bounds = [not_before.isoformat(), until.isoformat() if until else None]
    return Ask(
        user_id=request.user_id or None,
        page_size=effective_page_size(request.page_size),
        page_token=request.page_token,
        filter=shown,
        not_before=not_before,
        until=until,
        query=json.dumps([request.user_id, bounds, dataclasses.astuple(shown)]),
        tokens=tokens,
        level=level,
        partial=partial,
    )


def _filter(wanted: pb.OrderFilter) -> Filter:
    amount = wanted.amount
    return Filter(
        status=order_pb2.Order.Status.Name(wanted.status) if wanted.status else None,
        kind=wanted.kind or None,
        currency_code=amount.currency_code or None,
        amount_min=amount.min_minor or None,
        amount_max=amount.max_minor or None,
        asked=words(wanted.text),
    )


def _user(user_id: str, *, required: bool) -> list[Violation]:
    if (user_id or required) and not USER_ID_PATTERN.fullmatch(user_id):
        return [Violation("user_id", "must match [A-Za-z0-9_.:-]{1,64}")]
    return []


def _size(page_size: int) -> list[Violation]:
    return [Violation("page_size", "must not be negative")] if page_size < 0 else []


def _shorthands(request: pb.ListOrdersRequest, merged: pb.OrderFilter) -> Iterator[Violation]:
    """Put the request's own fields into its filter, where they have to agree."""
    if request.status:
        if merged.status not in (0, request.status):
            yield Violation("status", "must agree with filter.status")
        merged.status = request.status
    for name in ("from_time", "until_time"):
        if request.HasField(name):
            if merged.HasField(name) and getattr(merged, name) != getattr(request, name):
                yield Violation(name, f"must agree with filter.{name}")
            getattr(merged, name).CopyFrom(getattr(request, name))


def _filter_violations(wanted: pb.OrderFilter, own: str = "") -> Iterator[Violation]:
    """What is wrong in a filter. own: where the fields are that ListOrdersRequest has itself, too."""
    if wanted.status not in order_pb2.Order.Status.values():
        yield Violation(f"{own}status", "must be PENDING, SUCCESS or FAILED")
    for name in ("from_time", "until_time"):
        if wanted.HasField(name) and not _is_instant(getattr(wanted, name)):
            yield Violation(f"{own}{name}", "must be a time between the years 1 and 9999")
    if wanted.kind and not _KIND.fullmatch(wanted.kind):
        yield Violation("filter.kind", "must match [a-z][a-z0-9_-]{0,31}")
    if wanted.HasField("amount"):
        yield from _amount_violations(wanted.amount)
    if len(wanted.text) > TEXT_CHARS_MAX:
        yield Violation("filter.text", f"must be at most {TEXT_CHARS_MAX} characters")
    elif wanted.text and not 0 < len(words(wanted.text)) <= ASKED_WORDS_MAX:
        yield Violation("filter.text", f"must hold 1 to {ASKED_WORDS_MAX} words")


def _amount_violations(amount: pb.AmountRange) -> Iterator[Violation]:
    if not _CURRENCY.fullmatch(amount.currency_code):
        yield Violation("filter.amount.currency_code", "must be three capital letters")
    if amount.min_minor < 0:
        yield Violation("filter.amount.min_minor", "must not be negative")
    if amount.max_minor < 0 or 0 < amount.max_minor < amount.min_minor:
        yield Violation("filter.amount.max_minor", "must not be negative or below the lower end")


def _consistency_violations(request: pb.ListOrdersRequest) -> Iterator[Violation]:
    if request.consistency not in pb.Consistency.values():
        yield Violation("consistency", "must be one of the values of Consistency")
    if len(request.consistency_token) > consistency.TOKEN_CHARS_MAX:
        yield Violation("consistency_token", f"must be at most {consistency.TOKEN_CHARS_MAX} characters")
    elif consistency.opened(request.consistency_token) is None:
        yield Violation("consistency_token", "must be one that a mutating call returned")
    if request.consistency == pb.CONSISTENCY_AT_LEAST_AS_FRESH and not request.consistency_token:
        yield Violation("consistency_token", "is needed with CONSISTENCY_AT_LEAST_AS_FRESH")
    if request.return_partial_success and request.consistency != pb.CONSISTENCY_EVENTUAL:
        yield Violation("return_partial_success", "only with CONSISTENCY_EVENTUAL")


def _is_instant(stamp: Timestamp) -> bool:
    try:
        stamp.ToDatetime()
    except (ValueError, OverflowError):
        return False
    return True


def _instant(wanted: pb.OrderFilter, name: Literal["from_time", "until_time"]) -> datetime | None:
    """A bound of the list; none when it is not set, which the first instant of 1970 is not."""
    return getattr(wanted, name).ToDatetime(tzinfo=UTC) if wanted.HasField(name) else None


def listed(served: Served, next_page_token: str, now: datetime) -> pb.ListOrdersResponse:
    """The answer of a page."""
    return pb.ListOrdersResponse(
        orders=[order(row.columns) for row in served.page.rows],
        next_page_token=next_page_token,
        read_info=read_info(served, now),
        unreachable=served.unreachable,
    )


def read_info(served: Served, now: datetime) -> pb.ReadInfo:
    """Where a page came from."""
    sources = sorted(f"{'sql' if part.lag is None else 'replica'}:{part.shard}" for part in served.parts)
    if served.asked_read_model:
        sources.append("read_model")
    lag = None if served.indexed_until is None else max(timedelta(0), now - served.indexed_until)
    return pb.ReadInfo(
        sources=sources,
        served_by=pb.ReadInfo.ServedBy.Value(served.served_by.value),
        as_of=stamp(served.as_of),
        index_lag=None if lag is None else duration(lag),
        overlay_count=served.overlay,
        read_model_asked=served.asked_read_model,
        archived_before_time=stamp(served.archived_to),
    )


def found(result: Found, next_page_token: str, now: datetime) -> pb.SearchOrdersResponse:
    """The answer of a search over all users."""
    until = result.until
    return pb.SearchOrdersResponse(
        orders=[order(row.columns) for row in result.page.rows],
        next_page_token=next_page_token,
        read_info=pb.ReadInfo(
            sources=["read_model"],
            served_by=pb.ReadInfo.READ_MODEL_ONLY,
            as_of=stamp(until),
            index_lag=None if until is None else duration(max(timedelta(0), now - until)),
            read_model_asked=True,
            archived_before_time=stamp(result.archived_to),
        ),
        unreachable=result.unreachable,
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
        create_time=stamp(columns["created_at"]),
        update_time=stamp(columns["updated_at"]),
        settle_time=stamp(columns["settled_at"]),
        failure_reason=columns["failure_reason"] or "",
        basis=order_pb2.Order.Basis.Value(columns["basis"] or "BASIS_UNSPECIFIED"),
        upstream_ref=columns["upstream_ref"] or "",
        request_id=str(columns["request_id"]),
        traceparent=columns["traceparent"] or "",
    )


def stamp(instant: datetime | None) -> Timestamp | None:
    """An instant on the wire."""
    if instant is None:
        return None
    made = Timestamp()
    made.FromDatetime(instant)
    return made


def duration(length: timedelta) -> Duration:
    """A length of time on the wire; none where clocks that differ would make it negative."""
    made = Duration()
    made.FromTimedelta(max(length, timedelta(0)))
    return made
