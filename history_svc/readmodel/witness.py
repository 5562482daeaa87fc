"""Says which indices there are in Elasticsearch: lately, and to many at once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from chassis.es import EsUnavailable, names_in_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chassis.es import Elastic

    Look = Mapping[str, str | None] | asyncio.Task[Mapping[str, str | None]]

LOOK_TIMEOUT_S = 5.0
AGE_S_MAX = 1.0
"""How old a look may be when a search begins that relies on it."""
_THOSE_THERE = {
    "flat_settings": "true",
    "ignore_unavailable": "true",
    "allow_no_indices": "true",
    "expand_wildcards": "none",
}


class Witness:
    """Keeps what a look found for a second. Whoever needs another look shares it with all who wait for it to
    begin, so there is one at a time, however many wait, and none while nobody searches.
    """

    def __init__(self, elastic: Elastic, now: Callable[[], float] = time.monotonic) -> None:
        self._elastic = elastic
        self._now = now
        self._seen: dict[str, tuple[str | None, float]] = {}
        self._names: set[str] = set()
        self._looking: asyncio.Task[Mapping[str, str | None]] | None = None
        self._next: asyncio.Task[Mapping[str, str | None]] | None = None

    def begin(self, names: Sequence[str]) -> Look:
        """What a recent look saw of these, or a look that begins now; it may run beside the search that it
        is for. `uuids` says what it found.
        """
        since = self._now() - AGE_S_MAX
        seen = {name: self._seen[name] for name in names if name in self._seen}
        if len(seen) == len(set(names)) and all(began >= since for _, began in seen.values()):
            return {name: uuid for name, (uuid, _) in seen.items()}
        if self._next is None:
            self._next = asyncio.create_task(self._look_after(self._looking), name="index-witness")
            self._next.add_done_callback(_was_heard)
        self._names.update(names)
        return self._next

    async def uuids(self, look: Look, *, timeout_s: float) -> Mapping[str, str | None]:
        """UUIDs of the indices that a look was for, and perhaps of others, as the elected master said; None
        of those that were not there.

        Raises: EsUnavailable, EsRefused.
        """
        if not isinstance(look, asyncio.Task):
            return look
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(look)
        except TimeoutError as late:
            raise EsUnavailable(f"no word of the indices in {timeout_s:g} s") from late

    async def _look_after(self, before: asyncio.Task[Any] | None) -> Mapping[str, str | None]:
        if before is not None:
            await asyncio.wait([before])
        self._looking, self._next = self._next, None
        names, self._names = self._names, set()
        began = self._now()
        path = f"/{names_in_path(sorted(names))}/_settings/index.uuid"
        found = await self._elastic.call("GET", path, params=_THOSE_THERE, timeout_s=LOOK_TIMEOUT_S)
        uuids = {name: found[name]["settings"]["index.uuid"] if name in found else None for name in names}
        recent = {name: seen for name, seen in self._seen.items() if seen[1] >= began - AGE_S_MAX}
        self._seen = {**recent, **{name: (uuid, began) for name, uuid in uuids.items()}}
        return uuids


def _was_heard(look: asyncio.Task[Any]) -> None:
    """Those who wait are told of a failure; when nobody waits any more, nobody has to be."""
    if not look.cancelled():
        look.exception()
