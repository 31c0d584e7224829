"""Hypothesis strategies for what travels: every kind of record, head, part, delta, root and report, as code can make it."""

import json

from hypothesis import strategies as st

from flagcast_shared.bucketing import CANDIDATE_BUCKETS
from flagcast_shared.constraints import TAKES, Takes
from flagcast_shared.ids import (
    Digest,
    Environment,
    Epoch,
    FlagKey,
    Namespace,
    RecordId,
    SegmentKey,
    Sequence,
    VariantKey,
    Version,
)
from flagcast_shared.limits import NUMBER_MAX, PARTS_MAX
from flagcast_shared.literals import format_float
from flagcast_shared.messages import Candidate, Delta, Head, InlineDelta, Offering, SnapshotPart
from flagcast_shared.model import (
    BooleanFlag,
    Constraint,
    ConstraintType,
    ConstraintValue,
    Distribution,
    Instant,
    Join,
    Match,
    Operator,
    Rule,
    Segment,
    SegmentRollout,
    ThresholdRollout,
    Variant,
    VariantFlag,
)
from flagcast_shared.reports import Applied, Rejection, Report

ENVIRONMENT = Environment("production")
NAMESPACE = Namespace("default")

numbers = st.integers(0, NUMBER_MAX)
versions = numbers.map(Version)
digests = st.binary(min_size=32, max_size=32).map(Digest)
texts = st.text(max_size=20)
keys = st.text(min_size=1, max_size=12)
metadata = (
    st.just("")
    | texts
    | st.dictionaries(texts, st.booleans() | st.integers() | texts, max_size=3).map(json.dumps)
)
"""Mostly JSON objects, and texts that are none: a device reads them when it is asked, and not before."""

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-NUMBER_MAX, NUMBER_MAX) | texts | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(numbers, inner, max_size=4)
        | st.dictionaries(texts, inner, max_size=4)
    ),
    max_leaves=12,
)
"""Every value that `codec.encode` may be given, within the depth."""

segment_keys = st.lists(keys.map(SegmentKey), max_size=3).map(tuple)
boolean_flags = st.builds(
    BooleanFlag,
    keys.map(FlagKey),
    st.booleans(),
    st.lists(
        st.builds(ThresholdRollout, st.integers(0, 100), st.booleans())
        | st.builds(SegmentRollout, segment_keys, st.sampled_from(Join), st.booleans()),
        max_size=3,
    ).map(tuple),
    metadata,
)


@st.composite
def variant_flags(draw: st.DrawFn) -> VariantFlag:
    names = draw(st.lists(keys.map(VariantKey), max_size=4, unique=True))
    rules = []
    for _ in range(draw(st.integers(0, 3))):
        bounds = sorted(draw(st.lists(st.integers(0, 1000), max_size=3))) if names else []
        shares = tuple(Distribution(draw(st.sampled_from(names)), bound) for bound in bounds)
        if shares:
            shares = (*shares[:-1], Distribution(shares[-1].variant, 1000))
        rules.append(Rule(draw(segment_keys), draw(st.sampled_from(Join)), shares))
    return VariantFlag(
        draw(keys.map(FlagKey)),
        draw(st.booleans()),
        tuple(Variant(name, draw(texts)) for name in names),
        draw(st.none() | st.sampled_from(names)) if names else None,
        tuple(rules),
        draw(metadata),
    )


number_texts = st.floats().map(format_float)


@st.composite
def constraints(draw: st.DrawFn) -> Constraint:
    kind, operator = draw(st.sampled_from(sorted(TAKES)))
    values: dict[Takes, st.SearchStrategy[ConstraintValue]] = {
        Takes.NONE: st.none(),
        Takes.TEXT: texts,
        Takes.NUMBER: number_texts,
        Takes.TEXTS: st.lists(texts, max_size=4).map(tuple),
        Takes.NUMBERS: st.lists(number_texts, max_size=4).map(tuple),
        Takes.INSTANT: st.builds(Instant, st.integers(-NUMBER_MAX, NUMBER_MAX), st.integers(0, 999_999_999)),
    }
    return Constraint(
        ConstraintType(kind), draw(texts), Operator(operator), draw(values[TAKES[kind, operator]])
    )


segments = st.builds(
    Segment,
    keys.map(SegmentKey),
    st.sampled_from(Match),
    st.lists(constraints(), max_size=3).map(tuple),
)
entries = boolean_flags | variant_flags() | segments
identities = st.builds(RecordId, st.sampled_from(["flag", "segment", "later"]), keys)

offerings = st.builds(
    Offering,
    versions,
    digests,
    st.integers(1, 1_000_000),
    st.integers(1, PARTS_MAX),
    st.lists(versions, max_size=4).map(tuple),
)
candidates = st.builds(
    Candidate,
    offerings,
    st.integers(0, CANDIDATE_BUCKETS),
    st.binary(min_size=1, max_size=32),
    st.dictionaries(texts, texts, max_size=3),
)


@st.composite
def heads(draw: st.DrawFn) -> Head:
    issued = draw(numbers)
    return Head(
        ENVIRONMENT,
        NAMESPACE,
        Epoch(draw(numbers)),
        Sequence(draw(numbers)),
        issued,
        draw(st.integers(issued, NUMBER_MAX)),
        draw(offerings),
        draw(st.none() | candidates),
        draw(st.dictionaries(texts, texts, max_size=3)),
        draw(st.none() | st.builds(InlineDelta, versions, versions, st.binary(min_size=1, max_size=40))),
    )


@st.composite
def parts(draw: st.DrawFn) -> SnapshotPart:
    count = draw(st.integers(1, PARTS_MAX))
    return SnapshotPart(
        ENVIRONMENT,
        NAMESPACE,
        Epoch(draw(numbers)),
        draw(versions),
        draw(st.integers(0, count - 1)),
        count,
        draw(st.binary(min_size=1, max_size=60)),
    )


deltas = st.builds(
    Delta,
    st.just(ENVIRONMENT),
    st.just(NAMESPACE),
    numbers.map(Epoch),
    versions,
    versions,
    st.binary(min_size=1, max_size=60),
)
namespaces = st.from_regex(r"[-_,A-Za-z0-9]{1,100}", fullmatch=True)
words = st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True)
reports = st.builds(
    Report,
    session=numbers,
    number=numbers,
    is_online=st.just(value=True),
    at=numbers,
    agent=st.just("") | st.from_regex(r"[A-Za-z0-9][-A-Za-z0-9.+_!~]{0,63}", fullmatch=True),
    root=numbers,
    applied=st.dictionaries(
        namespaces.map(Namespace),
        st.builds(
            Applied, numbers.map(Epoch), versions, numbers, st.just(b"") | st.binary(min_size=8, max_size=8)
        ),
        max_size=4,
    ),
    rejection=st.none() | st.builds(Rejection, words, st.just("") | namespaces, numbers),
)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes that were a message: with bits flipped, cut, stuffed, doubled or joined with another one's."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "flip", "cut", "stuff", "drop", "repeat"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:]
            case "stuff":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "drop":
                del data[at : at + draw(st.integers(1, 8))]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 16))]
            case _:
                pass
    return bytes(data)
