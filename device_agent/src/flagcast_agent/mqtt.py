"""The agent's MQTT shell: one connection at a time, its events handed on, nothing decided.

The only module of the agent that imports paho. Every callback becomes a `sync` event that says of which attempt it is, so that
what a connection said before it was given up is not taken for news of the next one. paho's own reconnecting is off: when to try
again is the core's decision.

Every connection is a clean start, and its session ends with it (MQTT 5, 3.1.2.4 and 3.1.2.11.2: no expiry interval means zero).
"""

import contextlib
import os
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from flagcast_shared.errors import InvalidConfiguration
from flagcast_shared.limits import MESSAGE_MAX_BYTES
from flagcast_shared.packets import ANSWER_MAX_BYTES, CONNACK, PUBLISH, kind_of, without_properties
from flagcast_shared.transport import distrust, refusal

from . import clock
from .config import BrokerConfig
from .sync.events import (
    Connected,
    ConnectFailed,
    Delivered,
    Disconnected,
    Event,
    Fault,
    Received,
    Reported,
    Subscribed,
)

CONNECT_TIMEOUT_SECONDS: Final = 10.0
FAREWELL_SECONDS: Final = 1.0
"""The wait of a clean end for the broker to take the last report, and for the DISCONNECT to be written."""
FILTERS_PER_SUBSCRIBE: Final = 8
"""AWS IoT refuses a SUBSCRIBE with more, and an UNSUBSCRIBE."""
_TOPIC_ROOM_BYTES: Final = 1024
_FRAME_MAX_BYTES: Final = 16 * (MESSAGE_MAX_BYTES + _TOPIC_ROOM_BYTES)
# Brokers put several packets into one WebSocket frame, and paho keeps a frame until the last of them is read.
_UPGRADE_MAX_BYTES: Final = 16_384  # what servers of HTTP allow for a header
_PROTOCOL: Final = {0x84, 0x82, 0x81}  # MQTT 5, 3.2.2.2: unsupported version, protocol error, malformed
_UNAVAILABLE: Final = {0x88, 0x89, 0x97, 0x9F}  # unavailable, busy, quota, connection rate: worth another try
_UNWELCOME: Final = {0x86, 0x87, 0x8A, 0x8C, 0x8E}
# Reasons of a DISCONNECT (MQTT 5, 3.14.2.1) that will be the same tomorrow: bad user, not authorized, banned, bad method, and
# another client that has this client's id and will take it again.
_LOGIN_KEYS: Final = "broker.user, broker.password_file and broker.cert_file"
_KEEPALIVE_TIMEOUT: Final = 0x8D  # MQTT 5, 2.4; also what paho says where a ping has no answer
_NO_SUBSCRIBER: Final = 0x10  # MQTT 5, 3.4.2.1: the broker took the message and had nobody to give it to
_QOS_2: Final = 0b0100  # in the first byte of a PUBLISH (MQTT 3.1.1, 3.3.1)


@dataclass(frozen=True, slots=True)
class Suback:
    """The broker's answer to a SUBSCRIBE: for each filter why it was refused, "" where it was not."""

    packet: int
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Puback:
    """The broker's answer to a PUBLISH: a reason code of MQTT 5 (2.4) and its name."""

    packet: int
    code: int
    reason: str


Said = Event | Suback | Puback


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of MQTT, as the client reads and writes them: without what WebSocket, TLS, TCP and IP add."""

    received: int = 0
    sent: int = 0


class Link:
    """A connection to the broker; `deliver` is called with what was said and in which attempt.

    It is called from paho's thread, must only hand the event on, and may wait for nothing but for a Received. Attempts are
    numbered from 1; `attempt` is the one at work.
    """

    def __init__(self, config: BrokerConfig, client_id: str, deliver: Callable[[Said, int], None]) -> None:
        self._config = config
        self._client_id = client_id
        self._deliver = deliver
        self._session: _Session | None = None
        self._measured: tuple[Traffic, tuple[_Session, ...]] = (Traffic(), ())
        self.attempt = 0

    @property
    def traffic(self) -> Traffic:
        """All since the start, in every attempt; for any thread, and it never falls."""
        ended, sessions = self._measured
        return _sum(ended, sessions)

    def connect(self, protocol: str, will_topic: str, will: bytes) -> None:
        """Start connecting; Connected or ConnectFailed follows."""
        self.close()
        attempt, deliver = self.attempt, self._deliver
        session = _Session(self._config, self._client_id, lambda event: deliver(event, attempt), protocol)
        self._session = session
        session.start(will_topic, will)
        # A connection that was given up may still be saying its last words, in a thread of its own. So each counts for itself,
        # and is added up when its thread has ended.
        ended, sessions = self._measured
        over = [former for former in sessions if former.has_ended]
        going = [former for former in sessions if former not in over]
        self._measured = (_sum(ended, over), (*going, session))

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe at QoS 1, a few filters at a time."""
        if self._session is not None:
            self._session.subscribe(filters)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe."""
        if self._session is not None and filters:
            self._session.unsubscribe(filters)

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1, retained; Reported follows, unless the connection ends."""
        if self._session is not None:
            self._session.report(topic, payload)

    def send(self, topic: str, payload: bytes, token: int) -> None:
        """Publish at QoS 1, not retained; Delivered with this token follows, unless the connection ends."""
        if self._session is not None:
            self._session.send(topic, payload, token)

    def event_of(self, said: Said, attempt: int) -> Event | None:
        """What was said as an event; None for an attempt that was given up, and for an answer that nobody waits for.

        For the thread that sends: an answer may come before the call has returned that learns the packet's number.
        """
        return self._session.event_of(said) if self._session is not None and attempt == self.attempt else None

    def abandon(self) -> None:
        """Close this process's copy of the socket and say nothing to the broker: after a fork it is the parent's."""
        session, self._session = self._session, None
        if session is not None:
            session.abandon()

    def close(self, farewell: tuple[str, bytes] | None = None, *, patience: float = 0.0) -> None:
        """End the connection; `farewell` is published first, because a clean end does not send the will.

        For at most `patience` seconds it waits until the goodbye is written: a process that exits before loses it, and the
        broker then sends the will.
        """
        self.attempt += 1
        session, self._session = self._session, None
        if session is not None:
            # Its thread may still be waiting for a name or a handshake; it ends by itself and says nothing any more.
            session.close(farewell)
            if patience:
                session.wait(patience)


@dataclass(frozen=True, slots=True)
class Probed:
    """One step towards the broker; `problem` is blank where it was taken."""

    step: Literal["name", "port", "tls", "login"]
    problem: str = ""


def probe(config: BrokerConfig, client_id: str, will_topic: str, will: bytes) -> Iterator[Probed]:
    """Walk to the broker as the agent would, one step at a time, until one fails; at the end of the way there is a clean goodbye.

    It takes the connection away from an agent that has one under this client id.
    """
    for step, take in (("name", _resolve), ("port", _open_port), ("tls", _shake_hands)):
        if step == "tls" and not config.tls:
            continue
        try:
            take(config)
        except (OSError, ValueError, InvalidConfiguration) as error:
            said = _said(error, config.server_name or config.host)
            yield Probed(step, said)  # type: ignore[arg-type]  # one of the three above
            return
        yield Probed(step)  # type: ignore[arg-type]  # as above
    problem = ""
    for protocol in ("5", "3.1.1") if config.protocol == "auto" else (config.protocol,):
        events: queue.SimpleQueue[Said] = queue.SimpleQueue()
        link = Link(config, client_id, lambda said, _, heard=events: heard.put(said))  # type: ignore[misc]  # mypy: a default of a lambda has no type
        link.connect(protocol, will_topic, will)
        try:
            event: Said | None = events.get(timeout=CONNECT_TIMEOUT_SECONDS)
        except queue.Empty:
            event = None
        # The will is retained: sent by the broker, it would stand in the place of what the device reported last.
        link.close(patience=FAREWELL_SECONDS)
        match event:
            case Connected():
                yield Probed("login")
                return
            case ConnectFailed(fault, why):
                problem = why
                if fault is not Fault.PROTOCOL:
                    break
            case _:
                problem = f"no answer to an MQTT {protocol} CONNECT within {CONNECT_TIMEOUT_SECONDS:g} s"
    yield Probed("login", problem)


def _resolve(config: BrokerConfig) -> None:
    socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)


def _open_port(config: BrokerConfig) -> None:
    socket.create_connection((config.host, config.port), CONNECT_TIMEOUT_SECONDS).close()


def _shake_hands(config: BrokerConfig) -> None:
    tls = _Tls(config)
    with (
        socket.create_connection((config.host, config.port), CONNECT_TIMEOUT_SECONDS) as plain,
        tls.wrap_socket(plain, server_hostname=config.host),
    ):
        pass


def _said(error: Exception, name: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return distrust(name, error.verify_code, error.verify_message)
    if isinstance(error, ssl.SSLError):
        return refusal(error.reason or str(error))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def _sum(ended: Traffic, sessions: "Iterable[_Session]") -> Traffic:
    meters = [session.meter for session in sessions]
    return Traffic(
        ended.received + sum(meter.received for meter in meters),
        ended.sent + sum(meter.sent for meter in meters),
    )


class _Meter:
    # Counts what one thread reads and writes, so it needs no lock.

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0


class _Session:
    # One connection attempt and, if it succeeds, the connection. paho's client is made in the session's thread, because
    # building a TLS context reads files and connecting resolves names.

    def __init__(
        self, config: BrokerConfig, client_id: str, deliver: Callable[[Said], None], protocol: str
    ) -> None:
        self._config = config
        self._client_id = client_id
        self._deliver = deliver
        self._protocol = protocol
        self._client: Any = None
        self._tls: _Tls | None = None
        self._is_over = False
        self._was_connected = False
        self._thread: threading.Thread | None = None
        self._failure: ConnectFailed | None = None
        self._asked: dict[int, tuple[str, ...]] = {}
        self._tokens: dict[int, int] = {}
        self._reports: set[int] = set()
        self.meter = _Meter()

    @property
    def has_ended(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def start(self, will_topic: str, will: bytes) -> None:
        self._thread = threading.Thread(target=self._run, args=(will_topic, will), name="mqtt", daemon=True)
        self._thread.start()

    def subscribe(self, filters: Sequence[str]) -> None:
        for first in range(0, len(filters), FILTERS_PER_SUBSCRIBE):
            chunk = tuple(filters[first : first + FILTERS_PER_SUBSCRIBE])
            _, mid = self._client.subscribe([(name, 1) for name in chunk])
            self._asked[mid] = chunk

    def unsubscribe(self, filters: Sequence[str]) -> None:
        for first in range(0, len(filters), FILTERS_PER_SUBSCRIBE):
            self._client.unsubscribe(list(filters[first : first + FILTERS_PER_SUBSCRIBE]))

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> int:
        message = self._client.publish(topic, payload, qos=1, retain=retain)
        return int(message.mid)

    def report(self, topic: str, payload: bytes) -> None:
        self._reports.add(self.publish(topic, payload, retain=True))

    def send(self, topic: str, payload: bytes, token: int) -> None:
        self._tokens[self.publish(topic, payload, retain=False)] = token

    def event_of(self, said: Said) -> Event | None:
        match said:
            case Suback(packet, refused):
                asked = self._asked.pop(packet, ())
                why = {name: reason for name, reason in zip(asked, refused, strict=False) if reason}
                return Subscribed(asked, tuple(why), ", ".join(sorted(set(why.values())))) if asked else None
            case Puback(packet, code, reason) if packet in self._reports:
                self._reports.discard(packet)
                return Reported("" if code < 0x80 else f"{reason} ({code})")
            case Puback(packet, code, reason):
                token = self._tokens.pop(packet, None)
                if token is None:
                    return None
                is_kept = code < 0x80 and code != _NO_SUBSCRIBER
                return Delivered(token, is_kept, may_retry=code < 0x80, why=reason)
            case _:
                return said

    def close(self, farewell: tuple[str, bytes] | None) -> None:
        self._is_over = True
        client = self._client
        if client is not None:
            if farewell is not None and self._was_connected:
                message = client.publish(*farewell, qos=1, retain=True)
                # Where the connection is gone already, the broker sends the will.
                with contextlib.suppress(ValueError, RuntimeError):
                    message.wait_for_publish(FAREWELL_SECONDS)
            client.disconnect()

    def wait(self, seconds: float) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def abandon(self) -> None:
        self._is_over = True
        stream = self._client.socket() if self._client is not None else None
        if stream is not None:
            # Not `close`, which would end the connection for the parent too.
            with contextlib.suppress(OSError):
                os.close(stream.detach())

    def _say(self, said: Said) -> None:
        if not self._is_over:
            self._deliver(said)

    def _run(self, will_topic: str, will: bytes) -> None:
        try:
            self._connect_and_listen(will_topic, will)
        finally:
            client = self._client
            if client is not None:
                # The client knows this session no more: with the sockets that wake it, it goes as soon as the session does.
                client.on_connect = client.on_disconnect = client.on_message = None
                client.on_subscribe = client.on_publish = None

    def _connect_and_listen(self, will_topic: str, will: bytes) -> None:
        try:
            self._client = client = self._make_client(will_topic, will)
            properties = self._connect_properties()
            client.connect(
                self._config.host,
                self._config.port,
                self._config.keepalive_seconds,
                **({"clean_start": True, "properties": properties} if properties is not None else {}),
            )
        except ssl.SSLError as error:
            said = _said(error, self._config.server_name or self._config.host)
            self._say(ConnectFailed(Fault.REFUSED, f"TLS: {said}"))
            return
        except InvalidConfiguration as error:
            self._say(ConnectFailed(Fault.REFUSED, str(error)))
            return
        except (OSError, ValueError) as error:
            where = f"{self._config.host}:{self._config.port}"
            is_reset = self._config.tls and isinstance(error, ConnectionResetError)
            hint = "; check that the broker speaks TLS on this port" if is_reset else ""
            self._say(ConnectFailed(Fault.NETWORK, f"{where}: {error}{hint}"))
            return
        from paho.mqtt.enums import MQTTErrorCode

        try:
            # Not `loop_forever`: in a thread that paho has not started, what another thread says could wait for a second there.
            while client.loop() == MQTTErrorCode.MQTT_ERR_SUCCESS:
                pass
        except Exception as error:  # noqa: BLE001  # paho lets go of whatever a packet that it cannot read makes it raise
            stream = client.socket()
            if stream is not None:
                stream.close()
            self._say(self._ended(f"the broker sent what is not MQTT: {error}"))
            return
        if self._failure is not None:
            self._say(self._failure)
        elif not self._was_connected:
            if self._tls is not None and self._tls.alert:
                # In TLS 1.3 a server judges our certificate after our side of the handshake is over.
                self._say(ConnectFailed(Fault.REFUSED, f"TLS: {refusal(self._tls.alert)}"))
                return
            hint = "; it may ask for a certificate, see broker.cert_file" if self._tls is not None else ""
            closed = f"the broker closed the connection before answering{hint}"
            self._say(self._ended(client.why_closed or closed))

    def _ended(self, why: str) -> Event:
        if self._was_connected:
            return Disconnected(why)
        return ConnectFailed(Fault.PROTOCOL, f"{why} (MQTT {self._protocol})")

    def _make_client(self, will_topic: str, will: bytes) -> Any:
        from paho.mqtt.client import MQTTv5, MQTTv311
        from paho.mqtt.enums import CallbackAPIVersion

        is_v5 = self._protocol == "5"
        client = _bounded_client(
            self._config,
            self.meter,
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=MQTTv5 if is_v5 else MQTTv311,
            reconnect_on_failure=False,
            clean_session=None if is_v5 else True,
        )
        client.connect_timeout = CONNECT_TIMEOUT_SECONDS
        client.will_set(will_topic, will, qos=1, retain=True)
        if self._config.user:
            client.username_pw_set(self._config.user, _password(self._config.password_file))
        if self._config.tls:
            self._tls = _Tls(self._config)
            client.tls_set_context(self._tls)
        # Without it paho writes from the thread that publishes, and one TLS stream is not for two threads at once.
        client.on_socket_register_write = lambda *_: None
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        return client

    def _connect_properties(self) -> Any:
        if self._protocol != "5":
            return None
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho ships no types
        # The broker itself keeps back what no message of ours can be (MQTT 5, 3.1.2.11.4).
        properties.MaximumPacketSize = MESSAGE_MAX_BYTES + _TOPIC_ROOM_BYTES
        return properties

    def _on_connect(
        self, _client: object, _userdata: object, _flags: object, reason: Any, _properties: object
    ) -> None:
        if not reason.is_failure:
            self._was_connected = True
            self._say(Connected())
            return
        # paho translates the return codes of MQTT 3.1.1 into those of MQTT 5.
        code = reason.value
        fault = (
            Fault.PROTOCOL if code in _PROTOCOL else Fault.NETWORK if code in _UNAVAILABLE else Fault.REFUSED
        )
        hint = f"; check {_LOGIN_KEYS}, and the client id {self._client_id}" if fault is Fault.REFUSED else ""
        self._failure = ConnectFailed(fault, f"the broker refused the connection: {reason}{hint}")

    def _on_disconnect(
        self, client: Any, _userdata: object, flags: Any, reason: Any, _properties: object
    ) -> None:
        if self._was_connected:
            is_unwelcome = flags.is_disconnect_packet_from_server and reason.value in _UNWELCOME
            fault = Fault.REFUSED if is_unwelcome else Fault.NETWORK
            why = client.why_closed
            if flags.is_disconnect_packet_from_server:
                why = f"the broker ended the connection: {reason}"
            elif not why and reason.value != _KEEPALIVE_TIMEOUT:
                # paho's word for every error of a socket is that it is unspecified.
                why = client.why_lost
            self._say(Disconnected(why or str(reason), fault))

    def _on_message(self, _client: object, _userdata: object, message: Any) -> None:
        self._say(Received(message.topic, bytes(message.payload)))

    def _on_subscribe(
        self, _client: object, _userdata: object, mid: int, reasons: Any, _properties: object
    ) -> None:
        self._say(Suback(mid, tuple(str(reason) if reason.is_failure else "" for reason in reasons)))

    def _on_publish(
        self, _client: object, _userdata: object, mid: int, reason: Any, _properties: object
    ) -> None:
        self._say(Puback(mid, reason.value, str(reason)))


def _bounded_client(config: BrokerConfig, meter: _Meter, *arguments: Any, **options: Any) -> Any:
    """A paho client that reads no more of a packet than a message of ours can have, and no more of a WebSocket's frame.

    MQTT 5 has the broker keep larger ones back; one of 3.1.1 sends what was published, up to 256 MB, and paho would make room
    for all of it at once. Such a packet ends the connection, as does a message of QoS 2, which nobody subscribed to and which
    paho would keep until it is released. Properties of MQTT 5 do not reach paho, see `flagcast_shared.packets`. The
    bytes read and written are added to `meter`.
    """
    from paho.mqtt.client import Client, MQTTv5, _WebsocketWrapper
    from paho.mqtt.enums import MQTTErrorCode

    class BoundedWebsocket(_WebsocketWrapper):
        why_closed = ""

        def _do_handshake(self, extra_headers: Any) -> None:
            stream = self._socket
            upgrade: Any = _Upgrade(stream)
            self._socket = upgrade
            try:
                super()._do_handshake(extra_headers)
            except (ConnectionError, IndexError, UnicodeDecodeError) as error:
                stream.close()
                raise ConnectionError(
                    f"no WebSocket at {config.path}: {upgrade.answer or 'no answer'}; check the port and path of broker.url"
                ) from error
            except OSError:
                stream.close()
                raise
            self._socket = stream

        def _create_frame(self, opcode: int, data: bytearray, do_masking: int = 1) -> bytearray:
            # Servers end a connection over a frame without a mask (RFC 6455, 5.1), and paho's answers to a ping have none.
            return super()._create_frame(opcode, data, 1 | do_masking)

        def _buffered_read(self, length: int) -> bytearray:
            if self._readbuffer_head + length > _FRAME_MAX_BYTES:
                self.why_closed = f"the broker sent a frame of more than {_FRAME_MAX_BYTES} bytes"
                raise ConnectionError
            return super()._buffered_read(length)

        def detach(self) -> int:
            return self._socket.detach()

    class BoundedClient(Client):
        why_closed = ""
        why_lost = ""

        def _sock_recv(self, bufsize: int) -> bytes:
            if bufsize > MESSAGE_MAX_BYTES + _TOPIC_ROOM_BYTES:
                self.why_closed = f"the broker sent a packet of {bufsize} bytes"
                raise OSError(self.why_closed)
            if bufsize > ANSWER_MAX_BYTES and kind_of(self._in_packet["command"]) != PUBLISH:
                self.why_closed = f"the broker sent an answer of {bufsize} bytes"
                raise OSError(self.why_closed)
            received: bytes = self._watched(super()._sock_recv, bufsize)
            if not received:
                self.why_lost = self.why_lost or "the broker closed the connection"
                if isinstance(self._sock, BoundedWebsocket):
                    self.why_closed = self._sock.why_closed
            meter.received += len(received)
            return received

        def _create_socket_connection(self) -> Any:
            stream = super()._create_socket_connection()
            # What is said in a row (subscription and birth, acknowledgement and report) is not to wait a round trip each.
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return stream

        def _sock_send(self, buf: Any) -> int:
            sent: int = self._watched(super()._sock_send, buf)
            meter.sent += sent
            return sent

        def _watched(self, perform: Any, argument: Any) -> Any:
            # What ended the connection is known here, and nowhere above.
            try:
                return perform(argument)
            except BlockingIOError:
                raise
            except OSError as error:
                self.why_lost = self.why_lost or f"the connection broke: {error.strerror or error}"
                raise

        def _create_socket(self) -> Any:
            if not config.path:
                return super()._create_socket()
            stream = self._create_socket_connection()
            if config.tls:
                stream = self._ssl_wrap_socket(stream)
            stream.settimeout(CONNECT_TIMEOUT_SECONDS)
            # Its host is what the header says.
            name = config.server_name or config.host
            host = f"[{name}]" if ":" in name else name
            return BoundedWebsocket(stream, host, config.port, config.tls, config.path, None)

        def _packet_handle(self) -> Any:
            if kind_of(self._in_packet["command"]) == CONNACK and self.is_connected():
                self.why_closed = "the broker sent a second CONNACK"
                return MQTTErrorCode.MQTT_ERR_PROTOCOL
            if self._protocol == MQTTv5:
                self._in_packet["packet"] = without_properties(
                    self._in_packet["command"], self._in_packet["packet"]
                )
            return super()._packet_handle()

        def _handle_publish(self) -> Any:
            if self._in_packet["command"] & _QOS_2:
                self.why_closed = "the broker sent a message of QoS 2"
                return MQTTErrorCode.MQTT_ERR_PROTOCOL
            return super()._handle_publish()

    return BoundedClient(*arguments, **options)


class _Upgrade:
    # The socket while it turns into a WebSocket: for so many bytes and seconds, and what was answered first is kept.

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._ends = clock.monotonic() + CONNECT_TIMEOUT_SECONDS
        self._received = bytearray()

    @property
    def answer(self) -> str:
        line, _, _ = self._received.partition(b"\r\n")
        return ascii(bytes(line[:80]).decode("latin-1"))[1:-1]

    def recv(self, size: int) -> bytes:
        if len(self._received) >= _UPGRADE_MAX_BYTES or clock.monotonic() > self._ends:
            raise ConnectionError
        data: bytes = self._stream.recv(size)
        self._received += data
        return data

    def send(self, data: bytes) -> None:
        self._stream.sendall(data)


class _Tls:
    # What paho asks of an SSLContext. The handshake is made at once, so that its socket is closed where it fails.

    check_hostname = True

    def __init__(self, config: BrokerConfig) -> None:
        self._context = _tls_context(config)
        self._name = config.server_name
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


def _password(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfiguration(f"{path}: the password cannot be read: {error}") from error


def _tls_context(config: BrokerConfig) -> ssl.SSLContext:
    # Built anew for every connection, so that certificates rotated on disk are picked up.
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfiguration(
            f"{config.ca_file}: broker.ca_file cannot be used: {error.strerror or error}; allowed are certificates as PEM"
        ) from error
    if config.cert_file is not None:
        try:
            # Without a password OpenSSL would ask for that of an encrypted key at the terminal.
            context.load_cert_chain(config.cert_file, config.key_file, password="")
        except (OSError, ssl.SSLError) as error:
            raise InvalidConfiguration(
                f"{config.cert_file}: broker.cert_file and broker.key_file cannot be used: {error.strerror or error}; "
                "allowed are a certificate and its key as PEM, the key without a passphrase"
            ) from error
    if config.alpn:
        context.set_alpn_protocols([config.alpn])
    context.sslsocket_class = _Stream
    return context
