"""Header blocks of HTTP/2 against the hpack library, and against clients that mean harm."""

import random
import tracemalloc

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from flagcast_agent.api.http2 import headers, huffman
from flagcast_agent.api.http2.headers import Decoder, Fields, NotHpack, TooManyHeaders, block_of
from flagcast_agent.limits import HEAD_MAX_BYTES, HEADERS_MAX

REQUEST = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/flipt.evaluation.EvaluationService/Boolean"),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)
ENCODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def seen(fields: Fields) -> tuple[str, str, str, dict[str, str]]:
    return fields.method, fields.path, fields.authority, fields.headers


def test_the_static_table_is_that_of_the_standard() -> None:
    found = [(entry.name.encode(), entry.value.encode()) for entry in headers._STATIC[1:]]
    assert found == list(HeaderTable.STATIC_TABLE)


@pytest.mark.parametrize("seed", range(20))
def test_huffman_is_decoded_or_refused_as_the_library_does(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(500):
        text = chance.randbytes(chance.randrange(20))
        if chance.random() < 0.5:
            text = bytes(chance.choice(b"abcdefghij0123456789/-. :%") for _ in range(chance.randrange(40)))
        code = ENCODER.encode(text)
        assert huffman.decode(code) == text
        broken = code[:-1] + bytes([chance.randrange(256)]) if code and chance.random() < 0.5 else code + text
        try:
            expected: bytes | None = decode_huffman(broken)
        except hpack.HPACKError:
            expected = None
        try:
            found: bytes | None = huffman.decode(broken)
        except huffman.NotHuffman:
            found = None
        assert found == expected, broken.hex()


def _random_request(chance: random.Random) -> list[tuple[str, str]]:
    request = [pair for pair in REQUEST if pair[0] != "te" or chance.random() < 0.7]
    for number in range(chance.randrange(4)):
        value = "".join(chance.choice("abcz019-") for _ in range(chance.randrange(1, 60)))
        request.append((chance.choice(("x-a", "x-b", "user-agent", f"x-{number}")), value))
    if chance.random() < 0.4:
        request.append(("grpc-timeout", f"{chance.randrange(10**6)}m"))
    return request


def _joined(request: list[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request:
        if not name.startswith(":") and name != "grpc-timeout":
            found[name] = f"{found[name]},{value}" if name in found else value
    return found


@pytest.mark.parametrize("seed", range(20))
def test_blocks_of_one_connection_mean_what_their_client_wrote(seed: int) -> None:
    chance = random.Random(seed)
    encoder, decoder = hpack.Encoder(), Decoder()
    for _ in range(200):
        if chance.random() < 0.05:
            encoder.header_table_size = chance.choice((0, 100, 4096))
        request = _random_request(chance)
        block = encoder.encode(
            [
                hpack.NeverIndexedHeaderTuple(*pair) if chance.random() < 0.1 else hpack.HeaderTuple(*pair)
                for pair in request
            ],
            huffman=chance.random() < 0.7,
        )
        fields, timeout = decoder.decode(block)
        assert fields.fault == ""
        assert fields.headers == _joined(request)
        assert fields.path == dict(request)[":path"]
        assert timeout == dict(request).get("grpc-timeout", "")


@pytest.mark.parametrize("seed", range(20))
def test_blocks_that_are_broken_are_refused_as_the_library_does(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(200):
        encoder = hpack.Encoder()
        request = _random_request(chance)
        block = bytearray(encoder.encode(request))
        for _ in range(chance.randrange(1, 4)):
            block[chance.randrange(len(block))] = chance.randrange(256)
        if chance.random() < 0.3:
            del block[chance.randrange(len(block)) :]
        try:
            pairs = hpack.Decoder(max_header_list_size=HEAD_MAX_BYTES).decode(bytes(block), raw=True)
            expected: dict[str, str] | None = _joined(
                [(name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs]
            )
        except hpack.HPACKError:
            expected = None
        try:
            fields, _ = Decoder().decode(bytes(block))
        except (NotHpack, TooManyHeaders):
            assert expected is None, block.hex()
        else:
            assert expected is not None, block.hex()
            if not fields.fault:
                assert fields.headers == expected


def test_the_same_bytes_after_another_header_came_into_the_table_mean_the_new_one() -> None:
    decoder = Decoder()
    newest = b"\x82\x86\x84\xbe"  # POST... and the newest entry of the dynamic table
    decoder.decode(b"\x82\x86\x84\x40\x03x-a\x01" + b"1")
    assert decoder.decode(newest)[0].headers == {"x-a": "1"}
    assert decoder.decode(newest)[0].headers == {"x-a": "1"}  # now from memory
    decoder.decode(b"\x82\x86\x84\x40\x03x-a\x01" + b"2")
    assert decoder.decode(newest)[0].headers == {"x-a": "2"}


def test_the_same_bytes_after_the_table_was_emptied_mean_nothing_more() -> None:
    decoder = Decoder()
    decoder.decode(b"\x82\x86\x84\x40\x03x-a\x01" + b"1")
    newest = b"\x82\x86\x84\xbe"
    assert decoder.decode(newest)[0].headers == {"x-a": "1"}
    decoder.decode(b"\x20\x82\x86\x84")  # its size becomes 0
    with pytest.raises(NotHpack):
        decoder.decode(newest)


def test_a_timeout_of_another_call_is_not_remembered() -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    found = [
        decoder.decode(encoder.encode([*REQUEST, ("grpc-timeout", timeout)]))
        for timeout in ("1S", "2S", "1S", "2S", "3S")
    ]
    assert [timeout for _, timeout in found] == ["1S", "2S", "1S", "2S", "3S"]
    assert len({id(fields) for fields, _ in found}) == 1, "all else is the same"


def test_blocks_that_all_differ_are_not_kept_without_end() -> None:
    decoder = Decoder()
    for number in range(5_000):
        decoder.decode(block_of(*REQUEST, ("x", f"{number}")))
    assert len(decoder._blocks) <= 64
    assert len(decoder._forms) <= 256


def test_a_block_of_references_to_one_large_header_is_refused() -> None:
    decoder = Decoder()
    decoder.decode(b"\x82\x86\x84\x40\x01x\x7f\xa1\x1e" + b"a" * 4_000)  # 4,000 bytes, into the table
    with pytest.raises(TooManyHeaders):
        decoder.decode(b"\x82\x86\x84" + b"\xbe" * 8_000)


def test_more_headers_than_allowed_are_refused() -> None:
    within = [*REQUEST, *((f"x-{number}", "1") for number in range(HEADERS_MAX - len(REQUEST)))]
    assert Decoder().decode(block_of(*within))[0].fault == ""
    with pytest.raises(TooManyHeaders):
        Decoder().decode(block_of(*within, ("y", "1")))


@pytest.mark.parametrize(
    "block",
    [
        b"\x3f\xe1\xff\xff\xff\x0f",  # a table of 2^32 - 1 bytes
        b"\x3f\xe2\x1f",  # one more byte than announced
        b"\x82\x20",  # a size after a header
        b"\x80",  # index 0
        b"\xbe",  # the first entry of an empty table
        b"\xff\xff\xff\xff\xff\xff\x01",  # a number of too many bytes
        b"\x40",
        b"\x40\x05ab",
        b"\x40\x01a\x85\xff",  # Huffman's text that is cut short
        b"\x40\x01a\x84\xff\xff\xff\xff",  # the end within a text
    ],
    ids=bytes.hex,
)
def test_a_block_that_no_encoder_writes_is_refused_and_nothing_is_kept(block: bytes) -> None:
    decoder = Decoder()
    with pytest.raises(NotHpack):
        decoder.decode(block)
    assert not decoder._dynamic
    assert not decoder._blocks


@pytest.mark.parametrize(
    "request_",
    [
        REQUEST[1:],  # RFC 9113, 8.3.1
        (REQUEST[0], *REQUEST[2:]),
        (*REQUEST[:2], *REQUEST[3:]),
        (REQUEST[0], REQUEST[1], (":path", ""), *REQUEST[3:]),
        (REQUEST[0], *REQUEST),  # twice
        (*REQUEST, (":authority", "late")),
        (*REQUEST[:3], ("x", "1"), *REQUEST[3:]),  # a pseudo-header after another
        (*REQUEST, (":status", "200")),
        (*REQUEST, (":nope", "1")),
        (*REQUEST, ("X-Upper", "1")),  # 8.2.1
        (*REQUEST, ("a b", "1")),
        (*REQUEST, ("", "1")),
        (*REQUEST, ("x", "a\nb")),
        (*REQUEST, ("x", "a\0b")),
        (*REQUEST, ("x", " a")),
        (*REQUEST, ("x", "a\t")),
        (*REQUEST, ("connection", "close")),  # 8.2.2
        (*REQUEST, ("transfer-encoding", "chunked")),
        (*REQUEST, ("upgrade", "h2c")),
        (*REQUEST[:-1], ("te", "gzip")),
        (*REQUEST, ("content-length", "1x")),
        (*REQUEST, ("content-length", "1"), ("content-length", "2")),
    ],
)
def test_a_request_that_may_not_be_is_malformed(request_: tuple[tuple[str, str], ...]) -> None:
    for block in (block_of(*request_), hpack.Encoder().encode(request_)):
        assert Decoder().decode(block)[0].fault != ""


@pytest.mark.parametrize(
    "pairs",
    [
        ((":status", "200"), ("content-type", "application/grpc")),
        (("grpc-status", "5"), ("grpc-message", "no flag %27x%27")),
        ((":status", "404"), ("content-length", "300"), ("etag", '"' + "x" * 300 + '"')),
    ],
)
def test_prepared_blocks_are_read_by_any_client_and_leave_its_table_empty(
    pairs: tuple[tuple[str, str], ...],
) -> None:
    decoder = hpack.Decoder()
    found = [(str(name), str(value)) for name, value in decoder.decode(block_of(*pairs))]
    assert found == list(pairs)
    assert len(decoder.header_table.dynamic_entries) == 0


@pytest.mark.parametrize("timeout", [("grpc-timeout", "1S")])
def test_a_pseudo_header_after_the_timeout_is_malformed(timeout: tuple[str, str]) -> None:
    for late in (REQUEST[2], (":authority", "late")):
        early = [pair for pair in REQUEST[:4] if pair[0] != late[0]]
        assert Decoder().decode(block_of(*early, timeout, late))[0].fault != ""
        assert Decoder().decode(block_of(*early, timeout, timeout, late))[0].fault != ""
        assert Decoder().decode(block_of(*early, late, timeout))[0].fault == ""


@pytest.mark.parametrize("count", [1, 90])
def test_large_headers_that_all_differ_take_little_memory(count: int) -> None:
    """256 connections hold as much each."""
    blocks = [
        block_of(*REQUEST, *((f"x-{number}-{at}", "v" * (14_000 // count - 40)) for at in range(count)))
        for number in range(300)
    ]
    decoder = Decoder()
    decoder.decode(block_of(*REQUEST))
    tracemalloc.start()
    try:
        for block in blocks:
            decoder.decode(block)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000


def test_small_headers_that_all_differ_take_little_memory() -> None:
    decoder = Decoder()
    decoder.decode(block_of(*REQUEST))
    tracemalloc.start()
    try:
        for number in range(3_000):
            decoder.decode(
                block_of(*REQUEST[:4], *((f"{at}", f"{number}") for at in range(20)))
                + block_of(("grpc-timeout", f"{number}" * 500))
            )
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000


def test_a_block_from_memory_always_means_what_the_table_makes_of_it() -> None:
    """Short blocks of few kinds, so that the same bytes recur before and after each change of the table."""
    chance = random.Random(7)
    start = block_of(*REQUEST[:4])
    remembered = 0
    for _ in range(300):
        ours, theirs = Decoder(), hpack.Decoder()
        for decoder in (ours, theirs):
            decoder.decode(start + b"\x40\x01b\x011" * 3)
        for _ in range(60):
            size = chance.choices((b"", b"\x20", b"\x3f\x30", b"\x3f\xe1\x1f"), (90, 1, 2, 2))[0]
            parts = (b"\xbe", b"\xbf", b"\xc0", b"\x0f\x2f\x013", b"\x40\x01a\x011", b"\x40\x01a\x012")
            rest = b"".join(chance.choices(parts, (4, 4, 4, 4, 1, 1), k=chance.randrange(3)))
            block = size + start + rest
            remembered += block in ours._blocks
            try:
                expected = [(str(name), str(value)) for name, value in theirs.decode(block)]
            except hpack.HPACKError:
                with pytest.raises(NotHpack):
                    ours.decode(block)
                break
            fields, _ = ours.decode(block)
            assert fields.headers == _joined(expected)
    assert remembered > 1_000
