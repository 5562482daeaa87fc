"""Says which indices there are in Elasticsearch, after the fact and to many at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chassis.es import EsUnavailable, names_in_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chassis.es import Elastic

LOOK_TIMEOUT_S = 5.0
_THOSE_THERE = {
    "flat_settings": "true",
    "ignore_unavailable": "true",
    "allow_no_indices": "true",
    "expand_wildcards": "none",
}


class Witness:
    """Looks for whoever waits when a look begins; who comes later waits for the next one. So nobody gets an
    answer that is older than the question, and there is one look at a time, however many wait.
    """

    def __init__(self, elastic: Elastic) -> None:
        self._elastic = elastic
        self._names: set[str] = set()
        self._looking: asyncio.Task[Mapping[str, str]] | None = None
        self._next: asyncio.Task[Mapping[str, str]] | None = None

    async def uuids(self, names: Sequence[str], *, timeout_s: float) -> Mapping[str, str]:
        """UUIDs of the indices that are there, by name: of these names, perhaps of others too.

        The elected master says so, and not before it was asked.
        Raises: EsUnavailable, EsRefused.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._look_after(self._looking), name="index-witness")
            self._next.add_done_callback(_was_heard)
        self._names.update(names)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._next)
        except TimeoutError as late:
            raise EsUnavailable(f"no word of the indices in {timeout_s:g} s") from late

    async def _look_after(self, before: asyncio.Task[Mapping[str, str]] | None) -> Mapping[str, str]:
        if before is not None:
            await asyncio.wait([before])
        self._looking, self._next = self._next, None
        names, self._names = self._names, set()
        path = f"/{names_in_path(sorted(names))}/_settings/index.uuid"
        found = await self._elastic.call("GET", path, params=_THOSE_THERE, timeout_s=LOOK_TIMEOUT_S)
        return {name: said["settings"]["index.uuid"] for name, said in found.items()}


def _was_heard(look: asyncio.Task[Mapping[str, str]]) -> None:
    """Those who wait are told of a failure; when nobody waits any more, nobody has to be."""
    if not look.cancelled():
        look.exception()
