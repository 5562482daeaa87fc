"""Server-sent events: an order's changes as they happen, bounded in number, in time and in patience.

The id of an event is the order's version, so a client that lost its connection resumes where it was. A stream
ends after the settled order, when its time or the token's is over, when the mesh breaks it off, or when the
gateway stops; all but the first are resumed by the client with `Last-Event-ID`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from starlette.responses import Response

from gateway import wire
from gateway.errors import StreamsFull, TooManyStreams
from gateway.metrics import SHED, STREAMS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import Receive, Scope, Send

log = structlog.get_logger("streams")
RESUME_AFTER_MS = 1000
SLOW_READER_S = 30.0
"""A reader that takes nothing for so long is cut off."""


class Seats:
    """How many streams may be open: in all, and of one user."""

    def __init__(self, most: int, per_user: int) -> None:
        self._most = most
        self._per_user = per_user
        self._taken: Counter[str] = Counter()
        self.closing = asyncio.Event()

    def take(self, user_id: str) -> None:
        """Take a seat, to be given back with `leave`.

        Raises: TooManyStreams when the user has as many as one may; StreamsFull when all seats are taken, by
        which the request is shed, as one for which there is no place.
        """
        if self._taken[user_id] >= self._per_user:
            raise TooManyStreams
        if self._taken.total() >= self._most:
            SHED.inc()
            raise StreamsFull(limiter="streams")
        self._taken[user_id] += 1
        STREAMS.inc()

    def leave(self, user_id: str) -> None:
        """Give a seat back."""
        STREAMS.dec()
        self._taken[user_id] -= 1
        if not self._taken[user_id]:
            del self._taken[user_id]

    async def close(self) -> None:
        """Let every stream end now; clients resume elsewhere."""
        self.closing.set()

    @contextmanager
    def until_left(self, user_id: str) -> Iterator[None]:
        """Give the seat back when the context ends."""
        try:
            yield
        finally:
            self.leave(user_id)


class EventStream(Response):
    """Answers with an order's changes. The seat was taken before, and is given back when the stream has
    ended.
    """

    media_type = "text/event-stream"

    def __init__(self, call: Any, seats: Seats, user_id: str, *, heartbeat_s: float) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._call = call
        self._seats = seats
        self._user_id = user_id
        self._heartbeat_s = heartbeat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the end or until the client is gone."""
        with self._seats.until_left(self._user_id):
            ends = [
                asyncio.create_task(_gone(receive), name="client-gone"),
                asyncio.create_task(self._seats.closing.wait(), name="gateway-closing"),
            ]
            try:
                start = {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
                await send(start)
                async for piece in self._pieces(ends):
                    async with asyncio.timeout(SLOW_READER_S):
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            except TimeoutError:
                log.info("slow_reader_cut_off")
            finally:
                self._call.cancel()
                for task in ends:
                    task.cancel()

    async def _pieces(self, ends: list[asyncio.Task[Any]]) -> AsyncIterator[bytes]:
        yield f"retry: {RESUME_AFTER_MS}\n\n".encode()
        read: asyncio.Future[Any] | None = None
        try:
            while True:
                read = read or asyncio.ensure_future(self._call.read())
                await asyncio.wait(
                    [read, *ends], timeout=self._heartbeat_s, return_when=asyncio.FIRST_COMPLETED
                )
                if any(end.done() for end in ends):
                    return
                if not read.done():
                    yield b": still here\n\n"
                    continue
                message = read.result()
                read = None
                if message is grpc.aio.EOF:
                    return
                yield event(message.order)
        except grpc.aio.AioRpcError as broken:
            log.info("stream_broken_off", code=broken.code().name)
            yield b": interrupted, resume\n\n"
        finally:
            if read is not None:
                read.cancel()


def event(order: Any) -> bytes:
    """One event: the order after a change, under its version."""
    data = wire.order(order).model_dump_json(exclude_none=True)
    return f"id: {order.version}\nevent: order\ndata: {data}\n\n".encode()


async def _gone(receive: Receive) -> None:
    """Wait until the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        continue
