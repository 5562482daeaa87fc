"""How a lane ended a call, and what that means: a status to pass on, a route that is old, or an answer that
was lost.

A status that the lane's own code made carries details or trailers; one that gRPC made up because a connection
broke carries none, and its text is never shown to a caller.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from grpc import StatusCode
from grpc.aio import AioRpcError, UsageError

from chassis import rpc
from chassis.errors import DeadlineExceeded, Reason, ShardUnavailable
from shard_proxy.headers import trailers_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOST = frozenset({StatusCode.UNAVAILABLE, StatusCode.CANCELLED})


class Ended(Exception):
    """A lane ended a call with something else than OK.

    sent: False when the call certainly never reached the lane.
    """

    def __init__(self, status: rpc.RelayedStatus, *, sent: bool = True) -> None:
        super().__init__(status.code.name)
        self.status = status
        self.sent = sent
        self.remote = rpc.parse(status.code, status.message, status.trailers)

    @classmethod
    def by_lane(cls, failed: AioRpcError) -> Ended:
        """From a failed call."""
        trailers = trailers_of(failed.trailing_metadata())
        return cls(rpc.RelayedStatus(failed.code(), failed.details() or "", trailers))

    @classmethod
    def by_connection(cls, *, sent: bool) -> Ended:
        """The connection ended under the call, or before it."""
        return cls(rpc.RelayedStatus(StatusCode.UNAVAILABLE, "", ()), sent=sent)

    @property
    def lost(self) -> bool:
        """Whether nobody can say what became of the call: its connection broke."""
        return self.status.code in _LOST and not self.status.trailers

    @property
    def did_nothing(self) -> bool:
        """Whether the lane certainly did nothing: never reached, or turned away by a process that stops."""
        return not self.sent or self.remote.reason == Reason.STOPPING

    def spoken(self, shard: str) -> Exception:
        """What the caller is told."""
        if self.lost:
            return ShardUnavailable(shard=shard)
        if self.status.code is StatusCode.DEADLINE_EXCEEDED and not self.status.trailers:
            return DeadlineExceeded(limiter="lane")
        return self.status


@contextmanager
def ended_calls() -> Iterator[None]:
    """Raise Ended for whatever ends a call to a lane; a cancellation of our own task passes."""
    try:
        yield
    except AioRpcError as failed:
        raise Ended.by_lane(failed) from None
    except UsageError:
        # The lane's target left the map and its channel was closed between our look and our call.
        raise Ended.by_connection(sent=False) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # grpc.aio raises the same when the channel was closed under a running call.
        raise Ended.by_connection(sent=True) from None
