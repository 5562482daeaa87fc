"""Typed errors: each class carries its gRPC code, its reason and its facts; one edge turns them into a
status.

A class's docstring is the sentence a caller reads. Facts become the metadata of `google.rpc.ErrorInfo`;
nothing else of an exception ever leaves the process. Reasons mirror the proto enum
`ordermesh.errors.v1.Reason` (a tidy test compares them).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from grpc import StatusCode

if TYPE_CHECKING:
    from collections.abc import Mapping

DOMAIN = "ordermesh.dev"
FROZEN_W = "FROZEN_W"
"""The state of a fence whose bucket is read but not written, for some milliseconds."""


class Reason(StrEnum):
    """Why a call was refused; docs/ERRORS.md explains each."""

    INVALID_FIELD = "INVALID_FIELD"
    ROUTING_KEY_MISSING = "ROUTING_KEY_MISSING"
    ROUTING_KEY_MISMATCH = "ROUTING_KEY_MISMATCH"
    UNKNOWN_METHOD = "UNKNOWN_METHOD"
    MALFORMED_REQUEST = "MALFORMED_REQUEST"
    DEADLINE_REQUIRED = "DEADLINE_REQUIRED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    CALLER_NOT_ALLOWED = "CALLER_NOT_ALLOWED"
    ROLE_REQUIRED = "ROLE_REQUIRED"
    NOT_YOUR_ORDER = "NOT_YOUR_ORDER"
    ORDER_NOT_FOUND = "ORDER_NOT_FOUND"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    UNKNOWN_KIND = "UNKNOWN_KIND"
    UNKNOWN_SHARD = "UNKNOWN_SHARD"
    STALE_ROUTE = "STALE_ROUTE"
    SHARD_UNAVAILABLE = "SHARD_UNAVAILABLE"
    OVERLOADED = "OVERLOADED"
    CONTENDED = "CONTENDED"
    ILLEGAL_TRANSITION = "ILLEGAL_TRANSITION"
    ORDER_NOT_PARKED = "ORDER_NOT_PARKED"
    EVIDENCE_REQUIRED = "EVIDENCE_REQUIRED"
    DEAD_LETTER_NOT_FOUND = "DEAD_LETTER_NOT_FOUND"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"  # noqa: S105 - the name of a reason
    CLOCK_SKEW = "CLOCK_SKEW"
    ORDER_ARCHIVED = "ORDER_ARCHIVED"
    UPSTREAM_UNAVAILABLE = "UPSTREAM_UNAVAILABLE"
    STOPPING = "STOPPING"
    TOO_LARGE = "TOO_LARGE"
    RATE_LIMITED = "RATE_LIMITED"
    INTERNAL_ERROR = "INTERNAL_ERROR"
    ORDER_ID_INVALID = "ORDER_ID_INVALID"
    NO_SUCH_PATH = "NO_SUCH_PATH"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"
    VERSION_MISMATCH = "VERSION_MISMATCH"
    BUCKET_FROZEN = "BUCKET_FROZEN"
    ORDER_ELSEWHERE = "ORDER_ELSEWHERE"
    MOVE_SUPERSEDED = "MOVE_SUPERSEDED"
    MOVE_IN_PROGRESS = "MOVE_IN_PROGRESS"
    MOVE_ABORTED = "MOVE_ABORTED"
    ALREADY_VIP = "ALREADY_VIP"
    NOT_A_VIP = "NOT_A_VIP"
    READ_MODEL_UNAVAILABLE = "READ_MODEL_UNAVAILABLE"
    OPERATION_NOT_FOUND = "OPERATION_NOT_FOUND"
    MONTH_NOT_FOUND = "MONTH_NOT_FOUND"
    STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"
    STATEMENT_NOT_FOUND = "STATEMENT_NOT_FOUND"
    STATEMENT_NOT_READY = "STATEMENT_NOT_READY"
    STATEMENT_RUNNING = "STATEMENT_RUNNING"
    STATEMENT_LIMIT = "STATEMENT_LIMIT"
    STATEMENT_INCOMPLETE = "STATEMENT_INCOMPLETE"
    MAIL_NOT_DEAD = "MAIL_NOT_DEAD"
    LEGAL_HOLD = "LEGAL_HOLD"
    YOUNGER_MONTH_FIRST = "YOUNGER_MONTH_FIRST"
    ARCHIVE_COLD = "ARCHIVE_COLD"


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that is wrong, and what would be right."""

    field: str
    description: str


class OrdermeshError(Exception):
    """Something was refused for a reason the caller can act on.

    Subclasses say `code` and `reason`; their docstring is the message. `retry_after_s` asks the caller to
    come back then.
    """

    code: ClassVar[StatusCode]
    reason: ClassVar[Reason]
    retry_after_s: float | None = None

    def __init__(self, **facts: object) -> None:
        super().__init__(self.sentence())
        self.facts = {name: str(value) for name, value in facts.items()}

    @classmethod
    def sentence(cls) -> str:
        """The first paragraph of the docstring, on one line: what a caller reads."""
        return " ".join((cls.__doc__ or cls.__name__).split("\n\n")[0].split())

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Fields that are wrong; only an InvalidField has some."""
        return ()


class InvalidField(OrdermeshError):
    """A field of the request is missing or malformed."""

    code, reason = StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD

    def __init__(self, *violations: Violation) -> None:
        super().__init__(fields=",".join(v.field for v in violations))
        self._violations = violations

    @classmethod
    def of(cls, field: str, description: str) -> InvalidField:
        """One wrong field."""
        return cls(Violation(field, description))

    @property
    def violations(self) -> tuple[Violation, ...]:
        """The wrong fields, in the order they were found."""
        return self._violations


class MalformedRequest(OrdermeshError):
    """The request cannot be decoded."""

    code, reason = StatusCode.INVALID_ARGUMENT, Reason.MALFORMED_REQUEST


class UnknownMethod(OrdermeshError):
    """No service of the mesh has this method."""

    code, reason = StatusCode.UNIMPLEMENTED, Reason.UNKNOWN_METHOD


class DeadlineRequired(OrdermeshError):
    """The call came without a deadline; every call needs one."""

    code, reason = StatusCode.INVALID_ARGUMENT, Reason.DEADLINE_REQUIRED


class DeadlineExceeded(OrdermeshError):
    """The deadline passed, or was too near to begin; what was begun may still have happened."""

    code, reason = StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED


class Unauthenticated(OrdermeshError):
    """The caller could not be identified."""

    code, reason = StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED


class TokenRefused(Unauthenticated):
    """The request needs a valid bearer token."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause=cause)
        self.cause = cause


class KeysUnavailable(OrdermeshError):
    """The keys that prove tokens cannot be had now; sending the request again is safe."""

    code, reason = StatusCode.UNAVAILABLE, Reason.UPSTREAM_UNAVAILABLE
    retry_after_s = 1.0


class CallerNotAllowed(OrdermeshError):
    """This caller may not call this method."""

    code, reason = StatusCode.PERMISSION_DENIED, Reason.CALLER_NOT_ALLOWED


class RoleRequired(OrdermeshError):
    """The method needs a role that the subject lacks."""

    code, reason = StatusCode.PERMISSION_DENIED, Reason.ROLE_REQUIRED


class NotYourOrder(OrdermeshError):
    """The subject asks for something that belongs to another user."""

    code, reason = StatusCode.PERMISSION_DENIED, Reason.NOT_YOUR_ORDER


class Overloaded(OrdermeshError):
    """Too much is going on here; come back after the given delay."""

    code, reason = StatusCode.RESOURCE_EXHAUSTED, Reason.OVERLOADED
    retry_after_s = 0.25


OF_ONE_USER = "user"
"""The limiter of an Overloaded that says: too many calls of this user are under way."""


def is_shed(reason: str, facts: Mapping[str, str]) -> bool:
    """Whether a refusal says that too much is going on here whoever calls, and not that its own user has too
    much under way. facts: of the error, or of its ErrorInfo.
    """
    return reason == Reason.OVERLOADED and facts.get("limiter") != OF_ONE_USER


class Stopping(OrdermeshError):
    """This process is stopping; send the call again, another one will take it."""

    code, reason = StatusCode.UNAVAILABLE, Reason.STOPPING
    retry_after_s = 0.5


class ShardUnavailable(OrdermeshError):
    """The shard cannot be reached now; sending the call again is safe."""

    code, reason = StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE
    retry_after_s = 0.5


class OrderArchived(OrdermeshError):
    """The order's month is archived; it is in statements, and changes no more."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.ORDER_ARCHIVED


class StaleRoute(OrdermeshError):
    """The bucket is owned by another shard or epoch; resolve the route again and send the call there."""

    code, reason = StatusCode.ABORTED, Reason.STALE_ROUTE

    @property
    def is_passing(self) -> bool:
        """Whether the bucket is ours and only pauses, while one of its users is moved."""
        return self.facts.get("state") == FROZEN_W


class Contended(OrdermeshError):
    """Other changes of the same order kept coming first; sending the call again is safe."""

    code, reason = StatusCode.ABORTED, Reason.CONTENDED
    retry_after_s = 0.1


class PlacementMissing(OrdermeshError):
    """The call does not say where the user's orders are; only the proxy may call, and it always says so."""

    code, reason = StatusCode.INVALID_ARGUMENT, Reason.ROUTING_KEY_MISSING


class OrderIdInvalid(OrdermeshError):
    """This is not an order id: a UUIDv7 made by ordermesh."""

    code, reason = StatusCode.INVALID_ARGUMENT, Reason.ORDER_ID_INVALID


class PageTokenInvalid(OrdermeshError):
    """The page token is not one of ours, or belongs to another query."""

    code, reason = StatusCode.INVALID_ARGUMENT, Reason.PAGE_TOKEN_INVALID


class InternalError(OrdermeshError):
    """Something went wrong inside; the trace id leads to it."""

    code, reason = StatusCode.INTERNAL, Reason.INTERNAL_ERROR
