"""A projection made at a stroke, for tests of what reads it: everything that a shard's outbox holds goes into
a read model, and the watermarks say so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from history_svc.document import document, index_name, month_of
from history_svc.readmodel.port import ReadModel, Write
from tests.shards import Shard

_TAIL = """
SELECT order_id, created_at, stream_partition, version, payload::text AS payload FROM outbox
 WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY xid, seq
"""
_MARK = """
INSERT INTO watermarks (stream_partition, log_epoch, xid, seq, updated_at, source_at)
SELECT p, i.log_epoch, pg_snapshot_xmin(pg_current_snapshot()), 0, clock_timestamp(), ordermesh.clock()
  FROM shard_identity i, generate_series(i.partition_base, i.partition_base + i.partition_count - 1) AS p
ON CONFLICT (stream_partition) DO UPDATE SET xid = excluded.xid, seq = 0, source_at = excluded.source_at
"""
_CATALOG = """
INSERT INTO projection_index
    (month, generation, index_name, cluster_uuid, index_uuid, state, catalog_version, created_at)
VALUES ($1, 1, $2, $3, $4, 'SERVING', 0, clock_timestamp()) ON CONFLICT DO NOTHING
"""


@dataclass
class Projection:
    """What a projector would have made of a shard."""

    shard: Shard
    read_model: ReadModel
    lost: set[Any] = field(default_factory=set)

    async def catch_up(self) -> None:
        """Index every change that is committed; orders in `lost` are left out, as if refused."""
        newest: dict[Any, Any] = {}
        for row in await self.shard.rows(_TAIL):
            if row["order_id"] not in newest or newest[row["order_id"]]["version"] < row["version"]:
                newest[row["order_id"]] = row
        writes = []
        for row in newest.values():
            if row["order_id"] in self.lost:
                continue
            month = month_of(row["created_at"])
            identity = await self.read_model.create(index_name(month, 1))
            await self.shard.db.execute(_CATALOG, month, *identity)
            writes.append(Write(identity.name, document(json.loads(row["payload"]), row["stream_partition"])))
        if writes:
            await self.read_model.write(writes, timeout_s=5.0)
            await self.read_model.refresh(sorted({write.index for write in writes}))
        await self.shard.db.execute(_MARK)

    async def quarantine(self, order: Any) -> None:
        """Note that the read model refused an order."""
        self.lost.add(order.order_id)
        await self.shard.db.execute(
            "INSERT INTO quarantine"
            " (order_id, created_at, user_id, stream_partition, version, reason, seen_at)"
            " VALUES ($1, $2, $3, 0, $4, 'refused by a test', clock_timestamp())",
            order.order_id,
            order.created_at,
            order.user_id,
            order.version,
        )


TWO_DAYS = timedelta(days=2)
