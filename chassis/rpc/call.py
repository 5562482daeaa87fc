"""What a handler may know about the call it serves."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chassis.auth import Subject
    from chassis.rpc.methods import Method


@dataclass(slots=True)
class Call:
    """One call that passed the gate.

    caller: the TLS peer. subject: on whose behalf; its signed form is `subject_token`. metadata: ASCII
    request metadata, last one wins.
    deadline: on the monotonic clock. trailers: sent with the answer, whatever it is.
    """

    method: Method
    caller: str
    subject: Subject
    subject_token: str
    metadata: Mapping[str, str]
    deadline: float
    traceparent: str = ""
    tracestate: str = ""
    trace_id: str = ""
    trailers: dict[str, str] = field(default_factory=dict)

    def time_remaining(self) -> float:
        """Seconds until the deadline, not below zero."""
        return max(0.0, self.deadline - time.monotonic())

    def set_trailer(self, key: str, value: str) -> None:
        """Say something beside the answer."""
        self.trailers[key] = value
