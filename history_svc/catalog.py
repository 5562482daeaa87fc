"""Which index holds which month, as a shard's catalog says it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from history_svc.document import month_of, month_start, next_month
from history_svc.page import Key
from history_svc.readmodel.port import IndexIdentity, Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from history_svc.page import Window

FIRST_SPAN = 3
"""Months looked into at first; most users' pages end there. Then twice as many, and so on."""


class State(StrEnum):
    """What is done with an index."""

    BUILDING = "BUILDING"
    """Written, not read: it does not have everything yet."""
    SERVING = "SERVING"
    """Written and read."""
    RETIRED = "RETIRED"
    """Neither; its place is taken."""


@dataclass(frozen=True, slots=True)
class Index:
    """One month's index in one generation. month: its first day, UTC."""

    month: date
    generation: int
    identity: IndexIdentity
    state: State


@dataclass(frozen=True, slots=True)
class Catalog:
    """A shard's catalog at one version."""

    version: int
    indices: tuple[Index, ...] = ()

    def serving(self) -> dict[date, Index]:
        """The index to read of each month: the newest generation that serves."""
        return {
            index.month: index
            for index in sorted(self.indices, key=lambda index: index.generation)
            if index.state is State.SERVING
        }

    def unserved(self) -> set[date]:
        """Months that have documents somewhere and none that may be read."""
        return {index.month for index in self.indices} - set(self.serving())


@dataclass(frozen=True, slots=True)
class ShardCatalog(Catalog):
    """A catalog and what it speaks for: the documents of its shard's stream partitions."""

    stream_partitions: range = field(kw_only=True)


def catalog_of(version: int, rows: Iterable[Sequence[Any]]) -> Catalog:
    """A catalog from plain rows, as the statements return them."""
    return Catalog(version, _indices(rows))


def shard_catalog_of(version: int, rows: Iterable[Sequence[Any]], stream_partitions: range) -> ShardCatalog:
    """A shard's catalog from plain rows."""
    return ShardCatalog(version, _indices(rows), stream_partitions=stream_partitions)


def _indices(rows: Iterable[Sequence[Any]]) -> tuple[Index, ...]:
    return tuple(
        Index(date.fromisoformat(month), generation, IndexIdentity(name, cluster, uuid), State(state))
        for month, generation, name, cluster, uuid, state in rows
    )


def months_in(
    catalogs: Sequence[ShardCatalog], window: Window, until: datetime
) -> dict[date, tuple[Place, ...]]:
    """What has to be searched for a window below `until`, newest month first.

    Shards may be at different generations of a month while it is built again, and one of them may have left
    an index, or found it wrong, that another one reads. Then each shard's documents count only in the index
    that the shard reads. Mostly one index serves all, and all in it counts.
    """
    found: dict[date, dict[IndexIdentity, set[int]]] = {}
    newest = month_of(min(until, window.before.created_at))
    oldest = month_of(window.not_before)
    for catalog in catalogs:
        for month, index in catalog.serving().items():
            if oldest <= month <= newest:
                served = found.setdefault(month, {}).setdefault(index.identity, set())
                served.update(catalog.stream_partitions)
    left = {month for catalog in catalogs for month in catalog.unserved()}
    left |= {month for month, served in found.items() if len(served) > 1}
    return {
        month: tuple(
            Place(index, tuple(sorted(partitions)) if month in left else None)
            for index, partitions in found[month].items()
        )
        for month in sorted(found, reverse=True)
    }


def is_unserved(catalogs: Iterable[Catalog], window: Window, until: datetime) -> bool:
    """Whether a month of the window has documents that may not be read."""
    newest = min(until, window.before.created_at)
    return any(
        month_start(month) <= newest and month_start(next_month(month)) > window.not_before
        for catalog in catalogs
        for month in catalog.unserved()
    )


def spans(months: Mapping[date, tuple[Place, ...]]) -> list[tuple[tuple[Place, ...], Key | None]]:
    """Which places to search together, newest first, and down to where each search is complete; None for the
    last one, which ends the list.
    """
    ordered = list(months)
    cut: list[tuple[tuple[Place, ...], Key | None]] = []
    start, length = 0, FIRST_SPAN
    while start < len(ordered):
        chunk = ordered[start : start + length]
        start += length
        length *= 2
        places = tuple(place for month in chunk for place in months[month])
        floor = Key(month_start(chunk[-1]), UUID(int=0)) if start < len(ordered) else None
        cut.append((places, floor))
    return cut
