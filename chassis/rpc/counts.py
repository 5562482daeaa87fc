"""What is counted of calls to others, under the names that people's dashboards expect of gRPC clients."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from grpc import StatusCode

from chassis import metrics
from chassis.rpc.ended import SERVER_FAULTS

if TYPE_CHECKING:
    from collections.abc import Coroutine

_TYPES = {
    "unary_unary": "unary",
    "unary_stream": "server_stream",
    "stream_unary": "client_stream",
    "stream_stream": "bidi_stream",
}


class Counts:
    """The counters of one method of one channel. path: `/package.Service/Method`; arity: as grpc names it."""

    def __init__(self, path: str, arity: str) -> None:
        service, _, method = path.strip("/").rpartition("/")
        self._labels = service, method, _TYPES[arity]
        self._sent = metrics.RPC_SENT.labels(*self._labels)
        self._seconds = metrics.RPC_ANSWER_SECONDS.labels(*self._labels)
        for code in (StatusCode.OK, *SERVER_FAULTS):
            metrics.RPC_ANSWERED.labels(*self._labels, code.name)

    def begin(self, call: Any) -> None:
        """Count a call now, and once more when it ends."""
        self._sent.inc()
        call.add_done_callback(partial(self._end, time.perf_counter()))

    def _end(self, began: float, call: Any) -> None:
        self._seconds.observe(time.perf_counter() - began)
        metrics.RPC_ANSWERED.labels(*self._labels, _at_once(call.code()).name).inc()


def _at_once(code: Coroutine[Any, Any, StatusCode]) -> StatusCode:
    """The code of a call that is done: grpc.aio has it behind a coroutine, which does not wait by then."""
    try:
        code.send(None)
    except StopIteration as done:
        value: StatusCode = done.value
        return value
    code.close()
    return StatusCode.UNKNOWN
