"""HTTP/2's rules on connections that nobody sent over a socket: requests, flow control, ends, floods."""

import random
from collections.abc import Callable

import hpack
import pytest
from frames import (
    CALL,
    HELLO,
    Frame,
    data,
    headers,
    kinds,
    opened,
    parsed,
    ping,
    reset,
    settings,
    streams_of,
    window,
)

from flagcast_agent.api.http2 import frames
from flagcast_agent.api.http2.connection import Connection
from flagcast_agent.api.http2.frames import FRAME_MAX_BYTES, WINDOW_BYTES, Code
from flagcast_agent.api.http2.headers import block_of
from flagcast_agent.api.http2.stream import Stream
from flagcast_agent.limits import FREE_FRAMES_MAX, FREE_FRAMES_PER_SECOND, STREAMS_MAX

HEAD, TAIL = block_of((":status", "200")), block_of(("grpc-status", "0"))


def whole(connection: Connection, sent: bytes, now: float = 0.0) -> list[Stream]:
    """Requests that are whole after so many more bytes."""
    connection.receive(sent)
    found = []
    for stream in streams_of(connection, now):
        if stream.is_whole and not stream.is_over:
            found.append(stream)
        elif not stream.is_over:
            connection.more(stream)
    return found


def broken(connection: Connection, sent: bytes, code: Code) -> None:
    """The bytes end the connection, and nothing but the GOAWAY is sent."""
    assert whole(connection, sent) == []
    assert connection.is_over
    *_, last = parsed(connection.take())
    assert (last.kind, last.code) == (frames.GOAWAY, code)
    assert whole(connection, headers(101, end=True)) == []
    assert connection.take() == b""


def body_of(sent: list[Frame], stream: int) -> bytes:
    return b"".join(frame.content for frame in sent if frame.kind == frames.DATA and frame.stream == stream)


# Requests.


def test_a_request_is_the_same_however_its_bytes_are_cut() -> None:
    sent = HELLO + headers(1) + ping() + data(1, b"one") + data(1, b"two", end=True) + headers(3, end=True)
    for at in range(len(sent)):
        connection = Connection()
        found = whole(connection, sent[:at]) + whole(connection, sent[at:])
        assert [(each.number, bytes(each.body)) for each in found] == [(1, b"onetwo"), (3, b"")]
    connection = Connection()
    found = [each for byte in sent for each in whole(connection, bytes([byte]))]
    assert [each.number for each in found] == [1, 3]


def test_padding_and_priority_are_passed_over() -> None:
    connection = opened()
    padded = frames.frame(frames.HEADERS, 0x2C, 1, b"\x03" + b"\0\0\0\0\x10" + CALL + b"\0\0\0")
    (stream,) = whole(connection, padded + frames.frame(frames.DATA, 0x9, 1, b"\x02ab\0\0"))
    assert (stream.fields.path, stream.body) == ("/s/M", b"ab")


def test_headers_in_several_frames() -> None:
    connection = opened()
    parts = headers(1, CALL[:5], end=True, flags=0) + frames.frame(9, 0, 1, CALL[5:9])
    (stream,) = whole(connection, parts + frames.frame(9, frames.END_HEADERS, 1, CALL[9:]))
    assert stream.fields.path == "/s/M"


def test_trailers_end_a_request() -> None:
    connection = opened()
    (stream,) = whole(connection, headers(1) + data(1, b"x") + headers(1, block_of(("x", "1")), end=True))
    assert stream.body == b"x"


@pytest.mark.parametrize(
    "late",
    [
        headers(1, block_of(("x", "1"))),  # trailers that do not end
        headers(1, end=True),  # trailers with pseudo-headers
        headers(1, block_of((":method", "GET")), end=True),
    ],
)
def test_trailers_that_are_none_reset_their_stream_alone(late: bytes) -> None:
    connection = opened()
    found = whole(connection, headers(1) + headers(3) + late + data(3, b"", end=True))
    assert [stream.number for stream in found] == [3]
    assert [(f.stream, f.code) for f in parsed(connection.take())] == [(1, Code.PROTOCOL_ERROR)]


@pytest.mark.parametrize("length", ["0", "2", "4", "1000"])
def test_a_body_of_another_length_than_announced_is_reset(length: str) -> None:
    connection = opened()
    block = CALL + block_of(("content-length", length))
    assert whole(connection, headers(1, block) + data(1, b"abc", end=True)) == []
    assert whole(connection, headers(3, CALL + block_of(("content-length", "3"))) + data(3, b"abc", end=True))
    assert [(f.stream, f.code) for f in parsed(connection.take())] == [(1, Code.PROTOCOL_ERROR)]


def test_more_streams_than_allowed_are_refused_and_the_others_go_on() -> None:
    connection = opened()
    numbers = range(1, 2 * STREAMS_MAX + 20, 2)
    whole(connection, b"".join(headers(number) for number in numbers))
    refused = parsed(connection.take())
    assert [(f.stream, f.code) for f in refused] == [
        (number, Code.REFUSED_STREAM) for number in numbers[STREAMS_MAX:]
    ]
    assert len(connection.streams) == STREAMS_MAX
    assert [stream.number for stream in whole(connection, data(1, b"", end=True))] == [1]


def test_headers_without_end_are_read_in_slices() -> None:
    # Every 2 bytes of them count as a frame: one slice of blocks of 1,100 bytes is one block.
    connection = opened()
    large = CALL + block_of(*((f"x-{number}", "v" * 100) for number in range(10)))
    connection.receive(b"".join(headers(number, large) for number in range(1, 21, 2)))
    slices = 0
    while connection.next(0.0) is not None or connection.has_more:
        slices += 1
        assert len(connection.streams) == slices, "more than one block in a slice"
    assert len(connection.streams) == 10


# The end of a connection.


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(headers(2, end=True), Code.PROTOCOL_ERROR, id="a stream of the server's"),
        pytest.param(headers(0, end=True), Code.PROTOCOL_ERROR, id="a request on no stream"),
        pytest.param(headers(5) + headers(3), Code.PROTOCOL_ERROR, id="a lower stream"),
        pytest.param(data(1, b"x"), Code.PROTOCOL_ERROR, id="data of no request"),
        pytest.param(data(0, b"x"), Code.PROTOCOL_ERROR, id="data of the connection"),
        pytest.param(window(0, 0), Code.PROTOCOL_ERROR, id="a window by nothing"),
        pytest.param(window(1, 1), Code.PROTOCOL_ERROR, id="a window of no stream"),
        pytest.param(window(0, 2**31 - 1), Code.FLOW_CONTROL_ERROR, id="a window too large"),
        pytest.param(reset(1), Code.PROTOCOL_ERROR, id="a reset of no stream"),
        pytest.param(settings((4, 2**31)), Code.FLOW_CONTROL_ERROR, id="an initial window too large"),
        pytest.param(settings((2, 2)), Code.PROTOCOL_ERROR, id="a push that is neither on nor off"),
        pytest.param(settings((5, 16_383)), Code.PROTOCOL_ERROR, id="frames too small"),
        pytest.param(frames.frame(4, 0, 0, b"12345"), Code.FRAME_SIZE_ERROR, id="half a setting"),
        pytest.param(frames.frame(4, 1, 0, b"123456"), Code.FRAME_SIZE_ERROR, id="settings with an answer"),
        pytest.param(frames.frame(4, 0, 1, b""), Code.PROTOCOL_ERROR, id="settings of a stream"),
        pytest.param(ping(b"1"), Code.FRAME_SIZE_ERROR, id="a short ping"),
        pytest.param(frames.frame(6, 0, 1, bytes(8)), Code.PROTOCOL_ERROR, id="a ping of a stream"),
        pytest.param(frames.frame(5, 4, 1, bytes(4)), Code.PROTOCOL_ERROR, id="a push"),
        pytest.param(frames.frame(9, 4, 1, CALL), Code.PROTOCOL_ERROR, id="a continuation of nothing"),
        pytest.param(headers(1, flags=0) + ping(), Code.PROTOCOL_ERROR, id="a ping within headers"),
        pytest.param(headers(1, flags=0) + frames.frame(9, 4, 3, b""), Code.PROTOCOL_ERROR, id="another's"),
        pytest.param(
            frames.frame(1, 0xC, 1, b"\xff" + CALL), Code.PROTOCOL_ERROR, id="more padding than there is"
        ),
        pytest.param(frames.frame(0, 0x8, 1, b""), Code.PROTOCOL_ERROR, id="padding of nothing"),
        pytest.param(headers(1, b"\x80"), Code.COMPRESSION_ERROR, id="headers that are none"),
        pytest.param(
            bytes([0, 0x40, 1]) + bytes(6), Code.FRAME_SIZE_ERROR, id="a frame too large, before it is there"
        ),
        pytest.param(b"\xff\xff\xff\xfa\0\0\0\0\0", Code.FRAME_SIZE_ERROR, id="an unknown frame of 16 MB"),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection(sent: bytes, code: Code) -> None:
    broken(opened(), sent, code)


def test_data_after_the_end_of_an_answered_request_ends_the_connection() -> None:
    connection = opened()
    (stream,) = whole(connection, headers(1, end=True))
    connection.answer(stream, HEAD, b"x", TAIL, 0.0)
    connection.take()
    broken(connection, data(1, b"late"), Code.STREAM_CLOSED)


def test_what_comes_late_on_a_stream_that_was_refused_is_passed_over() -> None:
    connection = opened()
    whole(connection, headers(1) + headers(3))
    connection.refuse(connection.streams[1], HEAD)
    assert [kind for kind, _ in kinds(parsed(connection.take()))] == [frames.HEADERS, frames.RST_STREAM]
    late = data(1, bytes(1000)) * 10 + window(1, 5) + headers(1, block_of(("x", "1")), end=True) + reset(1)
    assert whole(connection, late) == []
    assert [stream.number for stream in whole(connection, data(3, b"", end=True))] == [3]
    assert not connection.is_over


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + bytes(20)]
)
def test_another_beginning_than_the_preface(first: bytes) -> None:
    connection = Connection()
    connection.receive(first)
    assert connection.next(0.0) is None
    assert connection.is_over


def test_another_first_frame_than_settings() -> None:
    connection = Connection()
    connection.receive(frames.PREFACE + ping())
    assert connection.next(0.0) is None
    assert connection.is_over


def test_after_leaving_calls_in_progress_end_and_later_ones_are_not_answered() -> None:
    connection = opened()
    block = CALL + b"\x40\x03x-a\x01" + b"1"  # puts a header into the table
    whole(connection, headers(1))
    connection.leave()
    connection.leave()
    (goaway,) = parsed(connection.take())
    assert (goaway.content[:4], goaway.code) == ((1).to_bytes(4, "big"), Code.NO_ERROR)
    assert whole(connection, headers(3, block, end=True)) == []
    assert list(connection.streams) == [1]
    (stream,) = whole(connection, data(1, b"x", end=True))
    connection.answer(stream, HEAD, b"answer", TAIL, 0.0)
    assert body_of(parsed(connection.take()), 1) == b"answer"
    connection._headers.decode(CALL + b"\xbe")  # the table is still the client's
    assert not connection.is_over


# Flow control (5.2, 6.9).


def test_never_more_is_sent_than_the_windows_allow_and_nothing_is_lost() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        connection = opened()
        initial = chance.choice((0, 1, 7, 1_000, WINDOW_BYTES, 200_000))
        whole(connection, settings((frames.INITIAL_WINDOW, initial)))
        connection.take()
        numbers = list(range(1, 2 * chance.randrange(1, 6), 2))
        rooms = dict.fromkeys(numbers, initial)
        room = WINDOW_BYTES
        answers, got = {}, dict.fromkeys(numbers, b"")
        ended = set()
        for number in numbers:
            (stream,) = whole(connection, headers(number, end=True))
            answers[number] = chance.randbytes(chance.choice((0, 1, 100, 20_000, 90_000)))
            connection.answer(stream, HEAD, answers[number], TAIL, 0.0)
        for _ in range(10_000):
            for frame in parsed(connection.take()):
                if frame.kind == frames.DATA:
                    assert len(frame.content) <= FRAME_MAX_BYTES
                    rooms[frame.stream] -= len(frame.content)
                    room -= len(frame.content)
                    assert rooms[frame.stream] >= 0
                    assert room >= 0
                    got[frame.stream] += frame.content
                elif frame.kind == frames.HEADERS and frame.flags & frames.END_STREAM:
                    ended.add(frame.stream)
            left = [number for number in numbers if number not in ended]
            if not left:
                break
            assert connection.waiting == sum(len(answers[each]) - len(got[each]) for each in left)
            more = chance.choice((1, 500, 30_000, 65_000))
            match chance.randrange(3):
                case 0:
                    room += more
                    whole(connection, window(0, more), now=1e6)
                case 1:
                    number = chance.choice(left)
                    rooms[number] += more
                    whole(connection, window(number, more), now=1e6)
                case _:
                    change = chance.choice((0, 5, 70_000))
                    for number in numbers:
                        rooms[number] += change - initial
                    initial = change
                    whole(connection, settings((frames.INITIAL_WINDOW, change)), now=1e6)
            connection._cost = 0  # this client has all the time of the world
        assert got == answers
        assert connection.waiting == 0
        assert not connection.streams


def test_an_answer_without_trailers_ends_with_its_data() -> None:
    connection = opened()
    (stream,) = whole(connection, headers(1, end=True))
    connection.answer(stream, HEAD, b"page", b"", 0.0)
    found = [(f.kind, f.flags & frames.END_STREAM, f.content) for f in parsed(connection.take())]
    assert found[0][:2] == (frames.HEADERS, 0)
    assert found[1:] == [(frames.DATA, 0, b"page"), (frames.DATA, frames.END_STREAM, b"")]
    assert not connection.streams


def test_one_large_answer_does_not_hold_back_the_others() -> None:
    connection = opened()
    for number in (1, 3):
        (stream,) = whole(connection, headers(number, end=True))
        connection.answer(stream, HEAD, bytes(200_000), TAIL, 0.0)
    connection.take()
    whole(connection, window(1, 1_000_000) + window(3, 1_000_000) + window(0, 2 * FRAME_MAX_BYTES))
    assert [f.stream for f in parsed(connection.take()) if f.kind == frames.DATA] == [1, 3]


def test_what_a_client_may_send_is_given_back_as_it_is_taken() -> None:
    connection = opened()
    whole(connection, headers(1))
    room, of_stream, sent = WINDOW_BYTES, WINDOW_BYTES, 0
    while sent < 1_000_000:
        size = min(room, of_stream, 10_000)
        assert size > 0
        whole(connection, data(1, bytes(size)))
        sent, room, of_stream = sent + size, room - size, of_stream - size
        for frame in parsed(connection.take()):
            assert frame.kind == frames.WINDOW_UPDATE
            if frame.stream:
                of_stream += frame.code
            else:
                room += frame.code
    assert len(connection.streams[1].body) == sent


def test_a_client_that_sends_more_than_its_window_is_reset() -> None:
    connection = opened()
    whole(connection, headers(1) + headers(3))
    for _ in range(6):
        connection.receive(data(1, bytes(FRAME_MAX_BYTES)))
        while connection.next(0.0) is not None:
            pass  # nobody takes it
    assert [f.code for f in parsed(connection.take()) if f.kind == frames.RST_STREAM] == [
        Code.FLOW_CONTROL_ERROR
    ]
    assert list(connection.streams) == [3]


def test_a_window_of_a_stream_beyond_the_largest_resets_it_alone() -> None:
    connection = opened()
    whole(connection, headers(1) + headers(3) + window(1, 2**31 - 1))
    assert [(f.stream, f.code) for f in parsed(connection.take())] == [(1, Code.FLOW_CONTROL_ERROR)]
    assert list(connection.streams) == [3]


def test_a_reset_in_the_middle_of_an_answer_frees_what_waits() -> None:
    connection = opened()
    (stream,) = whole(connection, headers(1, end=True))
    connection.answer(stream, HEAD, bytes(500_000), TAIL, 0.0)
    assert connection.waiting > 400_000
    whole(connection, reset(1))
    assert (connection.waiting, stream.is_over, connection.streams) == (0, True, {})
    connection.send(stream, b"late", 0.0)
    connection.end(stream, TAIL)
    connection.reset(stream, Code.CANCEL)
    connection.take()
    whole(connection, window(0, 100_000))
    assert connection.take() == b""


# Floods: frames that ask for nothing.


def tiny_window(connection: Connection) -> None:
    whole(connection, settings((frames.INITIAL_WINDOW, 1)))
    (stream,) = whole(connection, headers(1, end=True))
    connection.answer(stream, HEAD, bytes(50_000), TAIL, 0.0)


FLOODS: dict[str, tuple[Callable[[Connection], object], Callable[[int], bytes]]] = {
    "pings": (lambda _: None, lambda _: ping()),
    "answers to pings": (lambda _: None, lambda _: frames.frame(frames.PING, frames.ACK, 0, bytes(8))),
    "settings": (lambda _: None, lambda _: settings()),
    "many settings": (lambda _: None, lambda _: settings(*[(0x99, 1)] * 500)),
    "empty data": (lambda c: whole(c, headers(1)), lambda _: data(1, b"")),
    "data byte by byte": (lambda c: whole(c, headers(1)), lambda _: data(1, b"x")),
    "priorities": (lambda _: None, lambda _: frames.frame(frames.PRIORITY, 0, 1, b"\0\0\0\3\0")),
    "unknown frames": (lambda _: None, lambda _: frames.frame(0xEE, 0, 0, b"")),
    "windows by one": (lambda c: whole(c, headers(1)), lambda _: window(1, 1)),
    "tiny windows": (tiny_window, lambda _: window(1, 1)),
    "requests reset at once": (lambda _: None, lambda at: headers(2 * at + 1) + reset(2 * at + 1)),
    "requests that are malformed": (lambda _: None, lambda at: headers(2 * at + 1, b"\x82", end=True)),
    "requests above the limit": (
        lambda c: whole(c, b"".join(headers(2 * at + 1) for at in range(STREAMS_MAX))),
        lambda at: headers(2 * (STREAMS_MAX + at) + 1),
    ),
    "an end that never comes": (lambda _: None, lambda _: frames.frame(frames.GOAWAY, 0, 0, bytes(8))),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_ended(name: str) -> None:
    prepare, flood = FLOODS[name]
    connection = opened()
    prepare(connection)
    for at in range(10 * FREE_FRAMES_MAX):
        whole(connection, flood(at), now=at / (100 * FREE_FRAMES_PER_SECOND))
        if connection.is_over:
            break
    assert connection.is_over
    *_, last = parsed(connection.take())
    assert (last.kind, last.code) == (frames.GOAWAY, Code.ENHANCE_YOUR_CALM)
    assert len(connection.streams) <= STREAMS_MAX


@pytest.mark.parametrize("part", [b"", bytes(100)])
def test_headers_without_end_are_ended(part: bytes) -> None:
    connection = opened()
    whole(connection, headers(1, flags=0))
    for _ in range(10 * FREE_FRAMES_MAX):
        whole(connection, frames.frame(frames.CONTINUATION, 0, 1, part))
    assert connection.is_over
    *_, last = parsed(connection.take())
    assert last.code == Code.ENHANCE_YOUR_CALM


def test_a_client_that_asks_and_minds_its_connection_is_never_ended() -> None:
    connection = opened()
    for at in range(20_000):
        number = 2 * at + 1
        (stream,) = whole(connection, headers(number) + data(number, b"", end=True))
        connection.answer(stream, HEAD, b"an answer", TAIL, 0.0)
        connection.take()
        whole(connection, ping() + window(0, 9))
        connection.take()
    assert not connection.is_over
    assert not connection.streams


def test_a_client_that_keeps_its_connection_alive_for_a_day_is_never_ended() -> None:
    connection = opened()
    (stream,) = whole(connection, headers(1, end=True))
    connection.begin(stream, HEAD)
    for at in range(8_640):
        whole(connection, ping(), now=10.0 * at)
        connection.send(stream, b"an event", 10.0 * at)
        connection.take()
        whole(connection, window(1, 8) + window(0, 8), now=10.0 * at)
    assert not connection.is_over
    assert not stream.is_over


def test_a_client_that_reads_a_large_answer_piece_by_piece_is_never_ended() -> None:
    connection = opened()
    (stream,) = whole(connection, headers(1, end=True))
    connection.answer(stream, HEAD, bytes(4 * 2**20), TAIL, 0.0)
    got = 0
    while not stream.is_over:
        for frame in parsed(connection.take()):
            if frame.kind == frames.DATA:
                size = len(frame.content)
                got += size
                assert whole(connection, window(1, size) + window(0, size) + ping()) == []
    got += len(body_of(parsed(connection.take()), 1))
    assert got == 4 * 2**20
    assert not connection.is_over


# What h2spec does not try.


def started(connection: Connection, number: int) -> Stream:
    """A request that is whole, whose answer has begun and goes on."""
    (stream,) = whole(connection, headers(number, end=True))
    connection.begin(stream, HEAD)
    return stream


@pytest.mark.parametrize(
    "late",
    [
        block_of(("X-Upper", "1")),
        block_of(("connection", "close")),
        block_of(("x", "a\nb")),
        block_of((":scheme", "http")),
        block_of((":status", "200")),
    ],
)
def test_malformed_trailers_reset_their_stream_alone(late: bytes) -> None:
    connection = opened()
    found = whole(connection, headers(1) + headers(3) + headers(1, late, end=True) + data(3, b"", end=True))
    assert [stream.number for stream in found] == [3]
    assert [(f.stream, f.code) for f in parsed(connection.take())] == [(1, Code.PROTOCOL_ERROR)]


@pytest.mark.parametrize(
    "provoke",
    [
        pytest.param(lambda number: data(number, b"", end=True), id="data after the end"),
        pytest.param(lambda number: headers(number, end=True), id="headers after the end"),
        pytest.param(lambda number: window(number, 0), id="a window by nothing"),
        pytest.param(lambda number: window(number, 2**31 - 1), id="a window too large"),
        pytest.param(lambda number: frames.frame(2, 0, number, b"12"), id="half a priority"),
        pytest.param(
            lambda number: frames.frame(2, 0, number, number.to_bytes(4, "big") + b"\0"),
            id="a stream on itself",
        ),
    ],
)
def test_a_client_that_makes_the_server_reset_costs_as_much_as_one_that_resets(
    provoke: Callable[[int], bytes],
) -> None:
    """The attack known as MadeYouReset (CVE-2025-8671)."""
    connection = opened()
    number = 1
    while not connection.is_over and number < 10 * FREE_FRAMES_MAX:
        started(connection, number)
        assert whole(connection, provoke(number)) == []
        number += 2
    assert number < FREE_FRAMES_MAX, "five frames each"
    last = parsed(connection.take())[-1]
    assert (last.kind, last.code) == (frames.GOAWAY, Code.ENHANCE_YOUR_CALM)
    assert len(connection.streams) <= 1


def test_bodies_of_another_length_than_announced_without_end_are_ended() -> None:
    connection = opened()
    block = CALL + block_of(("content-length", "1"))
    for number in range(1, FREE_FRAMES_MAX, 2):
        whole(connection, headers(number, block) + data(number, bytes(1_000), end=True))
    assert connection.is_over


def test_headers_without_end_on_a_stream_that_was_refused_are_ended() -> None:
    connection = opened()
    whole(connection, headers(1))
    connection.refuse(connection.streams[1], HEAD)
    for _ in range(2 * FREE_FRAMES_MAX):
        whole(connection, headers(1))
    assert connection.is_over
    assert parsed(connection.take())[-1].code == Code.ENHANCE_YOUR_CALM


def test_padding_alone_is_counted_however_much_it_is() -> None:
    connection = opened()
    whole(connection, headers(1))
    for _ in range(2 * FREE_FRAMES_MAX):
        whole(connection, frames.frame(frames.DATA, frames.PADDED, 1, b"\xff" + bytes(255)))
    assert connection.is_over
    assert parsed(connection.take())[-1].code == Code.ENHANCE_YOUR_CALM


def test_the_window_that_padding_alone_takes_is_given_back() -> None:
    connection = opened()
    whole(connection, headers(1))
    room = WINDOW_BYTES
    for _ in range(600):
        whole(connection, frames.frame(frames.DATA, frames.PADDED, 1, b"\xff" + bytes(255)))
        room += sum(f.code for f in parsed(connection.take()) if f.stream == 1) - 256
        assert room > 256
    (stream,) = whole(connection, data(1, b"x", end=True))
    assert stream.body == b"x"


def test_a_client_with_a_smaller_table_is_told_that_nothing_is_in_it() -> None:
    """RFC 9113, 4.3.1: nghttp2 and h2 end the connection otherwise."""
    for size in (0, 1, 4_095):
        connection = opened()
        decoder = hpack.Decoder()
        before = started(connection, 1)
        decoder.decode(parsed(connection.take())[-1].content)
        whole(connection, settings((1, size)))
        decoder.max_allowed_table_size = size
        (stream,) = whole(connection, headers(3, end=True))
        connection.end(before, TAIL)
        connection.answer(stream, HEAD, b"x", TAIL, 0.0)
        blocks = [f.content for f in parsed(connection.take()) if f.kind == frames.HEADERS]
        assert [[(str(name), str(value)) for name, value in decoder.decode(block)] for block in blocks] == [
            [("grpc-status", "0")],
            [(":status", "200")],
            [("grpc-status", "0")],
        ]
        assert blocks[1:] == [HEAD, TAIL], "once is enough"
        whole(connection, settings((1, 0)))
        connection.refuse(whole(connection, headers(5, end=True))[0], HEAD)
        assert parsed(connection.take())[-1].content == HEAD


def test_a_client_with_as_large_a_table_or_a_larger_one_is_told_nothing() -> None:
    connection = opened()
    whole(connection, settings((1, 4_096), (1, 65_536), (1, 4_096)))
    (stream,) = whole(connection, headers(1, end=True))
    connection.answer(stream, HEAD, b"x", TAIL, 0.0)
    assert [f.content for f in parsed(connection.take())] == [b"", HEAD, b"x", TAIL]


def test_an_answer_without_trailers_ends_with_its_body() -> None:
    connection = opened()
    (stream,) = whole(connection, headers(1, end=True))
    connection.answer(stream, HEAD, b"x", b"", 0.0)
    sent = parsed(connection.take())
    assert [f.kind for f in sent if f.kind != frames.DATA] == [frames.HEADERS]
    assert sent[-1].flags & frames.END_STREAM
    assert not connection.streams


def test_streams_that_wait_for_the_connection_take_turns_however_little_there_is_room_for() -> None:
    connection = opened()
    got = dict.fromkeys((1, 3, 5, 7), 0)
    for number in got:
        (stream,) = whole(connection, headers(number, end=True) + window(number, 1_000_000))
        connection.answer(stream, HEAD, bytes(100_000), TAIL, 0.0)
    connection.take()
    for _ in range(40):
        whole(connection, window(0, 100))
        for frame in parsed(connection.take()):
            got[frame.stream] += len(frame.content)
    assert sum(got.values()) == 4_000
    assert max(got.values()) - min(got.values()) <= 100


def test_trailers_of_a_request_that_came_after_leaving_are_passed_over() -> None:
    connection = opened()
    whole(connection, headers(1))
    connection.leave()
    connection.take()
    late = headers(3) + headers(3, block_of(("x", "1")), end=True) + headers(5) + data(5, b"x", end=True)
    assert whole(connection, late + window(5, 1) + reset(5)) == []
    assert connection.take() == b"", "the client asks elsewhere (6.8)"
    assert [stream.number for stream in whole(connection, data(1, b"x", end=True))] == [1]


def test_a_flood_is_ended_without_a_change_to_the_other_streams() -> None:
    connection = opened()
    (stream,) = whole(connection, headers(1, end=True))
    connection.answer(stream, HEAD, bytes(100_000), TAIL, 0.0)
    waiting = connection.waiting
    connection.take()
    for _ in range(2 * FREE_FRAMES_MAX):
        whole(connection, ping())
    assert connection.is_over
    assert (list(connection.streams), connection.waiting, stream.is_over) == ([1], waiting, False)
