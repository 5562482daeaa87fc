"""What a simulated upstream answers in place of a verdict."""

from __future__ import annotations

from grpc import StatusCode

from chassis.errors import OrdermeshError, Reason


class NoAnswer(OrdermeshError):
    """The upstream gave no answer; whatever was asked for may have happened or not.

    Down and a lost reply look alike on the wire, so that no caller can learn to tell them apart.
    """

    code, reason = StatusCode.UNAVAILABLE, Reason.UPSTREAM_UNAVAILABLE
