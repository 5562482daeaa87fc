"""Where a user's orders are: every bucket that the user ever had, by shard, at the epoch that the proxy knew.

A user leaves a bucket only while it is frozen, and the bucket has a greater epoch afterwards. So who finds
every bucket owned at its epoch, after a moment, has every order of the user that was created before that
moment; who finds another epoch does not know where else orders may be, and asks the proxy again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import grpc

from archive_svc.errors import PlacesUnknown
from chassis import pg
from chassis.errors import StaleRoute
from chassis.placement import Held
from ordermesh.routing.v1 import routing_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ordermesh.routing.v1.routing_service_pb2_grpc import RoutingServiceAsyncStub

Places = Mapping[str, tuple[Held, ...]]
"""The buckets to read, by shard."""
STALE_BUCKET = pg.queries("archive_svc.statement", "statements.sql").stale_bucket
ASK_S = 2.0
"""The proxy answers from memory."""


class Whereabouts(Protocol):
    """Knows where users' orders are."""

    async def of(self, user_id: str) -> Places:
        """As the newest map has it.

        Raises: PlacesUnknown.
        """
        ...


class AtProxy:
    """Asks shard_proxy."""

    def __init__(self, routing: RoutingServiceAsyncStub) -> None:
        self._routing = routing

    async def of(self, user_id: str) -> Places:
        """As `Whereabouts`."""
        try:
            answer = await self._routing.Where(pb.WhereRequest(user_id=user_id), timeout=ASK_S)
        except grpc.aio.AioRpcError as failed:
            raise PlacesUnknown(code=failed.code().name) from failed
        places: dict[str, tuple[Held, ...]] = {}
        for each in answer.placements:
            places[each.shard] = (*places.get(each.shard, ()), Held(each.bucket, each.epoch))
        if not places:
            raise PlacesUnknown
        return places


async def see_owned(asked: pg.Database | pg.Session, held: Sequence[Held]) -> None:
    """See that the shard has these buckets, at these epochs, and that nobody is just leaving one.

    Raises: StaleRoute.
    """
    epochs = [one.epoch for one in held]
    for stale in await asked.fetch(STALE_BUCKET, [one.bucket for one in held], epochs):
        raise StaleRoute(**{name: fact for name, fact in stale.items() if fact is not None})


def packed(places: Places) -> dict[str, list[list[int]]]:
    """Places as a row has them."""
    return {shard: [[one.bucket, one.epoch] for one in held] for shard, held in places.items()}


def unpacked(row: Mapping[str, Sequence[Sequence[int] | int]]) -> Places:
    """What packed() gave. Rows from before epochs were kept have buckets alone: none is owned at epoch 0."""
    return {
        shard: tuple(Held(each, 0) if isinstance(each, int) else Held(*each) for each in held)
        for shard, held in row.items()
    }
