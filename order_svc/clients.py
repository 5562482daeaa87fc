"""The only place that calls an upstream to execute a leg. Only the body of an OK answer is a verdict.

Nothing is retried here. Every other way in which a call can end means that nothing is known, and says so as
an Ambiguity; a gRPC NOT_FOUND too, since proxies say such things.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from chassis import rpc, traces
from order_svc import metrics, wire
from ordermesh.upstream.v1 import upstream_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from chassis.tls import TlsFiles
    from order_svc.events import Answer
    from order_svc.order import Order

EXECUTE = "/ordermesh.upstream.v1.UpstreamService/Execute"


@dataclass(frozen=True, slots=True)
class Ambiguity:
    """A call ended without a verdict: it may have been executed, or not, or will be.

    code: of the call, when that is what went wrong.
    """

    detail: str
    code: str = ""

    @property
    def said(self) -> str:
        """In one word."""
        return self.detail.partition(":")[0]


class Upstreams:
    """A channel to each configured upstream."""

    def __init__(self, calls: Mapping[str, Any]) -> None:
        self._calls = calls

    @classmethod
    @asynccontextmanager
    async def open(cls, targets: Mapping[str, str], tls: TlsFiles | None) -> AsyncIterator[Upstreams]:
        """Open the channels; an upstream that is down connects when it is back."""
        async with AsyncExitStack() as stack:
            calls = {}
            for name, target in targets.items():
                channel = await stack.enter_async_context(rpc.Channel(target, service="upstream", tls=tls))
                # No deserializer: an answer that cannot be decoded is a finding, and grpcio would hide it.
                calls[name] = channel.unary_unary(EXECUTE, pb.ExecuteRequest.SerializeToString, None)
                metrics.IN_FLIGHT.labels(name)  # a zero from the start
            yield cls(calls)

    async def execute(self, order: Order, *, timeout_s: float) -> Answer | Ambiguity:
        """Ask the upstream of the current leg to execute it, once.

        If cancelled here: the call may still be executed.
        """
        name = order.upstream
        started = time.monotonic()
        about = {"upstream": name}
        with metrics.IN_FLIGHT.labels(name).track_inprogress(), traces.client_span(EXECUTE, about) as span:
            heard = await self._call(name, wire.execute_request(order), timeout_s)
            if isinstance(heard, Ambiguity):
                traces.failed(span, heard.code, heard.said)
        metrics.SUBMIT_SECONDS.labels(name).observe(time.monotonic() - started)
        said = heard.said if isinstance(heard, Ambiguity) else heard.verdict.value
        metrics.SUBMITS.labels(name, said).inc()
        return heard

    async def _call(self, name: str, request: pb.ExecuteRequest, timeout_s: float) -> Answer | Ambiguity:
        try:
            body = await self._calls[name](request, timeout=timeout_s)
        except grpc.aio.AioRpcError as failed:
            code = failed.code().name
            return Ambiguity(code, code)
        response = pb.ExecuteResponse()
        try:
            response.ParseFromString(body)
        except DecodeError:
            return Ambiguity("MALFORMED: the body cannot be decoded")
        answer = wire.answer(response.answer)
        return (
            Ambiguity("MALFORMED: no such verdict, or a reference that is too long")
            if answer is None
            else answer
        )
