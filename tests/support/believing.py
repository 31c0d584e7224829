"""What a device comes to believe of a broker's retained messages, judged by the real core, without a socket."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flagcast_shared import trust
from flagcast_shared.context import Device
from flagcast_shared.errors import Refused
from flagcast_shared.ids import DeviceId, Environment, Namespace
from flagcast_shared.topics import (
    Address,
    DeltaAddress,
    HeadAddress,
    RootAddress,
    SnapshotAddress,
    Topics,
)
from flagcast_shared.trust import Trusted

_ORDER = (RootAddress, HeadAddress, DeltaAddress, SnapshotAddress)


@dataclass(slots=True)
class Believer:
    """A device that was provisioned with `anchor`. `refused` is what it did not believe the last time, by its word."""

    environment: str
    anchor: bytes
    trusted: Trusted = field(init=False)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trusted = trust.begin(
            Environment(self.environment), Device(DeviceId("believer")), self.anchor, floor=0
        )

    def hear(self, retained: Mapping[str, bytes], *, now: int) -> None:
        """Hear everything retained, roots first and in order, as a device does that has just connected."""
        topics = Topics("flagcast", Environment(self.environment))
        found = [
            (address, data)
            for topic, data in retained.items()
            if (address := topics.address(topic)) is not None and isinstance(address, _ORDER)
        ]
        self.refused = []
        for address, data in sorted(found, key=lambda each: _rank(each[0])):
            try:
                self.trusted, _ = trust.admit(self.trusted, address, data, now=now)
            except Refused as error:
                self.refused.append(error.attack)

    @property
    def root(self) -> int:
        return self.trusted.root.number

    @property
    def versions(self) -> dict[str, tuple[int, int]]:
        """Epoch and version of each namespace's content."""
        return {name: (held.epoch, held.version) for name, held in self.trusted.holdings.items()}

    def digest(self, namespace: str = "default") -> bytes:
        return self.trusted.holdings[Namespace(namespace)].digest


def _rank(address: Address) -> tuple[int, int, str]:
    number = address.number if isinstance(address, RootAddress) else 0
    kinds = [place for place, kind in enumerate(_ORDER) if isinstance(address, kind)]
    return kinds[0], number, repr(address)
