"""A read model in memory, for tests of what stands on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import date
from typing import Any

from history_svc.document import columns, from_us
from history_svc.errors import ReadModelUnavailable
from history_svc.page import Key, Row, Window
from history_svc.readmodel.port import DaySum, Entry, IndexIdentity, Outcome, Verdict, Write


class Died(BaseException):
    """The process that asked died at this await."""


class MemoryReadModel:
    """stored: what was written; visible: what a search shows, as of the last refresh.

    down:     it does not answer. refuses: orders whose documents it never takes. later: how many of the next
    items
              it takes later only. at: told the name of every call before and after it; raises what ends the
              caller.
    """

    def __init__(self) -> None:
        self.stored: dict[str, dict[str, Any]] = {}
        self.visible: dict[str, dict[str, Any]] = {}
        self.uuids: dict[str, int] = {}
        self.down = False
        self.refuses: set[str] = set()
        self.later = 0
        self.searches = 0
        self.at: Callable[[str], Awaitable[None]] = _nothing
        self._made = 0

    def lose(self, name: str) -> None:
        """An index is gone."""
        for indices in (self.stored, self.visible, self.uuids):
            indices.pop(name, None)  # type: ignore[attr-defined]

    async def create(self, name: str) -> IndexIdentity:
        await self.at("create")
        self._check()
        if name not in self.stored:
            self._made += 1
            self.stored[name], self.visible[name], self.uuids[name] = {}, {}, self._made
        return self._identity(name)

    def _identity(self, name: str) -> IndexIdentity:
        return IndexIdentity(name, "memory", str(self.uuids[name]))

    async def identities(self, names: Sequence[str]) -> dict[str, IndexIdentity]:
        self._check()
        return {name: self._identity(name) for name in names if name in self.stored}

    async def drop(self, name: str) -> None:
        self._check()
        self.lose(name)

    async def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[Outcome]:
        await self.at("write")
        self._check()
        outcomes = [self._write(write) for write in writes]
        await self.at("written")
        return outcomes

    def _write(self, write: Write) -> Outcome:
        order_id, version = write.document["order_id"], write.document["version"]
        if write.index not in self.stored:
            return Outcome(Verdict.MISSING)
        if order_id in self.refuses:
            return Outcome(Verdict.REFUSED, "refused by a test")
        if self.later > 0:
            self.later -= 1
            return Outcome(Verdict.LATER)
        known = self.stored[write.index].get(order_id)
        if known is not None and (known["version"], write.again) >= (version, True):
            return Outcome(Verdict.STALE)
        self.stored[write.index][order_id] = write.document
        return Outcome(Verdict.STORED)

    async def refresh(self, names: Sequence[str]) -> None:
        await self.at("refresh")
        self._check()
        for name in names:
            if name not in self.stored:
                raise ReadModelUnavailable(index=name)
            self.visible[name] = dict(self.stored[name])
        await self.at("refreshed")

    async def search(
        self, names: Sequence[str], window: Window, *, routing: Sequence[str], limit: int, timeout_s: float
    ) -> list[Row]:
        await self.at("search")
        self._check()
        self.searches += 1
        found = []
        for name in names:
            if name not in self.visible:
                raise ReadModelUnavailable
            for document in self.visible[name].values():
                row = columns(document)
                key = Key(from_us(document["created_us"]), row["order_id"])
                if (
                    window.user_id in (None, row["user_id"])
                    and key < window.before
                    and key.created_at >= window.not_before
                    and window.filter.shows(row)
                ):
                    found.append(Row(key, row["version"], row))
        found.sort(key=lambda row: row.key, reverse=True)
        return found[:limit]

    async def sums(self, name: str, partitions: Sequence[int]) -> list[DaySum]:
        self._check()
        cells: dict[tuple[int, date], list[int]] = {}
        for document in self.visible[name].values():
            if document["stream_partition"] in partitions:
                cell = cells.setdefault(
                    (document["stream_partition"], from_us(document["created_us"]).date()), [0, 0, 0]
                )
                for place, value in enumerate((1, document["version"], document["h32"])):
                    cell[place] += value
        return [DaySum(partition, day, *cell) for (partition, day), cell in sorted(cells.items())]

    async def entries(self, name: str, partition: int, day: date, *, after: str, limit: int) -> list[Entry]:
        self._check()
        found = sorted(
            (order_id, document["version"])
            for order_id, document in self.visible[name].items()
            if document["stream_partition"] == partition
            and from_us(document["created_us"]).date() == day
            and order_id > after
        )
        return [Entry(*each) for each in found[:limit]]

    async def ping(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.down:
            raise ReadModelUnavailable


async def _nothing(_: str) -> None:
    return
