"""Why order_svc refuses: a closed list. A docstring's first sentence is what the caller reads."""

from __future__ import annotations

from grpc import StatusCode

from chassis.errors import Contended, OrdermeshError, Reason, ShardUnavailable


class OrderNotFound(OrdermeshError):
    """There is no such order."""

    code, reason = StatusCode.NOT_FOUND, Reason.ORDER_NOT_FOUND


class RequestIdReused(OrdermeshError):
    """This request_id was used before with another request; make a new one for a new order."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.REQUEST_ID_REUSED


class OrderElsewhere(OrdermeshError):
    """The order of this request was made before its user was moved; ask the shard of that order."""

    code, reason = StatusCode.ABORTED, Reason.ORDER_ELSEWHERE


class MoveSuperseded(OrdermeshError):
    """The bucket is not as this mover believes: a later one was here, or its epoch is another."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.MOVE_SUPERSEDED


class UnknownKind(OrdermeshError):
    """This kind of order is not configured."""

    code, reason = StatusCode.INVALID_ARGUMENT, Reason.UNKNOWN_KIND


class UnknownShard(OrdermeshError):
    """This process does not serve that shard."""

    code, reason = StatusCode.NOT_FOUND, Reason.UNKNOWN_SHARD


class PartitionsMissing(ShardUnavailable):
    """The shard has no partition for this moment, so that it can take no order; archive_svc makes them."""

    def __init__(self, *, tables: str) -> None:
        super().__init__(tables=tables)


class RoutingKeyMissing(OrdermeshError):
    """The call came without the bucket and epoch that the proxy gives it; call through the proxy."""

    code, reason = StatusCode.INVALID_ARGUMENT, Reason.ROUTING_KEY_MISSING


class RoutingKeyMismatch(OrdermeshError):
    """The bucket in the header is not one that this user can have."""

    code, reason = StatusCode.INVALID_ARGUMENT, Reason.ROUTING_KEY_MISMATCH


class IllegalTransition(OrdermeshError):
    """The order is settled the other way, or cannot do this from where it stands; nothing was changed."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.ILLEGAL_TRANSITION


class OrderNotParked(OrdermeshError):
    """The order has no open case: automation still owns it, or it is settled."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.ORDER_NOT_PARKED


class VersionMismatch(OrdermeshError):
    """The order has another version by now; read it again and decide anew."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.VERSION_MISMATCH


class EvidenceRequired(OrdermeshError):
    """Closing a case needs evidence, and closing it with SUCCESS the upstream's reference."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.EVIDENCE_REQUIRED


class DeadLetterNotFound(OrdermeshError):
    """This order never had a dead letter."""

    code, reason = StatusCode.NOT_FOUND, Reason.DEAD_LETTER_NOT_FOUND


class IdNotTaken(Contended):
    """The order's id came too late, or its request's key was given up just now; with another id it works."""


class ClockSkew(OrdermeshError):
    """The clocks of this process and its database differ too much to make order ids."""

    code, reason = StatusCode.UNAVAILABLE, Reason.CLOCK_SKEW
    retry_after_s = 5.0
