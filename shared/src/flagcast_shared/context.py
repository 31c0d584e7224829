"""Evaluation context: what is known of a device, and the texts that an application's values are compared as.

`device.id`, `device.model`, `device.firmware` and `device.label.<name>` come from the agent's configuration. An application
cannot override them: a property that starts with `device.` is never looked up in the caller's context.

Flipt's context is texts. `context_text` makes them of the values of many types that OpenFeature's callers bring, for every
protocol and in process, so that one value is compared as one text however it came here.
"""

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from .ids import DeviceId

DEVICE_PREFIX = "device."

NESTED_WHOLE_MAX: Final = 1e21
"""Nested whole numbers below it are written without exponent, as JavaScript does: 5 bytes of JSON never become 300 digits."""

_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Device:
    """The device itself, as its operator provisioned it."""

    id: DeviceId
    labels: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    firmware: str = ""


def device_attributes(device: Device) -> dict[str, str]:
    """The `device.*` properties of every context; an attribute that is not provisioned is absent."""
    attributes = {f"{DEVICE_PREFIX}id": str(device.id)}
    if device.model:
        attributes[f"{DEVICE_PREFIX}model"] = device.model
    if device.firmware:
        attributes[f"{DEVICE_PREFIX}firmware"] = device.firmware
    attributes.update(
        (f"{DEVICE_PREFIX}label.{name}", value) for name, value in sorted(device.labels.items())
    )
    return attributes


def context_text(value: object) -> str:
    """A value's text as Flipt would compare it.

    true and false; whole numbers without a fraction; instants in RFC 3339; objects and lists as compact JSON with the keys of
    every object in the order of their code points. Raises RecursionError of a value that is nested too deep or in itself.
    """
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case int() | float():
            return repr(value)
    instant = _instant_text(value)
    return _ENCODER.encode(_nested(value)) if instant is None else instant


def _nested(value: object) -> object:
    # A value inside an object or list, as one of JSON's own types. A mapping's order is its maker's: protobuf's is a toss.
    match value:
        case None | str() | bool() | int():
            return value
        case float():
            return int(value) if abs(value) < NESTED_WHOLE_MAX and value.is_integer() else value
        case Mapping():
            return {context_text(key): _nested(each) for key, each in value.items()}
        case list() | tuple():
            return [_nested(each) for each in value]
        case AbstractSet():
            # A set has no order that a second process would repeat.
            return sorted((_nested(each) for each in value), key=_ENCODER.encode)
    instant = _instant_text(value)
    return str(value) if instant is None else instant


def _instant_text(value: object) -> str | None:
    if not hasattr(value, "isoformat"):
        return None
    written = str(value.isoformat())
    # A time without a zone is taken as UTC: RFC 3339 knows no other.
    return f"{written}Z" if getattr(value, "tzinfo", value) is None else written
