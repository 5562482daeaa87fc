"""The outermost layer of every request: its id, its trace, the bound on its body, its place among those
answered, its headers, metrics and log line.

Whatever goes wrong further in and is not a typed error becomes a problem here; no exception's text leaves the
process.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from chassis import logs, traces
from chassis.errors import InternalError, OrdermeshError
from gateway import asks, problems
from gateway.asks import Visit
from gateway.errors import BodyTooLarge, HeadTooLarge
from gateway.metrics import HANDLED, SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.trace import Span
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from gateway.places import Place, Places

log = structlog.get_logger("request")
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
OTHER = "other"
"""How other methods are counted: clients may send any word."""
UNMATCHED = "unmatched"
ALIVE_PATH = "/healthz"
"""Answered however many others wait: busy is not dead."""
HEAD_BYTES_MAX = 16_384
"""Of path, parameters and headers together; a token alone may have 4 KiB."""
_HEADERS: Mapping[str, str] = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
"""Sent with every answer that does not say otherwise."""


class ClientGone(Exception):
    """The client hung up before its request was complete."""


@dataclass(slots=True)
class _Answer:
    """What was answered, as far as it is known."""

    status: int = 0
    is_stream: bool = False


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        places: Places,
        *,
        body_bytes_max: int,
        trust_traceparent: bool,
        is_always_recorded: Callable[[Headers], bool],
    ) -> None:
        self._app = app
        self._places = places
        self._body_bytes_max = body_bytes_max
        self._trust_traceparent = trust_traceparent
        self._is_always_recorded = is_always_recorded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        visit = Visit(asks.request_id(headers.get("x-request-id"), uuid.uuid4().hex))
        scope.setdefault("state", {})["visit"] = visit
        logs.forget()
        logs.bind(**{"http.request.id": visit.request_id})
        carrier = {name: headers.get(name, "") for name in traces.HEADERS if self._trust_traceparent}
        with traces.server_span("HTTP", carrier, always=self._is_always_recorded(headers)) as span:
            visit.trace_id = traces.trace_id()
            await self._serve(scope, receive, send, visit, span)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, visit: Visit, span: Span) -> None:
        answer = _Answer()
        place: Place | None = None

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                headers = MutableHeaders(scope=message)
                answer.is_stream = headers.get("content-type", "").startswith("text/event-stream")
                _dress(headers, visit)
                if answer.is_stream and place is not None:
                    place.leave()
            await send(message)

        try:
            _check_head(scope)
            body = await self._body(Headers(scope=scope), receive)
            if scope["path"] != ALIVE_PATH:
                place = await self._places.take()
            await self._app(scope, _replayed(body, receive), answering)
        except ClientGone:
            answer.status = answer.status or 499
        except OrdermeshError as refused:
            await problem_response(problems.of_error(refused, occasion(scope)), scope)(
                scope, receive, answering
            )
        except Exception as unexpected:
            log.error("request_failed", exc_info=unexpected)
            if answer.status == 0:
                broken = problems.of_error(InternalError(), occasion(scope))
                await problem_response(broken, scope)(scope, receive, answering)
        finally:
            if place is not None:
                place.leave()
            _account(scope, answer, visit, span)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, which must fit: what is announced as longer is not even read.

        Raises: BodyTooLarge, ClientGone.
        """
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._body_bytes_max:
            raise BodyTooLarge(bytes_max=self._body_bytes_max)
        if announced == "0" and "transfer-encoding" not in headers:
            return b""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > self._body_bytes_max:
                raise BodyTooLarge(bytes_max=self._body_bytes_max)
            if not message.get("more_body", False):
                return bytes(body)


def _check_head(scope: Scope) -> None:
    """h11 bounds only heads that arrive in pieces; one that comes at once may be as long as a read.

    Raises: HeadTooLarge.
    """
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if size + len(scope["raw_path"]) + len(scope["query_string"]) > HEAD_BYTES_MAX:
        raise HeadTooLarge(bytes_max=HEAD_BYTES_MAX)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body once and then says what the connection says."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _dress(headers: MutableHeaders, visit: Visit) -> None:
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    headers["x-request-id"] = visit.request_id
    total_ms = (time.perf_counter() - visit.started) * 1000
    headers["server-timing"] = f"mesh;dur={visit.mesh_s * 1000:.1f}, total;dur={total_ms:.1f}"
    allowance = visit.allowance
    if allowance is not None:
        headers["ratelimit-policy"] = f'"{allowance.policy}";q={allowance.burst};w={allowance.window_s}'
        headers["ratelimit"] = f'"{allowance.policy}";r={allowance.remaining};t={allowance.refill_s}'


def _account(scope: Scope, answer: _Answer, visit: Visit, span: Span) -> None:
    """Count, trace and log what became of a request; labels come from the routes, never from the client."""
    route = getattr(scope.get("route"), "path", UNMATCHED)
    method = scope["method"] if scope["method"] in METHODS else OTHER
    took_s = time.perf_counter() - visit.started
    status = answer.status or 500
    HANDLED.labels(route, method, str(status)).inc()
    if not answer.is_stream:
        SECONDS.labels(route, method).observe(took_s, traces.exemplar(span))
    span.update_name(f"{method} {route}")
    span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        traces.failed(span, str(status))
    say = log.error if status >= 500 else log.info
    say(
        "request",
        **{
            "event.outcome": "success" if status < 400 else "failure",
            "event.duration": int(took_s * 1e9),
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            **({"error.code": visit.refused_because} if visit.refused_because else {}),
            "user_id": visit.user_id,
        },
    )


def occasion(scope: Scope) -> problems.Occasion:
    """Where a problem of this request occurs."""
    visit: Visit = scope["state"]["visit"]
    return problems.Occasion(scope["path"], visit.request_id, visit.trace_id)


def problem_response(
    problem: problems.Problem, scope: Scope, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer that carries a problem; its reason goes to the request's line as well."""
    visit: Visit = scope["state"]["visit"]
    visit.refused_because = problem.reason
    return Response(
        problems.body_of(problem), problem.status, {**problems.headers_of(problem), **(headers or {})}
    )
