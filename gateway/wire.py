"""Between JSON and protos: the models of the REST API, and how they are made. Pure.

JSON is camelCase, enums are names, times are RFC 3339 in UTC, money is an integer of minor units. What is not
set is left out.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from chassis.errors import InvalidField
from chassis.money import AMOUNT_MINOR_MAX
from gateway import seen
from ordermesh.history.v1 import history_service_pb2
from ordermesh.money.v1 import money_pb2
from ordermesh.order.v1 import order_pb2, order_service_pb2

DESCRIPTION_CHARS_MAX = 512
LABELS_BYTES_MAX = 4096
LABELS_MAX = 64
LABEL_NAME_CHARS_MAX = 63


def _clean(text: str) -> str:
    """Text without control characters and halves of characters, composed: what looks the same is the same."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ValueError("must not contain control characters or lone surrogates")
    return unicodedata.normalize("NFC", text)


def _fits(labels: dict[str, str]) -> dict[str, str]:
    if sum(len(name.encode()) + len(value.encode()) for name, value in labels.items()) > LABELS_BYTES_MAX:
        raise ValueError(f"must be at most {LABELS_BYTES_MAX} bytes in all")
    return labels


Text = Annotated[str, AfterValidator(_clean)]
LabelName = Annotated[Text, Field(min_length=1, max_length=LABEL_NAME_CHARS_MAX)]
Labels = Annotated[dict[LabelName, Text], Field(max_length=LABELS_MAX), AfterValidator(_fits)]
StatusName = Literal["PENDING", "SUCCESS", "FAILED"]
ConsistencyName = Literal["strong", "default", "eventual"]
ServedByName = Literal["SQL", "READ_MODEL", "MERGED", "SQL_FALLBACK", "READ_MODEL_ONLY"]
_CONSISTENCIES = {
    "strong": history_service_pb2.CONSISTENCY_STRONG,
    "default": history_service_pb2.CONSISTENCY_DEFAULT,
    "eventual": history_service_pb2.CONSISTENCY_EVENTUAL,
}
LIST_FIELDS = {
    "from_time": "from",
    "until_time": "until",
    "filter.kind": "kind",
    "filter.text": "q",
    "filter.amount.currency_code": "currency",
    "filter.amount.min_minor": "minAmount",
    "filter.amount.max_minor": "maxAmount",
    "return_partial_success": "partial",
    "consistency_token": seen.HEADER,
}
"""How REST calls the fields of a ListOrdersRequest, where it is not the same in camelCase."""


class Strict(BaseModel):
    """camelCase outside, nothing unknown, nothing converted."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        strict=True,
        frozen=True,
        serialize_by_alias=True,
    )


class Money(Strict):
    """An amount of money in the smallest unit of its currency."""

    currency_code: str = Field(pattern="^[A-Z]{3}$", description="ISO 4217 code.", examples=["EUR"])
    amount_minor: int = Field(
        ge=1, le=AMOUNT_MINOR_MAX, description="Minor units: cents for EUR.", examples=[1250]
    )


class CreateOrder(Strict):
    """What a user asks for."""

    kind: str = Field(pattern="^[a-z][a-z0-9_.-]{0,63}$", description="Names the legs.", examples=["payment"])
    amount: Money
    description: Annotated[Text, Field(max_length=DESCRIPTION_CHARS_MAX)] = Field(
        "", description="Free text."
    )
    labels: Labels = Field(
        default_factory=dict, description="Labels of the caller, at most 64 and 4 KiB in all."
    )


class UpdateOrder(Strict):
    """What of an order is changed."""

    labels: Labels = Field(description="All its labels from now on, at most 64 and 4 KiB in all.")


class Order(Strict):
    """An order as it is now."""

    order_id: str = Field(description="A UUIDv7.")
    user_id: str
    status: StatusName = Field(description="PENDING until it is settled.")
    stage: str = Field(description="Where it stands inside PENDING; for operators.")
    kind: str
    legs: list[str]
    leg: int
    attempt: int
    amount: Money
    description: str | None = None
    labels: dict[str, str] | None = None
    version: int = Field(description="Grows by one with every change; also the ETag.")
    create_time: datetime
    update_time: datetime
    settle_time: datetime | None = None
    failure_reason: str | None = Field(None, description="Only with FAILED.")
    basis: str | None = Field(None, description="On whose word it was settled.")
    upstream_ref: str | None = None
    request_id: str = Field(description="The Idempotency-Key that made it.")


class ReadInfo(Strict):
    """Where a page came from, and as of when."""

    served_by: ServedByName | None = Field(
        None,
        description="`SQL`: the shards. `READ_MODEL`: the read model. `MERGED`: both. `SQL_FALLBACK`: the"
        " shards, since the read model could not be asked. `READ_MODEL_ONLY`: the read model, since a shard"
        " could not be asked.",
    )
    sources: list[str] = Field(description="The stores that answered, such as `sql:s1` or `read_model`.")
    as_of: datetime | None = Field(
        None, description="The page shows every change up to this time, and may show later ones."
    )
    index_lag_seconds: float | None = Field(
        None, description="How far the read model is behind; absent if unknown."
    )
    overlay_count: int = Field(
        description="Orders shown as they are now, since the read model has not their last change."
    )
    read_model_asked: bool = Field(description="Whether the read model was searched.")
    archived_before_time: datetime | None = Field(
        None,
        description="On the last page: what was created before this time is archived and not listed. Absent"
        " where nothing is, or where nothing as old was asked for.",
    )


class OrderPage(Strict):
    """A page of a user's orders, newest first."""

    orders: list[Order]
    next_page_token: str | None = Field(None, description="For the next page; absent on the last.")
    read_info: ReadInfo
    unreachable: list[str] = Field(
        description="Stores that could not be asked, such as `shards/s1` or `read-model`. The page is"
        " complete all the same, unless `partial` allowed otherwise."
    )
    hint: str | None = Field(
        None, description="What to do for what is not listed: ask for a statement of archived orders."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """What a list is asked for, each part checked by itself; what they mean together the mesh judges."""

    status: StatusName | None = None
    kind: str | None = None
    from_time: datetime | None = None
    until_time: datetime | None = None
    currency: str | None = None
    min_amount: int | None = None
    max_amount: int | None = None
    text: str | None = None
    page_size: int | None = None
    page_token: str | None = None
    consistency: ConsistencyName | None = None
    partial: bool = False


class OrderEvent(Strict):
    """Something that happened to an order."""

    version: int
    event_id: str
    kind: str
    from_status: str | None = None
    to_status: str
    from_stage: str | None = None
    to_stage: str
    leg: int
    attempt: int
    actor: str
    proof: str | None = None
    evidence: dict[str, Any] | None = None
    event_time: datetime


class Journal(Strict):
    """A page of an order's journal, oldest first."""

    events: list[OrderEvent]
    next_page_token: str | None = None


def create_request(
    body: CreateOrder, *, user_id: str, request_id: str, wait_s: int
) -> order_service_pb2.CreateOrderRequest:
    """The call that creates an order for a user."""
    return order_service_pb2.CreateOrderRequest(
        user_id=user_id,
        request_id=request_id,
        kind=body.kind,
        amount=money_pb2.Money(
            currency_code=body.amount.currency_code, amount_minor=body.amount.amount_minor
        ),
        description=body.description,
        labels=body.labels,
        wait=Duration(seconds=wait_s) if wait_s else None,
    )


def update_request(
    body: UpdateOrder, *, order_id: str, request_id: str, expected_version: int
) -> order_service_pb2.UpdateOrderRequest:
    """The call that changes an order."""
    return order_service_pb2.UpdateOrderRequest(
        order_id=order_id, request_id=request_id, labels=body.labels, expected_version=expected_version
    )


def list_request(query: ListQuery, *, user_id: str, token: str) -> history_service_pb2.ListOrdersRequest:
    """The call that lists a user's orders.

    Raises: InvalidField.
    """
    wanted = history_service_pb2.OrderFilter(kind=query.kind or "", text=query.text or "")
    if query.status is not None:
        wanted.status = order_pb2.Order.Status.Value(query.status)
    if query.currency is not None:
        wanted.amount.currency_code = query.currency
        wanted.amount.min_minor = query.min_amount or 0
        wanted.amount.max_minor = query.max_amount or 0
    elif query.min_amount is not None or query.max_amount is not None:
        raise InvalidField.of("currency", "is needed with minAmount and maxAmount")
    if query.partial and query.consistency != "eventual":
        raise InvalidField.of("partial", "only with consistency=eventual")
    return history_service_pb2.ListOrdersRequest(
        user_id=user_id,
        page_size=query.page_size or 0,
        page_token=query.page_token or "",
        filter=wanted,
        from_time=_stamp("from", query.from_time),
        until_time=_stamp("until", query.until_time),
        consistency=_CONSISTENCIES[query.consistency or "default"],
        consistency_token=token,
        return_partial_success=query.partial,
    )


def order(message: order_pb2.Order) -> Order:
    """An order as JSON shows it."""
    return Order.model_construct(
        order_id=message.order_id,
        user_id=message.user_id,
        status=cast("StatusName", order_pb2.Order.Status.Name(message.status)),
        stage=order_pb2.Order.Stage.Name(message.stage),
        kind=message.kind,
        legs=list(message.legs),
        leg=message.leg,
        attempt=message.attempt,
        amount=Money.model_construct(
            currency_code=message.amount.currency_code, amount_minor=message.amount.amount_minor
        ),
        description=message.description or None,
        labels=dict(message.labels) or None,
        version=message.version,
        create_time=_instant(message.create_time),
        update_time=_instant(message.update_time),
        settle_time=_instant(message.settle_time) if message.HasField("settle_time") else None,
        failure_reason=message.failure_reason or None,
        basis=order_pb2.Order.Basis.Name(message.basis) if message.basis else None,
        upstream_ref=message.upstream_ref or None,
        request_id=message.request_id,
    )


def page(message: history_service_pb2.ListOrdersResponse) -> OrderPage:
    """A page as JSON shows it."""
    read_info = _read_info(message.read_info)
    archived = read_info.archived_before_time
    return OrderPage.model_construct(
        orders=[order(one) for one in message.orders],
        next_page_token=message.next_page_token or None,
        read_info=read_info,
        unreachable=list(message.unreachable),
        hint=f"Orders from before {archived:%Y-%m-%d} are archived; ask for a statement."
        if archived
        else None,
    )


def _read_info(message: history_service_pb2.ReadInfo) -> ReadInfo:
    served_by = history_service_pb2.ReadInfo.ServedBy.Name(message.served_by)
    lag = message.index_lag.ToTimedelta().total_seconds() if message.HasField("index_lag") else None
    return ReadInfo.model_construct(
        served_by=cast("ServedByName", served_by) if message.served_by else None,
        sources=list(message.sources),
        as_of=_instant(message.as_of) if message.HasField("as_of") else None,
        index_lag_seconds=lag,
        overlay_count=message.overlay_count,
        read_model_asked=message.read_model_asked,
        archived_before_time=_instant(message.archived_before_time)
        if message.HasField("archived_before_time")
        else None,
    )


def journal(message: order_service_pb2.ListOrderEventsResponse) -> Journal:
    """A page of the journal as JSON shows it."""
    return Journal.model_construct(
        events=[_event(one) for one in message.events], next_page_token=message.next_page_token or None
    )


def _event(message: order_pb2.OrderEvent) -> OrderEvent:
    status, stage = order_pb2.Order.Status.Name, order_pb2.Order.Stage.Name
    return OrderEvent.model_construct(
        version=message.version,
        event_id=message.event_id,
        kind=message.kind,
        from_status=status(message.from_status) if message.from_status else None,
        to_status=status(message.to_status),
        from_stage=stage(message.from_stage) if message.from_stage else None,
        to_stage=stage(message.to_stage),
        leg=message.leg,
        attempt=message.attempt,
        actor=message.actor,
        proof=message.proof or None,
        evidence=_evidence(message.evidence_json),
        event_time=_instant(message.event_time),
    )


def _evidence(text: str) -> dict[str, Any] | None:
    """The facts of a journal row; what is no JSON object is shown as text, since a journal hides nothing."""
    if not text:
        return None
    try:
        facts = json.loads(text)
    except ValueError:
        return {"text": text}
    return facts if isinstance(facts, dict) else {"value": facts}


def _stamp(name: str, instant: datetime | None) -> Timestamp | None:
    if instant is None:
        return None
    if instant.tzinfo is None:
        raise InvalidField.of(name, "must say its offset, such as 2026-11-23T12:00:00Z")
    stamp = Timestamp()
    try:
        stamp.FromDatetime(instant)
    except (OverflowError, ValueError):
        raise InvalidField.of(name, "must be a time between the years 1 and 9999, in UTC") from None
    return stamp


def _instant(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def is_settled(message: order_pb2.Order) -> bool:
    """Whether nothing more is expected to happen to an order."""
    return message.stage == order_pb2.Order.DONE
