"""The closed list of what goes wrong between archive_svc and a shard, beside the errors of chassis."""

from __future__ import annotations

from grpc import StatusCode

from chassis.errors import OrdermeshError, Reason


class UnknownShard(OrdermeshError):
    """There is no shard of this name."""

    code, reason = StatusCode.NOT_FOUND, Reason.UNKNOWN_SHARD


class MonthNotFound(OrdermeshError):
    """The shard has no such month, neither in its tables nor in the archive."""

    code, reason = StatusCode.NOT_FOUND, Reason.MONTH_NOT_FOUND


class StorageUnavailable(OrdermeshError):
    """The archive's storage gives no answer now, or there is none; orders themselves are not affected."""

    code, reason = StatusCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE
    retry_after_s = 5.0


class LeaseLost(OrdermeshError):
    """Another process archives this shard by now; nothing more is done under the old lease."""

    code, reason = StatusCode.ABORTED, Reason.CONTENDED
