"""A device's database that changes as a real agent changes it, for clients that follow it."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from agent_shell import AgentShell
from publisher_simulator import PublisherSimulator

from flagcast_agent import clock
from flagcast_agent.store.rows import Profile
from flagcast_shared.ids import FlagKey, SegmentKey, VariantKey
from flagcast_shared.model import (
    AnySegment,
    BooleanFlag,
    Constraint,
    ConstraintType,
    Distribution,
    Flag,
    Join,
    Match,
    Operator,
    Rule,
    Segment,
    SegmentRollout,
    Variant,
    VariantFlag,
)

PATIENCE_SECONDS = 100.0
"""For a machine whose cores are busy with other tests."""


class FollowedAgent:
    """An agent on `path` that hears what `publish` publishes, fresh by this machine's clock."""

    def __init__(self, path: Path, *, labels: dict[str, str] | None = None) -> None:
        self.publisher = PublisherSimulator(now=clock.now())
        self._labels = labels or {}
        self.path = path
        self.shell = self._boot()

    def publish(self, *entries: Flag | AnySegment, inline: bool = False) -> None:
        """The next version is on disk when this returns."""
        self.publisher.release(*entries, inline=inline)
        self.shell.now = self.publisher.now
        self.shell.catch_up()

    def go_on_from(self, entries: Sequence[Flag | AnySegment]) -> None:
        """Takes up publishing where the database is, which holds `entries`."""
        held = self.shell.sync.trusted.holdings[self.publisher.namespace]
        self.publisher.contents.append(self.publisher.make_content(entries, version=held.version))
        self.publisher.heads.append(held.head)

    def sign_again(self, *, seconds_ago: int) -> None:
        """The same content under a head that was issued so long ago."""
        head = self.publisher.head
        issued = self.publisher.now - seconds_ago
        self.publisher.publish_head(
            replace(
                head,
                sequence=type(head.sequence)(head.sequence + 1),
                issued=issued,
                expires=issued + 7 * 86_400,
            )
        )
        self.shell.now = issued
        self.shell.catch_up()

    def restart(self) -> None:
        """Ends cleanly and boots again."""
        self.shell.close()
        self.shell = self._boot()

    def close(self) -> None:
        self.shell.close()

    def _boot(self) -> AgentShell:
        shell = AgentShell(self.path, self.publisher, labels=self._labels)
        shell.store.persist_profile(
            Profile(self.publisher.environment, shell.sync.trusted.device, (self.publisher.namespace,))
        )
        return shell


def wait_until(holds: Callable[[], object], what: str = "the condition") -> None:
    """Waits for a condition to hold."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_SECONDS} s"
        time.sleep(0.002)


def boolean(key: str, *, enabled: bool) -> BooleanFlag:
    return BooleanFlag(FlagKey(key), enabled)


def variant(key: str, choice: str, attachment: object = None, *, enabled: bool = True) -> VariantFlag:
    """A flag that gives everybody one variant."""
    text = "" if attachment is None else json.dumps(attachment)
    return VariantFlag(FlagKey(key), enabled, (Variant(VariantKey(choice), text),), VariantKey(choice))


def for_segment(key: str, segment: str) -> BooleanFlag:
    """A flag that is on for a segment."""
    return BooleanFlag(
        FlagKey(key), enabled=False, rollouts=(SegmentRollout((SegmentKey(segment),), Join.OR, value=True),)
    )


def segment(key: str, name: str, value: str) -> Segment:
    """Those whose property has a value."""
    return Segment(SegmentKey(key), Match.ALL, (Constraint(ConstraintType.STRING, name, Operator.EQ, value),))


def split(key: str, *choices: str) -> VariantFlag:
    """A flag that shares everybody out evenly."""
    bounds = [1000 * place // len(choices) for place in range(1, len(choices) + 1)]
    shares = tuple(Distribution(VariantKey(one), bound) for one, bound in zip(choices, bounds, strict=True))
    every = SegmentKey("everybody")
    return VariantFlag(
        FlagKey(key), enabled=True, variants=tuple(Variant(VariantKey(one)) for one in choices),
        rules=(Rule((every,), Join.OR, shares),),
    )  # fmt: skip
