"""One call of S3: its tries, the pauses between them, its end, and the errors of the driver as ours.

The driver is told not to try again by itself: its pauses know nothing of our deadline, and what may be
repeated after doubt only the caller knows.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import aiohttp
import structlog
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnection
from botocore.parsers import ResponseParserError

from chassis.errors import DeadlineExceeded
from chassis.limits import Limiter
from chassis.s3.errors import (
    ObjectChanged,
    ObjectCold,
    ObjectDamaged,
    ObjectNotFound,
    S3Error,
    S3Refused,
    S3Unavailable,
)
from chassis.s3.metrics import CALLS, RETRIES, SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from chassis.clock import Clock
    from chassis.s3.settings import S3Settings

log = structlog.get_logger("s3")
T = TypeVar("T")
QUEUE_PER_CONNECTION = 3
"""Calls that may wait for a connection; more are refused at once."""

_TRANSPORT = (
    NoConnection,
    HTTPClientError,
    IncompleteReadError,
    ResponseParserError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    aiohttp.ClientError,
    OSError,
    TimeoutError,
)
"""Nobody knows whether it was done."""
_NOT_DONE = {"SlowDown", "ConditionalRequestConflict", "OperationAborted", "RequestTimeout"}
"""S3 says that it did nothing, and that another try may be lucky."""
_DAMAGED = {
    *("BadDigest", "IncompleteBody", "InvalidDigest", "XAmzContentChecksumMismatch"),
    "XAmzContentSHA256Mismatch",
}
"""The body that arrived is not the one that was signed or summed here."""
_ABSENT = {"NoSuchKey", "NoSuchVersion", "NoSuchUpload", "404"}


class Calls:
    """Makes the calls of one client, in bounds."""

    def __init__(self, settings: S3Settings, clock: Clock, jitter: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._jitter = jitter
        connections = settings.connections
        self._limiter = Limiter(connections, QUEUE_PER_CONNECTION * connections, name="s3")

    async def make(
        self,
        call: str,
        key: str,
        attempt: Callable[[S3Error | None], Awaitable[T]],
        *,
        size_bytes: int = 0,
    ) -> T:
        """Try until it is answered, a refusal is final, the tries are spent or the time is up.

        call:       its name in metrics.
        attempt:    one try; gets the error of the try before, none at first.
        size_bytes: of the body, for which the time is longer.

        If cancelled here, the try under way may have been done.
        Raises: S3Error, the one of the last try; Overloaded when too many wait for a connection.
        """
        began = perf_counter()
        outcome = "cancelled"
        try:
            answer = await self._until_final(call, key, attempt, size_bytes)
            outcome = "ok"
            return answer
        except S3Error as failed:
            outcome = failed.outcome
            raise
        finally:
            CALLS.labels(call, outcome).inc()
            SECONDS.labels(call).observe(perf_counter() - began)

    async def _until_final(
        self, call: str, key: str, attempt: Callable[[S3Error | None], Awaitable[T]], size_bytes: int
    ) -> T:
        settings = self._settings
        for_bytes_s = size_bytes / settings.bytes_per_s_min
        end = self._clock.monotonic() + settings.call_s + for_bytes_s
        before: S3Error | None = None
        for number in range(settings.tries_max):
            if number:
                await self._clock.sleep(min(self._pause_s(number), max(0.0, end - self._clock.monotonic())))
            remaining_s = end - self._clock.monotonic()
            if before is not None and remaining_s <= 0:
                break
            try:
                return await self._once(
                    key, attempt, before, min(settings.attempt_s + for_bytes_s, remaining_s)
                )
            except (S3Unavailable, ObjectDamaged) as passing:
                before = passing
                RETRIES.labels(call, passing.outcome).inc()
                log.warning("s3_try_failed", call=call, key=key, number=number + 1, because=str(passing))
        assert before is not None
        raise before

    async def _once(
        self,
        key: str,
        attempt: Callable[[S3Error | None], Awaitable[T]],
        before: S3Error | None,
        patience_s: float,
    ) -> T:
        try:
            async with asyncio.timeout(patience_s), self._limiter.slot(patience_s):
                return await attempt(before)
        except DeadlineExceeded:
            raise S3Unavailable("no connection came free", doubtful=False) from None
        except ClientError as refused:
            raise typed(refused, key) from refused
        except _TRANSPORT as broken:
            raise S3Unavailable(f"{type(broken).__name__}: {broken}"[:300]) from broken
        except BotoCoreError as refused:
            raise S3Refused(0, type(refused).__name__, str(refused)[:300]) from refused

    def _pause_s(self, number: int) -> float:
        """Full jitter: anything up to a bound that doubles, so that those who failed together come apart."""
        settings = self._settings
        bound: float = min(settings.pause_s_max, settings.pause_s * 2.0 ** (number - 1))
        return bound * self._jitter()


def typed(refused: ClientError, key: str) -> S3Error:
    """A refusal of S3 as one of our errors."""
    status = int(refused.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(refused.response.get("Error", {}).get("Code", ""))
    message = str(refused.response.get("Error", {}).get("Message", ""))[:300]
    if code in _DAMAGED:
        return ObjectDamaged(key, f"what arrived at S3 is not what was sent ({code})")
    if code in _NOT_DONE:
        return S3Unavailable(code, doubtful=False)
    if status >= 500 or status == 429 or code == "InternalError":
        return S3Unavailable(f"{status} {code}", doubtful=status != 429)
    if code in _ABSENT:
        return ObjectNotFound(key)
    if status == 412:
        return ObjectChanged(key)
    if status == 416:
        return ObjectChanged(key, "it ends before the range that was asked for")
    if code == "InvalidObjectState":
        return ObjectCold(key)
    return S3Refused(status, code, message)
