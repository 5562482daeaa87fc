"""The closed list of what goes wrong between archive_svc and a shard, beside the errors of chassis."""

from __future__ import annotations

from grpc import StatusCode

from chassis.errors import OrdermeshError, Reason


class LeaseLost(OrdermeshError):
    """Another process archives this shard by now; nothing more is done under the old lease."""

    code, reason = StatusCode.ABORTED, Reason.CONTENDED
