"""What every route may use, in one place: the mesh, who is asking, how often they may, and the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from chassis import traces
from chassis.errors import OrdermeshError
from gateway import asks
from gateway.asks import Ask, Visit

if TYPE_CHECKING:
    from starlette.datastructures import Headers

    from chassis.bearers import Bearers
    from gateway.clients import Mesh
    from gateway.rates import Rates
    from gateway.settings import GatewaySettings
    from gateway.streams import Seats


@dataclass(frozen=True, slots=True)
class House:
    """Made once per process; the routes find it in `app.state`."""

    mesh: Mesh
    bearers: Bearers
    requests: Rates
    creates: Rates
    seats: Seats
    settings: GatewaySettings

    def is_always_recorded(self, headers: Headers) -> bool:
        """Whether a request's trace is recorded whatever the ratio: an operator's is, and one that asks for
        it and comes from somebody we know, within an allowance.
        """
        authorization = headers.get("authorization")
        if headers.get(traces.DEBUG_HEADER) != "1":
            known = self.bearers.known(authorization)
            return known is not None and known.is_operator
        try:
            self.bearers.principal_at_once(authorization)
        except OrdermeshError:
            return False
        return traces.debugs.take()


def house_of(request: Request) -> House:
    """The house a request came into."""
    house: House = request.app.state.house
    return house


def visit_of(request: Request) -> Visit:
    """The request's own record, made at the edge."""
    visit: Visit = request.scope["state"]["visit"]
    return visit


async def asking(request: Request) -> Ask:
    """Let somebody in: token, rate, deadline and known parameters, in this order.

    Raises: TokenRefused, KeysUnavailable, RateLimited, InvalidField.
    """
    house, visit = house_of(request), visit_of(request)
    who = await house.bearers.principal(request.headers.get("authorization"))
    visit.user_id = who.user_id
    visit.allowance = house.requests.admit(who.user_id)
    known = frozenset(parameter.alias for parameter in request.scope["route"].dependant.query_params)
    asks.known_only((name for name, _ in request.query_params.multi_items()), known)
    settings = house.settings
    timeout_s = asks.timeout_s(
        request.headers.get("x-request-timeout"), settings.timeout_s, settings.timeout_s_max
    )
    return Ask(who, visit.arrived + timeout_s, visit)


Entrance = Annotated[Ask, Depends(asking)]
Inside = Annotated[House, Depends(house_of)]
