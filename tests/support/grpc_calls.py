"""One gRPC call on a Unix socket, without a library for gRPC."""

from pathlib import Path
from typing import TypeVar

import h2.events
from google.protobuf.message import Message
from raw_http2 import RawClient, framed

_Response = TypeVar("_Response", bound=Message)


class Refused(Exception):
    """A call that ended with another status than OK."""


def call(
    socket: Path, path: str, request: Message, response: type[_Response], timeout: float = 100.0
) -> _Response:
    """The response to a unary call.

    Raises:
        Refused: with the status and the message.
        OSError: no agent answers, or it stops meanwhile.
    """
    body, ended = b"", {"grpc-status": "no trailers"}
    with RawClient(socket, timeout) as client:
        stream = client.begin(path)
        client.send(stream, framed(request.SerializeToString()), end=True)
        is_over = False
        while not is_over:
            for event in client.events():
                match event:
                    case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                        ended |= {str(name): str(value) for name, value in event.headers}
                    case h2.events.DataReceived():
                        body += event.data
                        client.http2.acknowledge_received_data(event.flow_controlled_length, stream)
                        client.flush()
                    case h2.events.StreamEnded() | h2.events.StreamReset():
                        is_over = True
    if ended["grpc-status"] != "0":
        raise Refused(f"{ended['grpc-status']}: {ended.get('grpc-message', '')}")
    return response.FromString(body[5:])
