"""Sequences of HTTP/2 frames, right and wrong, and what two servers make of them: ours and the h2 library's."""

import random
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack
from frames import CALL, HELLO, data, headers, parsed, ping, reset, settings, streams_of, window

from flagcast_agent.api.http2 import frames
from flagcast_agent.api.http2.connection import Connection

_REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/s/M"),
    (":authority", "localhost"),  # h2 demands it, the standard does not (RFC 9113, 8.3.1)
    ("content-type", "application/grpc"),
]


@dataclass
class Outcome:
    """What a server made of a sequence: requests by stream, with their body and whether they ended; and how it went wrong."""

    requests: dict[int, tuple[dict[str, str], bytes, bool]] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    fault: str = ""
    """ "", "stream" or "connection"."""
    why: str = ""


def sequence(chance: random.Random) -> list[bytes]:
    """Frames of a client that is mostly right."""
    encoder = hpack.Encoder()
    made: list[bytes] = []
    following = 1
    opened: list[int] = []
    for _ in range(chance.randrange(1, 25)):
        end = chance.random() < 0.4
        kind = chance.randrange(11) if chance.random() < 0.95 else 11
        if not opened and kind not in {8, 11}:
            kind = 0
        number = chance.choice(opened) if kind > 3 and opened else following
        if chance.random() < 0.03 and kind != 9:
            number = chance.choice((1, 3, 5, 7, 9))
        if end or kind == 9:
            opened = [each for each in opened if each != number]
        elif kind <= 3:
            opened.append(number)
        if kind <= 3:
            pairs = [*_REQUEST, ("x-a", chance.choice("123")), (f"x-{chance.randrange(4)}", "v")]
            if chance.random() < 0.03:
                pairs.append(("content-length", chance.choice(("0", "3", "6", "x"))))
            if chance.random() < 0.02:
                pairs.append(chance.choice((("X", "1"), (":late", "1"), ("te", "gzip"), ("connection", "x"))))
            if chance.random() < 0.01:
                del pairs[chance.randrange(3)]
            block = encoder.encode(pairs)
            following = max(following, number + 2)
            cut = chance.randrange(len(block)) if chance.random() < 0.2 else len(block)
            if cut == len(block):
                made.append(headers(number, block, end=end))
            else:
                made.append(headers(number, block[:cut], end=end, flags=0))
                made.append(frames.frame(frames.CONTINUATION, frames.END_HEADERS, number, block[cut:]))
        elif kind <= 6:
            made.append(data(number, chance.choice((b"", b"abc", bytes(5000))), end=end))
        elif kind == 7:
            made.append(
                window(
                    chance.choice((0, number)), chance.choice((1, 1000, 2000, 3000, 4000, 5000, 0, 2**31 - 1))
                )
            )
        elif kind == 8:
            made.append(
                chance.choice((ping(), settings(), settings((4, 0)), settings((3, 7)), settings((5, 20_000))))
            )
        elif kind == 9:
            made.append(
                reset(number)
            )  # of a stream that began: h2 passes over what the standard forbids (6.4)
        elif kind == 10:
            made.append(headers(number, encoder.encode([("x-t", "1")]), end=end or chance.random() < 0.9))
            opened = [each for each in opened if each != number]
        else:
            made.append(_wrong(chance, number))
    return made


def mutated(chance: random.Random) -> list[bytes]:
    """Frames of such a client with one or two bytes changed: kinds, flags, streams, contents; their lengths stay."""
    made = [bytearray(each) for each in sequence(chance)]
    for _ in range(chance.randrange(1, 3)):
        each = chance.choice(made)
        match chance.randrange(6) if len(each) > 9 else chance.randrange(3):
            case 0:
                each[3] = chance.choice((*range(11), 0xEE))
            case 1:
                each[4] ^= chance.choice((0x1, 0x4, 0x8, 0x20))
            case 2:
                each[8] = chance.randrange(12)
            case _:
                each[chance.randrange(9, len(each))] = chance.randrange(256)
    return [bytes(each) for each in made]


def _wrong(chance: random.Random, number: int) -> bytes:
    return chance.choice(
        (
            settings((2, 2)),
            settings((4, 2**31)),
            settings((5, 5)),
            ping(b"short"),
            frames.frame(frames.PING, 0, number, bytes(8)),
            frames.frame(frames.SETTINGS, 0, 0, b"odd"),
            frames.frame(frames.SETTINGS, 1, 0, b"123456"),
            frames.frame(frames.RST_STREAM, 0, number, b"12"),
            frames.frame(frames.WINDOW_UPDATE, 0, number, b"12"),
            frames.frame(frames.CONTINUATION, 4, number, CALL),
            frames.frame(frames.DATA, 8, number, b"\xffx"),
            frames.frame(frames.HEADERS, 0xC, number, b"\xffx"),
            frames.frame(frames.PUSH_PROMISE, 4, number, bytes(4)),
            frames.frame(0xEE, 3, number, b"unknown"),
            headers(number, b"\xff\xff\xff"),
            headers(number + 1),
            data(0, b"x"),
            frames.frame(frames.PRIORITY, 0, number, b"\0\0\0\x0b\x01"),
        )
    )


def by_ours(sent: list[bytes]) -> Outcome:
    """What our connection makes of it, up to the first fault."""
    made, found = Connection(), Outcome()
    made.receive(HELLO)
    made.next(0.0)
    made.take()
    for each in sent:
        made.receive(each)
        before = set(made.streams)
        for stream in streams_of(made):
            if stream.is_over:
                found.cancelled.add(stream.number)
            else:
                made.more(stream)
        for number in set(made.streams) | before:
            if number in made.streams:
                stream = made.streams[number]
                found.requests[number] = (stream.fields.headers, bytes(stream.body), stream.is_whole)
        answered = parsed(made.take())
        if made.is_over:
            found.fault, found.why = "connection", made.why
        elif any(frame.kind == frames.RST_STREAM for frame in answered):
            found.fault = "stream"
            found.why = "".join(fields.fault for fields in made._headers._forms.values())
        if found.fault:
            break
    return found


def by_h2(sent: list[bytes]) -> Outcome:
    """The same of the h2 library's."""
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
    made.initiate_connection()
    found = Outcome()
    made.receive_data(HELLO)
    made.data_to_send()
    for each in sent:
        try:
            events = made.receive_data(each)
        except h2.exceptions.ProtocolError as error:
            found.fault, found.why = "connection", repr(error)
            break
        for event in events:
            match event:
                case h2.events.RequestReceived(stream_id=number, headers=pairs):
                    joined: dict[str, str] = {}
                    for name, value in ((str(name), str(value)) for name, value in pairs):
                        if not name.startswith(":"):
                            joined[name] = f"{joined[name]},{value}" if name in joined else value
                    found.requests[number] = (joined, b"", False)
                case h2.events.DataReceived(stream_id=number, data=part):
                    fields, body, _ = found.requests[number]
                    found.requests[number] = (fields, body + part, False)
                    if event.flow_controlled_length:
                        made.acknowledge_received_data(event.flow_controlled_length, number)
                case h2.events.StreamEnded(stream_id=number):
                    fields, body, _ = found.requests[number]
                    found.requests[number] = (fields, body, True)
                    if fields.get("content-length", str(len(body))) != str(len(body)):
                        found.fault = "stream"  # 8.1.1; h2 looks at lengths only where DATA ends the body
                case h2.events.StreamReset(stream_id=number, remote_reset=is_remote):
                    found.cancelled.add(number)
                    if not is_remote:
                        found.fault = "stream"
        if any(frame.kind == frames.RST_STREAM for frame in parsed(made.data_to_send())):
            found.fault = found.fault or "stream"
        if found.fault:
            break
    return found
