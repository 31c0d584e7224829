"""How a broker is reached: the URL that names it, which keys go with it, and what to do when TLS does not come about.

Both sides read the same keys of a `[broker]` table; what is allowed in them, and what is said of them, stands here once.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from .errors import InvalidIdentifier

WEBSOCKET_PATH: Final = "/mqtt"
"""Where mosquitto, EMQX, HiveMQ and AWS IoT take MQTT over WebSocket when nobody says otherwise."""
ALPN_MAX_BYTES: Final = 255
"""RFC 7301, 3.1."""

_ALLOWED: Final = (
    "allowed is mqtt://HOST[:PORT], mqtts://HOST[:PORT], ws://HOST[:PORT][/PATH] or wss://HOST[:PORT][/PATH]"
)
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_URL: Final = re.compile(
    r"(?P<scheme>mqtts?|wss?)://"
    r"(?:(?P<name>[-_.A-Za-z0-9]{1,253})|\[(?P<address>[0-9A-Fa-f:.]{2,45}(?:%[-_.A-Za-z0-9]{1,32})?)\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[-._~!$&'()*+,;=:%/A-Za-z0-9]{0,255})?"
)
_SERVER_NAME: Final = re.compile(r"[-_.A-Za-z0-9]{1,253}")
_ALPN: Final = re.compile(r"[!-~]+")

_TLS_KEYS: Final = ("ca_file", "cert_file", "key_file", "alpn", "server_name")

# Of OpenSSL's x509_vfy.h.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_UNKNOWN_ISSUER: Final = {2, 18, 19, 20, 21}
_OTHER_NAME: Final = {62, 64}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a broker listens. `path` is that of its WebSocket, "" where MQTT stands directly on TCP or TLS."""

    host: str
    port: int
    uses_tls: bool
    path: str = ""


def parse_broker_url(text: str) -> Endpoint:
    """The endpoint that a URL names.

    `mqtt` and `mqtts` (TLS) speak MQTT directly, `ws` and `wss` (TLS) over WebSocket (MQTT 5, 6). An IPv6 address stands in
    brackets. Ports and the path of a WebSocket have the usual defaults.

    Raises:
        InvalidIdentifier: with what is allowed; a URL that may hold a password is not repeated.
    """
    if "@" in text:
        raise InvalidIdentifier("no user or password belongs in it; use broker.user and broker.password_file")
    match = _URL.fullmatch(text)
    if match is None:
        raise InvalidIdentifier(f"{text!r}: {_ALLOWED}")
    scheme, path = match["scheme"], match["path"] or ""
    port = int(match["port"]) if match["port"] else _PORTS[scheme]
    if not 1 <= port <= 65_535:
        raise InvalidIdentifier(f"{text!r}: a port is 1 to 65535; {_ALLOWED}")
    is_websocket = scheme.startswith("ws")
    if path not in {"", "/"} and not is_websocket:
        raise InvalidIdentifier(f"{text!r}: only ws:// and wss:// have a path; {_ALLOWED}")
    return Endpoint(
        (match["name"] or match["address"]).lower(),
        port,
        scheme in {"mqtts", "wss"},
        (path or WEBSOCKET_PATH) if is_websocket else "",
    )


def parse_server_name(text: str) -> str:
    """The name that is asked for in the handshake (RFC 6066, 3), "" for that of the URL. Raises InvalidIdentifier."""
    if text and not _SERVER_NAME.fullmatch(text):
        raise InvalidIdentifier(f"{text!r}: allowed is a host name, without a port")
    return text


def parse_alpn(text: str) -> str:
    """The protocol that is offered in the handshake (RFC 7301), "" for none. Raises InvalidIdentifier."""
    if text and not (_ALPN.fullmatch(text) and len(text) <= ALPN_MAX_BYTES):
        raise InvalidIdentifier(
            f"{text!r}: allowed is the name of one protocol, such as mqtt or x-amzn-mqtt-ca"
        )
    return text


def contradiction(endpoint: Endpoint, keys: Collection[str]) -> tuple[str, str] | None:
    """The first of the keys that were given in `[broker]` that does not go with the others or with the URL, and why."""
    if "password_file" in keys and "user" not in keys:
        return "password_file", "needs broker.user beside it"
    if ("cert_file" in keys) != ("key_file" in keys):
        missing = "key_file" if "cert_file" in keys else "cert_file"
        return missing, "is missing; cert_file and key_file come together"
    for key in _TLS_KEYS:
        if key in keys and not endpoint.uses_tls:
            return "url", f"is without TLS, so {key} has no use; allowed with it is mqtts:// or wss://"
    return None


def distrust(name: str, code: int, reason: str) -> str:
    """Why the certificate of the broker called `name` is not trusted, and what to do; OpenSSL's code and words for it."""
    if code in _OTHER_NAME:
        do = "correct broker.url, or name in broker.server_name what the certificate is for"
    elif code in _UNKNOWN_ISSUER:
        do = "set broker.ca_file to the certificate of who issued it"
    elif code == _EXPIRED:
        do = "renew it on the broker, or set this machine's clock"
    elif code == _NOT_YET_VALID:
        do = "set this machine's clock"
    else:
        do = "check broker.ca_file and the broker's certificate"
    return f"the certificate of {name} is not trusted: {reason}; {do}"


def refusal(reason: str) -> str:
    """What a TLS error other than distrust means, and what to do; OpenSSL's name for it, such as "TLSV1_ALERT_UNKNOWN_CA"."""
    words = set(reason.split("_"))
    if reason == "NO_APPLICATION_PROTOCOL" or reason.endswith("ALERT_NO_APPLICATION_PROTOCOL"):
        do = "the broker does not take broker.alpn on this port"
    elif reason.endswith(("CERTIFICATE_REQUIRED", "ALERT_HANDSHAKE_FAILURE")):
        do = "the broker asks for a certificate; set broker.cert_file and broker.key_file"
    elif "ALERT" in words and words & {"CERTIFICATE", "CA"}:
        do = "the broker does not take our certificate; renew broker.cert_file, or tell the broker who issued it"
    elif reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING"}:
        do = "check that the broker speaks TLS on this port"
    else:
        do = "check broker.url, and broker.cert_file where the broker asks for a certificate"
    return f"{reason}; {do}"
