"""A read model in memory, for tests of what stands on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

from history_svc.document import columns, from_us
from history_svc.errors import ReadModelUnavailable
from history_svc.page import Key, Row, Window
from history_svc.readmodel.port import DaySum, Entry, IndexIdentity, Outcome, Verdict, Write


class MemoryReadModel:
    def __init__(self) -> None:
        self.stored: dict[str, dict[str, Any]] = {}
        self.visible: dict[str, dict[str, Any]] = {}
        self.uuids: dict[str, int] = {}
        self.down = False

    async def create(self, name: str) -> IndexIdentity:
        self.stored.setdefault(name, {})
        self.visible.setdefault(name, {})
        return IndexIdentity(name, "memory", "1")

    async def identities(self, names: Sequence[str]) -> dict[str, IndexIdentity]:
        self._check()
        return {name: IndexIdentity(name, "memory", "1") for name in names if name in self.stored}

    async def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[Outcome]:
        self._check()
        outcomes = []
        for write in writes:
            index = self.stored[write.index]
            known = index.get(write.document["order_id"])
            if known is not None and known["version"] >= write.document["version"]:
                outcomes.append(Outcome(Verdict.STALE))
                continue
            index[write.document["order_id"]] = write.document
            outcomes.append(Outcome(Verdict.STORED))
        return outcomes

    async def refresh(self, names: Sequence[str]) -> None:
        self._check()
        for name in names:
            self.visible[name] = dict(self.stored[name])

    async def search(
        self, names: Sequence[str], window: Window, *, routing: Sequence[str], limit: int, timeout_s: float
    ) -> list[Row]:
        self._check()
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

    async def drop(self, name: str) -> None:
        self._check()
        self.stored.pop(name, None)
        self.visible.pop(name, None)

    async def sums(self, name: str, partitions: Sequence[int]) -> list[DaySum]:
        self._check()
        found: dict[tuple[int, date], DaySum] = {}
        for partition, day, document in self._by_day(name):
            if partition in partitions:
                known = found.get((partition, day), DaySum(partition, day, 0, 0, 0))
                version, check = document["version"], document["h32"]
                found[partition, day] = DaySum(
                    partition, day, known.count + 1, known.versions + version, known.hashes + check
                )
        return list(found.values())

    async def entries(self, name: str, partition: int, day: date, *, after: str, limit: int) -> list[Entry]:
        self._check()
        found = [
            Entry(document["order_id"], document["version"])
            for where, when, document in self._by_day(name)
            if (where, when) == (partition, day) and document["order_id"] > after
        ]
        return sorted(found)[:limit]

    async def ping(self) -> None:
        self._check()

    def _by_day(self, name: str) -> Iterator[tuple[int, date, dict[str, Any]]]:
        for document in self.visible.get(name, {}).values():
            yield document["stream_partition"], from_us(document["created_us"]).date(), document

    def _check(self) -> None:
        if self.down:
            raise ReadModelUnavailable
