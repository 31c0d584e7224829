"""What Go's strconv, strings and time make of a text; the expected values were computed by Go."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagcast_shared.literals import (
    format_float,
    format_instant,
    parse_bool,
    parse_float,
    parse_instant,
    trim_space,
)
from flagcast_shared.model import Instant

INFINITY = math.inf

NUMBERS = [
    # decimal
    ("0", 0.0), ("-0", -0.0), ("+7", 7.0), ("007", 7.0), ("1.5", 1.5), ("1.", 1.0), (".5", 0.5), ("1e3", 1000.0),
    ("1E+3", 1000.0), ("15e-1", 1.5), ("1.7976931348623157e308", 1.7976931348623157e308), ("5e-324", 5e-324),
    ("1e-400", 0.0), ("-1e-400", -0.0), ("0e99999", 0.0),
    # underscores between digits
    ("1_000", 1000.0), ("1_23.50_0_0e+1_2", 123.5e12),
    # hexadecimal, always with an exponent
    ("0x1p4", 16.0), ("0X1.8P1", 3.0), ("0x.8p0", 0.5), ("0x1.p1", 2.0), ("-0x1p-2", -0.25), ("0x_1p4", 16.0),
    ("0x1_0p0", 16.0), ("0x1p1_0", 1024.0), ("0x0p99999", 0.0), ("0x1p-99999", 0.0), ("0x1p+00000000000000001", 2.0),
    ("0x1.fffffffffffff7p1023", 1.7976931348623157e308),
    # words
    ("inf", INFINITY), ("Inf", INFINITY), ("+INF", INFINITY), ("-inf", -INFINITY), ("infinity", INFINITY),
    ("-Infinity", -INFINITY),
]  # fmt: skip

NOT_NUMBERS = [
    "", " ", "x", "-", "+", ".", "e5", "1e", "1e+", "--1", "1.2.3", "1,5", "0b1", "0o7", "true",
    # spaces of every kind
    " 1", "1 ", "1\n", "\t1", "\x1c1", "1\x00", "\xa01", "\u30001",
    # digits of other scripts
    "١", "１", "1e٣",
    # underscores elsewhere
    "_1", "1_", "1__0", "1_.5", "1._5", "1_e5", "1e_5", "1e5_", "0_x1p4", "0x1_p4", "0x._8p0",
    # hexadecimal without an exponent, or without digits
    "0x1", "0x1.8", "0x", "0xp4", "0x.p1", "0xgp1",
    # out of range
    "1e309", "-1e309", "1.7976931348623159e308", "0x1p1024", "0x1p99999", "0x1.fffffffffffff8p1023", "9" * 400,
    # words misspelt or with a sign that they do not take
    "infinit", "infi", "infinityy", "+nan", "-nan", "nan(1)", "in f", "İnf",
]  # fmt: skip


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_a_number_is_what_go_reads(text: str, number: float) -> None:
    read = parse_float(text)
    assert read is not None
    assert struct.pack(">d", read) == struct.pack(">d", number)


@pytest.mark.parametrize("text", ["nan", "NaN", "NAN"])
def test_nan_is_a_number(text: str) -> None:
    read = parse_float(text)
    assert read is not None
    assert math.isnan(read)


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_what_go_refuses_is_no_number(text: str) -> None:
    assert parse_float(text) is None


@given(st.floats())
def test_a_formatted_number_reads_back_the_same(number: float) -> None:
    read = parse_float(format_float(number))
    assert read is not None
    assert read == number or (math.isnan(read) and math.isnan(number))


@given(st.text())
def test_any_text_is_a_number_or_none(text: str) -> None:
    number = parse_float(text)
    assert number is None or isinstance(number, float)


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_true_has_six_spellings(text: str) -> None:
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_false_has_six_spellings(text: str) -> None:
    assert parse_bool(text) is False


@pytest.mark.parametrize(
    "text",
    ["0x" + "f" * 1_000_000 + "z", "0x1." + "f" * 1_000_000, "1" * 1_000_000 + "z"],
    ids=["digits", "fraction", "decimal"],
)
def test_a_text_that_is_almost_a_number_is_read_once(text: str) -> None:
    # With two readings of its digits this takes hours, and an application may ask an agent with any text.
    assert parse_float(text) is None


@pytest.mark.parametrize(
    "text", ["", " true", "true ", "tRUE", "TrUe", "yes", "no", "on", "2", "01", "-1", "ｔ"]
)
def test_anything_else_is_no_boolean(text: str) -> None:
    assert parse_bool(text) is None


@pytest.mark.parametrize(
    "space",
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000",
)
def test_unicode_white_space_is_trimmed(space: str) -> None:
    assert trim_space(f"{space}a{space}b{space}") == f"a{space}b"


@pytest.mark.parametrize(
    "kept", ["\x1c", "\x1d", "\x1e", "\x1f", "\x00", "\u180e", "\u200b", "\u200c", "\u2060", "\ufeff"]
)
def test_what_is_not_white_space_in_go_is_kept(kept: str) -> None:
    assert trim_space(f"{kept}a{kept}") == f"{kept}a{kept}"


INSTANTS = [
    ("1970-01-01T00:00:00Z", 0, 0),
    ("1970-01-01", 0, 0),
    ("2024-03-01", 1709251200, 0),
    ("2024-02-29T12:00:00Z", 1709208000, 0),
    ("2000-02-29", 951782400, 0),
    ("1969-12-31T23:59:59Z", -1, 0),
    ("0000-01-01", -62167219200, 0),
    ("0000-02-29T00:00:00Z", -62162121600, 0),
    ("9999-12-31T23:59:59.999999999Z", 253402300799, 999999999),
    ("1969-12-31T23:59:59.25Z", -1, 250000000),
    # offsets, up to 24 hours and 60 minutes
    ("2024-02-29T13:00:00+01:00", 1709208000, 0),
    ("2024-02-29T06:30:00-05:30", 1709208000, 0),
    ("2024-02-29T12:00:00-00:00", 1709208000, 0),
    ("2020-01-01T01:00:00+24:60", 1577750400, 0),
    # fractions: a full stop or a comma, nine digits count
    ("2020-01-01T01:00:00.5Z", 1577840400, 500000000),
    ("2020-01-01T01:00:00,5Z", 1577840400, 500000000),
    ("2020-01-01T01:00:00.000000001Z", 1577840400, 1),
    ("2020-01-01T01:00:00.5678901239Z", 1577840400, 567890123),
    # one digit suffices for the hour
    ("2020-01-01T1:00:00Z", 1577840400, 0),
]


@pytest.mark.parametrize(("text", "seconds", "nanos"), INSTANTS)
def test_an_instant_is_what_go_reads(text: str, seconds: int, nanos: int) -> None:
    assert parse_instant(text) == Instant(seconds, nanos)


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "2024", "2024-03", "20240301", "2024-3-1", "24-03-01", "02024-03-01", "+2024-03-01",
        " 2024-03-01", "2024-03-01 ", "2024-03-01\n", "٢٠٢٤-03-01", "2024/03/01",
        "2024-00-01", "2024-13-01", "2024-01-00", "2024-01-32", "2023-02-29", "1900-02-29", "2024-04-31",
        "2024-03-01T", "2024-03-01Z", "2024-03-01T00:00Z", "2024-03-01T00:00:00", "2024-03-01T00:00:00 Z",
        "2024-03-01t00:00:00Z", "2024-03-01T00:00:00z", "2024-03-01 00:00:00Z", "2024-03-01T000:00:00Z",
        "2024-03-01T24:00:00Z", "2024-03-01T00:60:00Z", "2024-03-01T00:0:00Z", "2024-03-01T00:00:0Z",
        "2016-12-31T23:59:60Z",
        "2024-03-01T00:00:00.Z", "2024-03-01T00:00:00;5Z", "2024-03-01T00:00:00.5.5Z",
        "2024-03-01T00:00:00+25:00", "2024-03-01T00:00:00+00:61", "2024-03-01T00:00:00+01", "2024-03-01T00:00:00+0100",
        "2024-03-01T00:00:00UTC", "2024-03-01T00:00:00+01:00Z",
    ],
)  # fmt: skip
def test_what_go_refuses_is_no_instant(text: str) -> None:
    assert parse_instant(text) is None


@given(st.integers(-62_167_219_200, 253_402_300_799), st.integers(0, 999_999_999))
def test_a_formatted_instant_reads_back_the_same(seconds: int, nanos: int) -> None:
    assert parse_instant(format_instant(Instant(seconds, nanos))) == Instant(seconds, nanos)


def test_an_instant_is_formatted_in_utc() -> None:
    assert format_instant(Instant(1709208000, 0)) == "2024-02-29T12:00:00Z"
    assert format_instant(Instant(-1, 250_000_000)) == "1969-12-31T23:59:59.25Z"
