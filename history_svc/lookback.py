"""The business gauges: orders that wait, those that hang, open cases, looked up on each shard's read replica.

A look is four statements over small tables, bounded in rows and in time, every `every_s` seconds whoever
scrapes. What cannot be seen is not shown: a gauge that keeps its last value through an outage says that all
is well. A shard without a replica is looked at on its primary.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import structlog

from chassis import meters, pg
from chassis.errors import OrdermeshError
from history_svc import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chassis.clock import Clock

log = structlog.get_logger("lookback")
QUERIES = pg.queries("history_svc", "lookback.sql")
ORDERS_MAX = 10_000
"""Of so many orders, and cases, at most is anything said; then `ordermesh_lookback_is_capped` is 1."""
STATEMENT_S = 2.0
AGES = ("younger_than_1m", "older_than_1m", "older_than_10m", "older_than_1h", "older_than_1d")
CASE_REASONS = (
    *("PROBES_EXHAUSTED", "VERDICT_MISMATCH", "MALFORMED_ANSWERS", "POISON"),
    *("UNDO_REQUIRED", "CONTRADICTED", "UPSTREAM_UNKNOWN"),
)
"""Why order_svc opens cases. One in which money may be wrong stays one, whatever its reason is later."""
MONEY = "1"
"""The severity of cases that wake somebody."""


class Lookback:
    """Looks at one shard for ever. database: its replica, or the primary where there is none."""

    def __init__(
        self,
        shard: str,
        database: pg.Database,
        clock: Clock,
        jitter: Callable[[], float],
        *,
        every_s: float,
    ) -> None:
        self.name = f"lookback.{shard}"
        self._shard = shard
        self._database = database
        self._clock = clock
        self._jitter = jitter
        self._every_s = every_s
        # Those that wake somebody are 0 from the first look on, and not only once they were seen: who looked
        # here before may have said 1 last, of a case that is closed.
        self._cases_seen = {(reason, MONEY) for reason in CASE_REASONS}

    async def run(self) -> None:
        """Look until cancelled; a server that does not answer is asked again."""
        while True:
            await self.once()
            await self._clock.sleep(self._every_s * (0.9 + 0.2 * self._jitter()))

    async def once(self) -> bool:
        """Look once and set the gauges, or take them away; whether the server answered."""
        try:
            lag_s, place, pending, cases = await self._look()
        except OrdermeshError as failed:
            log.warning("shard_not_looked_at", shard=self._shard, reason=failed.reason)
            self._show_nothing()
            return False
        if place is None or pending is None or place["shard"] != self._shard:
            log.error("another_shard_answered", shard=self._shard, found=place and place["shard"])
            self._show_nothing()
            return False
        self._show(lag_s, place, pending, cases)
        return True

    async def _look(self) -> tuple[float | None, Any, Any, list[Any]]:
        # One after the other: pages come first to the connections.
        follows = await self._database.fetchrow(QUERIES.follows, timeout_s=STATEMENT_S)
        lag_s = None if follows is None else follows["lag_s"]
        behind = timedelta(seconds=lag_s or 0.0)
        return (
            lag_s,
            await self._database.fetchrow(QUERIES.place, timeout_s=STATEMENT_S),
            await self._database.fetchrow(QUERIES.pending, ORDERS_MAX, behind, timeout_s=STATEMENT_S),
            await self._database.fetch(QUERIES.dead_letters, ORDERS_MAX, behind, timeout_s=STATEMENT_S),
        )

    def _show(
        self, lag_s: float | None, place: Mapping[str, Any], pending: Mapping[str, Any], cases: Sequence[Any]
    ) -> None:
        shard = self._shard
        for age in AGES:
            metrics.ORDERS_PENDING.labels(shard, age).set(pending[age])
        metrics.OLDEST_PENDING.labels(shard).set(pending["oldest_s"])
        metrics.ORDERS_HANGING.labels(shard).set(pending["hanging"])
        metrics.MOST_OVERDUE.labels(shard).set(pending["most_overdue_s"])
        found = {(case["reason"], case["severity"]): case["cases"] for case in cases}
        # What is closed becomes 0 and does not end: an alert goes by the last value while nobody can look.
        self._cases_seen |= found.keys()
        for reason, severity in self._cases_seen:
            metrics.CASES_OPEN.labels(shard, reason, severity).set(found.get((reason, severity), 0))
        metrics.EXECUTED_TWICE.labels(shard).set(sum(case["executed_twice"] for case in cases))
        metrics.OLDEST_CASE.labels(shard).set(max((case["oldest_s"] for case in cases), default=0.0))
        metrics.HOLDS.labels(shard).set(place["holds"])
        if lag_s is None:
            meters.forget(metrics.REPLICA_LAG, shard=shard)
        else:
            metrics.REPLICA_LAG.labels(shard).set(lag_s)
        capped = ORDERS_MAX in (pending["orders"], sum(case["cases"] for case in cases))
        metrics.LOOKBACK_CAPPED.labels(shard).set(capped)
        metrics.LOOKBACK_UP.labels(shard).set(1)

    def _show_nothing(self) -> None:
        meters.forget(
            *(metrics.ORDERS_PENDING, metrics.OLDEST_PENDING, metrics.ORDERS_HANGING, metrics.MOST_OVERDUE),
            *(metrics.CASES_OPEN, metrics.OLDEST_CASE, metrics.HOLDS, metrics.REPLICA_LAG),
            *(metrics.EXECUTED_TWICE, metrics.LOOKBACK_CAPPED),
            shard=self._shard,
        )
        metrics.LOOKBACK_UP.labels(self._shard).set(0)
