"""What the simulated upstreams really executed, read from the SQLite files of their ledgers: the
independent witness.

Opened read-only, so that looking changes nothing; read in a thread, as SQLite blocks. Fails with
StoreUnreadable.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ops.audit.shards import BATCH, StoreUnreadable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

BUSY_S = 5.0
_COLUMNS = "key, order_id, leg, amount_minor, currency_code, verdict, upstream_ref"
_DOUBLES = """
SELECT order_id, leg, count(*) AS times
  FROM executions
 WHERE verdict = 'SUCCEEDED'
 GROUP BY order_id, leg
HAVING count(*) > 1"""


@dataclass(frozen=True, slots=True)
class Executed:
    """One row of a ledger: something executed, or refused for good, and whether it was taken back."""

    upstream: str
    key: str
    order_id: str
    leg: int
    amount_minor: int
    currency_code: str
    verdict: str
    upstream_ref: str
    reversed: bool


@dataclass(frozen=True, slots=True)
class LedgerFile:
    """The ledger of one upstream."""

    upstream: str
    path: str

    async def of_orders(self, order_ids: Sequence[str]) -> list[Executed]:
        """Everything about some orders, in the order it happened."""
        marks = ",".join("?" * len(order_ids))
        statement = (
            f"SELECT {_COLUMNS}, EXISTS (SELECT 1 FROM reversals r WHERE r.original_key = e.key) AS reversed"
            f" FROM executions e WHERE order_id IN ({marks}) ORDER BY seq"
        )
        rows = await self._rows(statement, *order_ids)
        return [Executed(self.upstream, **{**row, "reversed": bool(row["reversed"])}) for row in rows]

    async def doubles(self) -> list[tuple[str, int, int]]:
        """Order, leg and count of what was executed more than once."""
        return [(row["order_id"], row["leg"], row["times"]) for row in await self._rows(_DOUBLES)]

    async def order_ids(self) -> AsyncIterator[list[UUID]]:
        """Every order that was executed or refused, in batches."""
        after = ""
        statement = "SELECT DISTINCT order_id FROM executions WHERE order_id > ? ORDER BY order_id LIMIT ?"
        while rows := await self._rows(statement, after, BATCH):
            after = rows[-1]["order_id"]
            yield [UUID(row["order_id"]) for row in rows]

    async def pending(self) -> list[str]:
        """The orders of the executions that will still happen, late; one for each execution."""
        return [row["order_id"] for row in await self._rows("SELECT order_id FROM pending")]

    async def _rows(self, statement: str, *values: object) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._read, statement, values)

    def _read(self, statement: str, values: tuple[object, ...]) -> list[dict[str, Any]]:
        try:
            with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=BUSY_S)) as ledger:
                ledger.row_factory = sqlite3.Row
                return [dict(row) for row in ledger.execute(statement, values)]
        except sqlite3.Error as failed:
            raise StoreUnreadable(f"the ledger of {self.upstream} cannot be read: {failed}") from failed
