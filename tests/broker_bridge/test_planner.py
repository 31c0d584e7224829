import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from flagcast_bridge.planning import plan as planner
from flagcast_bridge.planning.plan import (
    Action,
    Content,
    Issued,
    Live,
    Plan,
    PlanRefused,
    Terms,
    obsolete,
    plan,
)
from flagcast_bridge.signing import signer
from flagcast_shared import trust
from flagcast_shared.codec import deflate
from flagcast_shared.context import Device
from flagcast_shared.errors import InvalidDocument
from flagcast_shared.ids import (
    DeviceId,
    Digest,
    Environment,
    Epoch,
    FlagKey,
    Namespace,
    RecordId,
    SegmentKey,
    VariantKey,
    Version,
)
from flagcast_shared.ids import Sequence as HeadSequence
from flagcast_shared.limits import INLINE_DELTA_MAX_BYTES, NUMBER_MAX
from flagcast_shared.messages import Candidate
from flagcast_shared.model import BooleanFlag, Entry, Match, Segment, Variant, VariantFlag
from flagcast_shared.records import encode_content
from flagcast_shared.root import Quorum, Role, Root, encode_root, root_place
from flagcast_shared.topics import Address, DeltaAddress, HeadAddress, SnapshotAddress

ENVIRONMENT = Environment("test")
NAMESPACE = Namespace("default")
NOW = 1_800_000_000
DAY = 86_400
TERMS = Terms(ENVIRONMENT, Epoch(1), NOW, 7 * DAY, 60_000)
NOTHING = Issued()


def flags(**enabled: bool) -> list[Entry]:
    return [BooleanFlag(FlagKey(key), on) for key, on in enabled.items()]


def bulky(count: int, seed: str = "") -> list[Entry]:
    def noise(number: int) -> str:
        blocks = (hashlib.sha256(f"{seed}{number}/{block}".encode()).hexdigest() for block in range(16))
        return "".join(blocks)

    return [
        VariantFlag(FlagKey(f"bulky-{number}"), True, (Variant(VariantKey("only"), noise(number)),))
        for number in range(count)
    ]


def content_of(done: Plan) -> Content:
    return done.contents[-1]


def live_after(done: Plan, *, is_whole: bool = True) -> Live:
    """What the broker shows once a plan that issued content is carried out."""
    return Live(done.head, content_of(done).records if is_whole else None)


def issued_after(done: Plan) -> Issued:
    content = content_of(done)
    return Issued(content.version, done.head.sequence, content)


def plan_for(
    wanted: Iterable[Entry], live: Live | None = None, issued: Issued = NOTHING, terms: Terms = TERMS
) -> Plan:
    return plan(NAMESPACE, wanted, live, issued, terms)


FIRST = plan_for(flags(a=True, b=False))


def test_the_first_content_is_version_one_and_the_head_comes_last() -> None:
    assert FIRST.action is Action.CHANGE
    assert (FIRST.head.stable.version, FIRST.head.sequence, FIRST.previous) == (1, 1, None)
    assert [draft.address for draft in FIRST.body] == [SnapshotAddress(NAMESPACE, Version(1), 0)]
    assert FIRST.head_draft is not None
    assert FIRST.head_draft.address == HeadAddress(NAMESPACE)
    assert FIRST.diff.added == (RecordId("flag", "a"), RecordId("flag", "b"))
    assert (FIRST.head.issued, FIRST.head.expires) == (NOW, NOW + 7 * DAY)
    assert FIRST.head.stable.size == len(content_of(FIRST).body)


def test_the_same_content_again_changes_nothing() -> None:
    again = plan_for(flags(b=False, a=True), live_after(FIRST), issued_after(FIRST))
    assert (again.action, again.head_draft, again.body, again.contents) == (Action.UNCHANGED, None, (), ())
    assert again.head == FIRST.head


def test_one_changed_flag_is_a_new_version_with_an_inline_delta() -> None:
    second = plan_for(flags(a=False, b=False), live_after(FIRST), issued_after(FIRST))
    assert (second.head.stable.version, second.head.sequence, second.previous) == (2, 2, 1)
    assert [(each.id.key, each.what) for each in second.diff.changed] == [("a", "enabled true -> false")]
    assert (second.diff.added, second.diff.removed) == ((), ())
    assert second.head.inline is not None
    assert (second.head.inline.from_version, second.head.inline.version) == (1, 2)


def test_what_was_added_and_removed_is_told_by_kind_and_key() -> None:
    wanted: list[Entry] = [*flags(b=False), Segment(SegmentKey("s"), Match.ALL, ())]
    diff = plan_for(wanted, live_after(FIRST)).diff
    assert diff.added == (RecordId("segment", "s"),)
    assert diff.removed == (RecordId("flag", "a"),)


def test_a_flag_of_another_type_says_so() -> None:
    diff = plan_for([*flags(b=False), VariantFlag(FlagKey("a"), True)], live_after(FIRST)).diff
    assert [(each.id.key, each.what) for each in diff.changed] == [("a", "type")]


def test_an_empty_content_is_a_version_like_any_other() -> None:
    emptied = plan_for([], live_after(FIRST), issued_after(FIRST))
    assert (emptied.action, emptied.head.stable.version) == (Action.CHANGE, 2)
    assert len(emptied.body) == 1


@pytest.mark.parametrize(
    ("age", "action"),
    [
        (0, Action.UNCHANGED),
        (3 * DAY, Action.UNCHANGED),
        (4 * DAY, Action.REFRESH),
        (8 * DAY, Action.REFRESH),
    ],
)
def test_a_head_is_renewed_in_the_second_half_of_its_lifetime(age: int, action: Action) -> None:
    later = replace(TERMS, now=NOW + age)
    again = plan_for(flags(a=True, b=False), live_after(FIRST), issued_after(FIRST), later)
    assert again.action is action
    if action is Action.REFRESH:
        assert (again.head.sequence, again.head.stable) == (2, FIRST.head.stable)
        assert again.head.expires == NOW + age + 7 * DAY
        assert again.body == ()


def test_a_new_head_can_be_asked_for() -> None:
    forced = replace(TERMS, forces_refresh=True)
    again = plan_for(flags(a=True, b=False), live_after(FIRST), issued_after(FIRST), forced)
    assert (again.action, again.head.sequence) == (Action.REFRESH, 2)


def test_a_refreshed_head_keeps_the_inline_delta_for_devices_that_missed_it() -> None:
    second = plan_for(flags(a=False, b=False), live_after(FIRST), issued_after(FIRST))
    forced = replace(TERMS, forces_refresh=True)
    again = plan_for(flags(a=False, b=False), live_after(second), issued_after(second), forced)
    assert again.head.inline == second.head.inline


def test_an_older_head_than_was_issued_is_replaced() -> None:
    issued = replace(issued_after(FIRST), sequence=HeadSequence(9))
    again = plan_for(flags(a=True, b=False), live_after(FIRST), issued)
    assert (again.action, again.head.sequence) == (Action.REFRESH, 10)


def test_numbers_go_on_above_the_ledger_and_the_broker() -> None:
    above_ledger = plan_for(flags(a=False), live_after(FIRST), Issued(Version(7), HeadSequence(20)))
    assert (above_ledger.head.stable.version, above_ledger.head.sequence) == (8, 21)
    far = replace(
        FIRST.head, sequence=HeadSequence(50), stable=replace(FIRST.head.stable, version=Version(40))
    )
    above_broker = plan_for(flags(a=False), Live(far, content_of(FIRST).records), issued_after(FIRST))
    assert (above_broker.head.stable.version, above_broker.head.sequence) == (41, 51)


def test_a_version_that_was_reserved_and_perhaps_sent_is_not_continued() -> None:
    # Version 2 was reserved by a run that died; whether a device saw it is not known.
    issued = Issued(Version(2), HeadSequence(2), content_of(FIRST))
    again = plan_for(flags(a=True, b=False), live_after(FIRST), issued)
    assert (again.action, again.head.stable.version, again.head.sequence) == (Action.CHANGE, 3, 3)


def test_a_candidate_whose_content_nobody_has_any_more_can_only_be_taken_back() -> None:
    digest = Digest(bytes(32))
    candidate = Candidate(replace(FIRST.head.stable, version=Version(5), digest=digest), 100, b"salt")
    live = Live(replace(FIRST.head, candidate=candidate), content_of(FIRST).records)
    with pytest.raises(
        PlanRefused, match=r"version 5 is neither whole on the broker nor in the ledger.*abort"
    ):
        plan_for(flags(a=True, b=False), live, issued_after(FIRST))
    aborted = planner.plan_abort(NAMESPACE, live, issued_after(FIRST), TERMS)
    assert (aborted.head.stable.version, aborted.head.candidate) == (6, None)


def test_a_broker_that_lost_everything_gets_the_same_version_again() -> None:
    restored = plan_for(flags(a=True, b=False), None, issued_after(FIRST))
    assert (restored.action, restored.head.stable.version, restored.head.sequence) == (Action.RESTORE, 1, 2)
    assert [draft.payload for draft in restored.body] == [draft.payload for draft in FIRST.body]
    assert not restored.diff


def test_a_broker_that_lost_a_part_gets_the_same_bytes_again_whatever_the_limit_is_now() -> None:
    small = replace(TERMS, message_limit=4_096)
    whole = plan_for(bulky(20), terms=small)
    assert whole.head.stable.parts > 3
    restored = plan_for(bulky(20), live_after(whole, is_whole=False), issued_after(whole), TERMS)
    assert restored.action is Action.RESTORE
    assert [draft.payload for draft in restored.body] == [draft.payload for draft in whole.body]


def test_a_broken_snapshot_whose_bytes_nobody_has_any_more_becomes_a_new_version() -> None:
    again = plan_for(flags(a=True, b=False), live_after(FIRST, is_whole=False))
    assert (again.action, again.head.stable.version) == (Action.CHANGE, 2)


def test_a_broker_restored_from_an_older_save_is_brought_above_what_devices_have_seen() -> None:
    second = plan_for(flags(a=False, b=False), live_after(FIRST), issued_after(FIRST))
    back = plan_for(flags(a=True, b=False), live_after(FIRST), issued_after(second))
    assert (back.action, back.head.stable.version, back.head.sequence) == (Action.CHANGE, 3, 3)
    assert back.head.inline is not None
    assert back.head.inline.from_version == 2  # what devices hold, not what the broker shows
    same = plan_for(flags(a=False, b=False), live_after(FIRST), issued_after(second))
    assert (same.action, same.head.stable.version, same.head.sequence) == (Action.RESTORE, 2, 3)


def test_content_of_another_epoch_gets_a_version_of_this_one() -> None:
    rotated = replace(TERMS, epoch=Epoch(2))
    again = plan_for(flags(a=True, b=False), None, issued_after(FIRST), rotated)
    assert (again.action, again.head.epoch, again.head.stable.version) == (Action.CHANGE, 2, 2)


def test_a_large_change_is_a_delta_message_and_one_as_large_as_the_snapshot_is_none() -> None:
    before = plan_for(bulky(40))
    some = [*bulky(8, "new"), *bulky(40)[8:]]
    changed = plan_for(some, live_after(before), issued_after(before))
    assert changed.head.inline is None
    assert changed.head.stable.deltas == (1,)
    assert changed.body[-1].address == DeltaAddress(NAMESPACE, Version(2), Version(1))
    everything = plan_for(bulky(40, "new"), live_after(before), issued_after(before))
    assert (everything.head.inline, everything.head.stable.deltas) == (None, ())
    assert all(isinstance(draft.address, SnapshotAddress) for draft in everything.body)


def history(count: int, terms: Terms = TERMS) -> tuple[Plan, Issued]:
    """So many versions, each of which changes ten of forty bulky flags; the last plan, and what the ledger knows then."""
    wanted = bulky(40)
    past: list[planner.Past] = []
    done = plan_for(wanted, terms=terms)
    issued = issued_after(done)
    for number in range(1, count):
        wanted = (
            [*bulky(10, f"new-{number}"), *wanted[10:]]
            if number % 2
            else [*wanted[:10], *bulky(30, f"x{number}")[10:30], *wanted[30:]]
        )
        live = live_after(done)
        done = plan_for(wanted, live, replace(issued, past=tuple(past)), terms)
        content = issued.published
        assert content is not None
        past.insert(
            0, planner.Past(content.version, content.digest, {r.id: r.digest for r in content.records})
        )
        issued = issued_after(done)
    return done, replace(issued, past=tuple(past))


def deltas_of(done: Plan) -> list[int]:
    kept = list(done.head.stable.deltas)
    drafted = [draft.address for draft in done.body if isinstance(draft.address, DeltaAddress)]
    assert drafted == [DeltaAddress(NAMESPACE, done.head.stable.version, old) for old in kept]
    return [int(version) for version in kept]


def test_deltas_lead_from_the_last_versions_newest_first_as_many_as_the_configuration_says() -> None:
    assert deltas_of(history(6)[0]) == [5, 4, 3, 2, 1]
    assert deltas_of(history(6, replace(TERMS, deltas=2))[0]) == [5, 4]
    assert deltas_of(history(6, replace(TERMS, deltas=0))[0]) == []


def test_all_deltas_together_keep_the_configured_size_the_newest_first() -> None:
    done, _ = history(6)
    sizes = [len(draft.payload) for draft in done.body if isinstance(draft.address, DeltaAddress)]
    room = sizes[0] + sizes[1] + 2_000  # the signatures and headers around the two
    assert room < sum(sizes[:3])
    assert deltas_of(history(6, replace(TERMS, deltas_total=room))[0])[:2] == [5, 4]
    assert sum(sizes) > room
    assert len(deltas_of(history(6, replace(TERMS, deltas_total=room))[0])) < len(sizes)
    assert deltas_of(history(6, replace(TERMS, deltas_total=100))[0]) == []


def test_no_delta_leads_from_a_content_that_is_the_same_or_that_shares_nothing() -> None:
    done, issued = history(3)
    back = plan_for(bulky(40), live_after(done), issued)  # the content of version 1
    assert 1 not in deltas_of(back)
    other = plan_for(bulky(40, "other"), live_after(done), issued)
    assert (deltas_of(other), other.head.inline) == ([], None)  # each would be as large as the snapshot


def test_a_delta_over_several_versions_is_admitted_by_a_device_that_was_away() -> None:
    done, _ = history(4)
    fleet = Fleet()
    fleet.receive(plan_for(bulky(40)), wants_body=True)
    to = DeltaAddress(NAMESPACE, Version(4), Version(1))
    only = tuple(draft for draft in done.body if draft.address == to)
    update = fleet.receive(replace(done, body=only), wants_body=True)
    assert (update.holding.version, update.holding.digest) == (4, done.head.stable.digest)


def test_a_small_change_travels_in_the_head_and_older_versions_get_deltas() -> None:
    before, issued = history(2)
    wanted = [record.entry for record in content_of(before).records]
    small = plan_for([*wanted, *flags(a=True)], live_after(before), issued)
    assert small.head.inline is not None
    assert (small.head.inline.from_version, deltas_of(small)) == (2, [1])


def test_a_head_that_does_not_fit_is_refused_with_what_to_do() -> None:
    long = replace(
        TERMS, message_limit=4_096, provenance={f"n{n}": "\N{SNOWMAN}" * 128 * 2 for n in range(8)}
    )
    with pytest.raises(InvalidDocument, match=r"its head takes \d+ bytes, at most 4096; less provenance"):
        plan_for(flags(a=True), terms=long)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "0.01 %"), (50, "0.5 %"), (1_250, "12.5 %"), (2_005, "20.05 %"), (10_000, "100 %")],
)
def test_a_share_reads_as_a_percentage(share: int, text: str) -> None:
    assert planner.percent(share) == text


def test_an_inline_delta_is_left_out_where_the_head_would_not_fit() -> None:
    before = plan_for(bulky(40))
    wanted = [*bulky(4, "new"), *bulky(40)[4:]]
    roomy = plan_for(wanted, live_after(before), issued_after(before))
    assert roomy.head.inline is not None
    size = len(roomy.head.inline.body)
    assert 3_900 - 1_700 < size <= INLINE_DELTA_MAX_BYTES
    tight = replace(TERMS, message_limit=size + 100)
    assert plan_for(wanted, live_after(before), issued_after(before), tight).head.inline is None


@pytest.mark.parametrize("signatures", [1, 3])
@pytest.mark.parametrize("limit", [4_096, 5_000, 20_000])
def test_every_signed_message_keeps_the_limit_and_parts_are_few(limit: int, signatures: int) -> None:
    signers = [signer.create(str(number)) for number in range(signatures)]
    terms = replace(TERMS, message_limit=limit, signatures=signatures)
    made = plan_for(bulky(60), terms=terms)
    assert made.head_draft is not None
    sizes = [
        len(signer.sign_message(draft.payload, draft.place, signers, signatures))
        for draft in (*made.body, made.head_draft)
    ]
    assert max(sizes) <= limit
    assert len(made.body) == made.head.stable.parts
    assert made.head.stable.parts <= -(-made.head.stable.size // (limit - 500))


def test_a_content_beyond_the_limits_is_refused_before_anything_is_made() -> None:
    twice = [BooleanFlag(FlagKey("a"), True), BooleanFlag(FlagKey("a"), False)]
    with pytest.raises(InvalidDocument, match="default: flag a stands twice"):
        plan_for(twice)
    huge = VariantFlag(FlagKey("a"), True, (Variant(VariantKey("v"), "x" * 300_000),))
    with pytest.raises(InvalidDocument, match="at most 262144"):
        plan_for([huge])
    with pytest.raises(InvalidDocument, match="numbers are used up"):
        plan_for(flags(a=True), None, Issued(Version(NUMBER_MAX), HeadSequence(1)))


def test_what_no_head_names_is_cleared_and_nothing_else() -> None:
    before = plan_for(bulky(40))
    changed = plan_for([*bulky(8, "new"), *bulky(40)[8:]], live_after(before), issued_after(before))
    retained: list[Address] = [
        HeadAddress(NAMESPACE),
        SnapshotAddress(NAMESPACE, Version(1), 0),
        SnapshotAddress(NAMESPACE, Version(2), 0),
        SnapshotAddress(NAMESPACE, Version(2), 7),
        DeltaAddress(NAMESPACE, Version(2), Version(1)),
        DeltaAddress(NAMESPACE, Version(1), Version(0)),
        SnapshotAddress(Namespace("other"), Version(1), 0),
    ]
    assert changed.head.stable.parts == 1
    assert obsolete([changed.head], retained) == [
        DeltaAddress(NAMESPACE, Version(1), Version(0)),
        SnapshotAddress(NAMESPACE, Version(1), 0),
        SnapshotAddress(NAMESPACE, Version(2), 7),
    ]
    candidate = Candidate(replace(before.head.stable, version=Version(1)), 100, b"salt")
    named = obsolete([replace(changed.head, candidate=candidate)], retained)
    assert SnapshotAddress(NAMESPACE, Version(1), 0) not in named


def test_a_content_is_the_same_bytes_every_time() -> None:
    shuffled = plan_for(reversed(flags(a=True, b=False)))
    assert content_of(shuffled).body == content_of(FIRST).body
    assert content_of(FIRST).body == deflate(encode_content(content_of(FIRST).records))
    assert planner.part_size(content_of(FIRST)) == len(content_of(FIRST).body)


class Fleet:
    """One device that admits what plans publish, signed for real."""

    def __init__(self) -> None:
        self._signer = signer.create("publisher")
        key = self._signer.public
        quorum = Quorum(frozenset({key.id}), 1)
        root = Root(
            ENVIRONMENT, 1, Epoch(1), 1, NOW + DAY, {key.id: key}, {Role.ROOT: quorum, Role.PUBLISHER: quorum}
        )
        data = signer.sign_message(encode_root(root), root_place(ENVIRONMENT), [self._signer], 1)
        self.trusted = trust.begin(ENVIRONMENT, Device(DeviceId("device")), data)

    def receive(self, done: Plan, *, wants_body: bool) -> trust.AdmittedUpdate:
        """The head, and the rest of it only if the head alone is not enough."""
        assert done.head_draft is not None
        outcome: trust.Outcome | None = None
        for draft in (done.head_draft, *(done.body if wants_body else ())):
            data = signer.sign_message(draft.payload, draft.place, [self._signer], 1)
            self.trusted, outcome = trust.admit(self.trusted, draft.address, data, now=NOW)
        assert isinstance(outcome, trust.AdmittedUpdate)
        return outcome

    def holds(self) -> Mapping[RecordId, object]:
        return self.trusted.holdings[NAMESPACE].records


def test_devices_admit_what_is_planned_by_snapshot_inline_delta_and_delta_message() -> None:
    fleet = Fleet()
    small = replace(TERMS, message_limit=4_096)
    first = plan_for(bulky(20), terms=small)
    assert fleet.receive(first, wants_body=True).is_complete
    second = plan_for([*bulky(20), *flags(a=True)], live_after(first), issued_after(first), small)
    update = fleet.receive(second, wants_body=False)
    assert [record.id.key for record in update.changed] == ["a"]
    third = plan_for([*bulky(8, "new"), *bulky(20)[8:]], live_after(second), issued_after(second))
    assert third.head.stable.deltas == (2,)
    delta = replace(third, body=third.body[-1:])
    update = fleet.receive(delta, wants_body=True)
    assert [record.id.key for record in update.changed] == [f"bulky-{number}" for number in range(8)]
    assert update.removed == (RecordId("flag", "a"),)
    assert len(fleet.holds()) == 20
    restored = plan_for([*bulky(8, "new"), *bulky(20)[8:]], None, issued_after(third), TERMS)
    assert not fleet.receive(restored, wants_body=False).changes_content
