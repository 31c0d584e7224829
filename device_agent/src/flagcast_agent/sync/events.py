"""Events that the synchronisation core takes, and effects that it returns."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from flagcast_shared.reports import Usage
from flagcast_shared.trust import AdmittedRoot, AdmittedUpdate

from .time_floor import TimeFloor
from .transitions import BrokerMemory


class Fault(StrEnum):
    """Why a connection was not made."""

    NETWORK = "network"
    PROTOCOL = "protocol"
    """The broker does not speak this version of MQTT, or closed before saying anything."""
    REFUSED = "refused"
    """The broker refused the credentials, the client or its certificate."""


@dataclass(frozen=True, slots=True)
class Started:
    """The agent is up."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepted the connection."""


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """No connection; `why` is for people."""

    fault: Fault
    why: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended; `fault` is REFUSED where the broker said that it will not have this device."""

    why: str
    fault: Fault = Fault.NETWORK


@dataclass(frozen=True, slots=True)
class Received:
    """A message of a subscribed topic."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Persisted:
    """The last Persist effect is on disk."""


@dataclass(frozen=True, slots=True)
class PersistFailed:
    """The last Persist effect is not on disk; nothing changed."""

    why: str


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The broker answered a subscription of these filters; it took all but the `refused` ones."""

    filters: tuple[str, ...]
    refused: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The broker answered a Send. `is_kept`: it took the message and knows of somebody to give it to, as far as it says.

    `may_retry` is false where asking again in this connection is of no use.
    """

    token: int
    is_kept: bool
    may_retry: bool = True
    why: str = ""


@dataclass(frozen=True, slots=True)
class Reported:
    """The broker's answer to a report: why it was refused, blank where it was taken."""

    refused: str


@dataclass(frozen=True, slots=True)
class Woken:
    """Somebody wants to be up to date now."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Evaluations to be kept until they are sent."""

    batches: tuple[Usage, ...]


@dataclass(frozen=True, slots=True)
class UsageNotKept:
    """The disk did not take a batch of so many evaluations."""

    evaluations: int


@dataclass(frozen=True, slots=True)
class UsageFound:
    """The oldest batch on disk; `number` is 0 where there is none."""

    number: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed; `next_deadline` says when this is next worth telling."""


Event = (
    Started
    | Connected
    | ConnectFailed
    | Disconnected
    | Received
    | Persisted
    | PersistFailed
    | Subscribed
    | Delivered
    | Reported
    | Woken
    | Counted
    | UsageNotKept
    | UsageFound
    | Ticked
)


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect with this version of MQTT ("5" or "3.1.1") and this will."""

    protocol: str
    will_topic: str
    will: bytes


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Give the connection up, or the attempt at one; nothing of it is of interest any more."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe at QoS 1."""

    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Unsubscribe."""

    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish at QoS 1, retained."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Send:
    """Publish at QoS 1, not retained; Delivered with the same token follows."""

    topic: str
    payload: bytes
    token: int


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep what is known of the broker for the next start; None to forget it. A disk that does not take it is no harm."""

    memory: BrokerMemory | None


@dataclass(frozen=True, slots=True)
class KeepUsage:
    """Put a batch on disk; UsageNotKept follows where that fails."""

    batch: Usage


@dataclass(frozen=True, slots=True)
class FindUsage:
    """Look for the oldest batch on disk; UsageFound follows."""


@dataclass(frozen=True, slots=True)
class DropUsage:
    """This batch was taken; it is not needed any more."""

    number: int


@dataclass(frozen=True, slots=True)
class PersistUpdate:
    """Put an update on disk, then say Persisted or PersistFailed before anything else."""

    update: AdmittedUpdate
    floor: TimeFloor


@dataclass(frozen=True, slots=True)
class PersistRoot:
    """Put a root on disk, then say Persisted or PersistFailed before anything else."""

    root: AdmittedRoot
    floor: TimeFloor


@dataclass(frozen=True, slots=True)
class Believe:
    """Judge age and staleness by this from now on."""

    floor: TimeFloor


@dataclass(frozen=True, slots=True)
class Activate:
    """Answer applications from this from now on."""

    update: AdmittedUpdate


class Level(IntEnum):
    """How much a Log matters; the numbers of Python's `logging`."""

    INFO = 20
    WARNING = 30
    ERROR = 40


@dataclass(frozen=True, slots=True)
class Log:
    """Say something; `fields` are pairs of name and value."""

    level: Level
    message: str
    fields: tuple[tuple[str, object], ...] = ()


Effect = (
    Connect
    | Disconnect
    | Subscribe
    | Unsubscribe
    | Publish
    | Send
    | Remember
    | KeepUsage
    | FindUsage
    | DropUsage
    | PersistUpdate
    | PersistRoot
    | Believe
    | Activate
    | Log
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The last message that was not believed."""

    attack: str
    why: str
    topic: str
    at: int
