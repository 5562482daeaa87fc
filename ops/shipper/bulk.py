"""Writes documents to a data stream until every one is there, was there, or is refused for good.

Each is created under an id of its own, so whatever is sent again writes nothing twice. While Elasticsearch is
away or busy nothing else happens: whoever reads waits, and reads no further. What it refuses for what it says
is kept in a file of its own, is counted, and holds up nobody.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import orjson
import structlog

from ops.shipper import metrics
from ops.shipper.streams import short

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

log = structlog.get_logger("shipper")
PAUSE_FIRST_S = 0.2
PAUSE_MAX_S = 10.0
REQUEST_S = 30.0
DEAD_BYTES_MAX = 4 * 1024 * 1024
"""What is refused beyond this is only counted."""
_CREATED, _BAD, _NO_STREAM, _CONFLICT, _TOO_LARGE = 201, 400, 404, 409, 413
"""Only a bad document is refused for good: everything else may be another's fault, and is tried again."""

Document = tuple[str, bytes]


class Refused(NamedTuple):
    """A document that Elasticsearch will never take, and what it says about it."""

    document: Document
    status: int
    because: str


class DeadFile:
    """Keeps what was refused for good, for a person to look at."""

    def __init__(self, path: Path, *, bytes_max: int = DEAD_BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max

    def keep(self, stream: str, refused: Sequence[Refused]) -> None:
        """Append them while there is room."""
        with self._path.open("ab") as file:
            for each in refused:
                said = {
                    "stream": stream,
                    "status": each.status,
                    "because": each.because,
                    "id": each.document[0],
                }
                line = orjson.dumps({**said, "line": each.document[1].decode(errors="replace")}) + b"\n"
                if file.tell() + len(line) <= self._bytes_max:
                    file.write(line)


class BulkWriter:
    """Writes to Elasticsearch; `again` makes the data streams when one is missing.

    draw: a random number in [0, 1). sleep: as of asyncio.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        dead: DeadFile,
        *,
        again: Callable[[], Awaitable[object]],
        draw: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._http = http
        self._dead = dead
        self._again = again
        self._draw = draw
        self._sleep = sleep

    async def write(self, stream: str, documents: Sequence[Document]) -> None:
        """Write them all, however long that takes.

        If cancelled here: some may be written, and a repeat finds them.
        """
        waiting, failures = list(documents), 0
        while waiting:
            left, asked_s = await self._once(stream, waiting)
            if not left:
                return
            failures = failures + 1 if len(left) == len(waiting) else 1
            waiting = left
            await self._pause(failures, asked_s)

    async def _pause(self, failures: int, asked_s: float) -> None:
        """Full jitter below a ceiling that doubles, and no sooner than was asked for."""
        ceiling_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0 ** min(failures, 10))
        await self._sleep(min(PAUSE_MAX_S, asked_s) + ceiling_s * self._draw())

    async def _once(self, stream: str, documents: list[Document]) -> tuple[list[Document], float]:
        """Send them once; which have to be sent again, and after what time at least."""
        try:
            answer = await self._http.post(
                f"/{stream}/_bulk",
                params={"filter_path": "items.*.status,items.*.error.type,items.*.error.reason"},
                headers={"content-type": "application/x-ndjson"},
                content=b"".join(_entry(document) for document in documents),
                timeout=REQUEST_S,
            )
        except httpx.TransportError as away:
            return self._failed(documents, type(away).__name__), 0.0
        if answer.status_code in (_BAD, _TOO_LARGE):
            return await self._one_by_one(stream, documents, answer)
        if answer.status_code == _NO_STREAM:
            await self._again()
            return self._failed(documents, "no_stream"), 0.0
        if answer.status_code != httpx.codes.OK:
            return self._failed(documents, str(answer.status_code)), _retry_after_s(answer)
        try:
            items = answer.json().get("items", [])
        except ValueError:
            items = []
        if len(items) != len(documents):
            return self._failed(documents, "cut_off"), 0.0
        return self._sorted(stream, documents, items), 0.0

    async def _halves(self, stream: str, documents: list[Document]) -> tuple[list[Document], float]:
        """Send what is too much at once in two parts."""
        middle = len(documents) // 2
        first, asked_s = await self._once(stream, documents[:middle])
        second, also_s = await self._once(stream, documents[middle:])
        return first + second, max(asked_s, also_s)

    async def _one_by_one(
        self, stream: str, documents: list[Document], answer: httpx.Response
    ) -> tuple[list[Document], float]:
        """Find what makes a whole request bad, or too large; that one is refused for good."""
        if len(documents) > 1:
            return await self._halves(stream, documents)
        self._set_aside(stream, [Refused(documents[0], answer.status_code, answer.text[:500])])
        return [], 0.0

    def _sorted(self, stream: str, documents: list[Document], items: list[dict[str, Any]]) -> list[Document]:
        left, refused, outcomes = [], [], Counter[str]()
        for document, item in zip(documents, items, strict=True):
            said = item["create"]
            status = said["status"]
            if status == _CREATED:
                outcomes["written"] += 1
            elif status == _CONFLICT:
                outcomes["there"] += 1
            elif status == _BAD:
                error = said.get("error", {})
                refused.append(Refused(document, status, f"{error.get('type')}: {error.get('reason')}"[:500]))
            else:
                left.append(document)
        for outcome, count in outcomes.items():
            metrics.DOCUMENTS.labels(short(stream), outcome).inc(count)
        if refused:
            self._set_aside(stream, refused)
        if left:
            self._failed(left, "busy")
        return left

    def _set_aside(self, stream: str, refused: list[Refused]) -> None:
        self._dead.keep(stream, refused)
        metrics.DOCUMENTS.labels(short(stream), "refused").inc(len(refused))
        log.warning("lines_refused", stream=stream, count=len(refused), because=refused[0].because)

    def _failed(self, documents: list[Document], cause: str) -> list[Document]:
        metrics.TRIES_FAILED.labels(cause).inc()
        return documents


def _entry(document: Document) -> bytes:
    return b'{"create":{"_id":"%s"}}\n%s\n' % (document[0].encode(), document[1])


def _retry_after_s(answer: httpx.Response) -> float:
    said = answer.headers.get("retry-after", "")
    return float(said) if said.isdigit() else 0.0
