"""Strangers' words on terminals and in logs: every character prints, letters of all scripts stay, and JSON stays JSON."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagcast_shared.errors import Malformed
from flagcast_shared.printing import json_text, logfmt_value, printable, printable_line

ANY_TEXT = st.text(st.characters(exclude_categories=()))
"""Lone surrogates too, which Hypothesis leaves out unless it is asked."""


@pytest.mark.parametrize(
    ("character", "escaped"),
    [
        ("\x1b", r"\x1b"),
        ("\0", r"\x00"),
        ("\n", r"\n"),
        ("\r", r"\r"),
        ("\t", r"\t"),
        ("\x7f", r"\x7f"),
        ("\x9b", r"\x9b"),
        ("\xa0", r"\xa0"),
        ("\xad", r"\xad"),
        ("\u200b", r"\u200b"),
        ("\u200f", r"\u200f"),
        ("\u202e", r"\u202e"),
        ("\u2028", r"\u2028"),
        ("\u2029", r"\u2029"),
        ("\u2066", r"\u2066"),
        ("\u2069", r"\u2069"),
        ("\ufeff", r"\ufeff"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_a_character_that_does_not_print_is_escaped(character: str, escaped: str) -> None:
    assert printable(f"a{character}b") == f"a{escaped}b"
    assert str(Malformed(f"a{character}b")) == f"{Malformed(f'a{character}b')}" == f"a{escaped}b"


@pytest.mark.parametrize("text", ["", "plain", "größer", "日本", "شب", "Ωμέγα", "🚗", "a\\b", "cafe\u0301"])
def test_letters_of_all_scripts_stay(text: str) -> None:
    assert printable(text) == printable_line(text) == text
    assert json_text(text) == json.dumps(text, ensure_ascii=False)


def test_no_character_at_all_gets_through() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert printable(everything).isprintable()
    assert printable_line(everything).replace("\t", "").isprintable()
    assert json_text(everything).isprintable()


@given(ANY_TEXT)
def test_json_and_logfmt_print_and_read_back(text: str) -> None:
    for ascii_only in (False, True):
        written = json_text({"key": [text]}, indent=2, ascii_only=ascii_only)
        assert all(line.isprintable() for line in written.split("\n"))
        assert json.loads(written) == {"key": [json.loads(json.dumps(text))]}
    value = logfmt_value(text)
    assert value.isprintable()
    assert " " not in value or value.startswith('"')
    assert value == text or json.loads(value) == json.loads(json.dumps(text))
