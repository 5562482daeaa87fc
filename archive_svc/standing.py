"""How the archive of a shard stands, as gauges."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archive_svc import metrics
from archive_svc.lateness import Stay, archived_until
from archive_svc.lifecycle import State
from chassis import meters, pg
from chassis.store_spans import traced

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from archive_svc.archiver import Pacing
    from archive_svc.catalog import Catalog
    from archive_svc.lifecycle import Month
    from archive_svc.sweep import Sweeps, Totals

QUERIES = pg.queries("archive_svc", "standing.sql")
FAILURES_MIN = 3
"""So many in a row are no longer an accident."""
TIMES = (metrics.ARCHIVED_UNTIL, metrics.ERASED_UNTIL, metrics.UNHALTED_UNTIL)
COUNTS = (
    *(metrics.MONTHS, metrics.QUARANTINED, metrics.FAILING, metrics.HALTED),
    *(metrics.STRAYS, metrics.STRAY_BYTES, metrics.SWEEP_REFUSED),
)


@dataclass(frozen=True, slots=True)
class Times:
    """Moments of one shard, by its clock `at`.

    last_commit:   when readers turned to a copy; None before the first.
    halted_since:  None while the kill switch is off.
    erasure_since: when the oldest open erasure was asked for, of those that nothing holds; None for none.
    """

    at: datetime
    last_commit: datetime | None
    halted_since: datetime | None
    erasure_since: datetime | None


@traced
class Standings:
    """What the gauges of one shard are made of. Every method raises what chassis.pg raises."""

    def __init__(self, shard: str, database: pg.Database) -> None:
        self.shard = shard
        self._database = database

    async def times(self) -> Times:
        """The moments that matter."""
        row = await self._database.fetchrow(QUERIES.times)
        assert row is not None, "it has no FROM"
        return Times(**row)

    async def stays(self) -> list[Stay]:
        """The months that readers read from the tables."""
        return [
            Stay(
                row["begins_at"],
                None if row["state"] is None else State(row["state"]),
                None if row["reach"] is None else State(row["reach"]),
                row["since"],
            )
            for row in await self._database.fetch(QUERIES.stays)
        ]


class Standing:
    """Tells how the archive of one shard stands."""

    def __init__(self, standings: Standings, catalog: Catalog, sweeps: Sweeps, pacing: Pacing) -> None:
        self.name = f"standing.{standings.shard}"
        self.shard = standings.shard
        self._standings = standings
        self._catalog = catalog
        self._sweeps = sweeps
        self._pacing = pacing

    def begin(self) -> None:
        """Let the times be there, as 0."""
        for gauge in TIMES:
            gauge.labels(self.shard)

    async def tell(self) -> None:
        """Look once and set the gauges. Raises: what chassis.pg raises."""
        times = await self._standings.times()
        stays = await self._standings.stays()
        months = await self._catalog.months()
        totals = await self._sweeps.totals()
        self._tell_times(times, stays)
        self._tell_months(months, is_halted=times.halted_since is not None)
        self._tell_sweeps(totals)

    def forget(self) -> None:
        """Take away the gauges that are no times."""
        meters.forget(*COUNTS, shard=self.shard)

    def _tell_times(self, times: Times, stays: Sequence[Stay]) -> None:
        shard, pacing = self.shard, self._pacing
        archived = archived_until(
            stays,
            times.last_commit,
            times.at,
            months_min=pacing.months_min,
            days_min=pacing.days_min,
            reach=pacing.reach,
        )
        metrics.ARCHIVED_UNTIL.labels(shard).set(archived.timestamp())
        metrics.ERASED_UNTIL.labels(shard).set((times.erasure_since or times.at).timestamp())
        metrics.UNHALTED_UNTIL.labels(shard).set((times.halted_since or times.at).timestamp())

    def _tell_months(self, months: Sequence[Month], *, is_halted: bool) -> None:
        shard = self.shard
        counts = Counter(month.state for month in months)
        for state in State:
            metrics.MONTHS.labels(shard, state.value).set(counts[state])
        metrics.QUARANTINED.labels(shard).set(sum(bool(month.quarantined) for month in months))
        failing = [month for month in months if month.failures >= FAILURES_MIN and not month.quarantined]
        metrics.FAILING.labels(shard).set(len(failing))
        metrics.HALTED.labels(shard).set(is_halted)

    def _tell_sweeps(self, totals: Totals) -> None:
        shard = self.shard
        metrics.STRAYS.labels(shard).set(totals.strays)
        metrics.STRAY_BYTES.labels(shard).set(totals.stray_bytes)
        metrics.SWEEP_REFUSED.labels(shard).set(bool(totals.refusal))
