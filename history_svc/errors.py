"""What history_svc refuses beyond the errors every service has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc import StatusCode

from chassis.errors import OrdermeshError, Reason

if TYPE_CHECKING:
    from history_svc.events import Record


class ReadModelUnavailable(OrdermeshError):
    """Older orders and searches cannot be answered now; orders themselves are not affected."""

    code, reason = StatusCode.UNAVAILABLE, Reason.READ_MODEL_UNAVAILABLE
    retry_after_s = 1.0


class IndexNotOurs(ReadModelUnavailable):
    """A month's index is not the one that was made for it; its orders cannot be searched now."""


class UnknownShard(OrdermeshError):
    """There is no shard of this name."""

    code, reason = StatusCode.NOT_FOUND, Reason.UNKNOWN_SHARD


class OperationNotFound(OrdermeshError):
    """The shard has no operation of this id."""

    code, reason = StatusCode.NOT_FOUND, Reason.OPERATION_NOT_FOUND


class TooMuchAtOnce(Exception):
    """The read model takes fewer documents at once."""


class EventsUnavailable(Exception):
    """The channel of changes cannot be reached now."""


class EventTooLarge(Exception):
    """A record is larger than the channel carries; it would ruin the producer that took it."""

    def __init__(self, record: Record, size_bytes: int) -> None:
        super().__init__(f"{size_bytes} bytes")
        self.record = record
        self.size_bytes = size_bytes
