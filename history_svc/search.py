"""Searches of the read model for pages: asked only while it answers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from history_svc.errors import IndexNotOurs, ReadModelUnavailable
from history_svc.metrics import SEARCH_FAILURES, SEARCH_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from history_svc.catalog import Index
    from history_svc.page import Row, Window
    from history_svc.readmodel.port import Place, ReadModel

REST_S_MIN = 0.25
REST_S_MAX = 4.0
"""How long a read model that did not answer is left alone: doubling between these."""


@dataclass(slots=True)
class Searcher:
    """Searches with a memory: while the read model does not answer, callers are told at once."""

    read_model: ReadModel
    timeout_s: float
    now: Callable[[], float] = time.monotonic
    _failures: int = field(default=0, init=False)
    _rests_until: float = field(default=0.0, init=False)

    async def search(
        self,
        places: Sequence[Place],
        window: Window,
        *,
        routing: Sequence[str],
        limit: int,
        timeout_s: float,
    ) -> list[Row]:
        """The newest orders of a window in some places; complete down to the last one.

        Raises: ReadModelUnavailable, also when an index is not the one that the catalog knows.
        """
        if self.now() < self._rests_until:
            raise ReadModelUnavailable(resting="yes")
        started = self.now()
        try:
            rows = await self.read_model.search(
                places,
                window,
                routing=routing,
                limit=limit,
                timeout_s=min(timeout_s, self.timeout_s),
            )
        except IndexNotOurs:
            # Its months are not served; nothing is wrong with the others.
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

    def _failed(self) -> None:
        SEARCH_FAILURES.inc()
        self._failures += 1
        self._rests_until = self.now() + min(REST_S_MAX, REST_S_MIN * 2 ** min(self._failures - 1, 8))
