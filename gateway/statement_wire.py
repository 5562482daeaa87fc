"""Between JSON and protos: statements. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from gateway.wire import StatusName, Strict
from ordermesh.archive.v1 import statement_service_pb2 as pb

if TYPE_CHECKING:
    from google.longrunning import operations_pb2
    from google.protobuf.timestamp_pb2 import Timestamp

StateName = Literal[
    "WAITING", "PLANNING", "READING", "RENDERING", "STORING", "READY", "FAILED", "CANCELLED", "EXPIRED"
]
FormatName = Literal["CSV", "PDF"]
MailName = Literal["WAITING", "SENT", "DEAD_LETTER"]
OVER = frozenset({"READY", "FAILED", "CANCELLED", "EXPIRED"})


def _is_day(text: str) -> str:
    try:
        is_day = date.fromisoformat(text).isoformat() == text
    except ValueError:
        is_day = False
    if not is_day:
        raise ValueError("must be a day such as 2024-04-01")
    return text


Day = Annotated[str, Field(min_length=10, max_length=10, examples=["2024-04-01"]), AfterValidator(_is_day)]


class RequestStatement(Strict):
    """What a statement is asked about."""

    first_day: Day = Field(description="The first day, in the time zone.")
    last_day: Day = Field(description="The last day, which is included.")
    time_zone: str = Field(
        "", max_length=64, description="IANA name; UTC without it.", examples=["Asia/Kolkata"]
    )
    formats: list[FormatName] = Field(
        default_factory=list, max_length=2, description="CSV without it; a PDF lists up to 2,000 orders."
    )
    locale: str = Field("", max_length=16, description="`en` or `hi`; `en` without it.")


class Total(Strict):
    """The orders of one currency and status."""

    currency_code: str
    status: StatusName
    order_count: int
    amount_minor: int = Field(description="Their amounts together, in minor units.")


class Refusal(Strict):
    """Why a statement was given up."""

    code: int = Field(description="A code of google.rpc.Code.")
    detail: str


class Statement(Strict):
    """A statement and where it stands."""

    statement_id: str
    user_id: str
    first_day: str
    last_day: str
    time_zone: str
    formats: list[FormatName]
    locale: str
    state: StateName = Field(description="READY: it can be downloaded.")
    read_month_count: int
    month_count: int
    order_count: int
    as_of_time: datetime | None = Field(None, description="It shows orders created before.")
    create_time: datetime
    end_time: datetime | None = None
    expire_time: datetime | None = Field(None, description="Until when it can be downloaded.")
    size_bytes: int | None = None
    sha256: str | None = Field(None, description="Of the file, in hex.")
    totals: list[Total] | None = None
    pdf_note: str | None = Field(None, description="Why the PDF lists no orders and has the totals alone.")
    error: Refusal | None = None
    mail: MailName | None = Field(
        None, description="What became of the mail that says that it is ready; DEAD_LETTER: it was given up."
    )


class StatementPage(Strict):
    """A page of a user's statements, newest first."""

    statements: list[Statement]
    next_page_token: str | None = None


def request(body: RequestStatement, *, user_id: str, request_id: str) -> pb.RequestStatementRequest:
    """The call that asks for a statement."""
    wish = pb.StatementWish(
        first_day=body.first_day,
        last_day=body.last_day,
        time_zone=body.time_zone,
        formats=[pb.StatementWish.Format.Value(name) for name in body.formats],
        locale=body.locale,
    )
    return pb.RequestStatementRequest(user_id=user_id, request_id=request_id, wish=wish)


def statement(operation: operations_pb2.Operation) -> Statement:
    """A statement, from its operation's metadata, which says everything but why it failed."""
    told = pb.Statement()
    operation.metadata.Unpack(told)
    return Statement(
        statement_id=told.statement_id,
        user_id=told.user_id,
        first_day=told.wish.first_day,
        last_day=told.wish.last_day,
        time_zone=told.wish.time_zone,
        formats=[_FORMATS[number] for number in told.wish.formats],
        locale=told.wish.locale,
        state=_STATES[told.state],
        read_month_count=told.read_month_count,
        month_count=told.month_count,
        order_count=told.order_count,
        as_of_time=_time(told.as_of_time) if told.HasField("as_of_time") else None,
        create_time=_time(told.create_time),
        end_time=_time(told.end_time) if told.HasField("end_time") else None,
        expire_time=_time(told.expire_time) if told.HasField("expire_time") else None,
        size_bytes=told.size_bytes or None,
        sha256=told.sha256 or None,
        totals=[_total(each) for each in told.totals] or None,
        pdf_note=told.pdf_note or None,
        error=_refusal(operation),
        mail=_MAILS.get(told.mail),
    )


def was_there(operation: operations_pb2.Operation) -> bool:
    """Whether a request found the statement that it asked for."""
    told = pb.Statement()
    operation.metadata.Unpack(told)
    return told.was_there


def page(answer: pb.ListStatementsResponse) -> StatementPage:
    """A page of statements."""
    return StatementPage(
        statements=[statement(each) for each in answer.operations],
        next_page_token=answer.next_page_token or None,
    )


_STATES: dict[int, StateName] = {pb.Statement.State.Value(name): name for name in get_args(StateName)}
_MAILS: dict[int, MailName] = {pb.Statement.Mail.Value(f"MAIL_{name}"): name for name in get_args(MailName)}
_FORMATS: dict[int, FormatName] = {pb.StatementWish.CSV: "CSV", pb.StatementWish.PDF: "PDF"}


def _total(told: pb.StatementTotal) -> Total:
    return Total.model_validate(
        {
            "currency_code": told.currency_code,
            "status": told.status,
            "order_count": told.order_count,
            "amount_minor": int(told.amount_minor),
        }
    )


def _refusal(operation: operations_pb2.Operation) -> Refusal | None:
    if not operation.HasField("error"):
        return None
    return Refusal(code=operation.error.code, detail=operation.error.message)


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)
