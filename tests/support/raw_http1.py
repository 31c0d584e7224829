"""An HTTP/1.1 client that sends exactly what it is told and reads answers one by one, whole or in parts."""

import json
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class HttpClient:
    """One connection to a Unix socket or to a port of 127.0.0.1; every wait ends within `timeout` seconds."""

    def __init__(self, where: Path | int, timeout: float = 100.0) -> None:
        if isinstance(where, int):
            self.socket = socket.create_connection(("127.0.0.1", where))
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(str(where))
        self.socket.settimeout(timeout)
        self._bytes = b""

    def ask(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """One request and its whole answer."""
        self.send(method, target, body, headers)
        return self.response(has_body=method != "HEAD")

    def post_json(self, target: str, document: object, headers: Mapping[str, str] | None = None) -> Response:
        return self.ask(
            "POST",
            target,
            json.dumps(document).encode(),
            {"content-type": "application/json", **(headers or {})},
        )

    def send(
        self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        lines = [f"{method} {target} HTTP/1.1"]
        given = {"host": "localhost", **(headers or {})}
        if body is not None:
            given["content-length"] = str(len(body))
        lines += [f"{name}: {value}" for name, value in given.items()]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b""))

    def response(self, *, has_body: bool = True) -> Response:
        status, headers = self.head()
        if not has_body or status == 304:
            return Response(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Response(status, headers, b"".join(self.chunks()))
        return Response(status, headers, self._exactly(int(headers["content-length"])))

    def head(self) -> tuple[int, dict[str, str]]:
        first, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        pairs = (line.split(": ", 1) for line in lines)
        return int(status), {name.lower(): value for name, value in pairs}

    def chunks(self) -> Iterator[bytes]:
        while size := int(self._until(b"\r\n"), 16):
            yield self._exactly(size)
            assert self._exactly(2) == b"\r\n"
        assert self._exactly(2) == b"\r\n"

    def until_closed(self) -> bytes:
        """What is still sent before the server closes."""
        found = self._bytes
        while data := self.socket.recv(65536):
            found += data
        return found

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._bytes:
            self._more()
        found, _, self._bytes = self._bytes.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._bytes) < size:
            self._more()
        found, self._bytes = self._bytes[:size], self._bytes[size:]
        return found

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed by the server")
        self._bytes += data


def enveloped(message: bytes, flags: int = 0) -> bytes:
    """A message of Connect's streams."""
    return struct.pack(">BI", flags, len(message)) + message


def opened(data: bytes) -> tuple[int, bytes]:
    """Flags and message of one envelope."""
    flags, size = struct.unpack(">BI", data[:5])
    assert len(data) == 5 + size
    return flags, data[5:]
