"""Methods that nobody has: refused with a typed error, told by a line and counted like every other call.

Whoever looks for methods may send any name, as long and as strange as it likes. The line says it cut, and
letters, digits and what stands between them alone; the counters say `unknown`.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.trace import INVALID_SPAN

from chassis import logs, metrics
from chassis.errors import UnknownMethod
from chassis.rpc import ended
from chassis.rpc.gate import ascii_metadata
from chassis.rpc.status import to_status

if TYPE_CHECKING:
    from chassis.rpc.gate import Gate

NAME_CHARS_MAX = 128
_STRANGE = re.compile(r"[^A-Za-z0-9_./-]")
_LABELS = ("unknown", "unknown", "unary")
"""Of every method that nobody has; nobody knows whether it would have streamed."""


class Unknown(grpc.GenericRpcHandler):
    """Answers whatever no handler before it has; it has to be a server's last."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """A handler for any path."""
        return grpc.stream_stream_rpc_method_handler(partial(self._refuse, handler_call_details.method))

    async def _refuse(self, path: str, _: object, context: Any) -> None:
        metrics.RPC_STARTED.labels(*_LABELS).inc()
        logs.forget()
        refused, end = UnknownMethod(), ended.Ending(shown(path))
        end.refuse(refused)
        ended.tell(end, INVALID_SPAN, self._gate.asking(context, ascii_metadata(context)))
        metrics.REFUSALS.labels(end.reason).inc()
        metrics.RPC_HANDLED.labels(*_LABELS, end.code.name).inc()
        metrics.RPC_SECONDS.labels(*_LABELS).observe(end.took_s())
        await context.abort(*to_status(refused))


def shown(path: str) -> str:
    """The name of a method that a caller made up, as a line says it."""
    return _STRANGE.sub("?", path[1 : 1 + NAME_CHARS_MAX])
