"""The way into every handler: deadline, identity, matrix, limiter, telemetry, in this order, with errors
mapped around all of it.

A handler gets raw bytes here, so that decoding is inside too; typed services and the proxy's pass-through
go through the same gate.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpc import StatusCode

from chassis import auth, logs, metrics, traces
from chassis.errors import DeadlineExceeded, DeadlineRequired, InternalError, OrdermeshError
from chassis.rpc import ended
from chassis.rpc.call import Call
from chassis.rpc.ended import SERVER_FAULTS
from chassis.rpc.status import RelayedStatus, to_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    import grpc

    from chassis.limits import Limiter
    from chassis.rpc.methods import Method

    Context = grpc.aio.ServicerContext[Any, Any]

_ALWAYS = frozenset({auth.Role.OPERATOR})
DEADLINE_S_MIN = 0.005
"""Less than this is not worth beginning: the answer would come too late."""
DEADLINE_S_MAX = 600.0
"""Longer deadlines are cut to this; no call waits for ever."""


def prepare(methods: Iterable[Method]) -> None:
    """Begin to count methods at zero, so that the first call, or the first failure, is seen as one more."""
    for method in methods:
        labels = (method.service, method.name, method.arity)
        metrics.RPC_STARTED.labels(*labels)
        metrics.RPC_SECONDS.labels(*labels)
        metrics.RPC_SHED.labels(method.service, method.name)
        for code in (StatusCode.OK, *SERVER_FAULTS):
            metrics.RPC_HANDLED.labels(*labels, code.name)


@dataclass(frozen=True, slots=True)
class Gate:
    """How one listener lets calls in.

    identify: who is asking. limiter: how many at once, or none where handlers have limiters of their own.
    inject_deadline: give calls without a deadline the method's default instead of refusing them; only the
    mesh's entrance does.
    """

    identify: auth.Identify
    limiter: Limiter | None = None
    inject_deadline: bool = False

    @asynccontextmanager
    async def admit(
        self, method: Method, context: Context, metadata: Mapping[str, str], asking: auth.Asking | Exception
    ) -> AsyncIterator[Call]:
        """Let one call in. asking: who is asking, or why nobody knows.

        Raises: DeadlineRequired, DeadlineExceeded, Unauthenticated, CallerNotAllowed, RoleRequired,
        Overloaded.
        """
        deadline = self._deadline(method, context)
        if isinstance(asking, Exception):
            raise asking
        auth.permit(method.path, asking.caller, asking.subject)
        call = Call(method, asking.caller, asking.subject, asking.token, metadata, deadline)
        if self.limiter is None or method.server_streaming:
            # A stream lives long and waits most of the time; its handler takes slots for each look it takes.
            yield call
            return
        async with self.limiter.slot(call.time_remaining()):
            yield call

    def asking(self, context: Context, metadata: Mapping[str, str]) -> auth.Asking | Exception:
        """Who is asking, or the refusal: known before the call's span begins, as operators' are always
        recorded.
        """
        try:
            return self.identify(context.auth_context(), metadata)
        except Exception as refused:  # noqa: BLE001 - raised again by `admit`, where all errors are mapped
            return refused

    def _deadline(self, method: Method, context: Context) -> float:
        remaining: float | None = context.time_remaining()
        if remaining is None:
            if not self.inject_deadline:
                raise DeadlineRequired
            remaining = method.timeout_s
        if remaining < DEADLINE_S_MIN:
            raise DeadlineExceeded(limiter="caller")
        return time.monotonic() + min(remaining, DEADLINE_S_MAX)


def ascii_metadata(context: Context) -> Mapping[str, str]:
    """Request metadata that is text; of a repeated key the last one."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


async def serve_call(
    gate: Gate, method: Method, context: Context, handle: Callable[[Call], Awaitable[bytes | None]]
) -> bytes | None:
    """Serve one call through a gate; whatever goes wrong leaves as a typed status and never as an
    exception's text.

    handle: does the work and returns the serialized answer, or None when it wrote a stream itself.
    """
    labels = (method.service, method.name, method.arity)
    metrics.RPC_STARTED.labels(*labels).inc()
    end = ended.Ending(method.path[1:])
    logs.forget()
    metadata = ascii_metadata(context)
    asking = gate.asking(context, metadata)
    with traces.server_span(method.path, metadata, always=_is_always_recorded(asking, metadata)) as span:
        call: Call | None = None
        try:
            async with gate.admit(method, context, metadata, asking) as call:
                call.traceparent, call.trace_id = traces.traceparent(), traces.trace_id()
                call.tracestate = traces.tracestate()
                answer = await handle(call)
                _set_trailers(context, call, ())
                return answer
        except asyncio.CancelledError:
            end.code = StatusCode.CANCELLED
            end.is_over = ended.is_over(call, end.code, end.took_s())
            raise
        except RelayedStatus as relayed:
            end.relay(relayed)
            end.is_over = ended.is_over(call, end.code, end.took_s())
            await _abort(context, call, relayed.code, relayed.message, relayed.trailers)
        except OrdermeshError as refused:
            end.refuse(refused)
            end.is_over = ended.is_over(call, end.code, end.took_s())
            if not end.is_over:
                metrics.REFUSALS.labels(end.reason).inc()
            await _abort(context, call, *to_status(refused, traces.trace_id()))
        except Exception as unexpected:  # noqa: BLE001 - told with its trace when the call has ended
            end.code, end.reason, end.error = StatusCode.INTERNAL, InternalError.reason.value, unexpected
            await _abort(context, call, *to_status(InternalError(), traces.trace_id()))
        finally:
            metrics.RPC_HANDLED.labels(*labels, end.code.name).inc()
            metrics.RPC_SECONDS.labels(*labels).observe(end.took_s(), traces.exemplar(span))
            if end.is_shed:
                metrics.RPC_SHED.labels(method.service, method.name).inc()
            ended.tell(end, span, asking)
    return None


def _is_always_recorded(asking: auth.Asking | Exception, metadata: Mapping[str, str]) -> bool:
    """Operators' calls are, and those of known callers that ask for it, within an allowance."""
    if isinstance(asking, Exception):
        return False
    if not _ALWAYS.isdisjoint(asking.subject.roles):
        return True
    return metadata.get(traces.DEBUG_HEADER) == "1" and traces.debugs.take()


async def _abort(
    context: Context,
    call: Call | None,
    code: StatusCode,
    message: str,
    trailers: tuple[tuple[str, str | bytes], ...],
) -> None:
    """End the call. `abort` raises on its own account, outside of every `try` that maps errors."""
    extra = tuple(call.trailers.items()) if call is not None else ()
    await context.abort(code, message, trailers + extra)


def _set_trailers(context: Context, call: Call, more: tuple[tuple[str, str | bytes], ...]) -> None:
    if call.trailers or more:
        context.set_trailing_metadata(tuple(call.trailers.items()) + more)
