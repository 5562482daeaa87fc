"""Takes spans over OTLP/HTTP (protobuf, also gzipped) and spools them; 503 with Retry-After without room.

A request is answered with 200 only when its spans are in a file, so no span that was acknowledged is lost
with this process.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ops.shipper import metrics
from ops.shipper.spans import span_lines

if TYPE_CHECKING:
    from starlette.requests import Request

    from ops.shipper.spool import Spool

PATH = "/v1/traces"
BODY_BYTES_MAX = 16 * 1024 * 1024
"""Unpacked; an export of 512 spans has a fiftieth of it."""
REQUESTS_MAX = 16
"""At once; each holds one body."""
COME_BACK_S = 2
_TYPE = "application/x-protobuf"


class TooLarge(Exception):
    """A body is longer than any export."""


def application(spool: Spool) -> Starlette:
    """The one route."""
    places = asyncio.Semaphore(REQUESTS_MAX)

    async def traces(request: Request) -> Response:
        if places.locked():
            return _refused("busy", 429)
        async with places:
            return await _take(request, spool)

    return Starlette(routes=[Route(PATH, traces, methods=["POST"])])


async def _take(request: Request, spool: Spool) -> Response:
    if request.headers.get("content-type", "").partition(";")[0].strip() != _TYPE:
        return _refused("type", 415)
    try:
        body = await _body(request)
        export = ExportTraceServiceRequest.FromString(body)
    except TooLarge:
        return _refused("too_large", 413)
    except (DecodeError, zlib.error):
        return _refused("malformed", 400)
    except ClientDisconnect:
        return _refused("gone", 400)
    if not spool.add(span_lines(export)):
        return _refused("full", 503)
    return Response(ExportTraceServiceResponse().SerializeToString(), media_type=_TYPE)


async def _body(request: Request) -> bytes:
    """The whole body, unpacked. Raises: TooLarge, zlib.error, ClientDisconnect."""
    unpack = (
        zlib.decompressobj(zlib.MAX_WBITS | 16) if request.headers.get("content-encoding") == "gzip" else None
    )
    body = bytearray()
    async for chunk in request.stream():
        body += unpack.decompress(chunk, BODY_BYTES_MAX + 1 - len(body)) if unpack is not None else chunk
        if len(body) > BODY_BYTES_MAX or (unpack is not None and unpack.unconsumed_tail):
            raise TooLarge
    return bytes(body)


def _refused(cause: str, status: int) -> Response:
    metrics.SPANS_REFUSED.labels(cause).inc()
    headers = {"retry-after": str(COME_BACK_S)} if status in (429, 503) else None
    return PlainTextResponse(cause + "\n", status, headers)
