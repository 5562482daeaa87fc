"""A channel of changes in memory: what tests of the projector use where no outbox is needed. It passes the
suite that the real ones pass (tests/contract/test_channels.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import uuid4

from chassis.ids import OrderIds
from history_svc.events import Event, Record, StreamRange
from history_svc.position import BEGINNING, Position, before_xid


class MemoryLog:
    """The log of one shard: transactions with changes, of which some may still be open."""

    def __init__(self, streams: StreamRange | None = None) -> None:
        self.streams = streams or StreamRange(0, 8)
        self.changes: list[tuple[int, Position, Event]] = []
        self.watermarks: dict[int, Position] = {}
        self._next_xid = 10
        self._open: set[int] = set()
        self._ids = OrderIds(now_ms=lambda: int(datetime.now(UTC).timestamp() * 1000))

    @property
    def fence(self) -> int:
        return min(self._open, default=self._next_xid)

    def begin(self) -> int:
        """An open transaction's xid."""
        xid = self._next_xid
        self._next_xid += 1
        self._open.add(xid)
        return xid

    def commit(self, xid: int) -> None:
        self._open.remove(xid)

    def put(self, event: Event, xid: int | None = None) -> Record:
        """Write one change, in a transaction of its own unless one is given; as it will come."""
        own = self.begin() if xid is None else xid
        partition = self.streams.base + (event.order_id.int >> 46 & 0xFFFF) % self.streams.count
        position = Position(1, own, len(self.changes) + 1)
        self.changes.append((partition, position, event))
        if xid is None:
            self.commit(own)
        return Record(partition, position, BEGINNING, event.created_at, event)

    def event(self, bucket: int) -> Event:
        """A change of a new order of a bucket."""
        order_id = self._ids.new(bucket)
        user = f"user-{bucket}"
        return Event(uuid4(), order_id, datetime.now(UTC), user, user, 1, "OPENED", b'{"status": "PENDING"}')


class MemorySource:
    """The changes of a MemoryLog from its stored watermarks on."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._ends = {
            partition: log.watermarks.get(partition, BEGINNING) for partition in log.streams.partitions
        }

    @property
    def is_ours(self) -> bool:
        """Nobody else reads the log."""
        return True

    async def take(self, *, bytes_max: int, wait_s: float) -> Sequence[Record]:
        """As EventSource says; beats come with what they follow."""
        await asyncio.sleep(0)
        found = self._found(bytes_max)
        if not found and wait_s:
            loop = asyncio.get_running_loop()
            waiting = loop.create_future()
            timer = loop.call_later(wait_s, waiting.set_result, None)
            try:
                await waiting
            finally:
                timer.cancel()
            found = self._found(bytes_max)
        return found

    async def kept(self, watermarks: Mapping[int, Position]) -> None:
        """Nothing to note: the log forgets nothing."""

    async def rewind(self, watermarks: Mapping[int, Position]) -> None:
        """Go back."""
        self._ends.update(watermarks)

    def _found(self, bytes_max: int) -> list[Record]:
        fence = self._log.fence
        found: list[Record] = []
        for partition, position, event in sorted(self._log.changes, key=lambda change: change[1]):
            if position.xid < fence and position > self._ends[partition]:
                if bytes_max <= 0:
                    return found
                found.append(Record(partition, position, self._ends[partition], event.created_at, event))
                self._ends[partition] = position
                bytes_max -= found[-1].size
        here = before_xid(1, fence)
        for partition, end in self._ends.items():
            if end < here:
                found.append(Record(partition, here, end, datetime.now(UTC)))
                self._ends[partition] = here
        return found
