"""Alphabets of reports and counts: words of a stranger that are no names are refused where they come in."""

from dataclasses import replace

import cbor2
import pytest

from flagcast_shared.errors import Malformed, Refused, TooLarge
from flagcast_shared.ids import Epoch, FlagKey, Namespace, Version
from flagcast_shared.limits import KEY_MAX_BYTES, WORD_MAX_CHARACTERS
from flagcast_shared.reports import (
    Applied,
    Count,
    Refresh,
    Rejection,
    Report,
    Usage,
    decode_refresh,
    decode_report,
    decode_usage,
    encode_refresh,
    encode_report,
    encode_usage,
    may_travel,
)

HOSTILE = (
    "\x1b[2J",
    "\x9b31m",
    "a\u202eb",
    "a\u2066b",
    "a\u200bb",
    "a\u2028b",
    "a\nb",
    "a\tb",
    "a\x7fb",
    "a\xa0b",
)
REPORT = Report(1, 2, is_online=True, at=3, agent="1.0", root=1)
HELD = Applied(Epoch(1), Version(1), 1)
LONGEST = "x" * WORD_MAX_CHARACTERS


@pytest.mark.parametrize(
    "report",
    [
        replace(REPORT, agent="1.0rc1+local.5"),
        replace(REPORT, agent=""),
        replace(REPORT, agent=LONGEST),
        replace(REPORT, rejection=Rejection("a_word_of_later_2", "", 5)),
        replace(REPORT, rejection=Rejection(LONGEST, "kiosk,north", 5)),
        replace(REPORT, applied={Namespace("-_,A9"): HELD}),
    ],
)
def test_a_report_of_names_is_read(report: Report) -> None:
    assert decode_report(encode_report(report)) == report


@pytest.mark.parametrize("text", [*HOSTILE, "", " ", "größer", "Word", LONGEST + "x"])
def test_a_report_whose_word_is_no_word_is_refused(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode_report(encode_report(replace(REPORT, rejection=Rejection(text, "default", 5))))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("number", "named"), [(0, 0), (1, 1), (16, 16), (17, 0), (1_000, 0)])
def test_a_device_that_misses_more_than_it_can_name_names_none_which_means_any(
    number: int, named: int
) -> None:
    names = tuple(Namespace(f"n{each}") for each in range(number))
    assert decode_refresh(encode_refresh(Refresh(names))).namespaces == names[:named]


@pytest.mark.parametrize("text", [*HOSTILE, " ", "größer", "1 0", "-1", LONGEST + "x"])
def test_a_report_whose_release_is_none_is_refused(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode_report(encode_report(replace(REPORT, agent=text)))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("release", [None, 1, b"1.0"])
def test_a_report_whose_release_is_no_text_is_refused(release: object) -> None:
    fields = cbor2.loads(encode_report(REPORT))
    with pytest.raises(Malformed):
        decode_report(cbor2.dumps({**fields, 6: release}, canonical=True))


@pytest.mark.parametrize("text", [*HOSTILE, " ", "größer", "a/b", "x" * 101])
def test_a_namespace_that_is_none_is_refused(text: str) -> None:
    name = Namespace(text)
    for message, read in (
        (encode_report(replace(REPORT, rejection=Rejection("rollback", text, 5))), decode_report),
        (encode_report(replace(REPORT, applied={name: HELD})), decode_report),
        (encode_refresh(Refresh((name,))), decode_refresh),
        (encode_usage(usage(Count(name, FlagKey("f"), "true", "match", 1))), decode_usage),
    ):
        with pytest.raises(Malformed) as caught:
            read(message)
        assert str(caught.value).isprintable()


def usage(*counts: Count) -> Usage:
    return Usage(bytes(16), 1, 2, counts)


def count(flag: str = "lights", answer: str = "true", reason: str = "match") -> Count:
    return Count(Namespace("default"), FlagKey(flag), answer, reason, 1)


@pytest.mark.parametrize(
    "counted",
    [
        count(),
        count("x" * KEY_MAX_BYTES),
        count("-_,A9"),
        count(answer=""),
        count(answer="größer 日本 شب 🚗"),
        count(reason="flag_disabled"),
        count(reason=LONGEST),
    ],
)
def test_counts_of_names_are_read(counted: Count) -> None:
    assert may_travel(counted)
    assert decode_usage(encode_usage(usage(counted))).counts == (counted,)


@pytest.mark.parametrize(
    "counted",
    [
        *(count(flag=text) for text in (*HOSTILE, "", "größer", "a b")),
        *(count(answer=text) for text in HOSTILE),
        *(count(reason=text) for text in (*HOSTILE, "", "Match", LONGEST + "x")),
    ],
)
def test_a_count_of_what_is_no_name_is_refused(counted: Count) -> None:
    assert not may_travel(counted)
    with pytest.raises(Refused) as caught:
        decode_usage(encode_usage(usage(count(), counted)))
    assert str(caught.value).isprintable()


def spaces(count: int, digest: bytes) -> dict[Namespace, Applied]:
    return {
        Namespace(f"space-{number:02}"): Applied(Epoch(1), Version(100), 200, digest)
        for number in range(count)
    }


def test_digests_are_left_out_before_namespaces_are() -> None:
    fitting = max(
        count
        for count in range(100)
        if decode_report(encode_report(replace(REPORT, applied=spaces(count, bytes(8))))).applied
        == spaces(count, bytes(8))
    )
    crowded = replace(REPORT, applied=spaces(fitting + 1, bytes(8)))
    assert decode_report(encode_report(crowded)).applied == spaces(fitting + 1, b"")
    assert fitting > 60, fitting


@pytest.mark.parametrize("digest", [bytes(7), bytes(9), "12345678", 8])
def test_a_report_whose_digest_is_of_another_length_or_type_is_refused(digest: object) -> None:
    fields = cbor2.loads(encode_report(replace(REPORT, applied={Namespace("default"): HELD})))
    fields[8]["default"][4] = digest
    with pytest.raises((Malformed, TooLarge)):
        decode_report(cbor2.dumps(fields, canonical=True))
