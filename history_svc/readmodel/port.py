"""What a read model does. Two implementations: `elastic` (Elasticsearch) and `table` (a table in Postgres).

A read model is late and losable: the truth is in the shards, watermarks say how far the read model has it,
and whatever is lost is built again. So it never has to be asked whether it is complete; it has to say so
honestly when it cannot answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from history_svc.document import Document
    from history_svc.page import Row, Window


class IndexIdentity(NamedTuple):
    """Which index this is: one that was lost and came back empty has another uuid."""

    name: str
    cluster_uuid: str
    index_uuid: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look: an index, and the stream partitions whose documents count there; None for all.

    Shards share indices, and while a month is built again they change over one after the other. What one of
    them has left in the old index, perhaps because it was wrong, counts no more.
    """

    index: IndexIdentity
    stream_partitions: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """One document to put into one index.

    again: also when the index has this very version; for repairs. Otherwise a document only replaces an older
    one.
    """

    index: str
    document: Document
    again: bool = False


class Verdict(StrEnum):
    """What became of one write."""

    STORED = "stored"
    STALE = "stale"
    """The index has this version or a newer one: done."""
    LATER = "later"
    """Not now; the same write may succeed in a moment."""
    MISSING = "missing"
    """There is no such index."""
    REFUSED = "refused"
    """Never, as it is."""


class Outcome(NamedTuple):
    """The verdict about one write, with the store's reason where it refuses."""

    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DaySum:
    """One day of one stream partition, summed up: orders, their versions, their check numbers."""

    stream_partition: int
    day: date
    count: int
    versions: int
    hashes: int


class Entry(NamedTuple):
    """One document, as far as comparing needs it."""

    order_id: str
    version: int


class ReadModel(Protocol):
    """The documents of all shards. Safe to use by many tasks; every call ends within its timeout."""

    async def create(self, name: str) -> IndexIdentity:
        """The index of this name, made when it is missing. Idempotent.

        Raises: ReadModelUnavailable.
        """
        ...

    async def seal(self, names: Sequence[str]) -> None:
        """Have searches find some indices, each as the one that it is: those that an earlier release made.
        Idempotent; an index that is not there is left out. What `create` made needs it no more.

        Raises: ReadModelUnavailable.
        """
        ...

    async def identities(self, names: Sequence[str]) -> dict[str, IndexIdentity]:
        """Those of some indices that exist.

        Raises: ReadModelUnavailable.
        """
        ...

    async def drop(self, name: str) -> None:
        """Remove an index with all its documents. Idempotent.

        Raises: ReadModelUnavailable.
        """
        ...

    async def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[Outcome]:
        """Put documents into their indices; one outcome for each, in the same order. Idempotent.

        What is stored may be searched only after `refresh`.
        If cancelled here, or when it raises: any of them may have been stored.
        Raises: ReadModelUnavailable when nothing is known; TooMuchAtOnce when fewer should be sent at once.
        """
        ...

    async def refresh(self, names: Sequence[str]) -> None:
        """Make everything that was stored in some indices searchable, on every copy.

        Raises: ReadModelUnavailable when any copy did not, or an index is missing; then nothing may be taken
        for searchable.
        """
        ...

    async def search(
        self,
        places: Sequence[Place],
        window: Window,
        *,
        routing: Sequence[str],
        limit: int,
        timeout_s: float,
    ) -> list[Row]:
        """The newest orders of a window, newest first, at most `limit`; complete down to the last one.

        places:  where to look. It is in these very indices that the rows were found: one that was lost is not
                 taken for the one that was made in its place, whenever that happened.
        routing: where the user's documents are; empty for all users.
        Raises: IndexNotOurs when an index is not there, or is another one; ReadModelUnavailable rather than
        to leave anything out.
        """
        ...

    async def sums(self, name: str, partitions: Sequence[int]) -> list[DaySum]:
        """An index summed up by stream partition and day of creation (UTC), for some partitions.

        Deleted orders do not count; the shards do not have them.
        Raises: ReadModelUnavailable.
        """
        ...

    async def entries(self, name: str, partition: int, day: date, *, after: str, limit: int) -> list[Entry]:
        """The documents of one day and stream partition, by order id, after one of them; without
        deleted ones. after: empty for the first page.

        Raises: ReadModelUnavailable.
        """
        ...

    async def ping(self) -> None:
        """Ask whether it is there, within a second.

        Raises: ReadModelUnavailable.
        """
        ...
