"""google.longrunning.Operations, for tools that know nothing of ours: names become calls of the service that
has the operations.

A name says whose operation it is, so a call is routed, checked and answered as one of StatementService is.
What there is to forget is forgotten by itself: DeleteOperation is UNIMPLEMENTED.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import grpc
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2
from google.protobuf.message import DecodeError

from chassis import rpc
from chassis.errors import InvalidField, MalformedRequest
from chassis.ids import USER_ID_PATTERN
from ordermesh.archive.v1 import statement_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message

    from shard_proxy.methods import Passed
    from shard_proxy.passthrough import Relay
    from shard_proxy.sending import Context

SERVICE = "google.longrunning.Operations"
_STATEMENTS = "/ordermesh.archive.v1.StatementService/"
_USER = USER_ID_PATTERN.pattern
_PARENT = re.compile(rf"users/({_USER})(?:/statements)?", re.ASCII)
_NAME = re.compile(rf"users/({_USER})/statements/([0-9a-fA-F-]{{36}})", re.ASCII)
_WAIT_S_MAX = 30


class Operations(grpc.GenericRpcHandler):
    """The handlers of the service, which ask and answer through the relay."""

    def __init__(self, passed: Mapping[str, Passed], gate: rpc.Gate, relay: Relay) -> None:
        self._passed = passed
        self._gate = gate
        self._relay = relay
        methods = rpc.methods_of(SERVICE)
        rpc.prepare(methods.values())
        self._handlers: dict[str, Any] = {
            path: grpc.unary_unary_rpc_method_handler(self._behind_gate(method))
            for path, method in methods.items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a path, or none."""
        return self._handlers.get(handler_call_details.method)

    def _behind_gate(self, method: rpc.Method) -> Callable[..., Any]:
        name, request_of, answer_of = _CALLS[method.name]

        async def answer(raw: bytes, context: Context) -> bytes | None:
            async def handle(call: rpc.Call) -> bytes:
                try:
                    asked = method.request_class.FromString(raw)
                except DecodeError:
                    raise MalformedRequest from None
                ours = request_of(asked).SerializeToString()
                said = await self._relay.unary(self._passed[_STATEMENTS + name], ours, call, context)
                return answer_of(said)

            return await rpc.serve_call(self._gate, method, context, handle)

        return answer


def _get(asked: Any) -> Message:
    user_id, statement_id = _named(asked.name)
    return pb.WaitStatementRequest(user_id=user_id, statement_id=statement_id)


def _wait(asked: Any) -> Message:
    """As long as it may take, where no time is said: the caller's deadline ends it."""
    user_id, statement_id = _named(asked.name)
    wanted = pb.WaitStatementRequest(user_id=user_id, statement_id=statement_id)
    wanted.wait.seconds = _WAIT_S_MAX
    if asked.HasField("timeout") and 0 <= asked.timeout.seconds < _WAIT_S_MAX:
        wanted.wait.CopyFrom(asked.timeout)
    return wanted


def _cancel(asked: Any) -> Message:
    user_id, statement_id = _named(asked.name)
    return pb.CancelStatementRequest(user_id=user_id, statement_id=statement_id)


def _list(asked: Any) -> Message:
    found = _PARENT.fullmatch(asked.name)
    if found is None:
        raise InvalidField.of("name", "must be users/<user_id>/statements")
    if asked.filter:
        raise InvalidField.of("filter", "must be empty: nothing is filtered")
    return pb.ListStatementsRequest(
        user_id=found[1], page_size=min(asked.page_size, 100), page_token=asked.page_token
    )


def _named(name: str) -> tuple[str, str]:
    """Whose operation, and which. Raises: InvalidField."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise InvalidField.of("name", "must be users/<user_id>/statements/<statement_id>")
    return found[1], found[2]


def _same(said: bytes) -> bytes:
    """Our services answer with the operation itself."""
    return said


def _nothing(_: bytes) -> bytes:
    return empty_pb2.Empty().SerializeToString()


def _listed(said: bytes) -> bytes:
    ours = pb.ListStatementsResponse.FromString(said)
    answer = operations_pb2.ListOperationsResponse(
        operations=ours.operations, next_page_token=ours.next_page_token
    )
    return bytes(answer.SerializeToString())


_CALLS: Mapping[str, tuple[str, Callable[[Any], Message], Callable[[bytes], bytes]]] = {
    "GetOperation": ("WaitStatement", _get, _same),
    "WaitOperation": ("WaitStatement", _wait, _same),
    "CancelOperation": ("CancelStatement", _cancel, _nothing),
    "ListOperations": ("ListStatements", _list, _listed),
}
"""Ours of each of theirs: its name, its request, and how its answer becomes theirs."""
