"""Reads of the shards' databases: one statement per shard and page, through small pools that open when first
needed.

Fails loudly: a shard that cannot be read, or that does not own what it is asked for, is an error and never an
empty answer. A replica answers only where it may; whatever it cannot say, the primary is asked.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from chassis import pg
from chassis.errors import DeadlineExceeded, Overloaded, ShardUnavailable, StaleRoute
from chassis.limits import Limiter
from chassis.store_spans import traced
from history_svc.catalog import ShardCatalog, shard_catalog_of
from history_svc.document import from_us
from history_svc.metrics import READ_SECONDS, REPLICA_ANSWERS, STALE
from history_svc.page import OLDEST, Key, Row
from history_svc.parts import CHANGES_LOOKED_AT_MAX, OVERLAY_MAX, REPLICA_LAG_S_MAX, Mark, ShardPart
from history_svc.position import Position, before_xid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from chassis.placement import Held
    from history_svc.page import Window
    from history_svc.settings import HistorySettings

QUERIES = pg.queries("history_svc")
SESSION = {"enable_sort": "off", "enable_seqscan": "off", "enable_bitmapscan": "off"}
"""A page walks the index from its newest entry and stops when it is full. The generic plan is made for the
average user, who has so few orders that sorting them all looks cheap; for the greatest user it is ruinous.
"""
REPLICA_REST_S = 2.0
"""A replica that could not answer is not asked for so long."""
_NOWHERE = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Reading:
    """What is asked of every shard of a page.

    since:       recent rows are not older than this; at most `limit` of them.
    changes:     whether the orders that the read model has not as they are now are wanted.
    overlay_max: at most so many of them, the newest.
    replica:     whether a replica may answer, and `lag_max` how far it may be behind; None for any.
    tokens:      what the caller has seen, (log_epoch, xid) by shard.
    """

    window: Window
    since: datetime
    limit: int
    changes: bool = True
    overlay_max: int = OVERLAY_MAX
    replica: bool = False
    lag_max: timedelta | None = timedelta(seconds=REPLICA_LAG_S_MAX)
    tokens: Mapping[str, tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True)
class Marks:
    """What a search over all users has to know of one shard.

    until:       up to when the read model has all of the shard; None when parts of it have nothing.
    archived_to: as in ShardPart.
    """

    catalog: ShardCatalog
    until: datetime | None
    archived_to: datetime


@traced
class Shards:
    """The databases of all shards, by name; primaries and, where there are some, replicas."""

    def __init__(
        self,
        primaries: Mapping[str, pg.Database],
        replicas: Mapping[str, pg.Database],
        read_timeout_s: float,
        fallback: Limiter,
    ) -> None:
        self._primaries = primaries
        self._replicas = replicas
        self._read_timeout_s = read_timeout_s
        self._resting: dict[str, float] = {}
        self._catalogs: dict[str, ShardCatalog] = {}
        self._archived_to: dict[pg.Database, datetime] = {}
        self.fallback = fallback

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: HistorySettings) -> AsyncIterator[Shards]:
        """Pools to every shard of the settings; none connects before it is needed."""
        async with AsyncExitStack() as stack:
            pools: dict[str, dict[str, pg.Database]] = {"history": {}, "replica": {}}
            for role, dsns in (("history", settings.shards), ("replica", settings.replicas)):
                for shard, dsn in dsns.items():
                    wanted = pg.PgSettings(
                        dsn=dsn.get_secret_value(),
                        pool_size=settings.pool_size,
                        queue=settings.pool_queue,
                        read_only=True,
                        session=SESSION,
                    )
                    pools[role][shard] = await stack.enter_async_context(
                        pg.open_database(wanted, name=f"{role}-{shard}")
                    )
            fallback = Limiter(settings.fallback_max, settings.fallback_queue, name="history_fallback")
            yield cls(pools["history"], pools["replica"], settings.read_timeout_s, fallback)

    def onlooker(self, shard: str) -> pg.Database:
        """Where the shard may be looked at without its writers noticing: its replica, where it has one."""
        return self._replicas.get(shard) or self._primaries[shard]

    @property
    def names(self) -> tuple[str, ...]:
        """All shards."""
        return tuple(self._primaries)

    def last_catalog(self, shard: str) -> ShardCatalog | None:
        """The catalog as the shard last said it, for when it says nothing."""
        return self._catalogs.get(shard)

    def last_archived_to(self, shard: str) -> datetime:
        """What was created before it was archived when the shard, or its replica, last said so."""
        said = (
            self._archived_to.get(each[shard]) for each in (self._primaries, self._replicas) if shard in each
        )
        return max((floor for floor in said if floor is not None), default=OLDEST)

    async def read(self, shard: str, held: Sequence[Held], ask: Reading, *, timeout_s: float) -> ShardPart:
        """One shard's part of a page.

        Raises: StaleRoute, ShardUnavailable, DeadlineExceeded, Overloaded.
        """
        primary = self._primaries.get(shard)
        if primary is None:
            raise ShardUnavailable(shard=shard)
        end = time.monotonic() + min(timeout_s, self._read_timeout_s)
        if ask.replica and (part := await self._of_replica(shard, held, ask, end)) is not None:
            return part
        return await self._fetch(primary, shard, held, ask, end)

    async def _of_replica(
        self, shard: str, held: Sequence[Held], ask: Reading, end: float
    ) -> ShardPart | None:
        """What the replica says, when it may speak; None when the primary has to."""
        replica = self._replicas.get(shard)
        if replica is None or self._resting.get(shard, 0.0) > time.monotonic():
            return None
        half = time.monotonic() + (end - time.monotonic()) / 2
        try:
            part = await self._fetch(replica, shard, held, ask, half)
        except StaleRoute:
            # It may be behind a change of the fence; only the primary's word counts.
            REPLICA_ANSWERS.labels("stale_route").inc()
            return None
        except (ShardUnavailable, DeadlineExceeded, Overloaded):
            self._resting[shard] = time.monotonic() + REPLICA_REST_S
            REPLICA_ANSWERS.labels("away").inc()
            return None
        if not part.covers(ask.tokens or {}):
            REPLICA_ANSWERS.labels("behind_token").inc()
            return None
        if ask.lag_max is not None and part.lag is not None and part.lag > ask.lag_max:
            REPLICA_ANSWERS.labels("lagging").inc()
            return None
        REPLICA_ANSWERS.labels("used").inc()
        return part

    async def _fetch(
        self, database: pg.Database, shard: str, held: Sequence[Held], ask: Reading, end: float
    ) -> ShardPart:
        """What a database says; asked once more when a month came back from its archive, and the first time.
        The statement's plan is made before its snapshot is taken, and may be of when the table was not there.
        """
        before = self._archived_to.get(database)
        part = await self._fetch_once(database, shard, held, ask, end)
        if before is None or part.archived_to < before:
            part = await self._fetch_once(database, shard, held, ask, end)
        self._archived_to[database] = part.archived_to
        return part

    async def _fetch_once(
        self, database: pg.Database, shard: str, held: Sequence[Held], ask: Reading, end: float
    ) -> ShardPart:
        started = time.monotonic()
        known = self._catalogs.get(shard)
        window = ask.window
        try:
            records = await database.fetch(
                QUERIES.page_of_shard,
                [one.bucket for one in held],
                [one.epoch for one in held],
                window.user_id,
                window.not_before,
                window.before.created_at,
                window.before.order_id,
                ask.since,
                ask.limit,
                ask.changes,
                ask.overlay_max,
                CHANGES_LOOKED_AT_MAX + 1,
                -1 if known is None else known.version,
                timeout_s=max(0.001, end - started),
            )
        except ShardUnavailable as down:
            raise ShardUnavailable(shard=shard) from down
        READ_SECONDS.labels(shard).observe(time.monotonic() - started)
        meta = records[0]["meta"]
        if meta["stale"] is not None:
            STALE.labels(shard).inc()
            raise StaleRoute(**{name: value for name, value in meta["stale"].items() if value is not None})
        if meta["catalog"] is not None or known is None:
            base, count = meta["identity"]["base"], meta["identity"]["count"]
            known = self._catalogs[shard] = shard_catalog_of(
                meta["catalog_version"], meta["catalog"] or (), range(base, base + count)
            )
        return _part(shard, meta, records[1:], known, ask.overlay_max)

    async def marks(self, shard: str, *, timeout_s: float) -> Marks:
        """What a search over all users has to know of a shard.

        Raises: ShardUnavailable, DeadlineExceeded, Overloaded.
        """
        row = await self._primaries[shard].fetchrow(QUERIES.marks_of_shard, timeout_s=timeout_s)
        assert row is not None, "a statement of subqueries always has its row"
        since = row["source_at"]
        is_known = row["is_whole"] and since is not None and since > _NOWHERE
        base, count = row["partition_base"] or 0, row["partition_count"] or 0
        catalog = shard_catalog_of(0, row["catalog"], range(base, base + count))
        return Marks(catalog, since if is_known else None, row["archived_to"] or OLDEST)

    async def quarantined(
        self, shard: str, user_id: str, limit: int, *, timeout_s: float
    ) -> list[tuple[UUID, int, str]]:
        """Orders of a user that the read model refused: id, version, reason.

        Raises: ShardUnavailable, DeadlineExceeded, Overloaded.
        """
        rows = await self._primaries[shard].fetch(
            QUERIES.quarantine_of_user, user_id, limit, timeout_s=timeout_s
        )
        return [(row["order_id"], row["version"], row["reason"]) for row in rows]


def _part(
    shard: str, meta: Mapping[str, Any], records: Sequence[Any], catalog: ShardCatalog, overlay_max: int
) -> ShardPart:
    rows: dict[str, list[Row]] = {"recent": [], "changed": []}
    for record in records:
        rows[record["part"]].append(_row(record))
    lag_s, at = meta["lag_s"], datetime.fromtimestamp(meta["at"], UTC)
    return ShardPart(
        shard=shard,
        recent=_newest_first(rows["recent"]),
        changed=_newest_first(rows["changed"]),
        changed_down_to=_key(*meta["changed_to"]) if meta["changed"] >= overlay_max else None,
        changes=meta["changes"],
        marks=tuple(_mark(each) for each in meta["marks"] or ()),
        log_epoch=meta["identity"]["log_epoch"],
        floor=before_xid(meta["floor"][0], int(meta["floor"][1])) if meta["floor"] else None,
        catalog=catalog,
        xmin=int(meta["xmin"]),
        archived_to=from_us(int(meta["archived_to"] * 1_000_000)) if meta["archived_to"] else OLDEST,
        lag=None if lag_s == 0 else timedelta(seconds=at.timestamp() if lag_s is None else lag_s),
        at=at,
    )


def _key(created_us: float, order_id: str) -> Key:
    return Key(from_us(int(created_us)), UUID(order_id))


def _row(record: Any) -> Row:
    return Row(Key(record["created_at"], record["order_id"]), record["version"], record)


def _newest_first(rows: list[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: row.key, reverse=True))


def _mark(plain: Sequence[Any]) -> Mark:
    partition, log_epoch, xid, seq, at = plain
    if log_epoch is None:
        return Mark(partition, None, None)
    as_of = None if at is None else datetime.fromtimestamp(float(at), UTC)
    return Mark(partition, Position(log_epoch, int(xid), seq), as_of)
