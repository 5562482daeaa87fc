"""How a served call ended: one line for each, with its trace, and the same facts on its span.

The line is the same in every service: `event.action` is `rpc_finished`, `event.outcome`, `event.duration` in
nanoseconds, `rpc.method`, `rpc.code`, `error.code` with the reason of a refusal, and whatever was bound
meanwhile, such as the order and the shard.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from grpc import StatusCode

from chassis import traces
from chassis.rpc.status import RelayedStatus, parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Span

    from chassis.auth import Asking

log = structlog.get_logger("rpc")
ACTION = "rpc_finished"
SERVER_FAULTS = (
    StatusCode.UNKNOWN,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.INTERNAL,
    StatusCode.UNAVAILABLE,
    StatusCode.DATA_LOSS,
)
"""Codes that say that we failed, and not the caller."""


@dataclass(slots=True)
class Ending:
    """What is known about the end of a call so far.

    error: what went wrong unexpectedly; its stack trace goes to the line and nowhere else.
    """

    method: str
    began: float = field(default_factory=time.perf_counter)
    code: StatusCode = StatusCode.OK
    reason: str = ""
    error: BaseException | None = None
    relayed: RelayedStatus | None = None
    _took_s: float = 0.0

    def took_s(self) -> float:
        """How long the call took; the same however often one asks."""
        self._took_s = self._took_s or time.perf_counter() - self.began
        return self._took_s


def tell(end: Ending, span: Span, asking: Asking | Exception) -> None:
    """Write the line of a call that has ended, and mark its span."""
    reason = end.reason or _reason_behind(end)
    facts: dict[str, object] = {
        "event.outcome": "success" if end.code is StatusCode.OK else "failure",
        "event.duration": int(end.took_s() * 1e9),
        "rpc.method": end.method,
        "rpc.code": end.code.name,
    }
    if end.code is not StatusCode.OK:
        traces.failed(span, end.code.name, reason)
        if reason:
            facts["error.code"] = reason
        if end.error is not None:
            facts["exc_info"], facts["facts"] = end.error, getattr(end.error, "facts", None)
    if not isinstance(asking, Exception):
        facts["caller"] = asking.caller
        if asking.subject.is_only_user:
            facts["user_id"] = asking.subject.name
    _say(end.code)(ACTION, **facts)


def _say(code: StatusCode) -> Callable[..., object]:
    said: Callable[..., object] = log.error if code in SERVER_FAULTS else log.info
    return said


def _reason_behind(end: Ending) -> str:
    """The reason that a lane gave with the status that was passed on."""
    if end.relayed is None:
        return ""
    return parse(end.code, "", end.relayed.trailers).reason
