"""Flagcast's own service by the Connect protocol: its calls of one answer, in protobuf and in protobuf's JSON.

Whoever has no library for gRPC asks like this, with curl as well; the command line does. What answers are gRPC's methods.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import Message

from . import calls
from .calls import CallFailed, Method, Status, Unary
from .connect import PROTO, STATUS_OF
from .grpc import AGENT_SERVICE
from .http1 import Request
from .http2.headers import Fields
from .protos import flagcast_agent_pb2 as agent
from .web import JSON, Answer, Later, Reply

_MESSAGES: Final[Mapping[str, tuple[type[Message], type[Message]]]] = {
    f"/{AGENT_SERVICE}/Status": (agent.StatusRequest, agent.StatusResponse),
    f"/{AGENT_SERVICE}/Sync": (agent.SyncRequest, agent.SyncResponse),
    f"/{AGENT_SERVICE}/ListFlags": (agent.ListFlagsRequest, agent.ListFlagsResponse),
    f"/{AGENT_SERVICE}/Explain": (agent.ExplainRequest, agent.ExplainResponse),
}


class AgentPages:
    """The service's calls; `method` finds gRPC's by its path."""

    def __init__(self, method: Callable[[str], Method]) -> None:
        self._method = method

    def serves(self, path: str) -> bool:
        """Whether a path is a call of this service."""
        return path in _MESSAGES

    def answer(self, path: str, request: Request) -> Answer:
        """The answer to a call of a path that is served."""
        if request.method != "POST":
            return Reply(405, JSON, b"", {"allow": "POST"})
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in {PROTO, JSON}:
            return Reply(415, JSON, b"", {"accept-post": f"{PROTO}, {JSON}"})
        kind, response = _MESSAGES[path]
        method = self._method(path)
        fields = Fields(())
        try:
            if request.headers.get("content-encoding", "identity").lower() != "identity":
                raise CallFailed(Status.UNIMPLEMENTED, "compressed requests are not supported")
            body = _from_json(kind, request.body) if content_type == JSON else request.body
            if isinstance(method, Unary):
                message = method.answer(body, fields)
                assert isinstance(message, bytes)  # no call of this service has a large answer
                return _reply(response, message, content_type)
        except Exception as error:  # noqa: BLE001  # `failed` logs what is not the client's doing
            return _error(error)

        async def make() -> Reply:
            collecting = _Collecting(fields, body)
            try:
                await method.run(collecting)
            except Exception as error:  # noqa: BLE001  # as above
                return _error(error)
            return _reply(response, collecting.sent, content_type)

        return Later(make, len(body))


class _Collecting:
    # A call whose one message is kept for its answer.

    def __init__(self, fields: Fields, request: bytes) -> None:
        self.fields = fields
        self.request = request
        self.sent = b""

    def begin(self) -> None:
        pass

    async def send(self, *parts: bytes) -> None:
        self.sent = b"".join(parts)

    async def receive(self) -> bytes | None:
        return None

    def turn(self) -> AbstractAsyncContextManager[None]:
        raise NotImplementedError


def _from_json(kind: type[Message], body: bytes) -> bytes:
    try:
        return json_format.Parse(body, kind(), ignore_unknown_fields=True).SerializeToString()
    except (json_format.Error, ValueError, RecursionError) as error:
        raise CallFailed(
            Status.INVALID_ARGUMENT, f"the request is not a {kind.DESCRIPTOR.full_name}: {calls.shown(error)}"
        ) from None


def _reply(kind: type[Message], body: bytes, content_type: str) -> Reply:
    if content_type == JSON:
        message = kind.FromString(body)
        document = json_format.MessageToDict(message, preserving_proto_field_name=True)
        body = json.dumps(document, ensure_ascii=False).encode()
    return Reply(200, content_type, body)


def _error(error: Exception) -> Reply:
    failure = calls.failed(error)
    code = failure.status.name.lower()
    document = {"code": code, "message": str(failure)}
    return Reply(STATUS_OF[code], JSON, json.dumps(document, ensure_ascii=False).encode())
