"""What archive_svc reads and writes on one shard."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from archive_svc.domain import Partitions, Span
from chassis import pg
from chassis.store_spans import traced

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from archive_svc.domain import Making

QUERIES = pg.queries("archive_svc")


@traced
class PartitionStore:
    """The partitions of one shard. Every method raises what chassis.pg raises."""

    def __init__(self, shard: str, database: pg.Database) -> None:
        self.shard = shard
        self._database = database

    async def now(self) -> datetime:
        """The shard's clock."""
        at: datetime = await self._database.fetchval(QUERIES.now)
        return at

    async def partitions(self) -> Mapping[str, Partitions]:
        """What there is, by the table's name; also of tables that nobody here knows."""
        rows = await self._database.fetch(QUERIES.list_partitions)
        spans: dict[str, list[Span]] = defaultdict(list)
        defaults = set()
        for row in rows:
            bounded = spans[row["name"]]
            if row["begins"] is not None:
                bounded.append(Span(row["begins"], row["ends"]))
            if row["is_default"]:
                defaults.add(row["name"])
        return {name: Partitions(tuple(bounded), name in defaults) for name, bounded in spans.items()}

    async def make(self, making: Making) -> bool:
        """Make one partition; False when a table of its name was there already.

        Idempotent. Waits for locks as long as a session of chassis.pg does, a second, and then is Contended.
        """
        table, span = making.table, making.span
        made: bool = await self._database.fetchval(
            QUERIES.make_partition, table.name, making.suffix, table.column, span.begins, span.ends
        )
        return made
