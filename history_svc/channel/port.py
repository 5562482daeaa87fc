"""What a source of changes does, for one shard.

Changes come at least once, and those of one stream partition in the order of their positions, each with the
position before it; so whoever takes them sees a gap. Nothing is forgotten before `kept` says that it is
searchable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from history_svc.events import Record
    from history_svc.position import Position


class EventSource(Protocol):
    """The changes of one shard."""

    async def take(self, *, bytes_max: int, wait_s: float) -> Sequence[Record]:
        """The next records of all partitions, in order within each; empty when none came for `wait_s`.

        Takes about `bytes_max` bytes at most, at least one record. What was taken is not given again, unless
        the source lost its place: then records may repeat.
        If cancelled here: nothing is lost.
        Raises: EventsUnavailable, ShardUnavailable: try again later.
        """
        ...

    async def kept(self, watermarks: Mapping[int, Position]) -> None:
        """Everything at or below these positions is searchable, and the shard's database says so.

        Raises: nothing; what cannot be noted now is noted with the next call.
        """
        ...

    async def rewind(self, watermarks: Mapping[int, Position]) -> None:
        """Something after these positions is missing: give it again.

        Raises: EventsUnavailable, ShardUnavailable.
        """
        ...
