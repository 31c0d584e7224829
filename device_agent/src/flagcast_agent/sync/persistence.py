"""Persistence: the one proposal that is on its way to the disk, and when a full disk is tried again."""

from typing import Final

from flagcast_shared.trust import AdmittedRoot, AdmittedUpdate, Trusted

from .events import PersistRoot, PersistUpdate
from .time_floor import TimeFloor

PERSIST_RETRY_SECONDS: Final = 30.0
"""How often a disk that was full is tried again."""

Proposal = tuple[Trusted, AdmittedUpdate | AdmittedRoot, TimeFloor]


class Persistence:
    """What follows once the disk has taken it. `error` is why the disk did not take the last proposal."""

    def __init__(self) -> None:
        self._proposal: Proposal | None = None
        self._again_at: float | None = None
        self.error = ""

    @property
    def is_busy(self) -> bool:
        """Whether an answer of the disk is awaited."""
        return self._proposal is not None

    def next_deadline(self) -> float | None:
        """When the disk is tried again, in monotonic seconds."""
        return self._again_at

    def propose(self, trusted: Trusted, outcome: AdmittedUpdate, floor: TimeFloor) -> PersistUpdate:
        """An update that was admitted."""
        self._proposal = (trusted, outcome, floor)
        return PersistUpdate(outcome, floor)

    def propose_root(self, trusted: Trusted, outcome: AdmittedRoot, floor: TimeFloor) -> PersistRoot:
        """A root that was admitted."""
        self._proposal = (trusted, outcome, floor)
        return PersistRoot(outcome, floor)

    def complete(self) -> Proposal | None:
        """It is on disk."""
        found, self._proposal = self._proposal, None
        if found is not None:
            self._again_at = None
        return found

    def fail(self, why: str, monotonic: float) -> Proposal | None:
        """It is not on disk, and is forgotten."""
        found, self._proposal = self._proposal, None
        self.error = why
        self._again_at = monotonic + PERSIST_RETRY_SECONDS
        return found

    def is_retry_due(self, monotonic: float) -> bool:
        """Whether the disk is to be tried again. To be asked once: the wait is over then."""
        if self._again_at is None or monotonic < self._again_at:
            return False
        self._again_at = None
        return True
