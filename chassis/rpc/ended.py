"""How a served call ended: one line for each, with its trace, and the same facts on its span.

The line is the same in every service: `event.action` is `rpc_finished`, `event.outcome`, `event.duration` in
nanoseconds, `rpc.method`, `rpc.code`, `error.code` with the reason of a refusal, and whatever was bound
meanwhile, such as the order and the shard. A stream of answers goes on until its time is over, as its caller
asked: that is how it ends, and no failure of anybody. One that is too late for something before is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from grpc import StatusCode

from chassis import traces
from chassis.errors import is_shed
from chassis.rpc.status import parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Span

    from chassis.auth import Asking
    from chassis.errors import OrdermeshError
    from chassis.rpc.call import Call
    from chassis.rpc.status import RelayedStatus

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
ON_TIME_S = 1.5
"""gRPC rounds a deadline up on its way, by a second at most: so much may be left here when it comes there."""


@dataclass(slots=True)
class Ending:
    """What is known about the end of a call so far.

    reason: why it was refused, here or behind. is_shed: as too much was going on, whoever called.
    error: what went wrong unexpectedly; its stack trace goes to the line and nowhere else.
    is_over: a stream whose time is over; not a failure, whatever the code.
    """

    method: str
    began: float = field(default_factory=time.perf_counter)
    code: StatusCode = StatusCode.OK
    reason: str = ""
    is_shed: bool = False
    error: BaseException | None = None
    is_over: bool = False
    _took_s: float = 0.0

    def refuse(self, error: OrdermeshError) -> None:
        """It was refused here."""
        self.code, self.reason = error.code, error.reason.value
        self.is_shed = is_shed(self.reason, error.facts)
        self.error = error if error.code is StatusCode.INTERNAL else None

    def relay(self, status: RelayedStatus) -> None:
        """It was refused by a lane, whose status is passed on."""
        remote = parse(status.code, "", status.trailers)
        self.code, self.reason = status.code, remote.reason
        self.is_shed = is_shed(self.reason, remote.metadata)

    def took_s(self) -> float:
        """How long the call took; the same however often one asks."""
        self._took_s = self._took_s or time.perf_counter() - self.began
        return self._took_s

    @property
    def is_failure(self) -> bool:
        """Whether anything went wrong, whoever's fault it was."""
        return self.code is not StatusCode.OK and not self.is_over


def is_over(call: Call | None, code: StatusCode, took_s: float) -> bool:
    """Whether a call that ended with this code is a stream of answers that went on until its time was over:
    what its caller gave, or what its method has at most, after which the proxy ends it.

    The one that noticed first says DEADLINE_EXCEEDED; the others are cancelled in that moment. Who says it
    sooner had less time than the caller, or waited for something: that is a failure as of any call.
    """
    if call is None or not call.method.server_streaming:
        return False
    if code is StatusCode.CANCELLED:
        return call.time_remaining() < ON_TIME_S
    left_s = min(call.time_remaining(), call.method.timeout_s - took_s)
    return code is StatusCode.DEADLINE_EXCEEDED and left_s < ON_TIME_S


def tell(end: Ending, span: Span, asking: Asking | Exception) -> None:
    """Write the line of a call that has ended, and mark its span."""
    facts: dict[str, object] = {
        "event.outcome": "failure" if end.is_failure else "success",
        "event.duration": int(end.took_s() * 1e9),
        "rpc.method": end.method,
        "rpc.code": end.code.name,
    }
    if end.is_over:
        traces.fine(span)
    if end.is_failure:
        traces.failed(span, end.code.name, end.reason)
        if end.reason:
            facts["error.code"] = end.reason
        if end.error is not None:
            facts["exc_info"], facts["facts"] = end.error, getattr(end.error, "facts", None)
    if not isinstance(asking, Exception):
        facts["caller"] = asking.caller
        if asking.subject.is_only_user:
            facts["user_id"] = asking.subject.name
    _say(end)(ACTION, **facts)


def _say(end: Ending) -> Callable[..., object]:
    said: Callable[..., object] = log.error if end.is_failure and end.code in SERVER_FAULTS else log.info
    return said
