"""What the protos say about methods: routing, retry, arity, default deadline. Read once, at start; a gap
stops the start.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool, message_factory

import ordermesh
from ordermesh.routing.v1 import options_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

RouteBy = options_pb2.RouteBy
Retry = options_pb2.Retry


class BadContract(Exception):
    """A proto or its service config lacks what every method must say."""


_FOREIGN = {
    f"google.longrunning.Operations/{name}": options_pb2.RouteRule(by=RouteBy.ROUTE_BY_ANY, retry=retry)
    for name, retry in (
        ("GetOperation", Retry.RETRY_SAFE),
        ("WaitOperation", Retry.RETRY_SAFE),
        ("CancelOperation", Retry.RETRY_SAFE),
        ("ListOperations", Retry.RETRY_SAFE),
    )
}
"""Methods of others' protos that we serve, which cannot carry our option."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC method as the protos describe it."""

    service: str
    name: str
    by: int
    key: str
    retry: int
    timeout_s: float
    request_class: type[Message]
    response_class: type[Message]
    client_streaming: bool
    server_streaming: bool

    @property
    def path(self) -> str:
        """`/package.Service/Method`, as on the wire."""
        return f"/{self.service}/{self.name}"

    @property
    def arity(self) -> str:
        """`unary`, `server_stream`, `client_stream` or `bidi_stream`."""
        if self.client_streaming:
            return "bidi_stream" if self.server_streaming else "client_stream"
        return "server_stream" if self.server_streaming else "unary"


def methods_of(service: str) -> dict[str, Method]:
    """Every method of a service by its path.

    Raises: BadContract when a method says no route, no retry or a key its request does not have; KeyError
    for an unknown service.
    """
    load_stubs()
    descriptor = descriptor_pool.Default().FindServiceByName(service)
    foreign = {name.partition("/")[2] for name in _FOREIGN if name.startswith(f"{service}/")}
    methods = [
        _method(service, method) for method in descriptor.methods if not foreign or method.name in foreign
    ]
    return {method.path: method for method in methods}


def _method(service: str, descriptor: MethodDescriptor) -> Method:
    path = f"/{service}/{descriptor.name}"
    rule = _FOREIGN.get(path[1:]) or descriptor.GetOptions().Extensions[options_pb2.route]
    if rule.by == RouteBy.ROUTE_BY_UNSPECIFIED or rule.retry == Retry.RETRY_UNSPECIFIED:
        raise BadContract(f"{path} lacks the option (ordermesh.routing.v1.route)")
    if (rule.by == RouteBy.ROUTE_BY_ANY) == bool(rule.key):
        raise BadContract(f"{path}: a key is needed exactly when the route is not ROUTE_BY_ANY")
    if rule.key and rule.key not in descriptor.input_type.fields_by_name:
        raise BadContract(f"{path}: its request has no field {rule.key!r}")
    return Method(
        service=service,
        name=descriptor.name,
        by=rule.by,
        key=rule.key,
        retry=rule.retry,
        timeout_s=default_timeout_s(service, descriptor.name),
        request_class=message_factory.GetMessageClass(descriptor.input_type),
        response_class=message_factory.GetMessageClass(descriptor.output_type),
        client_streaming=descriptor.client_streaming,
        server_streaming=descriptor.server_streaming,
    )


@cache
def load_stubs() -> None:
    """Import every generated module, so that the default descriptor pool knows all our protos."""
    for module in pkgutil.walk_packages(ordermesh.__path__, "ordermesh."):
        if module.name.endswith("_pb2"):
            importlib.import_module(module.name)


@cache
def _service_config() -> dict[tuple[str, str], float]:
    text = resources.files("ordermesh").joinpath("service_config.json").read_text(encoding="utf-8")
    timeouts: dict[tuple[str, str], float] = {}
    config: dict[str, Any] = json.loads(text)
    for entry in config["methodConfig"]:
        for name in entry["name"]:
            timeouts[name.get("service", ""), name.get("method", "")] = float(
                entry["timeout"].removesuffix("s")
            )
    return timeouts


def default_timeout_s(service: str, method: str) -> float:
    """The deadline of a method whose caller says none, from `service_config.json`: of the method, else its
    service, else all.
    """
    config = _service_config()
    for name in ((service, method), (service, ""), ("", "")):
        if name in config:
            return config[name]
    raise BadContract("service_config.json has no default timeout")
