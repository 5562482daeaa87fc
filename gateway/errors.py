"""What the gateway refuses by itself, beyond the errors every service has, and how it repeats what the mesh
refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc import StatusCode

from chassis.errors import OrdermeshError, Overloaded, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chassis.rpc import RemoteError


class RateLimited(OrdermeshError):
    """Too many requests of this user; come back after the given delay."""

    code, reason = StatusCode.RESOURCE_EXHAUSTED, Reason.RATE_LIMITED

    def __init__(self, policy: str, retry_after_s: float) -> None:
        super().__init__(policy=policy)
        self.retry_after_s = retry_after_s


class TooManyStreams(OrdermeshError):
    """Too many event streams of this user are open; close one, or poll the order instead."""

    code, reason = StatusCode.RESOURCE_EXHAUSTED, Reason.RATE_LIMITED
    retry_after_s = 5.0


class StreamsFull(Overloaded):
    """Too many event streams are open here, whoever opens one; poll the order instead."""

    retry_after_s = 5.0


class BodyTooLarge(OrdermeshError):
    """The request's body is larger than the limit."""

    code, reason = StatusCode.RESOURCE_EXHAUSTED, Reason.TOO_LARGE


class HeadTooLarge(OrdermeshError):
    """The request's path and headers are larger than the limit."""

    code, reason = StatusCode.RESOURCE_EXHAUSTED, Reason.TOO_LARGE


class UnsupportedMediaType(OrdermeshError):
    """The body must be JSON, sent as application/json."""

    code, reason = StatusCode.INVALID_ARGUMENT, Reason.UNSUPPORTED_MEDIA_TYPE


class MalformedJson(OrdermeshError):
    """The body is not one JSON object of a sensible shape."""

    code, reason = StatusCode.INVALID_ARGUMENT, Reason.MALFORMED_REQUEST


class ReceiptTimeout(OrdermeshError):
    """The request did not arrive in time."""

    code, reason = StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED


class NoSuchPath(OrdermeshError):
    """There is nothing at this path."""

    code, reason = StatusCode.NOT_FOUND, Reason.NO_SUCH_PATH


class MethodNotAllowed(OrdermeshError):
    """The path does not know this method."""

    code, reason = StatusCode.UNIMPLEMENTED, Reason.METHOD_NOT_ALLOWED


class MeshRefused(Exception):
    """The mesh refused a call; its status is repeated as a problem."""

    def __init__(self, refusal: RemoteError) -> None:
        super().__init__(refusal.reason or refusal.code.name)
        self.refusal = refusal


FALLBACKS: Mapping[StatusCode, tuple[Reason, str, float | None]] = {
    StatusCode.UNAVAILABLE: (
        Reason.SHARD_UNAVAILABLE,
        "The mesh cannot be reached now; sending the request again is safe.",
        0.5,
    ),
    StatusCode.DEADLINE_EXCEEDED: (
        Reason.DEADLINE_EXCEEDED,
        "The deadline passed; what was begun may still have happened.",
        None,
    ),
    StatusCode.RESOURCE_EXHAUSTED: (
        Reason.OVERLOADED,
        "Too much is going on here; come back after the given delay.",
        0.25,
    ),
    StatusCode.CANCELLED: (Reason.STOPPING, "The call was cut off; sending the request again is safe.", 0.5),
}
"""Reason, detail and delay of a status that came without details: from grpcio itself, not from one of our
services.
"""
