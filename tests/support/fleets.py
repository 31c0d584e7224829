"""A publisher of real plans, a real ledger and real signatures over a broker that is a mapping, and devices that follow it.

Each `Follower` does what an agent does with retained messages: the head, then a delta if the head names one from what it holds,
otherwise the snapshot; all of it through `trust.admit`. Whatever happens, it may never hold an older version than before.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from flagcast_bridge.ledger.ledger import Ledger
from flagcast_bridge.planning.plan import (
    Issued,
    Live,
    Plan,
    Stage,
    Terms,
    obsolete,
    plan,
    plan_abort,
    plan_candidate,
    plan_promote,
    plan_rollback,
    plan_share,
)
from flagcast_bridge.publishing import publish as publisher
from flagcast_bridge.signing import signer
from flagcast_shared import trust
from flagcast_shared.context import Device
from flagcast_shared.ids import DeviceId, Environment, Epoch, Namespace, Version
from flagcast_shared.model import Entry
from flagcast_shared.root import Quorum, Role, Root, encode_root, root_place
from flagcast_shared.topics import Address, DeltaAddress, HeadAddress, SnapshotAddress

ENVIRONMENT = Environment("test")
NAMESPACE = Namespace("default")
NOW = 1_800_000_000
DAY = 86_400
SALT = bytes(range(16))


class Station:
    """The publisher and its broker."""

    def __init__(self, folder: Path) -> None:
        self.retained: dict[Address, bytes] = {}
        self._open = ExitStack()
        self.ledger = self._open.enter_context(closing(Ledger(folder / "ledger.sqlite", ENVIRONMENT)))
        self._open.enter_context(self.ledger.lease("process 1 on a.example"))
        self.terms = Terms(ENVIRONMENT, Epoch(1), NOW, 7 * DAY, 60_000)
        self._signer = signer.create("publisher")
        key = self._signer.public
        quorum = Quorum(frozenset({key.id}), 1)
        root = Root(
            ENVIRONMENT,
            1,
            Epoch(1),
            1,
            NOW + 9 * DAY,
            {key.id: key},
            {Role.ROOT: quorum, Role.PUBLISHER: quorum},
        )
        self.anchor = signer.sign_message(encode_root(root), root_place(ENVIRONMENT), [self._signer], 1)

    def close(self) -> None:
        """Give the ledger back."""
        self._open.close()

    @property
    def live(self) -> Live | None:
        trusted = trust.begin(ENVIRONMENT, Device(DeviceId("publisher")), self.anchor)
        seen, refused = publisher._verified(trusted, self.retained)
        assert not refused
        return seen.get(NAMESPACE)

    @property
    def issued(self) -> Issued:
        return self.ledger.issued(self.terms.deltas).get(NAMESPACE, Issued())

    def publish(self, wanted: Iterable[Entry]) -> Plan:
        return self._carry_out(plan(NAMESPACE, wanted, self.live, self.issued, self.terms))

    def candidate(
        self, wanted: Iterable[Entry], share: int, labels: Mapping[str, str] | None = None, salt: bytes = SALT
    ) -> Plan:
        stage = Stage(share, salt, labels)
        return self._carry_out(
            plan_candidate(NAMESPACE, wanted, self.live, self.issued, self.terms, stage=stage)
        )

    def share(self, share: int) -> Plan:
        return self._step(lambda live, issued: plan_share(NAMESPACE, share, live, issued, self.terms))

    def promote(self) -> Plan:
        return self._step(lambda live, issued: plan_promote(NAMESPACE, live, issued, self.terms))

    def abort(self) -> Plan:
        return self._step(lambda live, issued: plan_abort(NAMESPACE, live, issued, self.terms))

    def roll_back(self, version: int) -> Plan:
        back = self.ledger.content(NAMESPACE, Version(version))
        assert back is not None
        return self._step(lambda live, issued: plan_rollback(NAMESPACE, back, live, issued, self.terms))

    def _step(self, decide: Callable[[Live | None, Issued], Plan]) -> Plan:
        return self._carry_out(decide(self.live, self.issued))

    def _carry_out(self, done: Plan) -> Plan:
        self.ledger.reserve([done], NOW)
        for draft in (*done.body, *([done.head_draft] if done.head_draft is not None else [])):
            self.retained[draft.address] = signer.sign_message(draft.payload, draft.place, [self._signer], 1)
        self.ledger.confirm(done.head, NOW, self.retained)
        for address in obsolete([done.head], list(self.retained)):
            del self.retained[address]
        return done


class Follower:
    """One device. `took` is how its content came last: "nothing", "head", "delta" or "snapshot"."""

    def __init__(self, station: Station, name: str, labels: Mapping[str, str] | None = None) -> None:
        self.trusted = trust.begin(ENVIRONMENT, Device(DeviceId(name), dict(labels or {})), station.anchor)
        self.took = "nothing"
        self._station = station

    @property
    def version(self) -> int:
        """The version it holds; 0 for none."""
        held = self.trusted.holdings.get(NAMESPACE)
        return 0 if held is None else held.version

    @property
    def digest(self) -> bytes:
        return self.trusted.holdings[NAMESPACE].digest

    def catch_up(self) -> None:
        """Hear what is retained now."""
        before = self.version
        retained = self._station.retained
        outcome = self._admit(HeadAddress(NAMESPACE))
        self.took = "head"
        if isinstance(outcome, trust.Wanted):
            version = outcome.offering.version
            if outcome.has_delta and outcome.held is not None:
                outcome = self._admit(DeltaAddress(NAMESPACE, version, outcome.held))
                self.took = "delta"
            else:
                for at in [a for a in retained if isinstance(a, SnapshotAddress) and a.version == version]:
                    outcome = self._admit(at)
                self.took = "snapshot"
            assert isinstance(outcome, trust.AdmittedUpdate)
        if isinstance(outcome, trust.Nothing) or not outcome.changes_content:  # type: ignore[union-attr]  # no root here
            self.took = "nothing"
        assert self.version >= before, (
            f"{self.trusted.device.id} stepped down from {before} to {self.version}"
        )

    def _admit(self, address: Address) -> trust.Outcome:
        self.trusted, outcome = trust.admit(self.trusted, address, self._station.retained[address], now=NOW)
        return outcome


def followers(station: Station, count: int, labels: Mapping[str, str] | None = None) -> list[Follower]:
    """So many devices that hold nothing yet."""
    return [Follower(station, f"device-{number}", labels) for number in range(count)]
