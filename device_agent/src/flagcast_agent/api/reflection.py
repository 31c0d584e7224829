"""Reflection of gRPC: which services there are, and the files that describe them (grpc.reflection, v1 and v1alpha).

Both versions have the same messages on the wire, so one set of classes serves both.
"""

from collections.abc import Sequence
from typing import Final

from google.protobuf.descriptor import FileDescriptor

from .calls import Call, Lasting, Status, decoded
from .protos import (  # noqa: F401  # flagd's for what importing them does: they are described too
    flagd_evaluation_v1_pb2,
    flagd_evaluation_v2_pb2,
    reflection_v1alpha_pb2,
)
from .protos import reflection_v1_pb2 as reflection
from .protos.pool import POOL

SERVICES: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
METHOD: Final = "ServerReflectionInfo"


class Reflection:
    """What tools ask about `services`, which are named in this order."""

    def __init__(self, services: Sequence[str]) -> None:
        self._services = services
        self.method = Lasting(self._run, reads_several=True)

    async def _run(self, call: Call) -> None:
        call.begin()
        while (message := await call.receive()) is not None:
            request = decoded(reflection.ServerReflectionRequest, message)
            response = reflection.ServerReflectionResponse(valid_host=request.host, original_request=request)
            try:
                self._answer(request, response)
            except KeyError:
                response.error_response.error_code = Status.NOT_FOUND
                response.error_response.error_message = "nothing of this name is described here"
            await call.send(response.SerializeToString())

    def _answer(
        self, request: reflection.ServerReflectionRequest, response: reflection.ServerReflectionResponse
    ) -> None:
        match request.WhichOneof("message_request"):
            case "file_by_filename":
                _describe(response, POOL.FindFileByName(request.file_by_filename))
            case "file_containing_symbol":
                _describe(response, _file_of(request.file_containing_symbol))
            case "list_services":
                for name in self._services:
                    response.list_services_response.service.add(name=name)
            case "all_extension_numbers_of_type":
                # None of these messages is extended.
                POOL.FindMessageTypeByName(request.all_extension_numbers_of_type)
                found = response.all_extension_numbers_response
                found.base_type_name = request.all_extension_numbers_of_type
            case "file_containing_extension":
                raise KeyError
            case _:
                response.error_response.error_code = Status.INVALID_ARGUMENT
                response.error_response.error_message = "a request that asks for nothing"


def _file_of(symbol: str) -> FileDescriptor:
    try:
        return POOL.FindFileContainingSymbol(symbol)
    except KeyError:
        # Protobuf's pool finds no methods (package.Service.Method); of reflection clients ask for them.
        service, _, method = symbol.rpartition(".")
        return POOL.FindServiceByName(service).methods_by_name[method].containing_service.file


def _describe(response: reflection.ServerReflectionResponse, file: FileDescriptor) -> None:
    # The file and all that it needs, so that a client asks once.
    found: dict[str, bytes] = {}

    def add(each: FileDescriptor) -> None:
        if each.name not in found:
            found[each.name] = each.serialized_pb
            for needed in each.dependencies:
                add(needed)

    add(file)
    response.file_descriptor_response.file_descriptor_proto.extend(found.values())
