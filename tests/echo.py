"""A small service with every arity and every kind of route, for tests of what stands between caller and
service.

Its proto is built here and added to the default pool, as if `make proto` had generated it.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from chassis import rpc
from ordermesh.routing.v1 import options_pb2

PACKAGE = "ordermesh.testing.v1"
SERVICE = f"{PACKAGE}.EchoService"
_FILE = "ordermesh/testing/v1/echo.proto"
_FIELDS = ("user_id", "request_id", "say", "order_id", "shard")
_BY = options_pb2.RouteBy
_RETRY = options_pb2.Retry

# name: (route, key, retry, stream of requests, stream of answers)
_METHODS: dict[str, tuple[Any, str, Any, bool, bool]] = {
    "Unary": (_BY.ROUTE_BY_USER, "user_id", _RETRY.RETRY_SAFE, False, False),
    "Out": (_BY.ROUTE_BY_USER, "user_id", _RETRY.RETRY_SAFE, False, True),
    "In": (_BY.ROUTE_BY_USER, "user_id", _RETRY.RETRY_SAFE, True, False),
    "Both": (_BY.ROUTE_BY_USER, "user_id", _RETRY.RETRY_SAFE, True, True),
    "Once": (_BY.ROUTE_BY_USER, "user_id", _RETRY.RETRY_NEVER, False, False),
    "ByOrder": (_BY.ROUTE_BY_ORDER, "order_id", _RETRY.RETRY_SAFE, False, False),
    "ByShard": (_BY.ROUTE_BY_SHARD, "shard", _RETRY.RETRY_NEVER, False, False),
    "Scattered": (_BY.ROUTE_BY_SCATTER, "order_ids", _RETRY.RETRY_SAFE, False, False),
}


def _add_to_pool() -> None:
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, package=PACKAGE, syntax="proto3")
    file.dependency.append("ordermesh/routing/v1/options.proto")
    field = descriptor_pb2.FieldDescriptorProto
    request = file.message_type.add(name="EchoRequest")
    for number, name in enumerate(_FIELDS, start=1):
        request.field.add(name=name, number=number, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    request.field.add(name="order_ids", number=9, type=field.TYPE_STRING, label=field.LABEL_REPEATED)
    response = file.message_type.add(name="EchoResponse")
    response.field.add(name="said", number=1, type=field.TYPE_STRING, label=field.LABEL_REPEATED)
    service = file.service.add(name="EchoService")
    for name, (by, key, retry, many_in, many_out) in _METHODS.items():
        method = service.method.add(
            name=name,
            input_type=f".{PACKAGE}.EchoRequest",
            output_type=f".{PACKAGE}.EchoResponse",
            client_streaming=many_in,
            server_streaming=many_out,
        )
        rule = options_pb2.RouteRule(by=by, key=key, retry=retry)
        method.options.Extensions[options_pb2.route].CopyFrom(rule)
    descriptor_pool.Default().Add(file)


try:
    descriptor_pool.Default().FindFileByName(_FILE)
except KeyError:
    _add_to_pool()

EchoRequest: Any = message_factory.GetMessageClass(
    descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.EchoRequest")
)
EchoResponse: Any = message_factory.GetMessageClass(
    descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.EchoResponse")
)
METHODS = rpc.methods_of(SERVICE)


def path_of(name: str) -> str:
    """A method's path on the wire."""
    return f"/{SERVICE}/{name}"
