"""Distinct types for what looks alike, and the alphabets of names that become parts of MQTT topics.

The types cost nothing at run time; `mypy` keeps a flag key from being passed for a namespace. The `parse_*` functions are
where human text becomes one of them; each raises InvalidIdentifier with what is allowed.
"""

import re
from typing import NamedTuple, NewType

from .errors import InvalidIdentifier

Environment = NewType("Environment", str)
Namespace = NewType("Namespace", str)
FlagKey = NewType("FlagKey", str)
SegmentKey = NewType("SegmentKey", str)
VariantKey = NewType("VariantKey", str)
EntityId = NewType("EntityId", str)
DeviceId = NewType("DeviceId", str)
KeyId = NewType("KeyId", bytes)
"""The first eight bytes of the SHA-256 of a raw public key."""
Digest = NewType("Digest", bytes)
"""32 bytes of SHA-256."""
Epoch = NewType("Epoch", int)
Sequence = NewType("Sequence", int)
Version = NewType("Version", int)

_NAME = re.compile(r"[-_,A-Za-z0-9]{1,100}")
_KEY = re.compile(r"[-_,A-Za-z0-9]{1,256}")
_DEVICE = re.compile(r"[A-Za-z0-9][-_.:A-Za-z0-9]{0,99}")
_ENVIRONMENT = re.compile(r"[A-Za-z0-9][-_.A-Za-z0-9]{0,63}")
_PREFIX = re.compile(r"[A-Za-z0-9][-_.A-Za-z0-9]{0,31}")


class RecordId(NamedTuple):
    """What a record of a snapshot is: its kind ("flag", "segment") and its key."""

    kind: str
    key: str


def parse_environment(text: str) -> Environment:
    """An environment: 1 to 64 of letters, digits, `-`, `_`, `.`, starting with a letter or digit."""
    if not _ENVIRONMENT.fullmatch(text):
        raise InvalidIdentifier(
            f"environment {text!r}: 1 to 64 letters, digits, '-', '_' or '.', starting with a letter or digit"
        )
    return Environment(text)


def parse_namespace(text: str) -> Namespace:
    """A namespace in Flipt's alphabet: 1 to 100 of letters, digits, `-`, `_`, `,`."""
    if not _NAME.fullmatch(text):
        raise InvalidIdentifier(f"namespace {text!r}: 1 to 100 letters, digits, '-', '_' or ','")
    return Namespace(text)


def parse_flag_key(text: str) -> FlagKey:
    """A flag's key in Flipt's alphabet, as a publisher takes it: 1 to 256 of letters, digits, `-`, `_`, `,`."""
    if not _KEY.fullmatch(text):
        raise InvalidIdentifier(f"flag key {text!r}: 1 to 256 letters, digits, '-', '_' or ','")
    return FlagKey(text)


def parse_device(text: str) -> DeviceId:
    """A device id: 1 to 100 of letters, digits, `-`, `_`, `.`, `:`, starting with a letter or digit."""
    if not _DEVICE.fullmatch(text):
        raise InvalidIdentifier(
            f"device id {text!r}: 1 to 100 letters, digits, '-', '_', '.' or ':', starting with a letter or digit"
        )
    return DeviceId(text)


def parse_prefix(text: str) -> str:
    """A topic prefix: one level, so that topics keep under the seven slashes that AWS IoT allows."""
    if not _PREFIX.fullmatch(text):
        raise InvalidIdentifier(
            f"topic prefix {text!r}: one level of 1 to 32 letters, digits, '-', '_' or '.', no slash"
        )
    return text
