"""Our HTTP/2 and the h2 library on the same random frames: the same requests, or both find a fault.

Whether it is the end of a stream or of the connection may differ: h2 ends the connection where a request is malformed, a body has
another length than announced, or a stream overflows its window; there the standard asks for no more than the stream's end.
FLAGCAST_HTTP2_SEQUENCES sets how many sequences are tried; half as many are tried with bytes changed.
"""

import os
import random

import pytest
from http2_oracle import Outcome, by_h2, by_ours, mutated, sequence

SEQUENCES = int(os.environ.get("FLAGCAST_HTTP2_SEQUENCES", "2000"))
PARTS = 8

THEIRS_ALONE = {
    "FrameDataMissingError": "h2 reads ALTSVC, which a server ignores (RFC 7838, 4)",
    "Setting 8 has invalid value": "h2 reads SETTINGS_ENABLE_CONNECT_PROTOCOL, which means nothing to a server (RFC 8441, 3)",
    "Received frame with non-compliant data": "h2 reads the reserved bit of WINDOW_UPDATE (RFC 9113, 6.9)",
    "does not have an :authority": "the standard does not require it (8.3.1)",
    "mismatched :authority and Host": "the standard does not require it (8.3.1), and no answer depends on either",
    "ConnectionState.CLOSED": "a client may go on after its GOAWAY, which is about the server's streams (6.8)",
}
"""Faults that h2 alone finds, with why it is so."""
OURS_ALONE = {
    "RST_STREAM of no stream": "the standard forbids it (6.4), h2 passes over it",
    "a request on a stream that is not the client's": "the standard forbids it (5.1.1), h2 takes it",
    "a header's name that is none": "a name has to be a token (RFC 9110, 5.1); h2 looks for upper case and controls",
    "PUSH_PROMISE of a client": "the standard forbids it (8.4), h2 waits for its CONTINUATION first",
}
"""The other way round."""


@pytest.mark.parametrize("part", range(PARTS))
def test_random_frames_mean_the_same_to_both(part: int) -> None:
    faults = 0
    for number in range(part, SEQUENCES, PARTS):
        sent = sequence(random.Random(number))
        ours, theirs = by_ours(sent), by_h2(sent)
        faults += bool(ours.fault)
        assert bool(ours.fault) == bool(theirs.fault), (number, ours, theirs)
        if not ours.fault:
            assert ours.requests == theirs.requests, number
            assert ours.cancelled == theirs.cancelled, number
    assert SEQUENCES / PARTS / 10 < faults < SEQUENCES / PARTS * 0.95, "there are both kinds"


@pytest.mark.parametrize("part", range(PARTS))
def test_frames_with_bytes_changed_mean_the_same_to_both_but_for_known_differences(part: int) -> None:
    faults = 0
    for number in range(part, SEQUENCES // 2, PARTS):
        sent = mutated(random.Random(number))
        ours, theirs = by_ours(sent), by_h2(sent)
        faults += bool(ours.fault)
        if bool(ours.fault) != bool(theirs.fault):
            assert _is_known(ours, theirs), (number, ours, theirs)
        elif not ours.fault:
            assert ours.requests == theirs.requests, number
            assert ours.cancelled == theirs.cancelled, number
    tried = len(range(part, SEQUENCES // 2, PARTS))
    assert 0 < faults < tried, "there are both kinds"


def _is_known(ours: Outcome, theirs: Outcome) -> bool:
    return any(text in theirs.why for text in THEIRS_ALONE) or any(text in ours.why for text in OURS_ALONE)
