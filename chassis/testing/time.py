"""Time in tests: a clock that moves when told, and waiting that ends."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


async def eventually(
    ask: Callable[[], Awaitable[T | None]], *, within_s: float = 10.0, every_s: float = 0.02
) -> T:
    """Ask until the answer is truthy, and return it.

    Raises: AssertionError with the last answer when it does not come in time.
    """
    end = time.monotonic() + within_s
    while True:
        answer = await ask()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"did not happen within {within_s} s; the last answer was {answer!r}")
        await asyncio.sleep(every_s)


class FakeClock:
    """A clock that stands still until it is moved; sleeping moves it."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._passed_s = 0.0

    def now(self) -> datetime:
        """The instant it was moved to."""
        return self._start + timedelta(seconds=self._passed_s)

    def monotonic(self) -> float:
        """Seconds since its start."""
        return self._passed_s

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self._passed_s += seconds

    async def sleep(self, seconds: float) -> None:
        """Let time pass and let others run."""
        self.move(seconds)
        await asyncio.sleep(0)
