"""Recalls the statements of a user who is erased, on every shard: they stand on one, and read of all of them.

What was taken out is out before a statement is recalled for it. So one that begins, or begins again, after
that shows nothing of it, and none from before is left. That an erasure is over is noted only when it is:
until then each shard has to answer, and whatever goes meanwhile is recalled wherever it may be shown. All of
them recall their last for one moment, which the shard of the archive notes before any other is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from chassis import pg
from chassis.errors import OrdermeshError
from chassis.store_spans import traced

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from archive_svc.entries import Erasure

log = structlog.get_logger("erase")
QUERIES = pg.queries("archive_svc", "recall.sql")


@traced
class Recalls:
    """The statements of all shards. databases: by shard; all that a statement may stand on."""

    def __init__(self, databases: Mapping[str, pg.Database]) -> None:
        self._databases = databases

    async def recall(
        self, erasing: str, erasure: Erasure, until: datetime, *, is_last: bool = False
    ) -> set[str]:
        """Recall what may show something that a shard's archive lost by then; the shards that do not answer.

        erasing: the shard whose archive it is. until: by its clock. is_last: nothing else is left to be done;
        it is the erasing shard then that keeps the moment, so no other is asked before it has answered.
        Idempotent: what was recalled for the same moment once, and asked for since, stays.
        """
        silent: set[str] = set()
        for shard in sorted(self._databases, key=lambda each: each != erasing):
            database = self._databases[shard]
            if is_last and erasing in silent:
                break
            try:
                recalled = await database.fetchval(
                    QUERIES.recall, erasure.erasure_id, erasure.user_id, erasing, until
                )
            except OrdermeshError as failed:
                log.warning("statements_not_recalled", shard=shard, reason=failed.reason)
                silent.add(shard)
                continue
            if recalled:
                log.info(
                    "statements_recalled",
                    shard=shard,
                    statements=recalled,
                    erasure_id=str(erasure.erasure_id),
                )
        return silent

    async def recalled_until(self, erasing: str, erasure: Erasure) -> datetime | None:
        """For which moment the erasing shard has recalled its statements; None when it never has.

        Raises: what chassis.pg raises.
        """
        if erasing not in self._databases:
            return None
        row = await self._databases[erasing].fetchrow(QUERIES.recalled_until, erasure.erasure_id)
        return None if row is None else row["until"]

    async def end(self, erasure: Erasure) -> None:
        """Note where statements were recalled that the erasure is over; for the record alone."""
        for shard, database in self._databases.items():
            try:
                await database.execute(QUERIES.end_recall, erasure.erasure_id)
            except OrdermeshError as failed:
                log.info("recall_not_ended", shard=shard, reason=failed.reason)
