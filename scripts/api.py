"""The API page: every method and message of the protos with the comments that stand there.

Read from a descriptor set that protoc makes with comments; scripts/docs.py writes the page.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2

from chassis import auth, rpc
from ordermesh.routing.v1 import options_pb2
from scripts import proto

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("order", "history", "recovery", "routing", "upstream")
_MESSAGE, _ENUM, _SERVICE, _FIELD, _NESTED, _NESTED_ENUM, _METHOD, _VALUE = 4, 5, 6, 2, 3, 4, 2, 2
"""Field numbers of descriptor.proto, of which the paths of comments are made."""

Comments = Mapping[tuple[int, ...], str]
Field = descriptor_pb2.FieldDescriptorProto


def descriptors() -> descriptor_pb2.FileDescriptorSet:
    """Our protos with everything they import, and with their comments."""
    with tempfile.TemporaryDirectory(prefix="ordermesh-api-") as scratch:
        image = proto.build_image(Path(scratch))
        return descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())


def comments_of(file: descriptor_pb2.FileDescriptorProto) -> Comments:
    """The comment before each thing, by its path in the descriptor."""
    return {
        tuple(place.path): place.leading_comments.strip("\n")
        for place in file.source_code_info.location
        if place.leading_comments
    }


def one_line(comment: str) -> str:
    """A comment for a cell of a table."""
    return " ".join(comment.split())


def paragraphs(comment: str) -> str:
    """A comment as prose; its lines lose the blank after the slashes."""
    return "\n".join(line.removeprefix(" ") for line in comment.splitlines())


def type_of(field: Field) -> str:
    """A field's type as a reader of protos says it."""
    if field.type_name:
        name = field.type_name.removeprefix(".").removeprefix("ordermesh.")
    else:
        name = Field.Type.Name(field.type).removeprefix("TYPE_").lower()
    return f"repeated {name}" if field.label == Field.LABEL_REPEATED else name


def behaviour_of(field: Field) -> str:
    """What a caller must or may do with a field."""
    said = field.options.Extensions[field_behavior_pb2.field_behavior]
    return ", ".join(field_behavior_pb2.FieldBehavior.Name(each).lower() for each in said)


def method_page(method: rpc.Method, comment: str) -> Iterator[str]:
    """One method: what it does, how it is routed, who may call it."""
    yield f"### {method.name}\n"
    yield paragraphs(comment) + "\n"
    stream = "stream of " if method.server_streaming else ""
    takes, gives = method.request_class.DESCRIPTOR.name, method.response_class.DESCRIPTOR.name
    by = options_pb2.RouteBy.DESCRIPTOR.values_by_number[method.by].name.removeprefix("ROUTE_BY_").lower()
    retry = (
        options_pb2.Retry.DESCRIPTOR.values_by_number[method.retry]
        .name.removeprefix("RETRY_")
        .lower()
        .replace("_", " ")
    )
    roles = ", ".join(sorted(auth.MATRIX[method.path]))
    yield f"- `{takes}` -> {stream}`{gives}`"
    yield f"- routed by {by}" + (f", field `{method.key}`" if method.key else "") + f"; retry: {retry}"
    yield f"- default deadline {method.timeout_s:g} s; roles: {roles}\n"


def message_page(
    message: descriptor_pb2.DescriptorProto, path: tuple[int, ...], said: Comments
) -> Iterator[str]:
    """One message and what is nested in it, fields as a table."""
    yield f"### {message.name}\n"
    yield paragraphs(said.get(path, "")) + "\n"
    if message.field:
        yield "| field | type | | meaning |\n| --- | --- | --- | --- |"
    for number, field in enumerate(message.field):
        meaning = one_line(said.get((*path, _FIELD, number), "")).replace("|", "\\|")
        yield f"| `{field.name}` | {type_of(field)} | {behaviour_of(field)} | {meaning} |"
    yield ""
    for number, enum in enumerate(message.enum_type):
        yield from enum_page(f"{message.name}.{enum.name}", enum, (*path, _NESTED_ENUM, number), said)
    for number, inner in enumerate(message.nested_type):
        if not inner.options.map_entry:
            yield from message_page(inner, (*path, _NESTED, number), said)


def enum_page(
    name: str, enum: descriptor_pb2.EnumDescriptorProto, path: tuple[int, ...], said: Comments
) -> Iterator[str]:
    """One enum, values as a table."""
    yield f"### {name}\n"
    yield paragraphs(said.get(path, "")) + "\n"
    yield "| value | meaning |\n| --- | --- |"
    for number, value in enumerate(enum.value):
        yield f"| `{value.name}` | {one_line(said.get((*path, _VALUE, number), ''))} |"
    yield ""


def service_page(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    """The services of one file, method by method."""
    said = comments_of(file)
    for number, service in enumerate(file.service):
        full = f"{file.package}.{service.name}"
        methods = rpc.methods_of(full)
        yield f"## {full}\n"
        yield paragraphs(said.get((_SERVICE, number), "")) + "\n"
        for index, method in enumerate(service.method):
            comment = said.get((_SERVICE, number, _METHOD, index), "")
            yield from method_page(methods[f"/{full}/{method.name}"], comment)


def messages_page(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    """The messages and enums of one file."""
    said = comments_of(file)
    for number, message in enumerate(file.message_type):
        yield from message_page(message, (_MESSAGE, number), said)
    for number, enum in enumerate(file.enum_type):
        yield from enum_page(enum.name, enum, (_ENUM, number), said)


def api() -> Iterator[str]:
    """The parts of docs/API.md below its title."""
    everything = descriptors().file
    for area in SERVICES:
        files = [file for file in everything if file.package == f"ordermesh.{area}.v1"]
        for file in files:
            yield from service_page(file)
        yield f"## Messages of ordermesh.{area}.v1\n"
        for file in files:
            yield from messages_page(file)
