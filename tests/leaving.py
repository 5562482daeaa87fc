"""Months that leave a shard for the archive and come back, by the catalog's own functions. What lists show
goes by the catalog and the tables alone, so nothing is copied: a table that is given up is kept in a corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from history_svc.page import OLDEST
from tests.shards import Shard

FENCE = 1
_LEASE = "UPDATE archive_lease SET fence = $1, holder = 'a test', lease_until = 'infinity'"
_WANT = """
INSERT INTO archive_months AS m
    (month, archive_id, state, reach, begins_at, ends_at, actor, reason, created_at, updated_at)
VALUES ($1, gen_random_uuid(), 'WANTED', 'GRACE', $1::date::timestamp AT TIME ZONE 'UTC',
        ($1::date + interval '1 month') AT TIME ZONE 'UTC', 'a test', 'it is old enough', clock(), clock())
ON CONFLICT (month) DO UPDATE SET state = 'WANTED', reach = 'GRACE' WHERE m.state = 'RESTORED'
"""
_PROVE = """
UPDATE archive_months
   SET state = 'VERIFIED',
       (order_count, orders_hash) = (SELECT row_count, hash FROM hash_of(orders_oid, 'orders')),
       (journal_count, journal_hash) = (SELECT row_count, hash FROM hash_of(journal_oid, 'order_journal'))
 WHERE month = $1
"""
_OLDEST = """
SELECT min((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \\(''([^'']+)''\\)'))[1]::timestamptz)
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'orders'::regclass
"""


@dataclass
class Leaving:
    """The months of one shard."""

    shard: Shard

    async def floor(self) -> datetime:
        """What was created before it is archived; OLDEST when nothing is."""
        found: datetime | None = await self.shard.value("SELECT nullif(archive_floor(), '-infinity')")
        return found or OLDEST

    async def oldest(self) -> date | None:
        """The oldest month whose tables are attached; None when it is not over, or archived already."""
        begins: datetime = await self.shard.value(_OLDEST)
        is_over = await self.shard.value(
            "SELECT $1::timestamptz + interval '1 month' <= clock() AND $1::timestamptz >= archive_floor()",
            begins,
        )
        return begins.date().replace(day=1) if is_over else None

    async def commit(self, month: date) -> list[str]:
        """Let readers take a month for archived from now on; why not, or an empty list."""
        await self._run(_LEASE, FENCE)
        await self._run(_WANT, month)
        blockers: list[str] = await self.shard.value("SELECT freeze_month($1, $2, 'infinity')", month, FENCE)
        if not blockers:
            await self._run(_PROVE, month)
            commit = "SELECT commit_month($1, $2, 'm', 'v', 's', '0')"
            blockers = await self.shard.value(commit, month, FENCE)
        return blockers

    async def detach(self, month: date) -> None:
        """Take the tables of an archived month away from the others."""
        for parent in ("orders", "order_journal"):
            await self._run(f"ALTER TABLE {parent} DETACH PARTITION {parent}_{month:%Y_%m}")
        assert await self.shard.value("SELECT move_month($1, $2, 'COMMITTED', 'DETACHING')", month, FENCE)
        assert await self.shard.value("SELECT part_with_month($1, $2, '0')", month, FENCE)

    async def drop(self, month: date) -> None:
        """Give the tables of a detached month up."""
        await self._run("CREATE SCHEMA IF NOT EXISTS corner")
        for parent in ("orders", "order_journal"):
            await self._run(f"ALTER TABLE ordermesh.{parent}_{month:%Y_%m} SET SCHEMA corner")
        await self._run(
            "UPDATE archive_months SET state = 'DROPPED', orders_oid = NULL, journal_oid = NULL"
            " WHERE month = $1",
            month,
        )

    async def restore(self, month: date) -> None:
        """Bring a month back from wherever it is."""
        await self._run("UPDATE archive_months SET reach = 'RESTORED' WHERE month = $1", month)
        if await self.state(month) == "DROPPED":
            for parent in ("orders", "order_journal"):
                await self._run(f"ALTER TABLE corner.{parent}_{month:%Y_%m} SET SCHEMA ordermesh")
            await self._run(
                "UPDATE archive_months SET state = 'RESTORING', orders_oid = to_regclass('orders_' || $2),"
                " journal_oid = to_regclass('order_journal_' || $2) WHERE month = $1",
                month,
                f"{month:%Y_%m}",
            )
        refused = await self.shard.value("SELECT restore_month($1, $2)", month, FENCE)
        assert refused == [], refused

    async def state(self, month: date) -> str | None:
        """Where a month stands; None when it was never asked for."""
        found: str | None = await self.shard.value("SELECT state FROM archive_months WHERE month = $1", month)
        return found

    async def youngest(self) -> date | None:
        """The youngest archived month; None when there is none."""
        found: date | None = await self.shard.value(
            "SELECT max(month) FROM archive_months WHERE committed_at IS NOT NULL"
        )
        return found

    async def _run(self, sql: str, *args: Any) -> None:
        await self.shard.db.execute(sql, *args)
