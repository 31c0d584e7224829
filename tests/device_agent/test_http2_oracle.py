"""Our HTTP/2 and the h2 library on the same random frames: the same requests, or both find a fault.

Whether it is the end of a stream or of the connection may differ: h2 ends the connection where a request is malformed, a body has
another length than announced, or a stream overflows its window; there the standard asks for no more than the stream's end.
FLAGCAST_HTTP2_SEQUENCES sets how many sequences are tried.
"""

import os
import random

import pytest
from http2_oracle import by_h2, by_ours, sequence

SEQUENCES = int(os.environ.get("FLAGCAST_HTTP2_SEQUENCES", "4000"))
PARTS = 8


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
