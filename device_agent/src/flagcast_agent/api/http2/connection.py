"""One HTTP/2 connection of a server: frames read and written, streams, flow control in both directions (RFC 9113).

No socket and no clock. `receive` takes bytes, `next` gives the streams of which something is new, `take` what is to be sent.
A client that breaks the protocol, or costs more than it asks for, gets GOAWAY, and nothing more is read from it.
"""

from collections import deque
from typing import Final

from flagcast_agent.limits import (
    BURST_MAX_BYTES,
    FREE_FRAMES_MAX,
    FREE_FRAMES_PER_SECOND,
    HEAD_MAX_BYTES,
    SLICE_FRAMES,
    STREAMS_MAX,
)

from .frames import (
    ACK,
    CONCURRENT_STREAMS,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    FRAME_MAX_BYTES,
    FRAME_SIZE,
    GOAWAY,
    HEAD,
    HEAD_BYTES,
    HEADER_LIST_SIZE,
    HEADERS,
    INITIAL_WINDOW,
    NUMBER,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTING,
    SETTINGS,
    TABLE_SIZE,
    WINDOW_BYTES,
    WINDOW_MAX_BYTES,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    Broken,
    Code,
    frame,
    goaway,
    require,
    without_padding,
)
from .headers import EMPTY_TABLE, TABLE_MAX_BYTES, Decoder, Fields, NotHpack, TooManyHeaders
from .stream import Stream

_REMEMBERED: Final = 128  # ended streams whose late frames are told apart

# What a frame costs that asks for nothing, in frames: FREE_FRAMES_MAX of them are free, and FREE_FRAMES_PER_SECOND more.
_RESET_COST: Final = 5
_SETTINGS_COST: Final = 5
_SMALL_BYTES: Final = 256
_ANSWER_CREDIT: Final = 4
_PART_CREDIT: Final = 2
_BYTES_PER_CREDIT: Final = 4_096


class Connection:
    """The server's side of one connection."""

    def __init__(self) -> None:
        self._data = PREFACE[:0]
        self._at = 0
        self._is_new = True
        self._headers = Decoder()
        self._block: tuple[int, int, bytearray] | None = (
            None  # stream, flags and beginning of an unfinished header block
        )
        self._last = 0
        self._last_taken = 0
        self._now = 0.0
        self._window = WINDOW_BYTES
        self._room = WINDOW_BYTES
        self._stream_window = WINDOW_BYTES
        self._blocked: dict[int, Stream] = {}
        self._table = TABLE_MAX_BYTES  # the client's, for our headers, as far as it was told
        self._block_start = b""
        self._burst = BURST_MAX_BYTES
        self._answered: deque[int] = deque(maxlen=_REMEMBERED)
        self._dropped: deque[int] = deque(maxlen=_REMEMBERED)
        self._cost = 0
        self._cost_since = 0.0
        self._out: list[bytes] = [
            frame(
                SETTINGS,
                0,
                0,
                SETTING.pack(CONCURRENT_STREAMS, STREAMS_MAX)
                + SETTING.pack(HEADER_LIST_SIZE, HEAD_MAX_BYTES),
            )
        ]
        self.streams: dict[int, Stream] = {}
        self.waiting = 0
        self.drained: list[Stream] = []
        self.has_more = False
        self.is_over = False
        self.is_leaving = False
        self.why = ""

    # Bytes in.

    def receive(self, data: bytes) -> None:
        """Bytes from the client, for `next`."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    @property
    def unread(self) -> int:
        """Bytes received that `next` has not come to yet, or that are a part of a frame."""
        return len(self._data) - self._at

    def next(self, now: float) -> Stream | None:
        """A stream of which more is there, or that is over; None once all that was received is read.

        None comes also after SLICE_FRAMES frames that told of no stream, or fewer that had headers; `has_more` tells that then.

        What is wrong with the connection ends it: `is_over` and `why` tell, and `take` has the GOAWAY.
        """
        self.has_more = False
        if self.is_over:
            return None
        self._now = now
        try:
            return self._next(now)
        except Broken as broken:
            self._end(broken.code, str(broken))
            return None

    def _next(self, now: float) -> Stream | None:
        data = self._data
        end = len(data)
        if self._is_new:
            if end < len(PREFACE) + HEAD_BYTES:
                if not PREFACE.startswith(data[: len(PREFACE)]):
                    raise Broken(Code.PROTOCOL_ERROR, "no preface of HTTP/2")
                return None
            if not data.startswith(PREFACE):
                raise Broken(Code.PROTOCOL_ERROR, "no preface of HTTP/2")
            if data[len(PREFACE) + 3] != SETTINGS or data[len(PREFACE) + 4] & ACK:
                raise Broken(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._is_new = False
            self._at = len(PREFACE)
            self._cost_since = now
        left = SLICE_FRAMES
        while left > 0:
            left -= 1
            begin = self._at + HEAD_BYTES
            if begin > end:
                return None
            high, low, kind, flags, number = HEAD.unpack_from(data, self._at)
            stop = begin + (high << 8 | low)
            number &= NUMBER
            if stop - begin > FRAME_MAX_BYTES:
                raise Broken(Code.FRAME_SIZE_ERROR, "a frame larger than allowed")
            if stop > end:
                return None
            self._at = stop
            if self._block is not None and (kind != CONTINUATION or number != self._block[0]):
                raise Broken(Code.PROTOCOL_ERROR, "another frame within a header block")
            if kind == DATA:
                found = self._on_data(flags, number, data[begin:stop], now)
            elif kind == HEADERS:
                left -= stop - begin >> 1
                found = self._on_headers(flags, number, data[begin:stop], now)
            else:
                found = self._on_other(kind, flags, number, data[begin:stop], now)
            if found is not None:
                return found
        self.has_more = True
        return None

    def _on_data(self, flags: int, number: int, data: bytes, now: float) -> Stream | None:
        size = len(data)  # with its padding (6.9.1)
        self._room -= size
        if self._room < 0:
            raise Broken(Code.FLOW_CONTROL_ERROR, "more than the connection's window")
        if self._room < WINDOW_BYTES // 2:
            self._out.append(frame(WINDOW_UPDATE, 0, 0, (WINDOW_BYTES - self._room).to_bytes(4, "big")))
            self._room = WINDOW_BYTES
        is_last = flags & END_STREAM
        if flags & PADDED:
            data = without_padding(data)
        if len(data) < _SMALL_BYTES and not is_last:
            self._charge(1, now)
        stream = self.streams.get(number)
        if stream is None:
            self._on_late_data(number, now)
            return None
        if stream.is_whole:
            return self._fail(stream, Code.STREAM_CLOSED)
        stream.room -= size
        if stream.room < 0:
            return self._fail(stream, Code.FLOW_CONTROL_ERROR)
        stream.received += len(data)
        if isinstance(stream.body, bytearray):
            stream.body += data
        else:
            stream.body = bytearray(stream.body) + data if stream.body else data
        length = stream.fields.length
        if length is not None and (stream.received > length or (is_last and stream.received < length)):
            return self._fail(stream, Code.PROTOCOL_ERROR)  # 8.1.1
        if is_last:
            stream.is_whole = True
        elif not size:
            return None
        return stream  # also for padding alone, which takes of the window too

    def more(self, stream: Stream) -> None:
        """The body that came was taken, or is wanted whole: the client may send more of it."""
        if not stream.is_whole and not stream.is_over and stream.room < WINDOW_BYTES // 2:
            self._out.append(
                frame(WINDOW_UPDATE, 0, stream.number, (WINDOW_BYTES - stream.room).to_bytes(4, "big"))
            )
            stream.room = WINDOW_BYTES

    def _on_headers(self, flags: int, number: int, data: bytes, now: float) -> Stream | None:
        if not number & 1:
            raise Broken(Code.PROTOCOL_ERROR, "a request on a stream that is not the client's")
        if flags & (PADDED | WITH_PRIORITY):
            if flags & PADDED:
                data = without_padding(data)
            if flags & WITH_PRIORITY:
                if len(data) < 5:
                    raise Broken(Code.FRAME_SIZE_ERROR, "HEADERS without the priority that it announces")
                if int.from_bytes(data[:4], "big") & NUMBER == number:
                    raise Broken(Code.PROTOCOL_ERROR, "a stream that depends on itself")
                data = data[5:]
        if not flags & END_HEADERS:
            self._block = (number, flags, bytearray(data))
            return None
        return self._on_block(flags, number, data, now)

    def _on_continuation(self, flags: int, number: int, data: bytes, now: float) -> Stream | None:
        if self._block is None:
            raise Broken(Code.PROTOCOL_ERROR, "CONTINUATION of nothing")
        _, begun, block = self._block
        self._charge(1, now)
        block += data
        if len(block) > HEAD_MAX_BYTES:
            raise Broken(Code.ENHANCE_YOUR_CALM, "headers without end")
        if not flags & END_HEADERS:
            return None
        self._block = None
        return self._on_block(begun, number, bytes(block), now)

    def _on_block(self, flags: int, number: int, block: bytes, now: float) -> Stream | None:
        try:
            fields, timeout = self._headers.decode(block)
        except NotHpack as error:
            raise Broken(Code.COMPRESSION_ERROR, f"headers that cannot be decoded: {error}") from None
        except TooManyHeaders:
            raise Broken(Code.ENHANCE_YOUR_CALM, "more headers than allowed") from None
        is_last = flags & END_STREAM
        if number <= self._last:
            return self._on_trailers(number, fields, is_last=bool(is_last))
        self._last = number
        if self.is_leaving:
            self._charge(1, now)
            self._dropped.append(number)
            return None  # above what GOAWAY has named: the client asks elsewhere (6.8)
        if fields.fault or (is_last and fields.length):
            self._charge(1, now)
            self._drop(number, Code.PROTOCOL_ERROR)
            return None
        if len(self.streams) >= STREAMS_MAX:
            self._charge(_RESET_COST, now)
            self._drop(number, Code.REFUSED_STREAM)
            return None
        self._last_taken = number
        stream = self.streams[number] = Stream(number, fields, timeout, self._stream_window, now)
        if is_last:
            stream.is_whole = True
            return stream
        return None

    def _on_trailers(self, number: int, fields: Fields, *, is_last: bool) -> Stream | None:
        stream = self.streams.get(number)
        if stream is None:
            self._charge(1, self._now)
            if number in self._answered:
                raise Broken(Code.STREAM_CLOSED, "HEADERS on a stream that has ended")
            if number not in self._dropped:
                raise Broken(Code.PROTOCOL_ERROR, "a stream's number below that of one before")
            return None
        if stream.is_whole:
            return self._fail(stream, Code.STREAM_CLOSED)
        if not is_last or fields.trailers_fault:  # 8.1
            return self._fail(stream, Code.PROTOCOL_ERROR)
        stream.is_whole = True
        length = stream.fields.length
        if length is not None and length != stream.received:
            return self._fail(stream, Code.PROTOCOL_ERROR)
        return stream

    def _on_other(self, kind: int, flags: int, number: int, data: bytes, now: float) -> Stream | None:
        if kind == WINDOW_UPDATE:
            return self._on_window_update(number, data, now)
        if kind == CONTINUATION:
            return self._on_continuation(flags, number, data, now)
        if kind == RST_STREAM:
            return self._on_reset(number, data, now)
        if kind == SETTINGS:
            self._on_settings(flags, number, data, now)
            return None
        self._charge(1, now)
        if kind == PING:
            require(number == 0, Code.PROTOCOL_ERROR, "PING on a stream")
            require(len(data) == 8, Code.FRAME_SIZE_ERROR, "PING of another size than 8")
            if not flags & ACK:
                self._out.append(frame(PING, ACK, 0, data))
        elif kind == PRIORITY:
            return self._on_priority(number, data)
        elif kind == GOAWAY:
            require(number == 0, Code.PROTOCOL_ERROR, "GOAWAY on a stream")
            require(len(data) >= 8, Code.FRAME_SIZE_ERROR, "GOAWAY that is cut short")
        elif kind == PUSH_PROMISE:
            raise Broken(Code.PROTOCOL_ERROR, "PUSH_PROMISE of a client")
        return None  # 5.5: frames of unknown types are passed over

    def _on_priority(self, number: int, data: bytes) -> Stream | None:
        require(number != 0, Code.PROTOCOL_ERROR, "PRIORITY of no stream")
        stream = self.streams.get(number)
        if len(data) != 5:
            if stream is None:
                raise Broken(Code.FRAME_SIZE_ERROR, "PRIORITY of another size than 5")
            return self._fail(stream, Code.FRAME_SIZE_ERROR)
        if int.from_bytes(data[:4], "big") & NUMBER == number:
            if stream is None:
                raise Broken(Code.PROTOCOL_ERROR, "a stream that depends on itself")
            return self._fail(stream, Code.PROTOCOL_ERROR)
        return None

    def _on_reset(self, number: int, data: bytes, now: float) -> Stream | None:
        require(len(data) == 4, Code.FRAME_SIZE_ERROR, "RST_STREAM of another size than 4")
        stream = self.streams.get(number)
        self._charge(1 if stream is None else _RESET_COST, now)
        if stream is None:
            require(0 < number <= self._last, Code.PROTOCOL_ERROR, "RST_STREAM of no stream")
            return None
        self._forget(stream)
        self._answered.append(number)
        return stream

    def _on_window_update(self, number: int, data: bytes, now: float) -> Stream | None:
        require(len(data) == 4, Code.FRAME_SIZE_ERROR, "WINDOW_UPDATE of another size than 4")
        self._charge(1, now)
        more = int.from_bytes(data, "big") & NUMBER
        if not number:
            require(more != 0, Code.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
            self._window += more
            require(self._window <= WINDOW_MAX_BYTES, Code.FLOW_CONTROL_ERROR, "a window beyond 2^31-1")
            self._flush_all()
            return None
        stream = self.streams.get(number)
        if stream is None:
            is_known = number <= self._last and number & 1
            require(bool(is_known and more), Code.PROTOCOL_ERROR, "WINDOW_UPDATE of no stream, or by nothing")
            return None
        if not more:
            return self._fail(stream, Code.PROTOCOL_ERROR)
        stream.window += more
        if stream.window > WINDOW_MAX_BYTES:
            return self._fail(stream, Code.FLOW_CONTROL_ERROR)
        if stream.waiting:
            self._flush(stream)
        return None

    def _on_settings(self, flags: int, number: int, data: bytes, now: float) -> None:
        require(number == 0, Code.PROTOCOL_ERROR, "SETTINGS on a stream")
        self._charge(_SETTINGS_COST, now)
        if flags & ACK:
            require(not data, Code.FRAME_SIZE_ERROR, "SETTINGS that acknowledge and set")
            return
        require(len(data) % SETTING.size == 0, Code.FRAME_SIZE_ERROR, "SETTINGS that are cut short")
        self._charge(len(data) // SETTING.size, now)
        for name, value in SETTING.iter_unpack(data):
            if name == ENABLE_PUSH:
                require(value <= 1, Code.PROTOCOL_ERROR, "ENABLE_PUSH that is neither 0 nor 1")
            elif name == FRAME_SIZE:
                is_right = FRAME_MAX_BYTES <= value < 1 << 24
                require(is_right, Code.PROTOCOL_ERROR, "a MAX_FRAME_SIZE that is not allowed")
            elif name == TABLE_SIZE:
                if value < self._table:
                    self._table, self._block_start = 0, EMPTY_TABLE
            elif name == INITIAL_WINDOW:
                require(value <= WINDOW_MAX_BYTES, Code.FLOW_CONTROL_ERROR, "a window beyond 2^31-1")
                change, self._stream_window = value - self._stream_window, value
                for stream in self.streams.values():
                    stream.window += change
                    require(
                        stream.window <= WINDOW_MAX_BYTES, Code.FLOW_CONTROL_ERROR, "a window beyond 2^31-1"
                    )
        self._out.append(frame(SETTINGS, ACK, 0, b""))
        self._flush_all()

    def _on_late_data(self, number: int, now: float) -> None:
        # DATA on a stream that is not open: late, or wrong (5.1).
        if not number & 1 or number > self._last:
            raise Broken(Code.PROTOCOL_ERROR, "DATA of no stream")
        if number in self._answered:
            raise Broken(Code.STREAM_CLOSED, "DATA on a stream that has ended")
        if number not in self._dropped:
            self._charge(_RESET_COST, now)
            self._drop(number, Code.STREAM_CLOSED)

    def _charge(self, frames: int, now: float) -> None:
        self._cost += frames
        if self._cost > FREE_FRAMES_MAX:
            self._cost -= int((now - self._cost_since) * FREE_FRAMES_PER_SECOND)
            self._cost_since = now
            if self._cost > FREE_FRAMES_MAX:
                raise Broken(Code.ENHANCE_YOUR_CALM, "frames without end that ask for nothing")
            self._cost = max(self._cost, 0)

    # Bytes out.

    def take(self) -> bytes:
        """Bytes to be sent, about BURST_MAX_BYTES at most; b"" once nothing is left that the client's windows have room for.

        Whoever takes them asks for more when the socket has taken these: a large answer waits in one piece, not in copies.
        """
        if not self._out and self._blocked and not self.is_over:
            self._flush_all()
        self._burst = BURST_MAX_BYTES
        if not self._out:
            return b""
        taken = b"".join(self._out)
        self._out.clear()
        return taken

    def answer(self, stream: Stream, head: bytes, body: bytes, tail: bytes, now: float) -> None:
        """The whole answer: blocks of headers and trailers, b"" for none, and the body between them.

        What the windows have no room for waits. Nothing happens on a stream that is over.
        """
        size = len(body)
        if stream.is_over:
            return
        is_fitting = size <= self._window and size <= stream.window and size <= FRAME_MAX_BYTES
        if not (is_fitting and tail and stream.is_whole):
            self.begin(stream, head)
            self.send(stream, body, now)
            self.end(stream, tail)
            return
        self._window -= size
        if self._block_start:
            head = self._started(head)
        number = stream.number.to_bytes(4, "big")
        self._out.append(
            b"%b\1\4%b%b%b\0\0%b%b%b\1\5%b%b"
            % (
                len(head).to_bytes(3, "big"),
                number,
                head,
                size.to_bytes(3, "big"),
                number,
                body,
                len(tail).to_bytes(3, "big"),
                number,
                tail,
            )
        )
        stream.is_over = True
        del self.streams[stream.number]
        self._answered.append(stream.number)
        if self._cost:
            self._cost = max(self._cost - _ANSWER_CREDIT, 0)

    def refuse(self, stream: Stream, head: bytes) -> None:
        """Headers alone as the whole answer."""
        if not stream.is_over:
            self._out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream.number, self._started(head)))
            self._answer_is_sent(stream)

    def begin(self, stream: Stream, head: bytes) -> None:
        """The headers of an answer in parts."""
        if not stream.is_over:
            self._out.append(frame(HEADERS, END_HEADERS, stream.number, self._started(head)))

    def send(self, stream: Stream, part: bytes, now: float) -> None:
        """A part of a body; `stream.waiting` tells how much waits for the client."""
        if stream.is_over or not part:
            return
        if stream.parts is None:
            stream.parts = deque()
        if not stream.waiting:
            stream.waits_since = now
        self._now = now
        stream.parts.append(memoryview(part))  # which is cut without being copied
        stream.waiting += len(part)
        self.waiting += len(part)
        self._flush(stream)

    def end(self, stream: Stream, tail: bytes) -> None:
        """The trailers, if there are any, and the end, after all that waits."""
        if not stream.is_over:
            stream.tail = tail
            self._flush(stream)

    def reset(self, stream: Stream, code: Code) -> None:
        """The end of a stream at once."""
        if not stream.is_over:
            self._forget(stream)
            self._drop(stream.number, code)

    def lose(self) -> None:
        """The end of the connection without another word: its socket is gone."""
        self.is_over = True
        for stream in tuple(self.streams.values()):
            self._forget(stream)

    def leave(self) -> None:
        """No further request is taken: the client is told the last one that was (6.8)."""
        if not self.is_leaving and not self.is_over:
            self.is_leaving = True
            self._out.append(goaway(self._last_taken, Code.NO_ERROR, ""))

    def _started(self, block: bytes) -> bytes:
        # The first block after the client made its table smaller acknowledges that (RFC 9113, 4.3.1).
        start, self._block_start = self._block_start, b""
        return start + block

    def _flush_all(self) -> None:
        # In turns, so that one large answer does not hold back the others.
        while self._window > 0 and self._blocked:
            before = self._window
            for stream in tuple(self._blocked.values()):
                waiting = stream.waiting
                self._flush(stream, frames=1)
                if waiting > stream.waiting > 0:
                    self._blocked[stream.number] = self._blocked.pop(
                        stream.number
                    )  # the last one of the next turn
            if self._window == before:
                break

    def _flush(self, stream: Stream, frames: int = -1) -> None:
        parts = stream.parts
        while parts and frames and self._burst > 0:
            part = parts[0]
            size = min(len(part), self._window, stream.window, FRAME_MAX_BYTES)
            if size <= 0:
                break
            frames -= 1
            if size == len(part):
                parts.popleft()
                credit = _PART_CREDIT
            else:
                parts[0] = part[size:]
                part = part[:size]
                credit = size // _BYTES_PER_CREDIT
            self._window -= size
            self._burst -= size
            stream.window -= size
            stream.waiting -= size
            stream.waits_since = self._now
            self.waiting -= size
            self._out.append(frame(DATA, 0, stream.number, part))
            self._cost = max(self._cost - credit, 0)
        if parts:
            self._blocked[stream.number] = stream
            return
        if self._blocked.pop(stream.number, None) is not None:
            self.drained.append(stream)
        if stream.tail is not None:
            if stream.tail:
                tail = self._started(stream.tail)
                self._out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream.number, tail))
            else:
                self._out.append(frame(DATA, END_STREAM, stream.number, b""))
            self._answer_is_sent(stream)

    def _answer_is_sent(self, stream: Stream) -> None:
        self._forget(stream)
        if stream.is_whole:
            self._answered.append(stream.number)
        else:
            self._drop(stream.number, Code.NO_ERROR)  # 8.1: the rest of the request is not needed

    def _fail(self, stream: Stream, code: Code) -> Stream:
        # A client that makes this side reset a stream has as much for as little as one that resets it.
        self._charge(_RESET_COST, self._now)
        self.reset(stream, code)
        return stream

    def _drop(self, number: int, code: Code) -> None:
        self._dropped.append(number)
        self._out.append(frame(RST_STREAM, 0, number, code.to_bytes(4, "big")))

    def _forget(self, stream: Stream) -> None:
        stream.is_over = True
        self.waiting -= stream.waiting
        stream.waiting = 0
        stream.parts = None
        self._blocked.pop(stream.number, None)
        del self.streams[stream.number]

    def _end(self, code: Code, why: str) -> None:
        self.is_over = True
        self.why = why
        self._out.append(goaway(self._last_taken, code, why))
