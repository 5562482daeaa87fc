"""Reads the routing key out of a request's raw bytes, and nothing else.

A view is a tiny message that declares only the key fields of a request; everything else stays unknown bytes.
It is parsed by the protobuf runtime, so a field that occurs twice counts as its last occurrence, as it will
for the lane: a hand-written scanner that stops at the first could route by one value and execute another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from chassis.errors import MalformedRequest
from shard_proxy.domain import Key

if TYPE_CHECKING:
    from collections.abc import Sequence


REQUEST_ID = "request_id"


class BadKeyField(Exception):
    """A method names a key field that is no string; the proxy does not start with such a proto."""


class KeyView:
    """The key fields of one kind of request."""

    def __init__(self, request: Any, key: str) -> None:
        self._key = key
        self._view = _view_of(request, key)
        self._repeated = request.fields_by_name[key].is_repeated
        self._has_request_id = REQUEST_ID in self._view.DESCRIPTOR.fields_by_name

    def read(self, raw: bytes) -> Key:
        """The key of a request; empty values where it has none.

        Raises: MalformedRequest when the bytes are no message.
        """
        request = self._parse(raw)
        value = getattr(request, self._key)
        values = tuple(value) if self._repeated else (value,)
        return Key(values, request.request_id if self._has_request_id else "")

    def split(self, raw: bytes, parts: Sequence[Sequence[str]]) -> list[bytes]:
        """Copies of a request that differ in their keys only; fields that the view does not know are kept."""
        request = self._parse(raw)
        copies = []
        for part in parts:
            del getattr(request, self._key)[:]
            getattr(request, self._key).extend(part)
            copies.append(request.SerializeToString())
        return copies

    def _parse(self, raw: bytes) -> Any:
        request = self._view()
        try:
            request.ParseFromString(raw)
        except DecodeError:
            raise MalformedRequest from None
        return request


def _view_of(request: Any, key: str) -> Any:
    """A message class with the key fields of a request, in a descriptor pool of its own."""
    file = descriptor_pb2.FileDescriptorProto(name="view.proto", package="ordermesh.view", syntax="proto3")
    view = file.message_type.add(name="View")
    for name in dict.fromkeys((key, REQUEST_ID)):
        declared = request.fields_by_name.get(name)
        if declared is not None:
            _declare(view, declared)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ordermesh.view.View"))


def _declare(view: descriptor_pb2.DescriptorProto, declared: Any) -> None:
    if declared.type != declared.TYPE_STRING:
        raise BadKeyField(f"{declared.full_name} must be a string")
    field = descriptor_pb2.FieldDescriptorProto
    label = field.LABEL_REPEATED if declared.is_repeated else field.LABEL_OPTIONAL
    view.field.add(name=declared.name, number=declared.number, type=field.TYPE_STRING, label=label)
