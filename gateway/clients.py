"""Calls into the mesh: one channel to shard_proxy, each call with a deadline and with the signed subject it
is made for.
"""

from __future__ import annotations

import time
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import grpc

from chassis import rpc
from chassis.auth import SUBJECT_HEADER
from chassis.errors import Violation
from gateway import wire
from gateway.errors import MeshRefused
from ordermesh.archive.v1 import statement_service_pb2, statement_service_pb2_grpc
from ordermesh.history.v1 import history_service_pb2, history_service_pb2_grpc
from ordermesh.order.v1 import order_service_pb2, order_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from google.longrunning import operations_pb2

    from chassis.auth import SubjectMinter
    from chassis.rpc import RemoteError
    from gateway.asks import Ask

HISTORY = history_service_pb2
ORDERS = order_service_pb2
STATEMENTS = statement_service_pb2
WISH_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "wish.first_day": "firstDay",
        "wish.last_day": "lastDay",
        "wish.time_zone": "timeZone",
        "wish.formats": "formats",
        "wish.locale": "locale",
    }
)
"""How REST calls the fields of a wish."""
_SAME_NAMES: Mapping[str, str] = MappingProxyType({})


class Mesh:
    """The mesh as the gateway uses it."""

    def __init__(self, channel: rpc.Channel, minter: SubjectMinter) -> None:
        on = cast("grpc.aio.Channel", channel)
        self._orders = order_service_pb2_grpc.OrderServiceStub(on)
        self._history = history_service_pb2_grpc.HistoryServiceStub(on)
        self._statements = statement_service_pb2_grpc.StatementServiceStub(on)
        self._minter = minter

    async def create_order(self, request: ORDERS.CreateOrderRequest, ask: Ask) -> ORDERS.CreateOrderResponse:
        """Raises: MeshRefused, as all of these."""
        answer: ORDERS.CreateOrderResponse = await self._call(self._orders.CreateOrder, request, ask)
        return answer

    async def get_order(self, order_id: str, ask: Ask) -> ORDERS.GetOrderResponse:
        """One order."""
        request = ORDERS.GetOrderRequest(order_id=order_id)
        answer: ORDERS.GetOrderResponse = await self._call(self._orders.GetOrder, request, ask)
        return answer

    async def update_order(self, request: ORDERS.UpdateOrderRequest, ask: Ask) -> ORDERS.UpdateOrderResponse:
        """Change an order."""
        answer: ORDERS.UpdateOrderResponse = await self._call(self._orders.UpdateOrder, request, ask)
        return answer

    async def list_orders(self, request: HISTORY.ListOrdersRequest, ask: Ask) -> HISTORY.ListOrdersResponse:
        """A page of a user's orders."""
        answer: HISTORY.ListOrdersResponse = await self._call(
            self._history.ListOrders, request, ask, wire.LIST_FIELDS
        )
        return answer

    async def list_events(
        self, request: ORDERS.ListOrderEventsRequest, ask: Ask
    ) -> ORDERS.ListOrderEventsResponse:
        """A page of an order's journal."""
        answer: ORDERS.ListOrderEventsResponse = await self._call(self._orders.ListOrderEvents, request, ask)
        return answer

    def watch_order(self, order_id: str, after_version: int, ask: Ask, *, timeout_s: float) -> Any:
        """A running stream of an order's changes; the caller reads and cancels it."""
        request = ORDERS.WatchOrderRequest(order_id=order_id, after_version=after_version)
        return self._orders.WatchOrder(request, timeout=timeout_s, metadata=self._metadata(ask))

    async def request_statement(
        self, request: STATEMENTS.RequestStatementRequest, ask: Ask
    ) -> operations_pb2.Operation:
        """The operation that makes a statement."""
        answer: operations_pb2.Operation = await self._call(
            self._statements.RequestStatement, request, ask, WISH_FIELDS
        )
        return answer

    async def wait_statement(
        self, request: STATEMENTS.WaitStatementRequest, ask: Ask
    ) -> operations_pb2.Operation:
        """The operation as it is, or when it is over."""
        answer: operations_pb2.Operation = await self._call(self._statements.WaitStatement, request, ask)
        return answer

    async def cancel_statement(
        self, request: STATEMENTS.CancelStatementRequest, ask: Ask
    ) -> operations_pb2.Operation:
        """The operation, ended unless it was over."""
        answer: operations_pb2.Operation = await self._call(self._statements.CancelStatement, request, ask)
        return answer

    async def list_statements(
        self, request: STATEMENTS.ListStatementsRequest, ask: Ask
    ) -> STATEMENTS.ListStatementsResponse:
        """A page of a user's statements."""
        answer: STATEMENTS.ListStatementsResponse = await self._call(
            self._statements.ListStatements, request, ask
        )
        return answer

    async def link_statement(
        self, request: STATEMENTS.LinkStatementRequest, ask: Ask
    ) -> STATEMENTS.LinkStatementResponse:
        """A link to a statement that is ready."""
        answer: STATEMENTS.LinkStatementResponse = await self._call(
            self._statements.LinkStatement, request, ask
        )
        return answer

    async def _call(
        self,
        method: Callable[..., Awaitable[Any]],
        request: Any,
        ask: Ask,
        names: Mapping[str, str] = _SAME_NAMES,
    ) -> Any:
        """One call. names: how the caller knows the request's fields, where the mesh calls them otherwise."""
        started = time.perf_counter()
        rpc.say_about(order_id=rpc.order_in(request))
        try:
            answer = await method(request, timeout=ask.time_remaining(), metadata=self._metadata(ask))
            rpc.say_about(order_id=rpc.order_in(answer))
            return answer
        except grpc.aio.AioRpcError as failed:
            raise MeshRefused(_renamed(rpc.error_of(failed), names)) from failed
        finally:
            ask.visit.mesh_s += time.perf_counter() - started

    def _metadata(self, ask: Ask) -> tuple[tuple[str, str], ...]:
        return ((SUBJECT_HEADER, self._minter.mint(ask.who.subject)),)


def _renamed(refusal: RemoteError, names: Mapping[str, str]) -> RemoteError:
    wrong = (Violation(names.get(one.field, one.field), one.description) for one in refusal.violations)
    return replace(refusal, violations=tuple(wrong))
