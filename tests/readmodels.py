"""A read model in memory, for tests of what stands on it: it passes the suite that the real ones pass
(tests/contract/test_read_models.py), and can be told to fail.

    read_model = MemoryReadModel()
    read_model.down = True                       # nobody answers
    read_model.refuses.add(str(order_id))        # never takes that order's document
    read_model.later = 3                         # takes the next three documents only later
    read_model.at = hook                         # told "write", "written", "refresh", ...; may raise Died
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from history_svc.document import columns, from_us
from history_svc.errors import IndexNotOurs, ReadModelUnavailable, TooMuchAtOnce
from history_svc.page import Key, Row, Window
from history_svc.readmodel.fields import why_refused
from history_svc.readmodel.port import DaySum, Entry, IndexIdentity, Outcome, Place, Verdict, Write

CHARS_MAX = 32 * 1024 * 1024
Documents = dict[str, dict[str, Any]]


class Died(BaseException):
    """The process that asked died at this await."""


async def _nothing(_: str) -> None:
    return


@dataclass
class MemoryReadModel:
    """stored: documents by index and order, as written; visible: what a search shows, as of the last refresh.

    down:        it does not answer. refuses: orders whose documents it never takes. later: how many of the
                 next documents it takes later only. at_once_max: more writes at once are too much.
    at:          told the name of every call, and "created", "written", "refreshed" before these return; what
                 it raises ends the caller.
    """

    stored: dict[str, Documents] = field(default_factory=dict)
    visible: dict[str, Documents] = field(default_factory=dict)
    uuids: dict[str, int] = field(default_factory=dict)
    down: bool = False
    refuses: set[str] = field(default_factory=set)
    later: int = 0
    at_once_max: int = 100_000
    at: Callable[[str], Awaitable[None]] = _nothing

    async def create(self, name: str) -> IndexIdentity:
        await self._asked("create")
        if name not in self.stored:
            self.stored[name], self.visible[name] = {}, {}
            self.uuids[name] = self.uuids.get(name, 0) + 1
        await self.at("created")
        return self._identity(name)

    async def seal(self, names: Sequence[str]) -> None:
        await self._asked("seal")

    async def identities(self, names: Sequence[str]) -> dict[str, IndexIdentity]:
        await self._asked("identities")
        return {name: self._identity(name) for name in names if name in self.stored}

    async def drop(self, name: str) -> None:
        await self._asked("drop")
        self.lose(name)

    async def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[Outcome]:
        await self._asked("write")
        size = sum(len(write.document.get("description", "")) for write in writes)
        if len(writes) > 1 and (len(writes) > self.at_once_max or size > CHARS_MAX):
            raise TooMuchAtOnce
        outcomes = [self._put(write) for write in writes]
        await self.at("written")
        return outcomes

    async def refresh(self, names: Sequence[str]) -> None:
        await self._asked("refresh")
        self._check(names)
        for name in names:
            self.visible[name] = dict(self.stored[name])
        await self.at("refreshed")

    async def search(
        self,
        places: Sequence[Place],
        window: Window,
        *,
        routing: Sequence[str],
        limit: int,
        timeout_s: float,
    ) -> list[Row]:
        await self._asked("search")
        there = {name: self._identity(name) for name in self.stored}
        if any(there.get(place.index.name) != place.index for place in places):
            raise IndexNotOurs
        rows = [
            _row(found)
            for place in places
            for found in self._alive(place.index.name)
            if place.stream_partitions is None or found["stream_partition"] in place.stream_partitions
        ]
        shown = [row for row in rows if _is_in(row, window)]
        return sorted(shown, key=lambda row: row.key, reverse=True)[:limit]

    async def sums(self, name: str, partitions: Sequence[int]) -> list[DaySum]:
        await self._asked("sums")
        self._check([name])
        cells: dict[tuple[int, date], list[dict[str, Any]]] = {}
        for found in self._alive(name):
            if found["stream_partition"] in partitions:
                cells.setdefault((found["stream_partition"], _day(found)), []).append(found)
        return [
            DaySum(*cell, len(all_), sum(d["version"] for d in all_), sum(d["h32"] for d in all_))
            for cell, all_ in cells.items()
        ]

    async def entries(self, name: str, partition: int, day: date, *, after: str, limit: int) -> list[Entry]:
        await self._asked("entries")
        self._check([name])
        found = [
            Entry(each["order_id"], each["version"])
            for each in self._alive(name)
            if each["stream_partition"] == partition and _day(each) == day and each["order_id"] > after
        ]
        return sorted(found)[:limit]

    async def ping(self) -> None:
        await self._asked("ping")

    def lose(self, name: str) -> None:
        """Lose an index, as a broken disk does."""
        self.stored.pop(name, None)
        self.visible.pop(name, None)

    def _put(self, write: Write) -> Outcome:
        if write.index not in self.stored:
            return Outcome(Verdict.MISSING)
        if why := why_refused(write.document):
            return Outcome(Verdict.REFUSED, why)
        if write.document["order_id"] in self.refuses:
            return Outcome(Verdict.REFUSED, "refused by a test")
        if self.later:
            self.later -= 1
            return Outcome(Verdict.LATER)
        index, version = self.stored[write.index], write.document["version"]
        known = index.get(write.document["order_id"])
        if known is not None and known["version"] > version - (not write.again):
            return Outcome(Verdict.STALE)
        index[write.document["order_id"]] = write.document
        return Outcome(Verdict.STORED)

    def _alive(self, name: str) -> list[dict[str, Any]]:
        return [found for found in self.visible[name].values() if not found["deleted"]]

    def _identity(self, name: str) -> IndexIdentity:
        return IndexIdentity(name, "memory", str(self.uuids[name]))

    def _check(self, names: Sequence[str]) -> None:
        if any(name not in self.stored for name in names):
            raise ReadModelUnavailable

    async def _asked(self, call: str) -> None:
        await self.at(call)
        if self.down:
            raise ReadModelUnavailable


def _row(found: dict[str, Any]) -> Row:
    row = columns(found)
    return Row(Key(from_us(found["created_us"]), row["order_id"]), row["version"], row)


def _is_in(row: Row, window: Window) -> bool:
    return (
        window.user_id in (None, row.columns["user_id"])
        and row.key < window.before
        and row.key.created_at >= window.not_before
        and window.filter.shows(row.columns)
    )


def _day(found: dict[str, Any]) -> date:
    return from_us(found["created_us"]).date()
