"""Which methods the proxy passes on, and how each is routed; read from the protos once, at start.

A method without a routing option, or with a key that is no string, stops the start (see chassis.rpc.methods).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chassis import rpc
from shard_proxy import lanes
from shard_proxy.domain import By
from shard_proxy.keys import KeyView

if TYPE_CHECKING:
    from collections.abc import Mapping

BEHIND: Mapping[str, str] = {
    "ordermesh.order.v1.OrderService": lanes.ORDER,
    "ordermesh.history.v1.HistoryService": lanes.HISTORY,
    "ordermesh.history.v1.ProjectionService": lanes.PROJECTOR,
    "ordermesh.recovery.v1.RecoveryService": lanes.RECOVERY,
    "ordermesh.archive.v1.ArchiveService": lanes.ARCHIVE,
    "ordermesh.archive.v1.StatementService": lanes.ARCHIVE,
}
"""Services behind the proxy, and which process serves each."""
OWN = "ordermesh.routing.v1.RoutingService"

_BY: Mapping[int, By] = {
    rpc.RouteBy.ROUTE_BY_USER: By.USER,
    rpc.RouteBy.ROUTE_BY_ORDER: By.ORDER,
    rpc.RouteBy.ROUTE_BY_SHARD: By.SHARD,
    rpc.RouteBy.ROUTE_BY_SCATTER: By.SCATTER,
    rpc.RouteBy.ROUTE_BY_ANY: By.ANY,
}
_REPEATABLE = frozenset({rpc.Retry.RETRY_SAFE, rpc.Retry.RETRY_WITH_REQUEST_ID})


@dataclass(frozen=True, slots=True)
class Passed:
    """One method that is passed on.

    service: the process that serves it. view: reads its key; none when it has no key.
    repeatable: whether a call whose answer was lost may be sent again.
    """

    method: rpc.Method
    by: By
    service: str
    view: KeyView | None
    repeatable: bool


def passed_on(behind: Mapping[str, str]) -> dict[str, Passed]:
    """Every method of the services behind, by path.

    Raises: BadContract, BadKeyField.
    """
    return {
        path: _passed(method, service)
        for name, service in behind.items()
        for path, method in rpc.methods_of(name).items()
    }


def _passed(method: rpc.Method, service: str) -> Passed:
    by = _BY[method.by]
    if by is By.SCATTER and (method.client_streaming or method.server_streaming):
        raise rpc.BadContract(f"{method.path}: only unary calls can be split over shards")
    view = KeyView(method.request_class.DESCRIPTOR, method.key) if method.key else None
    return Passed(method, by, service, view, method.retry in _REPEATABLE)
