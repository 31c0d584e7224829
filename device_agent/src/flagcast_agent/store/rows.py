"""What the agent's database holds, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from flagcast_agent.sync.time_floor import TimeFloor
from flagcast_agent.sync.transitions import BrokerMemory
from flagcast_shared.context import Device
from flagcast_shared.ids import Digest, Environment, Epoch, FlagKey, Namespace, Version

if TYPE_CHECKING:
    # A reader trusts what was admitted, so it does without the cryptography that this module brings along.
    from flagcast_shared.trust import Stored


SCHEMA_VERSION: Final = 3


SCHEMA_OF_REMOVED: Final = 3


NAMESPACES_MAX: Final = 1_000
"""Namespaces that one agent follows: each is a subscription."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Whose database it is, for readers that may not read the agent's configuration.

    `namespaces` are those that the agent answers for; the first is what a question without a namespace means.
    """

    environment: Environment
    device: Device
    namespaces: tuple[Namespace, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """One namespace in the database. `records` is None where the reader said that it knows this content."""

    namespace: Namespace
    head_data: bytes
    epoch: Epoch
    version: Version
    digest: Digest
    records: tuple[bytes, ...] | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a reader saw in one instant. `profile` is None until an agent has booted from this database.

    `floor` is to be resumed before it says what time it is.
    """

    profile: Profile | None
    holdings: tuple[Held, ...]
    floor: TimeFloor


@dataclass(frozen=True, slots=True)
class Saved:
    """Everything a device had admitted when it went down. `floor` is to be resumed before it says what time it is.

    `removed` are the keys of flags that are gone since, the oldest first, REMOVED_FLAGS_MAX of a namespace at most.
    """

    root_data: bytes | None
    floor: TimeFloor
    namespaces: "tuple[Stored, ...]"
    broker: BrokerMemory | None = None
    removed: Mapping[Namespace, tuple[FlagKey, ...]] = field(default_factory=dict)
