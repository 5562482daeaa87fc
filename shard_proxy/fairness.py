"""A bound on what one user may have in flight, so that one user's burst stays that user's problem."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chassis.errors import OF_ONE_USER, Overloaded
from shard_proxy import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator


class InFlight:
    """Counts the calls of each user; who is at the bound is refused at once, never queued."""

    def __init__(self, calls_max: int, vip_calls_max: int) -> None:
        self._max = calls_max
        self._vip_max = vip_calls_max
        self._count: Counter[str] = Counter()

    @contextmanager
    def one_of(self, user_id: str, *, vip: bool) -> Iterator[None]:
        """Count one call of a user while it runs; an empty user is nobody's and not counted.

        Raises: Overloaded.
        """
        if not user_id:
            yield
            return
        if self._count[user_id] >= (self._vip_max if vip else self._max):
            metrics.USER_REFUSED.inc()
            raise Overloaded(limiter=OF_ONE_USER)
        self._count[user_id] += 1
        try:
            yield
        finally:
            self._count[user_id] -= 1
            if not self._count[user_id]:
                del self._count[user_id]
