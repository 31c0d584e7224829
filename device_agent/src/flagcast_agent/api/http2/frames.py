"""HTTP/2's frames: their kinds and sizes, error codes, and how they are written (RFC 9113, 4 and 6)."""

from enum import IntEnum
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes of every client (RFC 9113, 3.4)."""
WINDOW_BYTES: Final = 65_535
"""The initial window of a stream and of a connection (6.9.2)."""
WINDOW_MAX_BYTES: Final = 2**31 - 1
FRAME_MAX_BYTES: Final = 16_384
"""The largest frame received and sent: the initial SETTINGS_MAX_FRAME_SIZE, which every peer takes (6.5.2)."""


HEAD: Final = Struct(">HBBBI")
HEAD_BYTES: Final = 9
NUMBER: Final = 0x7FFFFFFF

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

SETTING: Final = Struct(">HI")
TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW: Final = 4
FRAME_SIZE: Final = 5
HEADER_LIST_SIZE: Final = 6


class Code(IntEnum):
    """Why a stream or a connection ends (RFC 9113, 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Broken(Exception):
    """A fault after which the connection cannot go on."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code = code


def frame(kind: int, flags: int, number: int, payload: bytes | memoryview) -> bytes:
    """One frame of stream `number`; 0 is the connection itself."""
    head = b"%b%c%c%b" % (len(payload).to_bytes(3, "big"), kind, flags, number.to_bytes(4, "big"))
    return b"".join((head, payload))


def goaway(last: int, code: Code, why: str) -> bytes:
    """The connection's end: no request above `last` was or will be answered."""
    return frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big") + why.encode())


def without_padding(data: bytes) -> bytes:
    """The content of a padded frame. Raises Broken."""
    if not data or data[0] >= len(data):
        raise Broken(Code.PROTOCOL_ERROR, "more padding than there is room for")
    return data[1 : len(data) - data[0]]


def require(holds: bool, code: Code, why: str) -> None:  # noqa: FBT001  # a condition, as assert has it
    """A rule of the protocol. Raises Broken."""
    if not holds:
        raise Broken(code, why)
