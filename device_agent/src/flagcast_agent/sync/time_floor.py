"""What time it is at least. A device's own clock may be wrong by years, and many have none when they boot.

What a publisher or root has signed is not wrong, and the monotonic clock says how much time has passed since. Both together are
a time that it cannot be before: age and staleness are judged by it wherever the device's own clock is behind.
"""

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True)
class TimeFloor:
    """The latest time that this device has had reason to believe, and what follows from it for every moment after.

    `time` is the floor that `trust` speaks of. `booted` is when the monotonic clock was 0 at the earliest, in the boot of the
    device that `boot` names, blank where nobody can tell boots apart. Instants are Unix seconds.
    """

    time: int = 0
    booted: int = 0
    boot: str = ""

    def now(self, wall: int, monotonic: float) -> int:
        """What time it is at least; `wall` is what the device's own clock says."""
        return max(wall, self.booted + int(monotonic))

    def allows(self, wall: int) -> bool:
        """Whether the device's own clock is at or after everything it has had reason to believe."""
        return wall >= self.time

    def learn(self, time: int, monotonic: float) -> "TimeFloor":
        """After something was admitted, with `time` the floor that it led to; an earlier one takes back what was believed."""
        booted = _booted(time, monotonic)
        return TimeFloor(time, max(booted, self.booted) if time >= self.time else booted, self.boot)

    def begin_afresh(self, time: int, monotonic: float) -> "TimeFloor":
        """After a new epoch: what was believed on the word of former keys is taken back, whichever is later."""
        return TimeFloor(time, _booted(time, monotonic), self.boot)

    def resume(self, persisted: "TimeFloor", monotonic: float) -> "TimeFloor":
        """After what another process has persisted: as it stands if that was in this boot. How much time passed since a former
        one, nobody can say.
        """
        if self.boot and persisted.boot == self.boot:
            return persisted
        return self.learn(persisted.time, monotonic)


def _booted(time: int, monotonic: float) -> int:
    # Rounded so that what `now` makes of it is never after the true time.
    return time - ceil(monotonic)
