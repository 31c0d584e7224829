"""Go's literal syntax: what Flipt's server takes for a number, a boolean, an instant and white space.

Flipt's v2 server is a Go program: every comparison goes through `strconv` and `time`. Python's own readers
accept other texts (surrounding spaces, other digits than ASCII's, a time without a zone), and the answers would
differ.
"""

import re
from typing import Final

from .model import Instant


def trim_space(text: str) -> str:
    """`strings.TrimSpace`: without surrounding white space as Unicode defines it.

    `str.strip()` would also take U+001C to U+001F, which Go keeps.
    """
    return text.strip(_WHITE_SPACE)


def parse_float(text: str) -> float | None:
    """`strconv.ParseFloat(text, 64)`; None where Go returns an error.

    Decimal and hexadecimal (which needs its exponent), with or without a sign, `_` between digits or after `0x`;
    "inf" and "infinity" with or without a sign and "nan" without, in any case. No spaces. A number beyond the
    range of a float64 is an error in Go; one that is too small is zero.
    """
    try:
        number = float(text)
    except ValueError:
        return _hexadecimal(text.replace("_", "")) if _HEXADECIMAL(text) is not None else None
    # `float` also takes white space around the number and the digits of other scripts. `_` it takes as Go does.
    if not text.isascii() or text != text.strip():
        return None
    if number - number == 0.0:
        return number
    # Not finite: a word, or a number out of range.
    return _WORDS.get(text.lower())


def format_float(number: float) -> str:
    """Text that `parse_float` reads back as the same float64: the shortest decimal, "inf", "-inf" or "nan"."""
    return repr(number)


def parse_bool(text: str) -> bool | None:
    """`strconv.ParseBool`: exactly 1 t T TRUE true True or 0 f F FALSE false False, else None."""
    return _BOOLEANS.get(text)


def parse_instant(text: str) -> Instant | None:
    """`time.Parse` with RFC 3339, else with a date alone, which is midnight UTC; None where both fail.

    As Go does: `T` and `Z` in upper case only, one digit suffices for the hour, a fraction after `.` or `,` of
    which nine digits count, no leap second, days as the month has them, offsets up to 24 hours and 60 minutes.
    Years 0 to 9999.
    """
    found = _INSTANT(text)
    if found is None:
        return None
    year, month, day = int(found[1]), int(found[2]), int(found[3])
    if not 1 <= month <= 12 or not 1 <= day <= _days_in(month, year):
        return None
    seconds = _days_since_1970(year, month, day) * 86_400
    if found[4] is None:
        return Instant(seconds, 0)
    hour, minute, second = int(found[4]), int(found[5]), int(found[6])
    if hour > 23 or minute > 59 or second > 59:
        return None
    seconds += hour * 3_600 + minute * 60 + second
    if found[8] is not None:
        zone_hours, zone_minutes = int(found[9]), int(found[10])
        if zone_hours > 24 or zone_minutes > 60:
            return None
        offset = zone_hours * 3_600 + zone_minutes * 60
        seconds += offset if found[8] == "-" else -offset
    return Instant(seconds, int(found[7][:9].ljust(9, "0")) if found[7] else 0)


def format_instant(instant: Instant) -> str:
    """RFC 3339 in UTC, with as many digits of the fraction as it has; `parse_instant` reads back years 0 to 9999."""
    days, second = divmod(instant.seconds, 86_400)
    # The inverse of `_days_since_1970`, over eras of 400 years of 146,097 days that begin in March.
    era, day_of_era = divmod(days + 719_468, 146_097)
    year = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year + year // 4 - year // 100)
    month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9
    year += era * 400 + (month <= 2)
    fraction = f".{instant.nanos:09d}".rstrip("0") if instant.nanos else ""
    clock = f"{second // 3_600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
    return f"{year:04d}-{month:02d}-{day:02d}T{clock}{fraction}Z"


# unicode.IsSpace: the White_Space property.
_WHITE_SPACE: Final = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)

# Underscores stand between digits, or between the prefix and a digit (Go: underscoreOK).
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_HEX_DIGITS = r"[0-9a-fA-F]+(?:_[0-9a-fA-F]+)*"
_HEXADECIMAL: Final = re.compile(
    # Digits follow other digits only after a point: with one reading of each text, a mismatch is found in one pass.
    rf"[+-]?0[xX](?:_?{_HEX_DIGITS}(?:\.(?:{_HEX_DIGITS})?)?|\.{_HEX_DIGITS})[pP][+-]?{_DIGITS}"
).fullmatch

_WORDS: Final = {
    "inf": float("inf"),
    "+inf": float("inf"),
    "-inf": float("-inf"),
    "infinity": float("inf"),
    "+infinity": float("inf"),
    "-infinity": float("-inf"),
    "nan": float("nan"),
}

_BOOLEANS: Final = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}

_INSTANT: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:T([0-9]{1,2}):([0-9]{2}):([0-9]{2})(?:[.,]([0-9]+))?(?:Z|([+-])([0-9]{2}):([0-9]{2})))?"
).fullmatch

_DAYS_IN_MONTH: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _hexadecimal(text: str) -> float | None:
    # Go stops counting an exponent at 10,000; `float.fromhex` refuses what it cannot hold as an integer.
    mantissa, exponent = text.lower().split("p")
    sign = "-" if exponent[0] == "-" else ""
    magnitude = exponent.lstrip("+-").lstrip("0")[:6] or "0"
    try:
        return float.fromhex(f"{mantissa}p{sign}{magnitude}")
    except OverflowError:
        return None


def _days_in(month: int, year: int) -> int:
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 29 if month == 2 and leap else _DAYS_IN_MONTH[month - 1]


def _days_since_1970(year: int, month: int, day: int) -> int:
    # Years begin in March, so that the leap day is the last of its year; the year 0 exists, unlike in `datetime`.
    if month <= 2:
        year, month = year - 1, month + 12
    months = (153 * (month - 3) + 2) // 5
    return 365 * year + year // 4 - year // 100 + year // 400 + months + day - 719_469
