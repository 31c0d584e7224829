"""The MQTT topics: built and taken apart in this one place.

Every topic is `{prefix}/1/{environment}/...` with at most seven slashes, which is what AWS IoT allows.
"""

from dataclasses import dataclass
from enum import StrEnum

from .errors import InvalidIdentifier
from .ids import DeviceId, Environment, Namespace, Version, parse_device, parse_namespace
from .limits import NUMBER_MAX

FORMAT = 1


class Kind(StrEnum):
    """What a publisher's message is; part of what is signed."""

    ROOT = "root"
    HEAD = "head"
    SNAPSHOT = "snapshot"
    DELTA = "delta"


@dataclass(frozen=True, slots=True)
class RootAddress:
    """Where root number `number` stands."""

    number: int


@dataclass(frozen=True, slots=True)
class HeadAddress:
    """Where a namespace's head stands."""

    namespace: Namespace


@dataclass(frozen=True, slots=True)
class SnapshotAddress:
    """Where part `part` (from 0) of a snapshot stands."""

    namespace: Namespace
    version: Version
    part: int


@dataclass(frozen=True, slots=True)
class DeltaAddress:
    """Where the delta that leads from one version to another stands."""

    namespace: Namespace
    version: Version
    from_version: Version


@dataclass(frozen=True, slots=True)
class DeviceAddress:
    """Where a device writes: `what` is "report", "metrics" or "refresh"."""

    device: DeviceId
    what: str


Address = RootAddress | HeadAddress | SnapshotAddress | DeltaAddress | DeviceAddress


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one environment."""

    prefix: str
    environment: Environment

    @property
    def base(self) -> str:
        """What every topic of the environment begins with, without the slash."""
        return f"{self.prefix}/{FORMAT}/{self.environment}"

    def of(self, address: Address) -> str:
        """The topic of an address."""
        match address:
            case RootAddress(number):
                return f"{self.base}/root/{number}"
            case HeadAddress(namespace):
                return f"{self.base}/flags/{namespace}/head"
            case SnapshotAddress(namespace, version, part):
                return f"{self.base}/flags/{namespace}/snapshot/{version}/{part}"
            case DeltaAddress(namespace, version, from_version):
                return f"{self.base}/flags/{namespace}/delta/{version}/{from_version}"
            case DeviceAddress(device, what):
                return f"{self.base}/devices/{device}/{what}"

    def snapshot_filter(self, namespace: Namespace, version: Version) -> str:
        """Subscribes to all parts of one snapshot."""
        return f"{self.base}/flags/{namespace}/snapshot/{version}/+"

    def all_roots(self) -> str:
        """Subscribes to every root."""
        return f"{self.base}/root/+"

    def all_heads(self) -> str:
        """Subscribes to every namespace's head; for publishers."""
        return f"{self.base}/flags/+/head"

    def all_flags(self) -> str:
        """Subscribes to everything published about flags; for publishers, never for devices."""
        return f"{self.base}/flags/#"

    def all_devices(self, what: str) -> str:
        """Subscribes to what every device writes."""
        return f"{self.base}/devices/+/{what}"

    def address(self, topic: str) -> Address | None:
        """The address of a topic; None for one that is not of this environment or not of this format."""
        if not topic.startswith(self.base + "/"):
            return None
        try:
            match topic[len(self.base) + 1 :].split("/"):
                case ["root", number]:
                    return RootAddress(_number(number))
                case ["flags", namespace, "head"]:
                    return HeadAddress(parse_namespace(namespace))
                case ["flags", namespace, "snapshot", version, part]:
                    return SnapshotAddress(
                        parse_namespace(namespace), Version(_number(version)), _number(part)
                    )
                case ["flags", namespace, "delta", version, from_version]:
                    return DeltaAddress(
                        parse_namespace(namespace), Version(_number(version)), Version(_number(from_version))
                    )
                case ["devices", device, ("report" | "metrics" | "refresh") as what]:
                    return DeviceAddress(parse_device(device), what)
        except InvalidIdentifier:
            return None
        return None


def _number(text: str) -> int:
    # Only the one spelling that `of` writes: "07", "+7" and Unicode digits name no topic of ours.
    if not (text.isascii() and text.isdigit()) or (len(text) > 1 and text[0] == "0") or len(text) > 19:
        raise InvalidIdentifier(f"{text!r} is not a number of a topic")
    number = int(text)
    if number > NUMBER_MAX:
        raise InvalidIdentifier(f"{text!r} is too large for a number of a topic")
    return number
