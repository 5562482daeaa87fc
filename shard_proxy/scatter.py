"""Splits a read of many orders over the shards that hold them, and joins the answers.

Messages of protobuf merge by concatenation, so answers that consist of repeated fields are joined without
being decoded. All parts answer or the call fails with the error of the one that did not: never a short
list.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chassis.errors import Reason
from shard_proxy import headers
from shard_proxy.domain import By, Key, Placement, Why
from shard_proxy.errors import RouteUnsettled
from shard_proxy.journey import Journey
from shard_proxy.outcome import Ended, ended_calls
from shard_proxy.sending import unary_call
from shard_proxy.trip import Trip

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chassis.rpc import Call, RemoteError
    from shard_proxy.book import RouteBook
    from shard_proxy.headers import Metadata
    from shard_proxy.lanes import Lanes
    from shard_proxy.methods import Passed

ROUNDS_MAX = 8
"""A refusal names one bucket; a part that holds several old ones needs a round for each."""


@dataclass(frozen=True, slots=True)
class _Refused:
    """A part that a shard would not serve because the route of one of its buckets is old."""

    shard: str
    order_ids: Sequence[str]
    refusal: RemoteError


@dataclass(frozen=True, slots=True)
class _Scatter:
    """One request that is sent to several shards."""

    book: RouteBook
    lanes: Lanes
    passed: Passed
    raw: bytes
    call: Call
    inbound: Metadata

    async def round(self, parts: Mapping[str, Sequence[str]]) -> list[bytes | _Refused]:
        """Send every part at once; the first error that is no old route ends the others."""
        assert self.passed.view is not None
        requests = self.passed.view.split(self.raw, list(parts.values()))
        try:
            async with asyncio.TaskGroup() as group:
                sent = [
                    group.create_task(self._part(shard, order_ids, request), name=f"scatter-{shard}")
                    for (shard, order_ids), request in zip(parts.items(), requests, strict=True)
                ]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in sent]

    async def _part(self, shard: str, order_ids: Sequence[str], request: bytes) -> bytes | _Refused:
        journey = Journey(self.book, By.SHARD, Key((shard,)))
        trip = Trip(self.passed, self.call, self.inbound, journey, self.lanes)
        while True:
            lane = await trip.lane()
            try:
                async with unary_call(lane, self.passed, request, trip) as upstream:
                    with ended_calls():
                        answer: bytes = await upstream
                    trip.arrived(lane)
                    return answer
            except Ended as ended:
                if ended.remote.reason == Reason.STALE_ROUTE:
                    return _Refused(shard, order_ids, ended.remote)
                await trip.again(ended, lane)


async def gather(
    book: RouteBook, lanes: Lanes, passed: Passed, raw: bytes, key: Key, call: Call, inbound: Metadata
) -> bytes:
    """Ask every shard that holds one of the keys, and join the answers.

    Raises: as domain.scatter; the error of a part; RouteUnsettled when routes stay old.
    """
    journey = Journey(book, By.SCATTER, key)
    request = _Scatter(book, lanes, passed, raw, call, inbound)
    answers: list[bytes] = []
    shards: set[str] = set()
    pending: Sequence[str] = key.values
    try:
        for _ in range(ROUNDS_MAX):
            parts = await journey.scatter(pending)
            shards.update(parts)
            results = await request.round(parts)
            answers += [each for each in results if isinstance(each, bytes)]
            refused = [each for each in results if isinstance(each, _Refused)]
            for part in refused:
                await journey.heal(part.refusal, Placement(part.shard, Why.SCATTER))
            pending = [order_id for part in refused for order_id in part.order_ids]
            if not pending:
                journey.arrived()
                return b"".join(answers)
        raise RouteUnsettled(rounds=ROUNDS_MAX)
    finally:
        call.set_trailer(headers.SHARD_TRAILER, ",".join(sorted(shards)))
        route = headers.route_trailer(Placement("", Why.SCATTER), journey.map.version)
        call.set_trailer(headers.ROUTE_TRAILER, route)
