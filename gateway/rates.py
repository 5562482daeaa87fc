"""Token buckets by key: how often one user may ask. State is per process, so limits are per gateway process.

Bounded: when more keys are active than are kept, the longest idle is forgotten, which only ever gives
somebody a full bucket.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import RateLimited
from gateway.metrics import RATE_LIMITED

if TYPE_CHECKING:
    from chassis.clock import Clock


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left after a request was admitted."""

    policy: str
    remaining: int
    burst: int
    window_s: int
    """In which `burst` requests are always admitted."""
    refill_s: int
    """Until the bucket is full again."""


class Rates:
    """One policy: `per_s` requests in the long run and `burst` at once, for each key."""

    def __init__(self, policy: str, *, per_s: float, burst: int, keys_max: int, clock: Clock) -> None:
        self._policy = policy
        self._per_s = per_s
        self._burst = burst
        self._keys_max = keys_max
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, key: str) -> Allowance:
        """Take one request from a key's bucket.

        Raises: RateLimited, with the time after which one request will pass.
        """
        now = self._clock.monotonic()
        tokens, seen_at = self._buckets.get(key, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - seen_at) * self._per_s)
        admitted = tokens >= 1
        self._remember(key, tokens - 1 if admitted else tokens, now)
        if not admitted:
            RATE_LIMITED.labels(self._policy).inc()
            raise RateLimited(self._policy, (1 - tokens) / self._per_s)
        return Allowance(
            self._policy,
            remaining=int(tokens - 1),
            burst=self._burst,
            window_s=math.ceil(self._burst / self._per_s),
            refill_s=math.ceil((self._burst - tokens + 1) / self._per_s),
        )

    def _remember(self, key: str, tokens: float, now: float) -> None:
        self._buckets[key] = (tokens, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._keys_max:
            self._buckets.popitem(last=False)
