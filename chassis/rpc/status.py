"""Errors on the wire: a typed error becomes a status with exactly one ErrorInfo, and a status becomes typed
facts again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from chassis.errors import DOMAIN, OrdermeshError, Violation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import grpc

DETAILS_KEY = "grpc-status-details-bin"
VIOLATIONS_MAX = 10
FACT_CHARS_MAX = 256
FIELD_CHARS_MAX = 128
"""Trailers share 8 KiB; a fact, a description or the name of a field longer than this is cut."""

Metadata = tuple[tuple[str, str | bytes], ...]
_CODES = {code.value[0]: code for code in StatusCode}


class RelayedStatus(Exception):
    """A status that came from behind and is passed on as it is: code, message and trailers."""

    def __init__(self, code: StatusCode, message: str, trailers: Metadata) -> None:
        super().__init__(code.name)
        self.code = code
        self.message = message
        self.trailers = trailers


@dataclass(frozen=True, slots=True)
class RemoteError:
    """What a failed call to somebody else said."""

    code: StatusCode
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after_s: float | None = None


def to_status(error: OrdermeshError, trace_id: str = "") -> tuple[StatusCode, str, Metadata]:
    """Code, message and trailing metadata of a typed error."""
    facts = {name: value[:FACT_CHARS_MAX] for name, value in error.facts.items()}
    if trace_id:
        facts["trace_id"] = trace_id
    details = [_packed(error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=facts))]
    if error.violations:
        details.append(_packed(_bad_request(error.violations)))
    if error.retry_after_s is not None:
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after_s))))
    message = error.sentence()
    status = status_pb2.Status(code=error.code.value[0], message=message, details=details)
    return error.code, message, ((DETAILS_KEY, status.SerializeToString()),)


def error_of(failed: grpc.aio.AioRpcError) -> RemoteError:
    """The facts of a failed call; a status without our details has an empty reason."""
    return parse(failed.code(), failed.details() or "", failed.trailing_metadata() or ())


def parse(code: StatusCode, message: str, trailers: Iterable[tuple[str, str | bytes]]) -> RemoteError:
    """The facts of a status with its trailers. Details that cannot be decoded are as good as none."""
    status = status_pb2.Status()
    for key, value in trailers:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                status.ParseFromString(value)
            except DecodeError:
                return RemoteError(code, message)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    found = [part.Unpack(info) or part.Unpack(bad) or part.Unpack(retry) for part in status.details]
    return RemoteError(
        code=code,
        message=message,
        reason=info.reason,
        metadata=dict(info.metadata),
        violations=tuple(Violation(v.field, v.description) for v in bad.field_violations),
        # By hand: what does not fit into a timedelta must not turn a status into an exception.
        retry_after_s=retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        if found and retry.HasField("retry_delay")
        else None,
    )


def code_of(number: int) -> StatusCode:
    """The code of its number on the wire; UNKNOWN for one that does not exist."""
    return _CODES.get(number, StatusCode.UNKNOWN)


def _bad_request(violations: tuple[Violation, ...]) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=v.field[:FIELD_CHARS_MAX], description=v.description[:FACT_CHARS_MAX]
            )
            for v in violations[:VIOLATIONS_MAX]
        ]
    )


def _duration(seconds: float) -> duration_pb2.Duration:
    whole = int(seconds)
    return duration_pb2.Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
