"""Between protos and statements. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from google.longrunning import operations_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from archive_svc.statement.asking import Wish
from archive_svc.statement.deadmails import Retry
from archive_svc.statement.wish import CSV, PDF
from archive_svc.wire import why
from chassis.errors import DOMAIN, InvalidField, PageTokenInvalid, Violation
from chassis.ids import parse_user_id, parse_uuid
from ordermesh.archive.v1 import statement_service_pb2 as pb

if TYPE_CHECKING:
    from archive_svc.statement.outbox import Told
    from archive_svc.statement.store import Statement

PAGE_SIZE = 20
PAGE_SIZE_MAX = 100
WAIT_S_MAX = 30.0
_FORMATS = {pb.StatementWish.CSV: CSV, pb.StatementWish.PDF: PDF}
_NUMBERS = {name: number for number, name in _FORMATS.items()}
_MAILS = {
    "": pb.Statement.MAIL_UNSPECIFIED,
    "WAITING": pb.Statement.MAIL_WAITING,
    "SENT": pb.Statement.MAIL_SENT,
    "DEAD": pb.Statement.MAIL_DEAD_LETTER,
}
_POSITION = re.compile(rb"(\d{1,20}) ([0-9a-f]{32})")


def wish(told: pb.StatementWish) -> Wish:
    """What is asked for.

    Raises: InvalidField for a format that nobody knows.
    """
    if not set(told.formats) <= _FORMATS.keys():
        raise InvalidField.of("wish.formats", "must be CSV or PDF")
    formats = tuple(_FORMATS[each] for each in told.formats)
    return Wish(told.first_day, told.last_day, told.time_zone, told.locale, formats)


def whose(request: Any) -> tuple[str, UUID]:
    """The user and the statement that a request names.

    Raises: InvalidField.
    """
    return parse_user_id(request.user_id), parse_uuid(request.statement_id, field_name="statement_id")


def wait_s(request: pb.WaitStatementRequest) -> float:
    """How long the caller would wait.

    Raises: InvalidField.
    """
    seconds = request.wait.seconds + request.wait.nanos / 1e9
    if not 0 <= seconds <= WAIT_S_MAX:
        raise InvalidField.of("wait", f"must be 0 to {WAIT_S_MAX:.0f} s")
    return float(seconds)


def page_size(request: pb.ListStatementsRequest | pb.ListDeadMailsRequest) -> int:
    """How many are wanted.

    Raises: InvalidField.
    """
    if not 0 <= request.page_size <= PAGE_SIZE_MAX:
        raise InvalidField.of("page_size", f"must be 1 to {PAGE_SIZE_MAX}, or 0 for {PAGE_SIZE}")
    return request.page_size or PAGE_SIZE


def future(field: str) -> InvalidField:
    """A period of which nothing has been yet."""
    return InvalidField(Violation(field, "must not be in the future"))


def pack(at: datetime, statement_id: UUID) -> bytes:
    """Where a page ends."""
    micros = (at - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
    return f"{micros} {statement_id.hex}".encode()


def unpack(position: bytes) -> tuple[datetime, UUID]:
    """What pack() gave.

    Raises: PageTokenInvalid.
    """
    found = _POSITION.fullmatch(position)
    if found is None:
        raise PageTokenInvalid
    at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int(found[1]))
    return at, UUID(hex=found[2].decode())


def retry(request: pb.RetryMailRequest, actor: str) -> Retry:
    """A checked wish to have a mail sent again.

    Raises: InvalidField.
    """
    if wrong := [*why(request.reason)]:
        raise InvalidField(*wrong)
    return Retry(
        parse_uuid(request.request_id, field_name="request_id"),
        parse_uuid(request.statement_id, field_name="statement_id"),
        actor,
        request.reason,
    )


def name_of(user_id: str, statement_id: UUID) -> str:
    """An operation's name."""
    return f"users/{user_id}/statements/{statement_id}"


def filename(statement: Statement) -> str:
    """What the file is called; nobody's data."""
    return f"statement-{statement.first_day}-{statement.last_day}.zip"


def operation(statement: Statement, *, was_there: bool = False) -> operations_pb2.Operation:
    """A statement as the operation that makes it. was_there: whether the request to answer found it."""
    told = _statement(statement)
    told.was_there = was_there
    made = operations_pb2.Operation(
        name=name_of(told.user_id, statement.wanted.statement_id), done=not statement.is_running
    )
    made.metadata.Pack(told)
    if statement.state in ("READY", "EXPIRED"):
        made.response.Pack(told)
    elif statement.state == "CANCELLED":
        made.error.CopyFrom(
            status_pb2.Status(code=StatusCode.CANCELLED.value[0], message="Somebody ended this statement.")
        )
    elif statement.state == "FAILED":
        failure = statement.failure
        made.error.CopyFrom(status_pb2.Status(code=failure.code, message=failure.message))
        made.error.details.add().Pack(error_details_pb2.ErrorInfo(reason=failure.reason, domain=DOMAIN))
    return made


def mail(shard: str, told: Told) -> pb.StatementMail:
    """A mail as operators see it."""
    return pb.StatementMail(
        shard=shard,
        statement_id=str(told.statement_id),
        user_id=told.user_id,
        mail=_MAILS[told.state],
        attempt_count=told.attempts,
        note=told.note,
        create_time=stamp(told.ready_at),
        end_time=stamp(told.ended_at),
        expire_time=stamp(told.kept_until),
        retry_count=told.retries,
        actor=told.actor,
        reason=told.reason,
    )


def _statement(statement: Statement) -> pb.Statement:
    wanted, progress, stored = statement.wanted, statement.progress, statement.stored
    return pb.Statement(
        statement_id=str(wanted.statement_id),
        user_id=wanted.user_id,
        wish=pb.StatementWish(
            first_day=str(statement.first_day),
            last_day=str(statement.last_day),
            time_zone=wanted.time_zone,
            formats=[_NUMBERS[each] for each in wanted.formats],
            locale=wanted.locale,
        ),
        state=pb.Statement.State.Value(statement.state),
        read_month_count=progress.months,
        month_count=progress.months_in_all,
        order_count=progress.rows,
        archive_bytes=progress.archive_bytes,
        as_of_time=stamp(wanted.as_of),
        create_time=stamp(statement.created_at),
        end_time=stamp(statement.ended_at),
        expire_time=stamp(statement.expires_at),
        size_bytes=stored.size_bytes if stored else 0,
        sha256=stored.sha256 if stored else "",
        totals=[
            pb.StatementTotal(
                currency_code=each.currency,
                status=each.status,
                order_count=each.orders,
                amount_minor=str(each.amount_minor),
            )
            for each in statement.totals
        ],
        pdf_note=statement.pdf_note,
        mail=_MAILS[statement.mail],
    )


def stamp(at: datetime | None) -> Timestamp | None:
    """An instant, where there is one."""
    if at is None:
        return None
    made = Timestamp()
    made.FromDatetime(at)
    return made
