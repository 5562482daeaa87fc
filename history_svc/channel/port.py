"""What a source of changes does, for one shard; and what the relay asks of whoever carries changes to it.

Changes come at least once, and those of one stream partition in the order of their positions, each with the
position before it; so whoever takes them sees a gap. Nothing is forgotten before `kept` says that it is
searchable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from history_svc.events import Record, StreamRange
    from history_svc.position import Position


class EventSource(Protocol):
    """The changes of one shard."""

    @property
    def is_ours(self) -> bool:
        """Whether this process is given changes of the shard now, and so may say how it stands."""
        ...

    async def take(self, *, bytes_max: int, wait_s: float) -> Sequence[Record]:
        """The next records of all partitions, in order within each; empty when none came for `wait_s`.

        Takes about `bytes_max` bytes at most, at least one record. What was taken is not given again, unless
        the source lost its place: then records may repeat. If cancelled here: nothing is lost. Raises:
        EventsUnavailable, ShardUnavailable: begin anew at the stored watermarks, a little later; another
        process may have gone on meanwhile.
        """
        ...

    async def kept(self, watermarks: Mapping[int, Position]) -> None:
        """Everything at or below these positions is searchable, and the shard's database says so.

        Raises: nothing; what cannot be noted now is noted with the next call.
        """
        ...

    async def rewind(self, watermarks: Mapping[int, Position]) -> None:
        """Something after these positions is missing: give it again.

        Raises: EventsUnavailable, ShardUnavailable: as `take`.
        """
        ...


class Publisher(Protocol):
    """Carries records away, each stream partition in order. After an error it is thrown away for another."""

    async def prepare(self, streams: StreamRange) -> None:
        """Make sure that a shard's part of the stream is there. Idempotent.

        Raises: EventsUnavailable.
        """
        ...

    async def send(self, partition: int, records: Sequence[Record]) -> Awaitable[None]:
        """Hand over records of one partition; what is returned ends when all are stored for good.

        For one task. Records of two calls are stored in the order of the calls.
        If cancelled here, or when it raises: any of the records may come to be stored.
        Raises: EventTooLarge, and no record was handed over; EventsUnavailable, here or by what is returned.
        """
        ...


class DeadLetters(Protocol):
    """Keeps changes that cannot be indexed for a person to look at."""

    async def put(self, record: Record, reason: str) -> None:
        """Keep one. Idempotent enough: a repeat keeps it twice.

        Raises: EventsUnavailable, ShardUnavailable: it is not kept, try again later.
        """
        ...
