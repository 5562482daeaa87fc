"""The statements about one shard's log of changes: its outbox, the lease of its reader, the cursors of what
was published.

All methods raise what chassis.pg raises: Overloaded, Contended, ShardUnavailable, DeadlineExceeded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from chassis import pg
from chassis.errors import ShardUnavailable
from chassis.store_spans import traced
from history_svc.events import Event, StreamRange
from history_svc.position import BEGINNING, Position, before_xid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

QUERIES = pg.queries("history_svc.channel")
SESSION = {"enable_seqscan": "off", "enable_sort": "off", "enable_bitmapscan": "off"}
"""The tail is a walk along an index that stops early. A generic plan does not know where it starts, and takes
sorting a day of changes for cheap.
"""
REASON_CHARS_MAX = 512


class TermLost(Exception):
    """Somebody else reads this shard's log in a newer term."""


class LogReplaced(Exception):
    """The shard's database is not the one it was: its log has another epoch."""


class Place(NamedTuple):
    """A row's place in the outbox of one log epoch."""

    xid: int
    seq: int


START = Place(0, 0)


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the outbox; without an event when its partition had it already."""

    place: Place
    stream_partition: int
    occurred_at: datetime
    event: Event | None


@dataclass(frozen=True, slots=True)
class Page:
    """What one look at the tail found.

    fence:   every transaction below it is over.
    ceiling: every transaction that has written anything, over or not, is below it.
    at:      before the look: whatever was committed before this instant is below `ceiling`.
    floor:   below it changes may be gone.
    """

    log_epoch: int
    floor: Position
    fence: int
    ceiling: int
    at: datetime
    changes: Sequence[Change]


@dataclass(frozen=True, slots=True)
class Starts:
    """From where the partitions of a shard go on.

    floor:      below it changes may be gone.
    cursors:    how far each partition was published. watermarks: how far it is searchable.
    """

    log_epoch: int
    streams: StreamRange
    floor: Position
    cursors: Mapping[int, Position]
    watermarks: Mapping[int, Position]


@traced
class ShardLog:
    """One shard's log, through a pool of connections to its primary."""

    def __init__(self, shard: str, database: pg.Database) -> None:
        self.shard = shard
        self._database = database

    async def tail(
        self, after: Place, *, since: datetime, rows_max: int, bytes_max: int, had: Mapping[int, Place]
    ) -> Page:
        """Changes after a place, in order; at least one if there is any, below the fence.

        since: no change after the place occurred before it. had: what each partition has had already, of all
        partitions in order.
        Raises: ShardUnavailable also when nobody named the shard.
        """
        rows = await self._database.fetch(
            QUERIES.read_tail,
            *after,
            since,
            rows_max,
            bytes_max,
            [str(place.xid) for place in had.values()],
            [place.seq for place in had.values()],
            next(iter(had)),
        )
        if not rows:
            raise ShardUnavailable(shard=self.shard)
        head = rows[0]
        return Page(
            head["log_epoch"],
            _floor(head),
            head["fence"],
            head["ceiling"],
            head["at"],
            [_change(row) for row in rows if row["xid"] is not None],
        )

    async def starts(self) -> Starts:
        """From where to go on.

        Raises: ShardUnavailable also when nobody named the shard.
        """
        rows = await self._database.fetch(QUERIES.read_starts)
        if not rows:
            raise ShardUnavailable(shard=self.shard)
        head = rows[0]
        return Starts(
            head["log_epoch"],
            StreamRange(head["partition_base"], head["partition_count"]),
            _floor(head),
            {row["stream_partition"]: _position(row, "cursor") for row in rows},
            {row["stream_partition"]: _position(row, "watermark") for row in rows},
        )

    async def take_lease(self, session: pg.Session, holder: str) -> int | None:
        """Take the lock of this shard's log with a session and begin a new term; None when somebody else has
        it.
        """
        term = await session.fetchval(QUERIES.take_lease, holder)
        return None if term is None else int(term)

    async def move_cursors(self, term: int, positions: Mapping[int, Position]) -> bool:
        """Note how far partitions were published; whether somebody asks for what came before.

        Raises: TermLost, and nothing is written.
        """
        epochs = {position.log_epoch for position in positions.values()}
        rows = await self._database.fetch(
            QUERIES.move_cursors,
            term,
            max(epochs),
            list(positions),
            [position.xid for position in positions.values()],
            [position.seq for position in positions.values()],
        )
        if len(rows) < len(positions):
            raise TermLost(f"{self.shard}: term {term} is over")
        return any(row["rewind_xid"] is not None for row in rows)

    async def ask_rewind(self, positions: Mapping[int, Position]) -> int:
        """Ask whoever publishes for everything after these positions; for how many that was a new wish."""
        return int(
            await self._database.fetchval(
                QUERIES.ask_rewind,
                list(positions),
                [position.log_epoch for position in positions.values()],
                [position.xid for position in positions.values()],
                [position.seq for position in positions.values()],
            )
        )

    async def take_rewinds(self, term: int) -> dict[int, Position]:
        """Move cursors back to where somebody asked for; where they stand now, of the partitions that went
        back.

        A wish for everything stands at the beginning of all logs, before every position of this one.
        """
        rows = await self._database.fetch(QUERIES.take_rewinds, term)
        return {
            row["stream_partition"]: Position(row["log_epoch"], row["xid"], row["seq"])
            if row["xid"]
            else BEGINNING
            for row in rows
        }

    async def quarantine(self, stream_partition: int, event: Event, reason: str) -> None:
        """Have lists take an order from this shard, since its change cannot travel. Idempotent."""
        await self._database.execute(
            QUERIES.quarantine_change,
            event.order_id,
            event.created_at,
            event.user_id,
            stream_partition,
            event.version,
            reason[:REASON_CHARS_MAX],
        )


def _floor(row: Any) -> Position:
    return BEGINNING if row["floor_xid"] is None else before_xid(row["floor_epoch"], row["floor_xid"])


def _position(row: Any, name: str) -> Position:
    if row[f"{name}_xid"] is None:
        return BEGINNING
    return Position(row[f"{name}_epoch"], row[f"{name}_xid"], row[f"{name}_seq"])


def _change(row: Any) -> Change:
    payload = row["payload"]
    event = None
    if payload is not None:
        event = Event(
            row["event_id"],
            row["order_id"],
            row["created_at"],
            row["user_id"],
            row["read_routing"],
            row["version"],
            row["kind"],
            payload,
            row["schema_ver"],
            row["origin"],
            row["traceparent"],
            row["tracestate"],
        )
    return Change(Place(row["xid"], row["seq"]), row["stream_partition"], row["occurred_at"], event)
