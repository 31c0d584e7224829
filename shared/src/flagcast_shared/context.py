"""What is known of a device, and how it enters every evaluation context.

`device.id`, `device.model`, `device.firmware` and `device.label.<name>` come from the agent's configuration. An application
cannot override them: a property that starts with `device.` is never looked up in the caller's context.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .ids import DeviceId

DEVICE_PREFIX = "device."


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
