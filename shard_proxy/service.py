"""RoutingService: tells where things live and why, from the same map that calls are routed with, and has
users moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import json_format

from chassis.errors import InvalidField, UnknownMethod
from chassis.ids import id_time, parse_order_id, parse_user_id
from ordermesh.routing.v1 import routing_service_pb2 as pb
from shard_proxy import wire
from shard_proxy.domain import By, Key
from shard_proxy.journey import Journey
from shard_proxy.moves import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chassis.rpc import Call
    from chassis.tokens import PageTokens
    from shard_proxy.book import RouteBook
    from shard_proxy.domain import Placement
    from shard_proxy.lanes import Lanes
    from shard_proxy.methods import Passed
    from shard_proxy.move_store import MoveStore
    from shard_proxy.mover import VipMover

_VIP_USERS = "vip_users"


class RoutingService:
    """The handlers; what only asks is answered from memory."""

    def __init__(
        self,
        book: RouteBook,
        lanes: Lanes,
        passed: Mapping[str, Passed],
        tokens: PageTokens,
        mover: VipMover,
        moves: MoveStore,
    ) -> None:
        self._book = book
        self._lanes = lanes
        self._passed = passed
        self._tokens = tokens
        self._mover = mover
        self._moves = moves

    async def Where(self, request: pb.WhereRequest, call: Call) -> pb.WhereResponse:
        """Where the orders of a user, or one order, live."""
        if bool(request.user_id) == bool(request.order_id):
            raise InvalidField.of("user_id", "give exactly one of user_id and order_id")
        if request.order_id:
            order_id = parse_order_id(request.order_id)
            journey = Journey(self._book, By.ORDER, Key((request.order_id,)))
            placed = wire.placement(await journey.place())
            created = wire.timestamp(id_time(order_id))
            return pb.WhereResponse(placement=placed, map_version=journey.map.version, create_time=created)
        journey = Journey(self._book, By.USER, Key((parse_user_id(request.user_id),)))
        return pb.WhereResponse(
            placement=wire.placement(await journey.place()),
            placements=[wire.placement(placed) for placed in await journey.placements()],
            map_version=journey.map.version,
        )

    async def ListShards(self, request: pb.ListShardsRequest, call: Call) -> pb.ListShardsResponse:
        """The shards of the map."""
        return wire.shards(self._book.map)

    async def ListVipUsers(self, request: pb.ListVipUsersRequest, call: Call) -> pb.ListVipUsersResponse:
        """A page of users that are placed by hand, by user id."""
        size = wire.page_size(request.page_size)
        token = request.page_token
        after = wire.user_in(self._tokens.open(token, _VIP_USERS)) if token else ""
        map_ = self._book.map
        later = sorted(user_id for user_id in map_.vips if user_id > after)
        page = later[:size]
        more = self._tokens.seal(page[-1].encode(), _VIP_USERS) if len(later) > size else ""
        users = [wire.vip_user(map_, map_.vips[user_id]) for user_id in page]
        return pb.ListVipUsersResponse(vip_users=users, next_page_token=more)

    async def PromoteVip(self, request: pb.PromoteVipRequest, call: Call) -> pb.PromoteVipResponse:
        """Give a user a dedicated bucket."""
        wish = wire.move_wish(request, Kind.PROMOTE, call.subject.name, shard=request.shard)
        return pb.PromoteVipResponse(move=wire.move(await self._mover.move(wish, call.time_remaining())))

    async def DemoteVip(self, request: pb.DemoteVipRequest, call: Call) -> pb.DemoteVipResponse:
        """Send a user back to the hashed bucket."""
        wish = wire.move_wish(request, Kind.DEMOTE, call.subject.name)
        return pb.DemoteVipResponse(move=wire.move(await self._mover.move(wish, call.time_remaining())))

    async def ListVipMoves(self, request: pb.ListVipMovesRequest, call: Call) -> pb.ListVipMovesResponse:
        """A page of moves, the newest first; read from the control database."""
        size, query = wire.page_size(request.page_size), f"vip_moves {request.user_id}"
        token = request.page_token
        before = wire.position(self._tokens.open(token, query)) if token else wire.NEWEST
        found = await self._moves.newest(request.user_id, before, size + 1)
        more = self._tokens.seal(wire.packed_position(found[size - 1]), query) if len(found) > size else ""
        return pb.ListVipMovesResponse(moves=[wire.move(one) for one in found[:size]], next_page_token=more)

    async def Explain(self, request: pb.ExplainRequest, call: Call) -> pb.ExplainResponse:
        """Where a request would go, without sending it."""
        passed = self._passed.get("/" + request.method.strip("/"))
        if passed is None:
            raise UnknownMethod(method=request.method[:128])
        key = _key_in(passed, request.request_json)
        placements = await self._placements(passed, key)
        return pb.ExplainResponse(
            rule=wire.rule(passed.method),
            key=",".join(key.values),
            placements=[wire.placement(placed) for placed in placements if passed.by is not By.ANY],
            targets=sorted({self._lanes.of(passed.service, placed.shard).target for placed in placements}),
            map_version=self._book.map.version,
        )

    async def _placements(self, passed: Passed, key: Key) -> list[Placement]:
        journey = Journey(self._book, passed.by, key)
        if passed.by is not By.SCATTER:
            return [await journey.place()]
        await journey.scatter(key.values)
        each = (Journey(self._book, By.ORDER, Key((order_id,))) for order_id in key.values)
        return [await one.place() for one in each]


def _key_in(passed: Passed, request_json: str) -> Key:
    """The routing key of a request that is given as JSON. Raises: InvalidField, RoutingKeyMissing."""
    request = passed.method.request_class()
    try:
        json_format.Parse(request_json or "{}", request)
    except json_format.ParseError:
        raise InvalidField.of("request_json", f"must be a {request.DESCRIPTOR.full_name} as JSON") from None
    return passed.view.read(request.SerializeToString()) if passed.view is not None else Key(())
