"""The publisher's MQTT: one connection that publishes retained messages and reads them back.

The only module of the publisher that imports paho, and no type of it leaves. MQTT 5 comes first and 3.1.1 where the broker does
not speak it. Every wait ends: by what was waited for, by the loss of the connection, or by a timeout below.
"""

import contextlib
import os
import socket
import ssl
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from paho.mqtt.client import (
    Client,
    ConnectFlags,
    DisconnectFlags,
    MQTTMessage,
    _WebsocketWrapper,
    topic_matches_sub,
)
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from flagcast_shared.errors import FlagcastError, InvalidConfiguration
from flagcast_shared.limits import MESSAGE_MAX_BYTES
from flagcast_shared.packets import ANSWER_MAX_BYTES, PUBLISH, kind_of, without_properties
from flagcast_shared.transport import distrust, refusal

CONNECT_TIMEOUT_SECONDS: Final = 10.0
ANSWER_TIMEOUT_SECONDS: Final = 20.0
"""For a SUBACK, and between two PUBACKs: a message of 256 KB on a slow uplink."""
UNSUBSCRIBE_SECONDS: Final = 5.0
"""For an UNSUBACK, until it is asked for again."""
READ_BACK_TIMEOUT_SECONDS: Final = 10.0
"""For a retained message that was just acknowledged to come back."""
SESSION_SECONDS: Final = 7 * 86_400
"""How long a broker keeps what devices send while nobody collects it."""
QUIET_SECONDS: Final = 0.7
"""No further retained message for so long after the SUBACK: the broker has sent them all. MQTT has no word for the end."""
KEEPALIVE_SECONDS: Final = 30
FILTERS_PER_SUBSCRIBE: Final = 8
"""AWS IoT refuses a SUBSCRIBE with more."""
TOPICS_PER_READ: Final = 64
"""Retained messages asked for at once; mosquitto drops those beyond its queue of 1,000 without a word."""
TOPICS_MAX: Final = 100_000
"""Topics read from one broker; more are not ours."""
RECEIVED_MAX_BYTES: Final = 512 * 2**20
"""Retained messages read at once: a report of every topic of TOPICS_MAX takes 205 MB, the largest content 32 MB."""
INCOMING_MESSAGES_MAX: Final = 256
"""Messages that wait for the reader of `incoming`, and MQTT 5's receive maximum: more than a reader takes in one second."""
INCOMING_BYTES_MAX: Final = 2**20
"""Their bytes: 64 messages of the largest size. While there is no room, nothing is read from the broker."""
PACKET_KEPT_BYTES: Final = MESSAGE_MAX_BYTES + 2 * 65_536
"""Bytes kept of one packet: the largest message of ours, the longest topic of MQTT and as much again for properties.

A collector asks the broker for no longer ones (MQTT 5, 3.1.2.11.4): one that obeys drops them for it.
"""
UNSENT_PACKETS_MAX: Final = 4_096
"""Packets that wait to be sent; a broker that takes no acknowledgement for so many messages ends the connection."""
SUBACKS_MAX: Final = 64
"""SUBACKs kept until they are looked for: eight times those of one read."""

_READ_BYTES: Final = 65_536
# Asked of the socket at once; paho would ask for a whole packet of 256 MB.
_FRAME_MAX_BYTES: Final = 16 * PACKET_KEPT_BYTES
# Of a WebSocket, which paho keeps until its end; brokers put one or a few packets into a frame.
_IDLE_SECONDS: Final = 1.0
# The interval at which `incoming` looks up while nothing comes.
_SUBACK_POLL_SECONDS: Final = 0.05

_PACKET_ROOM_BYTES: Final = 32
# Fixed header, packet identifier and property length around topic and payload.

# Reason codes of MQTT 5 (2.4); paho gives those of 3.1.1 the same numbers.
_UNSUPPORTED_VERSION: Final = {0x81, 0x82, 0x84}
_AUTHENTICATION: Final = {0x85, 0x86, 0x87, 0x8A, 0x8C}
_NOT_AUTHORIZED: Final = 0x87
_TOO_LARGE: Final = 0x95
_NO_RETAIN: Final = 0x9A


class BrokerError(FlagcastError):
    """The broker is not there, does not let us, or does not do what was asked. Flags on devices are unharmed.

    BrokerError
    ├── Unreachable             no connection: wrong address, no network, no broker
    ├── TlsFailed               no agreement on TLS, or a certificate that is not trusted
    ├── AuthenticationRefused   unknown user, wrong password, unknown client certificate
    ├── ProtocolRefused         the configured MQTT version is not spoken, or something of it
    ├── NotAllowed              connected, but not permitted to publish or read
    ├── TooManyMessages         more is retained than is read at once
    ├── MessageRefused          larger than the broker takes
    ├── ConnectionLost          it ended in the middle
    ├── NoAnswer                the broker is silent
    └── NotRetained             acknowledged, but not there when read back
    """


class Unreachable(BrokerError):
    """No connection."""


class TlsFailed(BrokerError):
    """No agreement on TLS."""


class AuthenticationRefused(BrokerError):
    """The broker does not know us."""


class ProtocolRefused(BrokerError):
    """The broker does not speak what is needed."""


class NotAllowed(BrokerError):
    """The broker forbids it."""


class TooManyMessages(BrokerError):
    """More is retained under the topics than is read at once."""


class MessageRefused(BrokerError):
    """Larger than the broker takes."""


class ConnectionLost(BrokerError):
    """The connection ended in the middle."""


class NoAnswer(BrokerError):
    """The broker is silent."""


class NotRetained(BrokerError):
    """The broker acknowledged a retained message and does not return it."""


class _OtherVersion(Exception):
    """The broker did not take this MQTT version; another may do."""


@dataclass(frozen=True, slots=True)
class Login:
    """Who we are to the broker, and whom it must be. Without `uses_tls` all but user and password has no use.

    `server_name` is what the certificate has to be for, "" for the host that is connected to; `alpn` is the protocol that is
    offered in the handshake, "" for none.
    """

    user: str = ""
    password: str = ""
    uses_tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str = ""
    alpn: str = ""


def connect(
    host: str,
    port: int,
    login: Login,
    *,
    path: str = "",
    protocol: str = "auto",
    client_id: str = "",
    limit_bytes: int = MESSAGE_MAX_BYTES,
) -> "Connection":
    """Connect with MQTT "5", "3.1.1", or the first of the two that the broker takes ("auto"); with a `path` over WebSocket.

    With a `client_id` the broker keeps what comes for it while nobody is connected, for SESSION_SECONDS or longer, and what
    `incoming` gave and was not asked to go on from is given again. Longer messages than `limit_bytes` are dropped then.

    Raises:
        BrokerError: one of its leaves, which says what the broker refuses.
        InvalidConfiguration: a file for TLS cannot be used.
    """
    where = f"{host}:{port}"
    versions = {"auto": ("5", "3.1.1")}.get(protocol, (protocol,))
    reason = ""
    for version in versions:
        try:
            return Connection(
                host, port, login, version, client_id=client_id, path=path, limit_bytes=limit_bytes
            )
        except _OtherVersion as error:
            reason = str(error)
    spoken = "MQTT 5 nor 3.1.1" if len(versions) > 1 else f"MQTT {protocol}"
    hint = ", and broker.cert_file where it asks for a certificate" if login.uses_tls else ""
    raise ProtocolRefused(
        f"{where}: the broker does not speak {spoken} ({reason}); check that it is an MQTT broker, and broker.protocol{hint}"
    )


@dataclass(slots=True)
class _State:
    # What the callbacks have seen; guarded by the connection's condition.
    connack: tuple[int, str] | None = None
    packet_limit: int | None = None
    has_retain: bool = True
    max_qos: int = 1
    subacks: dict[int, list[int]] = field(default_factory=dict)
    unsubacks: set[int] = field(default_factory=set)
    pubacks: dict[int, tuple[int, str]] = field(default_factory=dict)
    received: dict[str, bytes] = field(default_factory=dict)
    received_bytes: int = 0
    is_full: bool = False
    lost: str | None = None
    lost_code: int = 0


class _Inbox:
    # What waits between paho's thread and the reader of `incoming`. A full one makes paho's thread wait, so the broker does.

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[tuple[str, bytes, int]] = deque()
        self._bytes = 0
        self._is_closed = False
        self._is_ended = False

    @property
    def is_ended(self) -> bool:
        """Whether nothing comes any more and nothing waits."""
        with self._changed:
            return self._is_ended and not self._waiting

    def put(self, topic: str, payload: bytes, number: int) -> None:
        """Add a message when there is room; nothing once it is closed."""
        size = len(topic) + len(payload)
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._has_room(size))
            if not self._is_closed:
                self._waiting.append((topic, payload, number))
                self._bytes += size
                self._changed.notify_all()

    def take(self, timeout: float) -> tuple[str, bytes, int] | None:
        """The oldest message; None where none comes in time, or ever."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_ended, timeout)
            if not self._waiting:
                return None
            found = self._waiting.popleft()
            self._bytes -= len(found[0]) + len(found[1])
            self._changed.notify_all()
            return found

    def end(self) -> None:
        """No further message comes."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """No reader comes any more: whatever waits for room is dropped, and the broker keeps it."""
        with self._changed:
            self._is_closed = self._is_ended = True
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return len(self._waiting) < INCOMING_MESSAGES_MAX and self._bytes + size <= INCOMING_BYTES_MAX


class Connection:
    """An open connection; made by `connect`. Not for several threads."""

    def __init__(
        self,
        host: str,
        port: int,
        login: Login,
        version: str,
        *,
        client_id: str = "",
        path: str = "",
        limit_bytes: int = MESSAGE_MAX_BYTES,
    ) -> None:
        self._client_id = client_id
        self._limit_bytes = limit_bytes
        # Written by paho's thread alone.
        self._dropped: Counter[str] = Counter()
        self._tls = _Tls(login) if login.uses_tls else None
        self._inbox = _Inbox()
        self.where = f"{host}:{port}"
        self.protocol = version
        self._state = _State()
        self._changed = threading.Condition()
        self._hand_on: Callable[[str, bytes], None] | None = None
        self._say_lost: Callable[[str], None] | None = None
        self._client = self._make_client(login, path)
        self._open(host, port, login)

    def __enter__(self) -> Self:
        """The connection itself; it is closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @property
    def dropped(self) -> Mapping[str, int]:
        """Number of messages that `incoming` has passed over, by the reason."""
        return dict(self._dropped)

    def publish(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish retained, at QoS 1, in order; returns when all are acknowledged. An empty message clears its topic.

        Raises:
            MessageRefused, NotAllowed, ConnectionLost, NoAnswer, BrokerError
        """
        limit = self._state.packet_limit
        for topic, payload in messages:
            size = len(topic.encode()) + len(payload) + _PACKET_ROOM_BYTES
            if limit is not None and size > limit:
                raise MessageRefused(
                    f"{self.where}: {topic} is {len(payload)} bytes and the broker takes packets of {limit}; "
                    "lower publish.message_limit_bytes, or raise the broker's limit"
                )
        waiting: dict[int, str] = {}
        largest = max((len(payload) for _, payload in messages), default=0)
        for topic, payload in messages:
            sent = self._client.publish(topic, payload, qos=1, retain=True)
            if sent.rc not in {MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN}:
                raise BrokerError(f"{self.where}: {topic} cannot be sent: {sent.rc.name}")
            waiting[sent.mid] = topic
        pubacks = self._state.pubacks
        while waiting:
            self._wait(lambda: any(mid in pubacks for mid in waiting), ANSWER_TIMEOUT_SECONDS, largest)
            with self._changed:
                for mid in [mid for mid in waiting if mid in pubacks]:
                    topic = waiting.pop(mid)
                    code, name = pubacks.pop(mid)
                    if code == _NOT_AUTHORIZED:
                        raise NotAllowed(f"{self.where}: the broker does not let this user publish {topic}")
                    if code >= 0x80:
                        raise BrokerError(f"{self.where}: the broker refused {topic}: {name}")

    def read_all(self, filters: Sequence[str]) -> dict[str, bytes]:
        """Retained messages under the filters, at most one byte more of each than any message of ours may have.

        Those of the first filter come first, and no broker promises all of them: what does not fit into a client's queue is
        dropped without a word. mosquitto has room for 1,000 at QoS 1; at QoS 0, which is asked for here, for those and all that
        the connection takes meanwhile. What is known by its topic is read whole with `read`.

        Raises:
            NotAllowed, ConnectionLost, NoAnswer, BrokerError
        """
        with self._subscribed(filters, qos=0):
            received = self._state.received
            seen = -1
            while seen != len(received):
                seen = len(received)
                # Only a new topic counts, so live traffic on a known one does not keep this waiting.
                self._wait_quietly(lambda: len(received) != seen, QUIET_SECONDS)  # noqa: B023  # called in this turn
            # amqtt also delivers what other clients have asked for.
            with self._changed:
                return {
                    topic: payload
                    for topic, payload in received.items()
                    if any(topic_matches_sub(each, topic) for each in filters)
                }

    def read(self, topics: Sequence[str]) -> dict[str, bytes]:
        """The retained messages of these very topics, however many; those that are not there are left out.

        Raises:
            NotAllowed, ConnectionLost, NoAnswer, BrokerError
        """
        found: dict[str, bytes] = {}
        for first in range(0, len(topics), TOPICS_PER_READ):
            chunk = topics[first : first + TOPICS_PER_READ]
            with self._subscribed(chunk):
                received = self._state.received
                seen = -1
                while seen != len(received) and not all(topic in received for topic in chunk):
                    seen = len(received)
                    self._wait_quietly(lambda: len(received) != seen, QUIET_SECONDS)  # noqa: B023  # called in this turn
                with self._changed:
                    found.update((topic, received[topic]) for topic in chunk if topic in received)
        return found

    def read_back(self, expected: Mapping[str, bytes]) -> dict[str, bytes | None]:
        """What the broker returns for the topics, where it is not what is expected; empty when all is well.

        Raises:
            NotAllowed, ConnectionLost, NoAnswer, BrokerError
        """
        wrong: dict[str, bytes | None] = {}
        topics = list(expected)
        for first in range(0, len(topics), TOPICS_PER_READ):
            chunk = topics[first : first + TOPICS_PER_READ]
            with self._subscribed(chunk):
                received = self._state.received
                self._wait_quietly(
                    lambda: all(received.get(topic) == expected[topic] for topic in chunk),  # noqa: B023  # as above
                    READ_BACK_TIMEOUT_SECONDS,
                )
                with self._changed:
                    wrong.update(
                        (topic, received.get(topic))
                        for topic in chunk
                        if received.get(topic) != expected[topic]
                    )
        return wrong

    def watch(
        self,
        filters: Sequence[str],
        hand_on: Callable[[str, bytes], None],
        say_lost: Callable[[str], None],
    ) -> None:
        """Subscribe for as long as the connection lasts; nothing else can be done with it any more.

        Both callables are called in another thread and must not wait: `hand_on` with the topic and at most one byte more of each
        message than any message of ours may have, `say_lost` with the reason when the connection ends.

        Raises:
            NotAllowed, ConnectionLost, NoAnswer
        """
        self._hand_on, self._say_lost = hand_on, say_lost
        self._subscribe(filters)

    def incoming(
        self, filters: Sequence[str], *, quiet_seconds: float | None
    ) -> Iterator[tuple[str, bytes] | None]:
        """Topic and message, one after the other, until nothing came for so long, or for ever (None).

        A message is acknowledged when the next one is asked for; until then the broker keeps it. While nothing comes, None is
        given once a second. Messages that are too large or not of QoS 1 are not given: `dropped` counts them.

        Raises:
            NotAllowed, ConnectionLost, NoAnswer
        """
        # A broker sends what it has kept before the SUBACK, which is not read before there is room for that.
        asked: list[int | None] = self._ask(filters)
        left, unanswered = quiet_seconds, ANSWER_TIMEOUT_SECONDS
        while left is None or left > 0:
            if asked and all(mid in self._state.subacks for mid in asked):
                self._require_granted(filters, asked)
                asked = []
            step = _IDLE_SECONDS if left is None else min(_IDLE_SECONDS, left)
            step = _SUBACK_POLL_SECONDS if asked else step
            found = self._inbox.take(step)
            if found is not None:
                topic, payload, packet = found
                left = quiet_seconds
                yield topic, payload
                self._client.ack(packet, 1)
            elif self._inbox.is_ended:
                self._require_connection(0)
                return
            elif asked:
                unanswered -= step
                if unanswered <= 0:
                    raise NoAnswer(
                        f"{self.where}: the broker did not answer within {ANSWER_TIMEOUT_SECONDS:.0f} s"
                    )
            else:
                left = None if left is None else left - step
                yield None

    def cut(self) -> None:
        """Send nothing more, whatever is waiting to be sent; may be called from any thread. Who uses it finds it lost."""
        stream = self._client.socket()
        if stream is None:
            return
        # Of the connection itself, whatever speaks on it.
        with contextlib.suppress(OSError, ValueError), socket.socket(fileno=os.dup(stream.fileno())) as raw:
            raw.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection."""
        self._inbox.close()
        self._client.disconnect()
        self._end()

    def _end(self) -> None:
        # A client closes its sockets when nobody refers to it any more; its callbacks are ours, and we refer to it.
        client = self._client
        self._inbox.close()
        client.loop_stop()
        client.on_connect = client.on_disconnect = client.on_message = None
        client.on_publish = client.on_subscribe = client.on_unsubscribe = None
        client.on_other_qos = lambda: None
        self._hand_on = self._say_lost = None

    @contextlib.contextmanager
    def _subscribed(self, filters: Sequence[str], qos: int = 1) -> Iterator[None]:
        # Subscribed for the length of the block; what is received in it is the block's alone.
        self._note(_forget_received)
        self._subscribe(filters, qos)
        yield
        self._unsubscribe(filters)

    def _unsubscribe(self, filters: Sequence[str]) -> None:
        # mosquitto drops whatever a client's queue has no room for, this answer too: it is asked for again.
        asked = set[int | None]()

        def is_answered() -> bool:
            return not asked.isdisjoint(self._state.unsubacks)

        for _ in range(round(ANSWER_TIMEOUT_SECONDS / UNSUBSCRIBE_SECONDS)):
            _, mid = self._client.unsubscribe(list(filters))
            asked.add(mid)
            if self._await(lambda: is_answered() or self._state.lost is not None, UNSUBSCRIBE_SECONDS):
                break
        else:
            raise NoAnswer(f"{self.where}: the broker did not answer within {ANSWER_TIMEOUT_SECONDS:.0f} s")
        self._wait(is_answered, ANSWER_TIMEOUT_SECONDS)

    def _subscribe(self, filters: Sequence[str], qos: int = 1) -> None:
        mids = self._ask(filters, qos)
        self._wait(lambda: all(mid in self._state.subacks for mid in mids), ANSWER_TIMEOUT_SECONDS)
        self._require_granted(filters, mids)

    def _ask(self, filters: Sequence[str], qos: int = 1) -> list[int | None]:
        # The packet identifiers of the SUBSCRIBEs.
        mids: list[int | None] = []
        for first in range(0, len(filters), FILTERS_PER_SUBSCRIBE):
            chunk = filters[first : first + FILTERS_PER_SUBSCRIBE]
            _, mid = self._client.subscribe([(name, qos) for name in chunk])
            mids.append(mid)
        return mids

    def _require_granted(self, filters: Sequence[str], mids: Sequence[int | None]) -> None:
        with self._changed:
            codes = [code for mid in mids for code in self._state.subacks.pop(mid or 0)]
        for name, code in zip(filters, codes, strict=False):
            if code >= 0x80:
                raise NotAllowed(f"{self.where}: the broker does not let this user read {name}")

    def _make_client(self, login: Login, path: str) -> "_Client":
        version = MQTTProtocolVersion.MQTTv5 if self.protocol == "5" else MQTTProtocolVersion.MQTTv311
        is_v5 = self.protocol == "5"
        client = _Client(
            login.server_name,
            path,
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=version,
            reconnect_on_failure=False,
            clean_session=None if is_v5 else not self._client_id,
            manual_ack=bool(self._client_id),
        )
        client.connect_timeout = CONNECT_TIMEOUT_SECONDS
        client.on_other_qos = lambda: self._drop("of another QoS")
        if login.user:
            client.username_pw_set(login.user, login.password or None)
        if self._tls is not None:
            client.tls_set_context(self._tls)  # type: ignore[arg-type]  # it is asked for no more than this
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        return client

    def _open(self, host: str, port: int, login: Login) -> None:
        try:
            self._client.connect(host, port, KEEPALIVE_SECONDS, **self._session_options())
        except ssl.SSLCertVerificationError as error:
            said = distrust(login.server_name or host, error.verify_code, error.verify_message)
            raise TlsFailed(f"{self.where}: TLS: {said}") from error
        except ssl.SSLError as error:
            raise TlsFailed(f"{self.where}: TLS: {refusal(error.reason or str(error))}") from error
        except _NoWebsocket as error:
            raise Unreachable(f"{self.where}: {error}") from error
        except ConnectionResetError as error:
            hint = "; check that the broker speaks TLS on this port" if login.uses_tls else ""
            raise (TlsFailed if login.uses_tls else Unreachable)(
                f"{self.where}: the broker closed the connection at once{hint}"
            ) from error
        except TimeoutError as error:
            raise Unreachable(
                f"{self.where}: no answer within {CONNECT_TIMEOUT_SECONDS:.0f} s; check broker.url and the network"
            ) from error
        except (OSError, ValueError) as error:
            said = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise Unreachable(f"{self.where}: {said}; check broker.url and that the broker runs") from error
        self._client.loop_start()
        try:
            self._await_connack()
        except BaseException:
            self._end()
            raise

    def _session_options(self) -> dict[str, Any]:
        # MQTT 3.1.1 says it when the client is made, and knows no expiry.
        if self.protocol != "5" or not self._client_id:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho ships no types
        properties.SessionExpiryInterval = SESSION_SECONDS
        properties.ReceiveMaximum = INCOMING_MESSAGES_MAX
        properties.MaximumPacketSize = PACKET_KEPT_BYTES
        return {"clean_start": False, "properties": properties}

    def _await_connack(self) -> None:
        state = self._state
        if not self._await(
            lambda: state.connack is not None or state.lost is not None, CONNECT_TIMEOUT_SECONDS
        ):
            raise NoAnswer(
                f"{self.where}: connected, but no MQTT answer within {CONNECT_TIMEOUT_SECONDS:.0f} s; "
                "check that it is an MQTT broker and whether it wants TLS"
            )
        if state.connack is None:
            if self._tls is not None and self._tls.alert:
                # In TLS 1.3 a server judges our certificate after our side of the handshake is over.
                raise TlsFailed(f"{self.where}: TLS: {refusal(self._tls.alert)}")
            raise _OtherVersion("it closed the connection without an answer")
        code, name = state.connack
        if code in _UNSUPPORTED_VERSION:
            raise _OtherVersion(name)
        if code in _AUTHENTICATION:
            raise AuthenticationRefused(
                f"{self.where}: the broker refused us: {name}; check broker.user, broker.password_file and broker.cert_file"
            )
        if code >= 0x80:
            raise BrokerError(f"{self.where}: the broker refused the connection: {name}")
        if not state.has_retain:
            raise ProtocolRefused(f"{self.where}: the broker keeps no retained messages; Flagcast needs them")
        if state.max_qos < 1:
            raise ProtocolRefused(f"{self.where}: the broker does not speak QoS 1; Flagcast needs it")

    def _await(self, is_done: Callable[[], bool], timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(is_done, timeout)

    def _wait_quietly(self, is_done: Callable[[], bool], timeout: float) -> None:
        # For what may well never come; only the loss of the connection is an error.
        self._await(lambda: is_done() or self._state.lost is not None or self._state.is_full, timeout)
        if self._state.is_full:
            raise TooManyMessages(
                f"{self.where}: more than {TOPICS_MAX} topics or {RECEIVED_MAX_BYTES} bytes; somebody else writes there"
            )
        self._require_connection(0)

    def _wait(self, is_done: Callable[[], bool], timeout: float, size: int = 0) -> None:
        if not self._await(lambda: is_done() or self._state.lost is not None, timeout):
            raise NoAnswer(f"{self.where}: the broker did not answer within {timeout:.0f} s")
        with self._changed:
            done = is_done()
        if not done:
            self._require_connection(size)

    def _require_connection(self, size: int) -> None:
        lost, code = self._state.lost, self._state.lost_code
        if lost is None:
            return
        if code == _TOO_LARGE:
            raise MessageRefused(
                f"{self.where}: the broker does not take a message of {size} bytes; lower publish.message_limit_bytes, or "
                "raise the broker's limit"
            )
        if code == _NO_RETAIN:
            raise ProtocolRefused(f"{self.where}: the broker keeps no retained messages; Flagcast needs them")
        hint = ""
        if size > 0 and code not in _AUTHENTICATION:
            # MQTT 3.1.1 has no word for it: a broker that finds a message too large hangs up.
            hint = f" while messages of up to {size} bytes were sent; if that repeats, lower publish.message_limit_bytes"
        raise ConnectionLost(f"{self.where}: {lost}{hint}")

    def _note(self, change: Callable[[_State], object]) -> None:
        with self._changed:
            change(self._state)
            self._changed.notify_all()

    def _on_connect(
        self,
        client: Client,
        userdata: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        del client, userdata, flags

        def note(state: _State) -> None:
            state.packet_limit = getattr(properties, "MaximumPacketSize", None)
            state.has_retain = getattr(properties, "RetainAvailable", 1) != 0
            state.max_qos = getattr(properties, "MaximumQoS", 1)
            state.connack = (reason.value, str(reason))

        self._note(note)

    def _on_disconnect(
        self,
        client: Client,
        userdata: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        del userdata, properties
        said = str(reason) if flags.is_disconnect_packet_from_server else "without saying why"
        # paho passes on no reason of an end that comes from this side.
        why_closed = client.why_closed if isinstance(client, _Client) else ""
        said = why_closed or f"the broker ended the connection ({said})"

        def note(state: _State) -> None:
            state.lost = said
            state.lost_code = reason.value if flags.is_disconnect_packet_from_server else 0

        self._note(note)
        self._inbox.end()
        if self._say_lost is not None:
            self._say_lost(said)

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        del client, userdata
        payload = bytes(message.payload[: MESSAGE_MAX_BYTES + 1])
        try:
            topic = message.topic
        except UnicodeDecodeError:
            if self._client_id:
                self._drop("on no topic", message)
            return
        if self._client_id:
            self._queue(topic, payload, message)
        elif self._hand_on is not None:
            self._hand_on(topic, payload)
        else:
            self._note(lambda state: _keep_received(state, topic, payload))

    def _queue(self, topic: str, payload: bytes, message: MQTTMessage) -> None:
        if message.qos != 1 or not message.mid:
            # It has no packet identifier: a broker ends the connection over an acknowledgement of packet 0.
            self._drop("of another QoS")
        elif len(payload) > self._limit_bytes:
            self._drop("too large", message)
        else:
            self._inbox.put(topic, payload, message.mid)

    def _drop(self, why: str, acknowledged: MQTTMessage | None = None) -> None:
        # In paho's thread. Unless it is acknowledged, a message of QoS 1 comes again for ever.
        self._dropped[why] += 1
        if acknowledged is not None and acknowledged.qos == 1:
            self._client.ack(acknowledged.mid, 1)

    def _on_publish(
        self, client: Client, userdata: object, mid: int, reason: ReasonCode, properties: Properties
    ) -> None:
        del client, userdata, properties
        self._note(lambda state: state.pubacks.__setitem__(mid, (reason.value, str(reason))))

    def _on_subscribe(
        self,
        client: Client,
        userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        properties: Properties | None,
    ) -> None:
        del client, userdata, properties
        codes = [reason.value for reason in reasons[: FILTERS_PER_SUBSCRIBE + 1]]

        def note(state: _State) -> None:
            # A broker may send any number of them that nobody asked for.
            if len(state.subacks) < SUBACKS_MAX:
                state.subacks[mid] = codes

        self._note(note)

    def _on_unsubscribe(
        self,
        client: Client,
        userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        properties: Properties | None,
    ) -> None:
        del client, userdata, reasons, properties
        self._note(lambda state: state.unsubacks.add(mid))


def _forget_received(state: _State) -> None:
    state.received.clear()
    state.received_bytes = 0
    state.is_full = False


def _keep_received(state: _State, topic: str, payload: bytes) -> None:
    # The first that has no room makes the reader give up; nothing is kept after it.
    before = state.received.get(topic)
    size = len(topic) + len(payload) if before is None else len(payload) - len(before)
    is_new_topic_too_many = before is None and len(state.received) >= TOPICS_MAX
    if is_new_topic_too_many or state.received_bytes + size > RECEIVED_MAX_BYTES:
        state.is_full = True
    if not state.is_full:
        state.received[topic] = payload
        state.received_bytes += size


def _tls_context(login: Login) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=login.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfiguration(
            f"{login.ca_file}: broker.ca_file cannot be used: {error.strerror or error}; allowed are certificates as PEM"
        ) from error
    if login.cert_file is not None:
        try:
            # Without a password OpenSSL would ask for that of an encrypted key at the terminal.
            context.load_cert_chain(login.cert_file, login.key_file, password="")
        except (OSError, ssl.SSLError) as error:
            raise InvalidConfiguration(
                f"{login.cert_file}: broker.cert_file and broker.key_file cannot be used: {error.strerror or error}; "
                "allowed are a certificate and its key as PEM, the key without a passphrase"
            ) from error
    if login.alpn:
        context.set_alpn_protocols([login.alpn])
    context.sslsocket_class = _Stream
    return context


class _Tls:
    # What paho asks of an SSLContext. The handshake is made at once, so that its socket is closed where it fails.

    check_hostname = True

    def __init__(self, login: Login) -> None:
        self._context = _tls_context(login)
        self._name = login.server_name
        self._stream: ssl.SSLSocket | None = None

    @property
    def alert(self) -> str:
        """OpenSSL's name for what the broker said against us after the handshake, "" for nothing."""
        return self._stream.alert if isinstance(self._stream, _Stream) else ""

    def wrap_socket(self, stream: socket.socket, *, server_hostname: str, **_: object) -> ssl.SSLSocket:
        try:
            self._stream = self._context.wrap_socket(stream, server_hostname=self._name or server_hostname)
        except BaseException:
            stream.close()
            raise
        return self._stream


class _Stream(ssl.SSLSocket):
    # paho takes any error for the end of the connection and forgets which it was.

    alert = ""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self.alert = error.reason or str(error)
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            # Who has closed may have said why.
            with contextlib.suppress(OSError):
                self.recv(1)
            raise


class _NoWebsocket(ConnectionError):
    """What listens there does not turn into a WebSocket."""


class _Beginning(bytearray):
    # A packet as it is read: what is beyond PACKET_KEPT_BYTES is passed over.

    def __iadd__(self, data: Any) -> Self:  # type: ignore[misc]  # it is never added otherwise
        self.extend(data[: max(0, PACKET_KEPT_BYTES - len(self))])
        return self


class _Client(Client):
    # paho's client, with a WebSocket of ours where there is a path, and bounds to what a broker makes it keep.

    on_other_qos: Callable[[], object] = staticmethod(lambda: None)
    why_closed = ""

    def __init__(self, server_name: str, path: str, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._server_name = server_name
        self._path = path

    def _sock_recv(self, bufsize: int) -> bytes:
        packet = self._in_packet
        if len(self._out_packet) > UNSENT_PACKETS_MAX:
            self.why_closed = "the broker takes nothing from us"
        elif packet["to_process"] > ANSWER_MAX_BYTES and kind_of(packet["command"]) != PUBLISH:
            self.why_closed = f"the broker sent an answer of {packet['to_process']} bytes"
        if self.why_closed:
            raise ConnectionError(self.why_closed)
        if packet["to_process"] and not packet["packet"]:
            packet["packet"] = _Beginning()
        received = super()._sock_recv(min(bufsize, _READ_BYTES))
        if not received and isinstance(self._sock, _Websocket):
            self.why_closed = self._sock.why_closed
        return received

    def _packet_handle(self) -> MQTTErrorCode:
        packet = self._in_packet
        if self._protocol == MQTTProtocolVersion.MQTTv5 and kind_of(packet["command"]) != PUBLISH:
            packet["packet"] = without_properties(packet["command"], packet["packet"])
        return super()._packet_handle()

    def _handle_publish(self) -> MQTTErrorCode:
        # paho would keep a message of QoS 2, which nobody here subscribes to, until the broker's second word. It would read
        # every property, at a cost of the square of their number, and end the connection over one that it does not take:
        # brokers hand them on from any sender, and a message that is not acknowledged comes again on every connection.
        packet = self._in_packet
        qos = packet["command"] >> 1 & 3
        if qos == 2:
            self.on_other_qos()
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        received = _parse_publish(
            bytes(packet["packet"]),
            qos,
            is_v5=self._protocol == MQTTProtocolVersion.MQTTv5,
            is_cut=packet["remaining_length"] > PACKET_KEPT_BYTES,
        )
        if received is None:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self._handle_on_message(received)
        if qos == 1 and not self._manual_ack:
            return self._send_puback(received.mid)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _send_puback(self, mid: int) -> MQTTErrorCode:
        # Packet 0 is none; a broker ends the connection over an acknowledgement of it.
        return super()._send_puback(mid) if mid else MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubrel(self) -> MQTTErrorCode:
        # No message of QoS 2 was taken, so none is completed.
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _create_socket(self) -> Any:
        if not self._path:
            return super()._create_socket()
        stream = self._create_socket_connection()
        if self._ssl:
            stream = self._ssl_wrap_socket(stream)
        stream.settimeout(CONNECT_TIMEOUT_SECONDS)
        # Its host is what the header says.
        name = self._server_name or self._host
        host = f"[{name}]" if ":" in name else name
        return _Websocket(stream, host, self._port, self._ssl, self._path, None)


def _parse_publish(packet: bytes, qos: int, *, is_v5: bool, is_cut: bool) -> MQTTMessage | None:
    # A message of a PUBLISH (MQTT 5, 3.3), properties passed over; None for what is none. Of a packet that was cut, all that
    # follows the packet identifier is payload: it is longer than any message of ours, and treated as such.
    at = 2 + int.from_bytes(packet[:2], "big")
    topic = packet[2:at]
    number = 0
    if qos == 1:
        number = int.from_bytes(packet[at : at + 2], "big")
        at += 2
    if not topic or at > len(packet) or qos > 1:
        return None
    if is_v5 and not is_cut:
        length, at = _variable_integer(packet, at)
        at += length
        if length < 0 or at > len(packet):
            return None
    message = MQTTMessage(number, topic)
    message.qos = qos
    message.payload = packet[at:]
    return message


def _variable_integer(packet: bytes, at: int) -> tuple[int, int]:
    # A Variable Byte Integer (MQTT 5, 1.5.5) and the place after it; -1 for what is none.
    value = 0
    for place, byte in enumerate(packet[at : at + 4]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    return -1, at


class _Websocket(_WebsocketWrapper):
    # paho's, which leaves its socket open where the handshake fails, and answers a ping without a mask.

    why_closed = ""

    def _do_handshake(self, extra_headers: Any) -> None:
        # Each byte of the answer may take as long as the socket waits, and nobody counts them.
        late = threading.Timer(CONNECT_TIMEOUT_SECONDS, self._give_up)
        late.daemon = True
        late.start()
        try:
            super()._do_handshake(extra_headers)
        except (ConnectionError, IndexError, UnicodeDecodeError) as error:
            self._socket.close()
            raise _NoWebsocket(
                f"no WebSocket at {self._path}; check the port and path of broker.url"
            ) from error
        except OSError:
            self._socket.close()
            raise
        finally:
            late.cancel()

    def _buffered_read(self, length: int) -> bytearray:
        if self._readbuffer_head + length > _FRAME_MAX_BYTES:
            self.why_closed = f"the broker sent a frame of more than {_FRAME_MAX_BYTES} bytes"
            raise ConnectionAbortedError(self.why_closed)
        return super()._buffered_read(length)

    def _give_up(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _create_frame(self, opcode: int, data: bytearray, do_masking: int = 1) -> bytearray:
        # Servers end a connection over a frame without a mask (RFC 6455, 5.1).
        return super()._create_frame(opcode, data, 1 | do_masking)
