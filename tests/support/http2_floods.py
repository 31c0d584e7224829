"""Floods of the agent's socket by HTTP/2 clients, run and measured by `http_floods`."""

from frames import HELLO, PREFACE_ALONE, calls, data, headers, ping, request, reset, settings, window
from http_floods import Flood

from flagcast_agent.api.http2 import frames
from flagcast_agent.api.http2.headers import block_of

FLIPT = "/flipt.evaluation.EvaluationService"
ALL = request("/flagd.evaluation.v2.Service/ResolveAll")
EVENTS = request("/flagd.evaluation.v2.Service/EventStream")
WATCH = request("/grpc.health.v1.Health/Watch")
ONE = request(f"{FLIPT}/Boolean")
_NOTHING = b"\0\0\0\0\0"
BATCH = request(f"{FLIPT}/Batch")
_ON = b"\0\0\0\0\x04\x1a\x02on"  # flag_key: on
_WIDE = PREFACE_ALONE + settings((frames.INITIAL_WINDOW, 2**31 - 1)) + window(0, 2**31 - 1 - 65_535)
_CLOSED = PREFACE_ALONE + settings((frames.INITIAL_WINDOW, 0))
_TINY = PREFACE_ALONE + settings((frames.INITIAL_WINDOW, 1)) + window(0, 2**30)
_HEADERS_MEMORY = (1, 2**32 - 1)  # SETTINGS_HEADER_TABLE_SIZE


def _batch(number: int) -> bytes:
    """A batch of so many questions for the flag with a large attachment, framed."""
    message = b"\x1a\7\x1a\5large" * number
    return b"\0" + len(message).to_bytes(4, "big") + message


_BEGUN = headers(1, ONE)
_MEBIBYTE = b"\0\0\x0f\xff\xfb" + bytes(2**20 - 6)


def _never_whole(streams: int) -> bytes:
    sent = [HELLO]
    for number in range(1, 2 * streams, 2):
        sent.append(headers(number, ONE))
        sent += [data(number, _MEBIBYTE[at : at + 16_384]) for at in range(0, len(_MEBIBYTE), 16_384)]
    return b"".join(sent)


FLOODS = (
    Flood("HTTP/2 pings", HELLO, ping(), 4),
    Flood("HTTP/2 pings whose answers are read", HELLO, ping(), 4, is_reading=True),
    Flood("HTTP/2 settings", HELLO, settings((3, 1)), 4, is_reading=True),
    Flood("HTTP/2 empty data", HELLO + _BEGUN, data(1, b""), 4, is_reading=True),
    Flood("HTTP/2 data byte by byte", HELLO + _BEGUN, data(1, b"\0"), 4, is_reading=True),
    Flood("HTTP/2 priorities", HELLO, frames.frame(frames.PRIORITY, 0, 1, b"\0\0\0\3\0"), 4, is_reading=True),
    Flood("HTTP/2 headers without end", HELLO + headers(1, ONE, flags=0), frames.frame(9, 0, 1, b""), 4),
    Flood(
        "HTTP/2 rapid reset",
        HELLO + b"".join(headers(number, WATCH) + reset(number) for number in range(1, 8_000, 2)),
        b"",
        16,
        is_reading=True,
    ),
    Flood(
        "HTTP/2 rapid reset of streams",
        HELLO + b"".join(calls(number, WATCH, _NOTHING) + reset(number) for number in range(1, 8_000, 2)),
        b"",
        16,
        is_reading=True,
    ),
    Flood(
        "HTTP/2 a block of references to a large header",
        HELLO
        + headers(1, ONE + b"\x40\x01x\x7f\xa1\x1e" + b"a" * 4_000)
        + headers(3, ONE + b"\xbe" * 8_000, end=True),
        b"",
        16,
        is_reading=True,
    ),
    Flood("HTTP/2 tiny windows", _TINY + calls(1, ALL, _NOTHING), window(1, 1), 4, is_reading=True),
    Flood(
        "HTTP/2 all flags behind a closed window",
        _CLOSED + b"".join(calls(number, ALL, _NOTHING) for number in range(1, 200, 2)),
        b"",
        20,
        is_reading=True,
    ),
    Flood(
        "HTTP/2 all flags unread",
        _WIDE + b"".join(calls(number, ALL, _NOTHING) for number in range(1, 200, 2)),
        b"",
        100,
    ),
    Flood(
        "HTTP/2 calls whose answers are unread",
        _WIDE + b"".join(calls(number, ONE, _ON) for number in range(1, 20_000, 2)),
        b"",
        16,
    ),
    Flood(
        "HTTP/2 calls whose answers are read",
        _WIDE + b"".join(calls(number, ONE, _ON) for number in range(1, 20_000, 2)),
        b"",
        16,
        is_reading=True,
        is_leaving=True,
    ),
    Flood(
        "HTTP/2 batches of large answers behind a closed window",
        _CLOSED + b"".join(calls(number, BATCH, _batch(130)) for number in range(1, 200, 2)),
        b"",
        20,
        is_reading=True,
    ),
    Flood(
        "HTTP/2 batches of large answers unread",
        _WIDE + b"".join(calls(number, BATCH, _batch(130)) for number in range(1, 200, 2)),
        b"",
        20,
    ),
    Flood(
        "HTTP/2 batches of too large answers",
        _WIDE + b"".join(calls(number, BATCH, _batch(1_000)) for number in range(1, 200, 2)),
        b"",
        4,
        is_reading=True,
    ),
    Flood(
        "HTTP/2 a table of headers without end",
        PREFACE_ALONE
        + settings(_HEADERS_MEMORY)
        + b"".join(
            headers(number, ONE + b"\x40\x08x-%06d\x7f\xa1\x1e" % number + b"%04000d" % number)
            + reset(number)
            for number in range(1, 400, 2)
        ),
        b"",
        16,
        is_reading=True,
    ),
    Flood("HTTP/2 requests that never become whole", _never_whole(20), b"", 120, is_gradual=True),
    Flood(
        "HTTP/2 unread event streams",
        _CLOSED + b"".join(calls(number, EVENTS, _NOTHING) for number in range(1, 200, 2)),
        b"",
        20,
        is_reading=True,
    ),
    Flood(
        "HTTP/2 streams whose headers are large",
        HELLO
        + b"".join(
            headers(number, ONE + block_of(*((f"x-{number}-{at}", "v") for at in range(80))))
            for number in range(1, 200, 2)
        ),
        b"",
        120,
        is_reading=True,
        is_gradual=True,
    ),
    Flood(
        "HTTP/2 streams without end",
        HELLO + b"".join(calls(number, WATCH, _NOTHING) for number in range(1, 200, 2)),
        b"",
        100,
        is_reading=True,
    ),
)
