"""Writes orders as they are now into an index, past the channel: for rebuilds and repairs.

Versions keep it harmless beside the projector: whoever has the newer state wins, whichever comes first.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, NamedTuple

from history_svc.document import document
from history_svc.errors import ReadModelUnavailable
from history_svc.projector.bulk import BulkWriter
from history_svc.projector.indexer import QuarantineFull
from history_svc.readmodel.port import Outcome, Verdict, Write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from history_svc.care.parts import Parts
    from history_svc.care.store import OrderRow


WRITE_S_MAX = 60.0
"""After so long the step is given up, and done again later: whoever cancels it must not wait."""


class Put(NamedTuple):
    """What came of it: orders whose document the index has now, in this version or a newer one, and how many
    it refused.
    """

    written: Sequence[tuple[UUID, int]]
    refused: int


class OrderWriter:
    """Writes one shard's orders."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._bulk = BulkWriter(parts.read_model, parts.clock, parts.jitter)

    async def put(
        self, rows: Sequence[OrderRow], indices: Mapping[UUID, Sequence[str]], *, again: bool
    ) -> Put:
        """Write orders; what is refused goes to quarantine. Searchable after a refresh only.

        indices: of each order. again: also over a document of this very version.
        If cancelled here: any of them may have been written; that is harmless.
        Raises: ReadModelUnavailable when an index is gone; QuarantineFull, and what the store raises.
        """
        refused: dict[UUID, tuple[OrderRow, str]] = {}
        writes: list[Write] = []
        owners: list[OrderRow] = []
        for row in rows:
            try:
                made = document(json.loads(row.payload), row.stream_partition)
            except (KeyError, TypeError, ValueError) as odd:
                refused[row.order_id] = (row, f"no document can be made of it: {type(odd).__name__}")
                continue
            for name in indices[row.order_id]:
                writes.append(Write(name, made, again))
                owners.append(row)
        try:
            async with asyncio.timeout(WRITE_S_MAX):
                outcomes = await self._bulk.write(writes) if writes else []
        except TimeoutError:
            raise ReadModelUnavailable(because="it does not take documents") from None
        refused |= _refused(owners, outcomes)
        if refused:
            most = self._parts.quarantine_max
            quarantined = await self._parts.care.note_refused(list(refused.values()), most=most)
            if quarantined > most:
                raise QuarantineFull(f"{quarantined} orders are refused")
        lost = {write.index for write, each in zip(writes, outcomes, strict=True) if _is_lost(each)}
        if lost:
            raise ReadModelUnavailable(lost=",".join(sorted(lost)))
        written = [(row.order_id, row.version) for row in rows if row.order_id not in refused]
        return Put(written, len(refused))


def _refused(owners: Sequence[OrderRow], outcomes: Sequence[Outcome]) -> dict[UUID, tuple[OrderRow, str]]:
    return {
        row.order_id: (row, outcome.reason)
        for row, outcome in zip(owners, outcomes, strict=True)
        if outcome.verdict is Verdict.REFUSED
    }


def _is_lost(outcome: Outcome) -> bool:
    return outcome.verdict is Verdict.MISSING
