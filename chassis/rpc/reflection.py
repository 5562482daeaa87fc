"""Server reflection, v1 and v1alpha: lets grpcurl and buf curl call every listed service without its protos.

Both versions have the same messages, so one servicer answers both. It answers from a descriptor pool and
never from the services themselves. Calls need no identity and no deadline; a stream ends after a bounded
number of questions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import DecodeError

from chassis.errors import MalformedRequest, Overloaded
from chassis.rpc.status import to_status
from ordermesh.grpc_reflection.v1 import reflection_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
QUESTIONS_MAX = 1000
"""One tool asks some dozens."""


class Reflection:
    """Answers what services there are and what their protos look like.

    services: full names to list; each must be in the pool.
    Raises: KeyError for a service that the pool does not know.
    """

    def __init__(self, services: Iterable[str], pool: Any = None) -> None:
        self._pool: Any = pool or descriptor_pool.Default()
        self._services = sorted(services)
        for service in self._services:
            self._pool.FindServiceByName(service)
        self._answers: Mapping[str, Callable[[Any], pb.ServerReflectionResponse]] = {
            "file_by_filename": lambda name: self._files(self._pool.FindFileByName(name)),
            "file_containing_symbol": self._file_of_symbol,
            "file_containing_extension": self._file_of_extension,
            "all_extension_numbers_of_type": self._extensions,
            "list_services": self._list,
        }

    def register(self, server: grpc.aio.Server) -> None:
        """Serve it under both versions."""
        server.add_generic_rpc_handlers((_Handlers(self),))

    def answer(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        """The answer to one question; what is not known is an answer too."""
        kind = request.WhichOneof("message_request")
        try:
            if kind is None:
                raise KeyError
            response = self._answers[kind](getattr(request, kind))
        except KeyError:
            number, text = grpc.StatusCode.NOT_FOUND.value
            response = pb.ServerReflectionResponse(
                error_response=pb.ErrorResponse(error_code=number, error_message=text)
            )
        response.valid_host = request.host
        response.original_request.CopyFrom(request)
        return response

    def _list(self, _: str) -> pb.ServerReflectionResponse:
        services = [pb.ServiceResponse(name=name) for name in self._services]
        return pb.ServerReflectionResponse(list_services_response=pb.ListServiceResponse(service=services))

    def _file_of_symbol(self, name: str) -> pb.ServerReflectionResponse:
        try:
            return self._files(self._pool.FindFileContainingSymbol(name))
        except KeyError:
            # Methods are symbols too, but this pool looks them up apart.
            return self._files(self._pool.FindMethodByName(name).containing_service.file)

    def _file_of_extension(self, wanted: pb.ExtensionRequest) -> pb.ServerReflectionResponse:
        message = self._pool.FindMessageTypeByName(wanted.containing_type)
        return self._files(self._pool.FindExtensionByNumber(message, wanted.extension_number).file)

    def _extensions(self, type_name: str) -> pb.ServerReflectionResponse:
        message = self._pool.FindMessageTypeByName(type_name)
        numbers = sorted(extension.number for extension in self._pool.FindAllExtensions(message))
        return pb.ServerReflectionResponse(
            all_extension_numbers_response=pb.ExtensionNumberResponse(
                base_type_name=type_name, extension_number=numbers
            )
        )

    def _files(self, file: Any) -> pb.ServerReflectionResponse:
        """A file and everything that it imports."""
        found: dict[str, Any] = {}
        _collect(file, found)
        protos = []
        for each in found.values():
            proto = descriptor_pb2.FileDescriptorProto()
            each.CopyToProto(proto)
            protos.append(proto.SerializeToString())
        return pb.ServerReflectionResponse(
            file_descriptor_response=pb.FileDescriptorResponse(file_descriptor_proto=protos)
        )


def _collect(file: Any, found: dict[str, Any]) -> None:
    if file.name in found:
        return
    found[file.name] = file
    for imported in file.dependencies:
        _collect(imported, found)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, reflection: Reflection) -> None:
        self._reflection = reflection
        handler: Any = grpc.stream_stream_rpc_method_handler(self._answer)
        self._handlers = {f"/{service}/ServerReflectionInfo": handler for service in SERVICES}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a path, or none."""
        return self._handlers.get(handler_call_details.method)

    async def _answer(self, questions: AsyncIterator[bytes], context: Any) -> None:
        asked = 0
        async for raw in questions:
            asked += 1
            if asked > QUESTIONS_MAX:
                await context.abort(*to_status(Overloaded(limiter="reflection_questions")))
            request = pb.ServerReflectionRequest()
            try:
                request.ParseFromString(raw)
            except DecodeError:
                await context.abort(*to_status(MalformedRequest()))
            await context.write(self._reflection.answer(request).SerializeToString())
