"""Why a page looks as it does, for operators: what each shard says, and who would serve the page."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from history_svc import wire
from history_svc.catalog import Index
from history_svc.errors import ReadModelUnavailable
from history_svc.page import NEWEST, OLDEST, PAGE_SIZE_MAX, Window
from history_svc.reader import Wish, all_of
from ordermesh.history.v1 import history_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from chassis.placement import Held
    from history_svc.parts import ShardPart
    from history_svc.reader import Reader, Served
    from history_svc.search import Searcher
    from history_svc.store import Shards

QUARANTINED_MAX = 100


@dataclass(frozen=True, slots=True)
class Facts:
    """What a page is made of. ours: by index name, whether it is the one that the catalog knows."""

    boundary: datetime
    parts: tuple[ShardPart, ...]
    quarantine: Mapping[str, Sequence[tuple[UUID, int, str]]]
    ours: Mapping[str, bool]
    served: Served


class Explainer:
    """Collects the facts."""

    def __init__(self, shards: Shards, searcher: Searcher, reader: Reader, hot_window: timedelta) -> None:
        self._shards = shards
        self._searcher = searcher
        self._reader = reader
        self._hot_window = hot_window

    async def explain(
        self, placement: Mapping[str, Sequence[Held]], user_id: str, *, now: datetime, timeout_s: float
    ) -> Facts:
        """The facts behind a user's first page of the greatest size.

        Raises: StaleRoute, ShardUnavailable, DeadlineExceeded, Overloaded.
        """
        end = time.monotonic() + timeout_s
        wish = Wish(Window(user_id, NEWEST, OLDEST), PAGE_SIZE_MAX)
        parts = await self._reader.parts(placement, wish, now=now, timeout_s=timeout_s)
        indices = {index.identity.name: index for part in parts for index in part.catalog.indices}
        refused = await all_of(
            [
                self._shards.quarantined(
                    part.shard, user_id, QUARANTINED_MAX, timeout_s=max(0.001, end - time.monotonic())
                )
                for part in parts
            ]
        )
        served = await self._reader.read(
            placement, wish, now=now, timeout_s=max(0.001, end - time.monotonic())
        )
        quarantine = {part.shard: rows for part, rows in zip(parts, refused, strict=True)}
        ours = await self._ours(list(indices.values()))
        return Facts(now - self._hot_window, parts, quarantine, ours, served)

    async def _ours(self, indices: Sequence[Index]) -> Mapping[str, bool]:
        try:
            return await self._searcher.are_ours(indices)
        except ReadModelUnavailable:
            return {}


def explained(facts: Facts, placement: Mapping[str, Sequence[Held]], now: datetime) -> pb.ExplainPageResponse:
    """The facts on the wire."""
    return pb.ExplainPageResponse(
        boundary=wire.stamp(facts.boundary),
        shards=[_part(facts, part, placement[part.shard], now) for part in facts.parts],
        read_info=wire.read_info(facts.served, now),
    )


def _part(
    facts: Facts, part: ShardPart, held: Sequence[Held], now: datetime
) -> pb.ExplainPageResponse.ShardPart:
    return pb.ExplainPageResponse.ShardPart(
        shard=part.shard,
        buckets=[one.bucket for one in held],
        watermarks=[
            pb.ExplainPageResponse.Watermark(
                stream_partition=mark.stream_partition,
                position="" if mark.position is None else str(mark.position),
                as_of=wire.stamp(mark.as_of),
                lag=None if mark.as_of is None else wire.duration(now - mark.as_of),
            )
            for mark in part.marks
        ],
        overlay=[
            pb.ExplainPageResponse.Change(
                order_id=str(row.key.order_id),
                version=row.version,
                update_time=wire.stamp(row.columns["updated_at"]),
            )
            for row in part.changed
        ],
        quarantine=[
            pb.ExplainPageResponse.Quarantined(order_id=str(order_id), version=version, reason=reason)
            for order_id, version, reason in facts.quarantine[part.shard]
        ],
        indices=[_index(index, facts.ours) for index in part.catalog.indices],
        unreliable=part.why_unreliable(),
        hot_count=len(part.recent),
        archived_before_time=None if part.archived_to == OLDEST else wire.stamp(part.archived_to),
    )


def _index(index: Index, ours: Mapping[str, bool]) -> pb.ExplainPageResponse.Index:
    return pb.ExplainPageResponse.Index(
        month=index.month.isoformat(),
        generation=index.generation,
        name=index.identity.name,
        state=index.state.value,
        is_ours=ours.get(index.identity.name, False),
    )
