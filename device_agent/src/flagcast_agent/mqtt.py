"""The agent's MQTT shell: one connection at a time, its events handed on, nothing decided.

The only module of the agent that imports paho. Every callback becomes a `sync` event; events of a connection that was given up
are dropped. paho's own reconnecting is off: when to try again is the core's decision.
"""

import contextlib
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from flagcast_shared.errors import InvalidConfiguration
from flagcast_shared.limits import MESSAGE_MAX_BYTES

from .config import BrokerConfig
from .sync import (
    Connected,
    ConnectFailed,
    Disconnected,
    Event,
    Fault,
    Received,
    SubscriptionRefused,
)

CONNECT_TIMEOUT_SECONDS: Final = 10.0
FAREWELL_SECONDS: Final = 1.0
"""How long a clean end waits for the broker to take the last report."""
FILTERS_PER_SUBSCRIBE: Final = 8
"""AWS IoT refuses a SUBSCRIBE with more."""
_TOPIC_ROOM_BYTES: Final = 1024
_PROTOCOL: Final = {0x84, 0x82, 0x81}  # MQTT 5, 3.2.2.2: unsupported version, protocol error, malformed
_UNAVAILABLE: Final = {0x88, 0x89, 0x97, 0x9F}  # unavailable, busy, quota, connection rate: worth another try


class Link:
    """A connection to the broker; `deliver` is called from paho's thread and must only hand the event on."""

    def __init__(self, config: BrokerConfig, client_id: str, deliver: Callable[[Event], None]) -> None:
        self._config = config
        self._client_id = client_id
        self._deliver = deliver
        self._session: _Session | None = None

    def connect(self, protocol: str, will_topic: str, will: bytes) -> None:
        """Start connecting; Connected or ConnectFailed follows."""
        self.close()
        session = _Session(self._config, self._client_id, self._deliver, protocol)
        self._session = session
        session.start(will_topic, will)

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe at QoS 1, a few filters at a time."""
        if self._session is not None:
            self._session.subscribe(filters)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe."""
        if self._session is not None and filters:
            self._session.unsubscribe(filters)

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1, retained."""
        if self._session is not None:
            self._session.publish(topic, payload)

    def close(self, farewell: tuple[str, bytes] | None = None) -> None:
        """End the connection; `farewell` is published first, because a clean end does not send the will."""
        if self._session is not None:
            # Its thread may still be waiting for a name or a handshake; it ends by itself and says nothing any more.
            self._session.close(farewell)
            self._session = None


class _Session:
    # One connection attempt and, if it succeeds, the connection. paho's client is made in the session's thread, because
    # building a TLS context reads files and connecting resolves names.

    def __init__(
        self, config: BrokerConfig, client_id: str, deliver: Callable[[Event], None], protocol: str
    ) -> None:
        self._config = config
        self._client_id = client_id
        self._deliver = deliver
        self._protocol = protocol
        self._client: Any = None
        self._is_over = False
        self._was_connected = False
        self._thread: threading.Thread | None = None
        self._failure: ConnectFailed | None = None

    def start(self, will_topic: str, will: bytes) -> None:
        self._thread = threading.Thread(target=self._run, args=(will_topic, will), name="mqtt", daemon=True)
        self._thread.start()

    def subscribe(self, filters: Sequence[str]) -> None:
        for first in range(0, len(filters), FILTERS_PER_SUBSCRIBE):
            self._client.subscribe([(name, 1) for name in filters[first : first + FILTERS_PER_SUBSCRIBE]])

    def unsubscribe(self, filters: Sequence[str]) -> None:
        self._client.unsubscribe(list(filters))

    def publish(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1, retain=True)

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

    def _say(self, event: Event) -> None:
        if not self._is_over:
            self._deliver(event)

    def _run(self, will_topic: str, will: bytes) -> None:
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
            self._say(ConnectFailed(Fault.REFUSED, f"TLS: {error.reason or error}"))
            return
        except InvalidConfiguration as error:
            self._say(ConnectFailed(Fault.REFUSED, str(error)))
            return
        except (OSError, ValueError) as error:
            where = f"{self._config.host}:{self._config.port}"
            self._say(ConnectFailed(Fault.NETWORK, f"{where}: {error}"))
            return
        # Returns when the connection ends, because reconnecting is off.
        client.loop_forever(retry_first_connection=False)
        if self._failure is not None:
            self._say(self._failure)
        elif not self._was_connected:
            self._say(
                ConnectFailed(
                    Fault.PROTOCOL,
                    f"the broker closed the connection before answering (MQTT {self._protocol})",
                )
            )

    def _make_client(self, will_topic: str, will: bytes) -> Any:
        from paho.mqtt.client import Client, MQTTv5, MQTTv311
        from paho.mqtt.enums import CallbackAPIVersion

        is_v5 = self._protocol == "5"
        client = Client(
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
            client.tls_set_context(_tls_context(self._config))
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
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
        self._failure = ConnectFailed(fault, f"the broker refused the connection: {reason}")

    def _on_disconnect(
        self, _client: object, _userdata: object, _flags: object, reason: object, _properties: object
    ) -> None:
        if self._was_connected:
            self._say(Disconnected(str(reason)))

    def _on_message(self, _client: object, _userdata: object, message: Any) -> None:
        self._say(Received(message.topic, bytes(message.payload)))

    def _on_subscribe(
        self, _client: object, _userdata: object, _mid: object, reasons: Any, _properties: object
    ) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            self._say(SubscriptionRefused(", ".join(refused)))


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
        if config.cert_file is not None:
            context.load_cert_chain(config.cert_file, config.key_file)
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfiguration(f"TLS files of the broker's configuration: {error}") from error
    return context
