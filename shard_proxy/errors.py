"""Refusals of the proxy itself; whatever a lane refuses is passed on as it came.

The docstring is the sentence a caller reads (see chassis.errors).
"""

from __future__ import annotations

from grpc import StatusCode

from chassis.errors import OrdermeshError, Reason


class RoutingKeyMissing(OrdermeshError):
    """The request carries no routing key; there is no default shard."""

    code, reason = StatusCode.INVALID_ARGUMENT, Reason.ROUTING_KEY_MISSING


class RoutingKeyMismatch(OrdermeshError):
    """The header x-ordermesh-user names another user than the request."""

    code, reason = StatusCode.INVALID_ARGUMENT, Reason.ROUTING_KEY_MISMATCH


class UnknownShard(OrdermeshError):
    """The map has no shard of this name."""

    code, reason = StatusCode.NOT_FOUND, Reason.UNKNOWN_SHARD


class RequestIdReused(OrdermeshError):
    """This request_id was used before for another move; make a new one for a new move."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.REQUEST_ID_REUSED


class AlreadyVip(OrdermeshError):
    """The user has a dedicated bucket already."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.ALREADY_VIP


class NotAVip(OrdermeshError):
    """The user has no dedicated bucket of their own."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.NOT_A_VIP


class MoveInProgress(OrdermeshError):
    """Another move of this user or of one of these buckets is under way; sending the call again is safe."""

    code, reason = StatusCode.ABORTED, Reason.MOVE_IN_PROGRESS
    retry_after_s = 0.5


class MoveAborted(OrdermeshError):
    """The move was given up and everything is as before it; ask again with another request_id."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.MOVE_ABORTED


class BucketFrozen(OrdermeshError):
    """Writes to this bucket pause while one of its users is moved; sending the call again is safe."""

    code, reason = StatusCode.UNAVAILABLE, Reason.BUCKET_FROZEN
    retry_after_s = 0.5


class NoOwner(OrdermeshError):
    """No shard owns this bucket in the map; sending the call again is safe."""

    code, reason = StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE
    retry_after_s = 1.0


class NoMap(OrdermeshError):
    """This proxy has not seen a map of the shards yet; sending the call again is safe."""

    code, reason = StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE
    retry_after_s = 1.0


class RouteUnsettled(OrdermeshError):
    """The bucket's owner could not be found out in time; sending the call again is safe."""

    code, reason = StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE
    retry_after_s = 0.5
