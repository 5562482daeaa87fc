"""What an upstream promises, and how patiently it is asked.

Pure numbers with their reasons. Production values are the defaults; the `local` profile only makes waits
short.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from order_svc.order import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamContract:
    """What one upstream promises about one leg. The defaults promise nothing.

    idempotent_submit:      a second Execute of one key finds the first one, as long as the key lives.
    lookup_by_key:          Probe finds what Execute of the same key did.
    not_found_final_after_s: so long after the last possible send, NOT_FOUND means "never"; None: it never
    means anything.
    resubmit_on_not_found:  after that proof the leg is sent again with the same key; else the order fails.
    settle_window_s:        how long a request may be on its way or inside before Probe shows it.
    key_ttl_s:              how long the upstream remembers a key; afterwards NOT_FOUND proves nothing and
    nothing is sent again.
    pending_deadline_s:     how long IN_PROGRESS is fine before it spends the budget.
    """

    idempotent_submit: bool = False
    lookup_by_key: bool = True
    not_found_final_after_s: float | None = None
    resubmit_on_not_found: bool = True
    cancel: bool = False
    reversible: bool = False
    key_ttl_s: float = 86_400.0
    pending_deadline_s: float = 86_400.0
    submit_timeout_s: float = 5.0
    settle_window_s: float = 600.0

    def key_lives(self, tally: Tally, at: datetime) -> bool:
        """Whether the upstream will still remember the key when a submission made now is certainly over."""
        if tally.first_sent_at is None:
            return True
        over = at + timedelta(seconds=self.submit_timeout_s + self.settle_window_s)
        return over < tally.first_sent_at + timedelta(seconds=self.key_ttl_s)

    def proves_absence_in(self, tally: Tally, at: datetime) -> timedelta | None:
        """How long until one more NOT_FOUND is proof that nothing was and will be executed; zero or less: it
        is now.

        tally: as before this NOT_FOUND. None: it will never be, because the contract does not say so, the
        upstream once said that it has the leg, or it may have forgotten the key.
        """
        if self.not_found_final_after_s is None or not self.lookup_by_key or tally.accepted_at is not None:
            return None
        if tally.last_sent_at is None or tally.first_sent_at is None:
            return None
        if at >= tally.first_sent_at + timedelta(seconds=self.key_ttl_s):
            return None
        window = max(self.settle_window_s, self.not_found_final_after_s)
        spaced = (tally.first_not_found_at or at) + timedelta(seconds=self.settle_window_s / 2)
        return max(tally.last_sent_at + timedelta(seconds=window), spaced) - at


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPolicy:
    """How long automation waits, how often it asks, and when it gives up.

    probes_max, probing_max_s: the budget of answers that settle nothing; only answers spend it, so no outage
    does.
    unfinished_max: claims of one order that were lost while it was handled as a suspect; one loss before
    that is free, since a killed recovery process loses innocent orders too.
    """

    base_s: float = 2.0
    cap_s: float = 900.0
    floor_s: float = 1.0
    first_probe_s: float = 30.0
    submit_margin_s: float = 5.0
    parked_probe_s: float = 86_400.0
    pushback_max_s: float = 3_600.0
    probes_max: int = 40
    probing_max_s: float = 86_400.0
    malformed_max: int = 2
    unfinished_max: int = 3

    def backoff(self, count: int, jitter: float) -> timedelta:
        """Full jitter: anything between the floor and base * 2^count, capped.

        jitter: 0 <= jitter < 1, drawn by the caller.
        """
        # 2^40 is beyond any cap; the exponent is bounded so that the float is.
        ceiling = max(self.floor_s, min(self.cap_s, self.base_s * 2.0 ** min(count, 40)))
        return timedelta(seconds=self.floor_s + jitter * (ceiling - self.floor_s))

    def pace(self, waited: timedelta, jitter: float) -> timedelta:
        """How long to leave alone what has been waited for so long: doubling without a counter."""
        ceiling = max(self.floor_s, min(self.cap_s, max(self.base_s, waited.total_seconds())))
        return timedelta(seconds=self.floor_s + jitter * (ceiling - self.floor_s))

    def spent(self, tally: Tally, at: datetime) -> bool:
        """Whether one more answer that settles nothing is the last of the budget."""
        if tally.probe_count + 1 >= self.probes_max:
            return True
        since = tally.first_answer_at
        return since is not None and at - since >= timedelta(seconds=self.probing_max_s)


LOCAL_POLICY = RecoveryPolicy(
    base_s=0.5,
    cap_s=5.0,
    floor_s=0.2,
    first_probe_s=1.0,
    submit_margin_s=0.5,
    parked_probe_s=86_400.0,
    probes_max=8,
)
PRODUCTION_POLICY = RecoveryPolicy()

NO_PROMISES = UpstreamContract()
"""For an order whose upstream is no longer configured: nothing is proof and nothing is sent again."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What `transition` consults besides the order: each upstream's contract, and the policy."""

    contracts: Mapping[str, UpstreamContract]
    policy: RecoveryPolicy = PRODUCTION_POLICY

    def contract(self, upstream: str) -> UpstreamContract:
        """The contract of an upstream; one that promises nothing when it is not configured any more."""
        return self.contracts.get(upstream, NO_PROMISES)
