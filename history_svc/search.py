"""Searches of the read model for pages: asked only while it answers, and only in indices that are the ones
they should be.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from history_svc.errors import ReadModelUnavailable
from history_svc.metrics import SEARCH_FAILURES, SEARCH_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from history_svc.catalog import Index
    from history_svc.page import Row, Window
    from history_svc.readmodel.port import ReadModel

REST_S_MIN = 0.25
REST_S_MAX = 4.0
"""How long a read model that did not answer is left alone: doubling between these."""
IDENTITY_TTL_S = 1.0
"""How long an index is taken for the one it was."""


class NotOurs(ReadModelUnavailable):
    """A month's index is not the one that was made for it; its orders cannot be searched now."""


@dataclass(slots=True)
class Searcher:
    """Searches with a memory: while the read model does not answer, callers are told at once."""

    read_model: ReadModel
    timeout_s: float
    now: Callable[[], float] = time.monotonic
    _failures: int = field(default=0, init=False)
    _rests_until: float = field(default=0.0, init=False)
    _known: dict[str, tuple[str, str, float]] = field(default_factory=dict, init=False)

    async def search(
        self,
        indices: Sequence[Index],
        window: Window,
        *,
        routing: Sequence[str],
        limit: int,
        timeout_s: float,
    ) -> list[Row]:
        """The newest orders of a window in some indices; complete down to the last one.

        Raises: ReadModelUnavailable, also when an index is not the one that the catalog knows.
        """
        if self.now() < self._rests_until:
            raise ReadModelUnavailable(resting="yes")
        started = self.now()
        try:
            strange = await self._strange(indices)
            if strange:
                # Its months are not served; nothing is wrong with the others.
                raise NotOurs(index=strange)
            rows = await self.read_model.search(
                [index.identity.name for index in indices],
                window,
                routing=routing,
                limit=limit,
                timeout_s=min(timeout_s, self.timeout_s),
            )
        except NotOurs:
            raise
        except ReadModelUnavailable:
            self._failed()
            raise
        self._failures = 0
        SEARCH_SECONDS.observe(self.now() - started)
        return rows

    async def are_ours(self, indices: Sequence[Index]) -> dict[str, bool]:
        """Whether each index is the one that the catalog knows, by name.

        Raises: ReadModelUnavailable.
        """
        found = await self.read_model.identities([index.identity.name for index in indices])
        return {index.identity.name: found.get(index.identity.name) == index.identity for index in indices}

    async def _strange(self, indices: Sequence[Index]) -> str:
        """The first index that is not the one that the catalog knows; empty when all are.

        One that was lost and came back empty would make lists short; so it is looked at before each search.
        """
        at = self.now()
        unknown = []
        for index in indices:
            cluster, uuid, until = self._known.get(index.identity.name, ("", "", 0.0))
            if (cluster, uuid) != index.identity[1:] or until < at:
                unknown.append(index)
        if not unknown:
            return ""
        ours = await self.are_ours(unknown)
        for index in unknown:
            if not ours[index.identity.name]:
                return index.identity.name
            self._known[index.identity.name] = (*index.identity[1:], at + IDENTITY_TTL_S)
        return ""

    def _failed(self) -> None:
        SEARCH_FAILURES.inc()
        self._failures += 1
        self._rests_until = self.now() + min(REST_S_MAX, REST_S_MIN * 2 ** min(self._failures - 1, 8))
