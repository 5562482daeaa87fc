"""Every error as problem+json (RFC 9457), mirroring the gRPC error: status, reason, facts, wrong fields, when
to come back.

The only place that decides an HTTP status. Text comes from the catalogue of typed errors, never from an
exception.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from grpc import StatusCode
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from chassis.errors import DOMAIN, InternalError, Reason, Violation, is_shed
from chassis.rpc import RemoteError
from gateway.errors import FALLBACKS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chassis.errors import OrdermeshError

MEDIA_TYPE = "application/problem+json"
TYPE_BASE = "https://ordermesh.dev/errors#"
VIOLATIONS_MAX = 10
_STATUSES: Mapping[StatusCode, int] = {
    StatusCode.CANCELLED: 499,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.DEADLINE_EXCEEDED: 504,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.ABORTED: 409,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.UNAUTHENTICATED: 401,
}
"""As grpc-gateway maps codes; what is not listed is 500."""
_STATUSES_OF_REASONS: Mapping[str, int] = {
    Reason.REQUEST_ID_REUSED: 422,
    Reason.STATEMENT_NOT_READY: 409,
    Reason.VERSION_MISMATCH: 412,
    Reason.TOO_LARGE: 413,
    Reason.UNSUPPORTED_MEDIA_TYPE: 415,
    Reason.METHOD_NOT_ALLOWED: 405,
}
"""Where HTTP has a status that says more than the code does."""
_HIDDEN_FACTS = frozenset({"trace_id", "fields"})
"""Facts with a member of their own in the problem."""


class FieldViolation(BaseModel):
    """One field that is wrong, and what would be right."""

    field: str
    description: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, serialize_by_alias=True)

    type: str = Field(description="Names the reason; documented at this address.")
    title: str = Field(description="The reason in words.")
    status: int
    detail: str = Field(description="What is wrong, for a person.")
    instance: str = Field(description="The path that was asked for.")
    reason: str = Field(description="Why, for a program; one of the catalogue.", examples=["ORDER_NOT_FOUND"])
    domain: str = DOMAIN
    metadata: dict[str, str] = Field(default_factory=dict, description="Facts of this occurrence.")
    request_id: str = Field(description="As in X-Request-Id.")
    trace_id: str | None = None
    field_violations: list[FieldViolation] = Field(default_factory=list)
    retry_after_seconds: float | None = None


class Occasion(NamedTuple):
    """Where a problem occurred."""

    path: str
    request_id: str
    trace_id: str


def of_error(error: OrdermeshError, occasion: Occasion) -> Problem:
    """The problem of a typed error."""
    refusal = RemoteError(
        code=error.code,
        message=error.sentence(),
        reason=error.reason.value,
        metadata=error.facts,
        violations=error.violations,
        retry_after_s=error.retry_after_s,
    )
    return of_refusal(refusal, occasion)


def of_refusal(refusal: RemoteError, occasion: Occasion) -> Problem:
    """The problem of a status that the mesh answered; text that is not from our services is replaced."""
    refusal = refusal if refusal.reason else _explained(refusal)
    status = _STATUSES_OF_REASONS.get(refusal.reason, _STATUSES.get(refusal.code, 500))
    if refusal.reason == Reason.STATEMENT_NOT_READY and refusal.metadata.get("state") == "EXPIRED":
        status = HTTPStatus.GONE.value
    if is_shed(refusal.reason, refusal.metadata):
        # Who has too much under way itself is told 429, as one who asks too often is.
        status = HTTPStatus.SERVICE_UNAVAILABLE.value
    return Problem(
        type=TYPE_BASE + refusal.reason,
        title=refusal.reason.replace("_", " ").capitalize(),
        status=status,
        detail=refusal.message,
        instance=occasion.path[:256],
        reason=refusal.reason,
        metadata={name: value for name, value in refusal.metadata.items() if name not in _HIDDEN_FACTS},
        request_id=occasion.request_id,
        trace_id=refusal.metadata.get("trace_id") or occasion.trace_id or None,
        field_violations=[_violation(one) for one in refusal.violations[:VIOLATIONS_MAX]],
        retry_after_seconds=refusal.retry_after_s,
    )


def _explained(refusal: RemoteError) -> RemoteError:
    fallback = FALLBACKS.get(refusal.code)
    if fallback is None:
        return RemoteError(StatusCode.INTERNAL, InternalError.sentence(), Reason.INTERNAL_ERROR.value)
    reason, message, retry_after_s = fallback
    return RemoteError(refusal.code, message, reason.value, retry_after_s=retry_after_s)


def _violation(wrong: Violation) -> FieldViolation:
    return FieldViolation(field=_camel(wrong.field), description=wrong.description)


def _camel(path: str) -> str:
    """`amount.currency_code` as JSON calls it; header names and the like stay."""
    return ".".join(to_camel(part) if "_" in part else part for part in path.split("."))


def body_of(problem: Problem) -> bytes:
    """The bytes to answer with."""
    return problem.model_dump_json(exclude_none=True).encode()


def headers_of(problem: Problem) -> dict[str, str]:
    """The headers that say what the problem says: whoever reads no bodies can act as well."""
    headers = {"content-type": MEDIA_TYPE, "cache-control": "no-store"}
    if problem.retry_after_seconds is not None:
        headers["retry-after"] = str(max(1, math.ceil(problem.retry_after_seconds)))
    if problem.status == HTTPStatus.UNAUTHORIZED:
        told = "" if problem.metadata.get("cause") == "MISSING" else ', error="invalid_token"'
        headers["www-authenticate"] = f'Bearer realm="ordermesh"{told}'
    return headers
