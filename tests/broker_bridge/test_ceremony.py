"""What several people sign one by one: the next root, and a release. What comes out is judged by a real agent core."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from agent_shell import AgentShell
from hypothesis import given, settings
from hypothesis import strategies as st
from publisher_simulator import DAY, DEFAULT, NOW, PRODUCTION, PublisherSimulator, SigningKey

from flagcast_bridge.planning.plan import Draft, Issued, Terms, plan
from flagcast_bridge.signing import ceremony
from flagcast_bridge.signing.ceremony import Ceremony, CeremonyRefused, Change
from flagcast_bridge.signing.signer import Signer
from flagcast_shared.codec import Value, decode, encode
from flagcast_shared.errors import (
    BadSignature,
    KeyCountedTwice,
    Malformed,
    Refused,
    Replayed,
    RootSkipped,
    TooLarge,
    UnknownFormat,
    UnknownKey,
    WrongRole,
)
from flagcast_shared.ids import Epoch, FlagKey, KeyId, Version
from flagcast_shared.ids import Sequence as HeadSequence
from flagcast_shared.limits import ROOT_KEYS_MAX, ROOTS_MAX
from flagcast_shared.messages import SnapshotPart, decode_head, decode_part, encode_head, encode_part
from flagcast_shared.model import BooleanFlag
from flagcast_shared.root import Quorum, Role, Root, encode_root
from flagcast_shared.topics import HeadAddress, RootAddress, SnapshotAddress, Topics

YEAR = 365 * DAY
ROOTS = tuple(SigningKey(f"root-{name}") for name in "abc")
PUBLISHERS = tuple(SigningKey(f"publisher-{name}") for name in "abc")
STRANGER = SigningKey("stranger")
TOPICS = Topics("flagcast", PRODUCTION)


def ids(*keys: SigningKey) -> frozenset[KeyId]:
    return frozenset(key.id for key in keys)


@pytest.fixture
def publisher() -> PublisherSimulator:
    """Two of three root keys, two of three publisher's keys."""
    return PublisherSimulator(
        root_keys=ROOTS, publisher_keys=PUBLISHERS, root_threshold=2, publisher_threshold=2
    )


@pytest.fixture
def agent(tmp_path: Path, publisher: PublisherSimulator) -> Iterator[AgentShell]:
    shell = AgentShell(tmp_path / "agent.sqlite", publisher)
    yield shell
    shell.close()


def following(publisher: PublisherSimulator, *changes: Change) -> Root:
    return ceremony.next_root(publisher.root, changes, now=NOW + DAY, lifetime=YEAR)


def rooting(publisher: PublisherSimulator, *changes: Change) -> Ceremony:
    return ceremony.of_root(publisher.root, publisher.anchor, following(publisher, *changes))


def releasing(publisher: PublisherSimulator, *flags: BooleanFlag) -> Ceremony:
    terms = Terms(
        PRODUCTION,
        publisher.root.epoch,
        NOW,
        7 * DAY,
        60_000,
        publisher.publisher_threshold,
        {"commit": "1a2b"},
    )
    planned = plan(DEFAULT, flags or (BooleanFlag(FlagKey("a"), True, ()),), None, Issued(), terms)
    assert planned.head_draft is not None
    return ceremony.of_release(
        publisher.root, publisher.anchor, [*planned.body, planned.head_draft], {DEFAULT: HeadSequence(0)}
    )


def signed(made: Ceremony, *keys: Signer) -> Ceremony:
    for key in keys:
        to_sign = ceremony.messages_to_sign(made, key.public)
        made = ceremony.with_signatures(made, key.public.id, [key.sign(each) for each in to_sign])
        made = ceremony.decode_ceremony(ceremony.encode_ceremony(made))  # carried to the next one as a file
    return made


def retain(publisher: PublisherSimulator, made: Ceremony) -> None:
    publisher.retained.update((TOPICS.of(at), data) for at, data in ceremony.sealed(made).items())


def when(seconds: int) -> str:
    return f"t{seconds}"


# The next root


def test_other_publisher_keys_begin_an_epoch_and_nothing_else_does(publisher: PublisherSimulator) -> None:
    old = publisher.root
    new_key = SigningKey("publisher-new").public
    for change, epoch in (
        (Change(Role.PUBLISHER, (new_key,)), 2),
        (Change(Role.PUBLISHER, remove=ids(PUBLISHERS[0])), 2),
        (Change(Role.PUBLISHER, (new_key,), ids(PUBLISHERS[0])), 2),
        (Change(Role.PUBLISHER, threshold=3), 1),
        (Change(Role.ROOT, (SigningKey("root-new").public,), ids(ROOTS[0])), 1),
    ):
        new = following(publisher, change)
        assert (new.number, new.epoch) == (old.number + 1, epoch)
        assert (new.issued, new.expires) == (NOW + DAY, NOW + DAY + YEAR)


def test_a_key_that_no_role_names_is_not_listed(publisher: PublisherSimulator) -> None:
    new = following(publisher, Change(Role.PUBLISHER, remove=ids(PUBLISHERS[0])))
    assert new.keys.keys() == ids(*ROOTS, *PUBLISHERS[1:])


def test_a_key_is_taken_out_of_every_role_that_it_has() -> None:
    both = SigningKey("both")
    publisher = PublisherSimulator(root_keys=(*ROOTS, both), publisher_keys=(*PUBLISHERS, both))
    new = following(publisher, *ceremony.without_key(publisher.root, both.id))
    assert both.id not in new.keys
    assert new.roles[Role.ROOT].keys == ids(*ROOTS)
    assert new.roles[Role.PUBLISHER].keys == ids(*PUBLISHERS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            Change(Role.ROOT, remove=ids(*ROOTS[:2])),
            "2 root keys must sign and 1 would be left; first put another",
        ),
        (Change(Role.PUBLISHER, remove=ids(*PUBLISHERS)), "2 publisher keys must sign and 0 would be left"),
        (Change(Role.PUBLISHER, threshold=4), "4 publisher keys must sign and 3 would be left"),
        (Change(Role.PUBLISHER, threshold=0), "at least 1"),
        (Change(Role.PUBLISHER, (PUBLISHERS[0].public,)), "is a publisher key of root 1 already"),
        (Change(Role.PUBLISHER, remove=ids(STRANGER)), "is no publisher key of root 1; root 1 lists"),
        (
            Change(Role.PUBLISHER, tuple(SigningKey(f"more-{n}").public for n in range(ROOT_KEYS_MAX - 5))),
            "a root lists at most 32",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_root_that_nobody_could_use_is_not_made(
    publisher: PublisherSimulator, change: Change, says: str
) -> None:
    with pytest.raises(CeremonyRefused, match=says):
        following(publisher, change)


def test_a_clock_before_the_last_root_makes_none(publisher: PublisherSimulator) -> None:
    with pytest.raises(CeremonyRefused, match="clock is before root 1"):
        ceremony.next_root(publisher.root, (), now=NOW - 1, lifetime=YEAR)


def test_no_root_is_made_that_devices_do_not_walk_to(publisher: PublisherSimulator) -> None:
    with pytest.raises(CeremonyRefused, match="provision them anew"):
        ceremony.next_root(replace(publisher.root, number=ROOTS_MAX), (), now=NOW, lifetime=YEAR)


def test_a_key_is_named_by_its_id_or_by_a_name_of_its_own(publisher: PublisherSimulator) -> None:
    assert ceremony.find_key(publisher.root, "root-a") == ROOTS[0].id
    assert ceremony.find_key(publisher.root, ROOTS[0].id.hex().upper()) == ROOTS[0].id
    with pytest.raises(CeremonyRefused, match="no such key in root 1; name it by its id: root 1 lists"):
        ceremony.find_key(publisher.root, "nobody")
    twins = {key: replace(public, name="twin") for key, public in publisher.root.keys.items()}
    with pytest.raises(CeremonyRefused, match="several keys have this name"):
        ceremony.find_key(replace(publisher.root, keys=twins), "twin")


# Who must sign


def test_a_root_needs_the_keys_of_two_roots_where_they_differ(publisher: PublisherSimulator) -> None:
    made = rooting(publisher, Change(Role.ROOT, (SigningKey("root-d").public,), ids(ROOTS[0])))
    old, new = ceremony.needs(made)
    assert (old.whose, old.threshold, old.missing) == ("root keys of root 1", 2, 2)
    assert (new.whose, new.threshold, new.missing) == ("root keys of root 2", 2, 2)
    made = signed(made, ROOTS[1])
    assert [need.missing for need in ceremony.needs(made)] == [1, 1]
    made = signed(made, ROOTS[0])  # has a say in the old root alone
    assert [need.missing for need in ceremony.needs(made)] == [0, 1]
    with pytest.raises(
        CeremonyRefused, match=r"1 of 2 root keys of root 2 have signed; still to sign, 1 of: "
    ):
        ceremony.sealed(made)
    assert ceremony.is_complete(signed(made, ROOTS[2]))


def test_two_of_three_root_keys_make_a_root_that_an_agent_walks_to(
    publisher: PublisherSimulator, agent: AgentShell
) -> None:
    retain(
        publisher, signed(rooting(publisher, Change(Role.PUBLISHER, remove=ids(PUBLISHERS[0]))), *ROOTS[1:])
    )
    agent.catch_up()
    assert (agent.sync.trusted.root.number, agent.sync.trusted.root.epoch) == (2, 2)
    assert agent.sync.reporting.rejections == {}


def test_a_root_with_all_root_keys_replaced_is_walked_to(
    publisher: PublisherSimulator, agent: AgentShell
) -> None:
    others = tuple(SigningKey(f"other-{name}") for name in "abc")
    change = Change(Role.ROOT, tuple(key.public for key in others), ids(*ROOTS))
    retain(publisher, signed(rooting(publisher, change), ROOTS[0], others[2], ROOTS[2], others[0]))
    agent.catch_up()
    assert agent.sync.trusted.root.roles[Role.ROOT] == Quorum(ids(*others), 2)
    assert agent.sync.reporting.rejections == {}


def test_as_many_signers_as_a_message_carries_are_enough_of_both_roots(tmp_path: Path) -> None:
    before = tuple(SigningKey(f"before-{number}") for number in range(20))
    after = tuple(SigningKey(f"after-{number}") for number in range(20))
    publisher = PublisherSimulator(root_keys=before, root_threshold=12)
    made = rooting(publisher, Change(Role.ROOT, tuple(key.public for key in after), ids(*before)))
    retain(publisher, signed(made, *before, *after))
    shell = AgentShell(tmp_path / "agent.sqlite", publisher)
    shell.catch_up()
    assert shell.sync.trusted.root.number == 2
    shell.close()


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (2, 1)])
def test_any_two_of_three_publishers_make_a_release_that_an_agent_admits(
    publisher: PublisherSimulator, agent: AgentShell, pair: tuple[int, int]
) -> None:
    made = releasing(publisher)
    with pytest.raises(CeremonyRefused, match="0 of 2 publisher keys of root 1 have signed"):
        ceremony.sealed(made)
    retain(publisher, signed(made, *(PUBLISHERS[each] for each in pair)))
    agent.catch_up()
    assert agent.sync.trusted.holdings[DEFAULT].version == 1
    assert agent.sync.reporting.rejections == {}


def test_a_release_carries_no_more_signatures_than_are_needed(
    publisher: PublisherSimulator, agent: AgentShell
) -> None:
    made = signed(releasing(publisher), *PUBLISHERS)
    two = signed(releasing(publisher), *sorted(PUBLISHERS, key=lambda key: key.id)[:2])
    assert ceremony.sealed(made) == ceremony.sealed(two)


def test_one_publisher_signs_a_release_as_a_single_signature(tmp_path: Path) -> None:
    publisher = PublisherSimulator()
    retain(publisher, signed(releasing(publisher), SigningKey("publisher-a")))
    assert publisher.retained[publisher.head_topic].startswith(b"\xd2\x84")
    shell = AgentShell(tmp_path / "agent.sqlite", publisher)
    shell.catch_up()
    assert shell.sync.trusted.holdings[DEFAULT].version == 1
    shell.close()


@pytest.mark.parametrize("key", [STRANGER, PUBLISHERS[0]], ids=["stranger", "publisher"])
def test_a_key_without_a_say_signs_nothing(publisher: PublisherSimulator, key: SigningKey) -> None:
    with pytest.raises(
        CeremonyRefused, match="has no say in this; those who have are the root keys of root 1: "
    ):
        signed(rooting(publisher, Change(Role.PUBLISHER, threshold=1)), key)


def test_a_key_signs_once(publisher: PublisherSimulator) -> None:
    with pytest.raises(CeremonyRefused, match="has signed this already; one key counts once"):
        signed(releasing(publisher), PUBLISHERS[0], PUBLISHERS[0])


def test_a_signature_over_something_else_is_not_taken(publisher: PublisherSimulator) -> None:
    made = rooting(publisher, Change(Role.PUBLISHER, threshold=1))
    with pytest.raises(BadSignature):
        ceremony.with_signatures(made, ROOTS[0].id, [ROOTS[0].sign(b"something else")])


# What a person is shown


def test_a_root_is_told_by_what_changes(publisher: PublisherSimulator) -> None:
    change = Change(Role.PUBLISHER, (SigningKey("dora").public,), ids(PUBLISHERS[0]), 3)
    lines = ceremony.describe(rooting(publisher, change), when)
    said = "\n".join(lines)
    assert lines[0] == "root 2 of environment production, which follows root 1"
    assert f"takes in publisher key {SigningKey('dora').id.hex()} (dora)" in said
    assert f"takes out publisher key {PUBLISHERS[0].id.hex()} (publisher-a)" in said
    assert f"keeps root key {ROOTS[0].id.hex()} (root-a)" in said
    assert "3 of 3 publisher keys must sign (was 2 of 3)" in said
    assert "a new epoch, 2 (was 1)" in said
    assert f"issued t{NOW + DAY}, expires t{NOW + DAY + YEAR}" in said


def test_a_release_is_told_by_what_it_holds(publisher: PublisherSimulator) -> None:
    said = "\n".join(ceremony.describe(releasing(publisher), when))
    assert "a release for environment production, under root 1, epoch 1" in said
    assert "default: head 1, after none" in said
    assert "version 1, new: 1 flags and segments" in said
    assert "holds flag a" in said
    assert "commit 1a2b" in said


def test_a_name_cannot_move_the_cursor_or_look_like_a_line_of_ours(publisher: PublisherSimulator) -> None:
    evil = replace(SigningKey("dora").public, name="x\x1b[2K\rkeeps\nkeeps root key \u202e")
    said = ceremony.describe(rooting(publisher, Change(Role.PUBLISHER, (evil,))), when)
    assert all(line.isprintable() for line in said)
    assert any(r"(x\x1b[2K\rkeeps\nkeeps root key \u202e)" in line for line in said)


def test_a_release_whose_content_is_not_the_one_that_its_head_names_is_not_shown(
    publisher: PublisherSimulator,
) -> None:
    made, other = releasing(publisher), releasing(publisher, BooleanFlag(FlagKey("b"), True, ()))
    mixed = replace(
        made,
        drafts=tuple(
            theirs if isinstance(theirs.address, SnapshotAddress) else ours
            for ours, theirs in zip(made.drafts, other.drafts, strict=True)
        ),
    )
    with pytest.raises(Malformed, match="is not the content that its head names"):
        ceremony.describe(ceremony.decode_ceremony(ceremony.encode_ceremony(mixed)), when)


# Hostile files


def fields_of(made: Ceremony) -> dict[int, Value]:
    found = decode(ceremony.encode_ceremony(made), "test")
    assert isinstance(found, dict)
    return dict(found)


def head_of(made: Ceremony) -> Draft:
    return next(draft for draft in made.drafts if isinstance(draft.address, HeadAddress))


def part_of(made: Ceremony) -> tuple[Draft, SnapshotPart]:
    draft = next(draft for draft in made.drafts if isinstance(draft.address, SnapshotAddress))
    return draft, decode_part(draft.payload, draft.place)


def with_payload(made: Ceremony, draft: Draft, payload: bytes) -> Ceremony:
    return replace(
        made,
        signatures={},
        drafts=tuple(replace(each, payload=payload) if each is draft else each for each in made.drafts),
    )


def as_file(made: Ceremony) -> Ceremony:
    return ceremony.decode_ceremony(ceremony.encode_ceremony(made))


def test_a_ceremony_comes_back_as_it_was(publisher: PublisherSimulator) -> None:
    for made in (rooting(publisher, Change(Role.PUBLISHER, threshold=1)), releasing(publisher)):
        assert as_file(made) == made
    made = signed(releasing(publisher), PUBLISHERS[1])
    assert as_file(made) == made


def test_signatures_of_others_are_refused(publisher: PublisherSimulator) -> None:
    made = signed(rooting(publisher, Change(Role.PUBLISHER, threshold=1)), ROOTS[0])
    signature = made.signatures[ROOTS[0].id]
    for key, error in ((STRANGER, UnknownKey), (PUBLISHERS[0], WrongRole), (ROOTS[1], BadSignature)):
        with pytest.raises(error):
            as_file(replace(made, signatures={key.id: signature}))


def test_one_key_twice_is_refused(publisher: PublisherSimulator) -> None:
    made = signed(rooting(publisher, Change(Role.PUBLISHER, threshold=1)), ROOTS[0])
    fields = fields_of(made)
    signer: list[Value] = [ROOTS[0].id, list(made.signatures[ROOTS[0].id])]
    fields[7] = [signer, signer]
    with pytest.raises(KeyCountedTwice):
        ceremony.decode_ceremony(encode(fields))


def test_a_root_that_skips_one_is_refused(publisher: PublisherSimulator) -> None:
    new = replace(following(publisher, Change(Role.PUBLISHER, threshold=1)), number=3)
    with pytest.raises(RootSkipped):
        as_file(ceremony.of_root(publisher.root, publisher.anchor, new))


def test_a_root_of_an_epoch_that_its_keys_do_not_make_is_refused(publisher: PublisherSimulator) -> None:
    new = replace(following(publisher, Change(Role.PUBLISHER, threshold=1)), epoch=Epoch(2))
    with pytest.raises(Malformed, match="of epoch 2 does not follow from its keys"):
        as_file(ceremony.of_root(publisher.root, publisher.anchor, new))


def test_a_root_at_the_place_of_another_is_refused(publisher: PublisherSimulator) -> None:
    made = rooting(publisher, Change(Role.PUBLISHER, threshold=1))
    elsewhere = replace(made.drafts[0], address=RootAddress(3))
    with pytest.raises(Replayed):
        as_file(replace(made, drafts=(elsewhere,)))


def test_what_could_not_be_shown_is_not_signed(publisher: PublisherSimulator) -> None:
    # A field that this release does not know, in a root and in a head.
    made = rooting(publisher, Change(Role.PUBLISHER, threshold=1))
    root = decode(made.drafts[0].payload, "test")
    assert isinstance(root, dict)
    with pytest.raises(Malformed, match="more than this release knows"):
        as_file(with_payload(made, made.drafts[0], encode({**root, 99: "more"})))
    made = releasing(publisher)
    head = decode(head_of(made).payload, "test")
    assert isinstance(head, dict)
    with pytest.raises(Malformed, match="more than this release knows"):
        as_file(with_payload(made, head_of(made), encode({**head, 99: "more"})))


def test_a_release_of_another_epoch_is_refused(publisher: PublisherSimulator) -> None:
    made = releasing(publisher)
    draft = head_of(made)
    head = replace(decode_head(draft.payload, draft.place), epoch=Epoch(2))
    with pytest.raises(Malformed, match="epoch 2, and the root's is 1"):
        as_file(with_payload(made, draft, encode_head(head)))


def test_a_part_at_the_place_of_another_is_refused(publisher: PublisherSimulator) -> None:
    made = releasing(publisher)
    draft, part = part_of(made)
    with pytest.raises(Replayed):
        as_file(with_payload(made, draft, encode_part(replace(part, version=Version(2)))))


def test_a_part_that_no_head_names_is_refused(publisher: PublisherSimulator) -> None:
    made = releasing(publisher)
    draft, part = part_of(made)
    stray = Draft(
        SnapshotAddress(DEFAULT, Version(7), 0), draft.place, encode_part(replace(part, version=Version(7)))
    )
    with pytest.raises(Malformed, match="version 7 that no head names"):
        as_file(replace(made, drafts=(*made.drafts, stray)))


def test_a_release_does_not_carry_a_root_along(publisher: PublisherSimulator) -> None:
    root = rooting(publisher, Change(Role.PUBLISHER, threshold=1)).drafts[0]
    made = releasing(publisher)
    with pytest.raises(Malformed, match="it signs a release, and holds something else"):
        as_file(replace(made, drafts=(*made.drafts, root)))


def test_the_same_place_twice_is_refused(publisher: PublisherSimulator) -> None:
    made = releasing(publisher)
    with pytest.raises(Malformed, match="one place twice"):
        as_file(replace(made, drafts=(*made.drafts, made.drafts[0])))


def test_a_root_ceremony_of_an_unsigned_root_is_refused(publisher: PublisherSimulator) -> None:
    forged = publisher.root_message(replace(publisher.root, expires=NOW + 1), signers=(STRANGER,))
    made = rooting(publisher, Change(Role.PUBLISHER, threshold=1))
    with pytest.raises(Refused):
        as_file(replace(made, in_force_data=forged))


MUTATIONS: Mapping[str, tuple[Callable[[dict[int, Value]], object], type[Refused]]] = {
    "another kind of file": (lambda fields: fields.update({1: "else"}), Malformed),
    "a later format": (lambda fields: fields.update({2: 2}), UnknownFormat),
    "an unknown subject": (lambda fields: fields.update({3: "will"}), Malformed),
    "another environment": (lambda fields: fields.update({4: "staging"}), Refused),
    "an environment of no name": (lambda fields: fields.update({4: "../x"}), Malformed),
    "no root": (lambda fields: fields.pop(5), Malformed),
    "a root too large": (lambda fields: fields.update({5: bytes(16_385)}), TooLarge),
    "nothing to sign": (lambda fields: fields.update({6: []}), Malformed),
    "a message of a text": (lambda fields: fields.update({6: ["x"]}), Malformed),
    "an unknown kind": (lambda fields: fields.update({6: [["report", "", 0, 0, b"x"]]}), Malformed),
    "a payload too large": (lambda fields: fields.update({6: [["root", "", 2, 0, bytes(16_385)]]}), TooLarge),
    "a root of a namespace": (lambda fields: fields.update({6: [["root", "x", 2, 0, b"x"]]}), Malformed),
    "a second number for a root": (lambda fields: fields.update({6: [["root", "", 2, 1, b"x"]]}), Malformed),
    "a key id too short": (lambda fields: fields.update({7: [[b"x", []]]}), Malformed),
    "a signature too short": (lambda fields: fields.update({7: [[bytes(8), [b"x"]]]}), Malformed),
    "more signatures than messages": (
        lambda fields: fields.update({7: [[bytes(8), [bytes(64)] * 9]]}),
        TooLarge,
    ),
    "signatures missing": (lambda fields: fields.update({7: [[ROOTS[0].id, []]]}), Malformed),
    "too many signers": (
        lambda fields: fields.update({7: [[n.to_bytes(8, "big"), []] for n in range(65)]}),
        TooLarge,
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_hostile_file_is_refused(publisher: PublisherSimulator, name: str) -> None:
    mutate, error = MUTATIONS[name]
    fields = fields_of(rooting(publisher, Change(Role.PUBLISHER, threshold=1)))
    mutate(fields)
    with pytest.raises(error):
        ceremony.decode_ceremony(encode(fields))


def test_a_base_of_other_namespaces_is_refused(publisher: PublisherSimulator) -> None:
    fields = fields_of(releasing(publisher))
    bases: list[Value] = [[["other", 0]], [["default"]], [["default", -1]], [["bad name", 0]], [], ["x"]]
    for base in bases:
        fields[8] = base
        with pytest.raises(Malformed):
            ceremony.decode_ceremony(encode(fields))


def test_a_file_beyond_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceremony, "CEREMONY_MAX_BYTES", 10)
    with pytest.raises(TooLarge):
        ceremony.decode_ceremony(bytes(11))


_SUBJECTS = PublisherSimulator(
    root_keys=ROOTS, publisher_keys=PUBLISHERS, root_threshold=2, publisher_threshold=2
)
_FILES = [
    ceremony.encode_ceremony(signed(rooting(_SUBJECTS, Change(Role.ROOT, remove=ids(ROOTS[2]))), ROOTS[0])),
    ceremony.encode_ceremony(signed(releasing(_SUBJECTS), PUBLISHERS[2])),
]


@pytest.mark.parametrize("data", _FILES, ids=["root", "release"])
@given(draw=st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_file_is_read_as_it_says_or_refused(data: bytes, draw: st.DataObject) -> None:
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        changed[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.integers(0, 40).map(lambda size: len(data) if size > 10 else size))
    _is_read_or_refused(bytes(changed[:cut]))


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_ceremony_or_one_family_of_errors(data: bytes) -> None:
    _is_read_or_refused(data)


_VALUES: st.SearchStrategy[Value] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**63 - 1) | st.text(max_size=20) | st.binary(max_size=70),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.integers(0, 9), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("data", _FILES, ids=["root", "release"])
@given(field=st.integers(1, 9), value=_VALUES)
@settings(max_examples=300, deadline=None)
def test_any_field_of_any_value_is_read_or_refused(data: bytes, field: int, value: Value) -> None:
    fields = decode(data, "test")
    assert isinstance(fields, dict)
    _is_read_or_refused(encode({**fields, field: value}))


def _is_read_or_refused(data: bytes) -> None:
    try:
        made = ceremony.decode_ceremony(data)
        lines = ceremony.describe(made, when)
    except Refused:
        return
    assert all(line.isprintable() for line in lines)
    again = ceremony.decode_ceremony(ceremony.encode_ceremony(made))
    assert again == made


def test_every_root_that_is_shown_is_the_root_that_is_signed(publisher: PublisherSimulator) -> None:
    made = as_file(rooting(publisher, Change(Role.PUBLISHER, remove=ids(PUBLISHERS[0]))))
    assert made.successor is not None
    assert encode_root(made.successor) == made.drafts[0].payload
