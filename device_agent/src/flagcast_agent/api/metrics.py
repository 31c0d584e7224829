"""What Prometheus scrapes, in its text format 0.0.4: a status and a few counts as lines.

The names are a contract with whoever has built alerts on them; docs/operations.md lists them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, get_args

from flagcast_agent.status import Activity, LinkState, NamespaceStatus, Status

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_Sample = tuple[Mapping[str, str], int | float]


def render(
    status: Status,
    activity: Activity,
    *,
    evaluations: int,
    targeting_keys_missing: int,
    activations: int,
    local_connections: int,
    local_calls: int,
) -> bytes:
    """The lines of one scrape. `activations`: admitted updates that were put in force since the start."""
    synced = [each for each in status.namespaces if each.freshness != "never synced"]
    families = [
        _gauge(
            "flagcast_agent_info",
            "The release, as a label.",
            [({"version": status.agent_version, "environment": status.environment}, 1)],
        ),
        _gauge("flagcast_start_time_seconds", "When the agent started.", [({}, status.started)]),
        _gauge(
            "flagcast_clock_trusted",
            "1 unless the device's clock is behind what the publisher has said.",
            [({}, int(status.clock_is_trusted))],
        ),
        _gauge(
            "flagcast_namespace_synced",
            "1 once anything was admitted of a namespace.",
            [
                ({"namespace": each.namespace}, int(each.freshness != "never synced"))
                for each in status.namespaces
            ],
        ),
        _of_each(synced, "version", "The version in force.", lambda each: each.version),
        _of_each(synced, "epoch", "The epoch of the version in force.", lambda each: each.epoch),
        _of_each(synced, "flags", "Flags of the version in force.", lambda each: each.flags),
        _of_each(
            synced,
            "age_seconds",
            "Since the publisher last said that this is the truth.",
            lambda each: each.age,
        ),
        _of_each(
            synced,
            "stale",
            "1 when the publisher has let its word expire; flags are evaluated all the same.",
            lambda each: int(each.freshness == "stale"),
        ),
        _of_each(
            synced, "expires_timestamp_seconds", "When the head in force expires.", lambda each: each.expires
        ),
        _counter("flagcast_activations_total", "Admitted updates put in force.", [({}, activations)]),
        _counter(
            "flagcast_rejections_total",
            "Messages that were not believed, by the attack's or failure's name.",
            [({"attack": attack}, count) for attack, count in sorted(activity.rejections.items())],
        ),
        _gauge(
            "flagcast_link_state",
            "1 for the state in which the link to the broker is.",
            [({"state": state}, int(state == status.link.state)) for state in get_args(LinkState)],
        ),
        _gauge(
            "flagcast_link_connected",
            "1 while there is a connection to the broker.",
            [({}, int(status.link.is_connected))],
        ),
        _counter(
            "flagcast_link_connections_total", "Connections to the broker made.", [({}, activity.connections)]
        ),
        _counter(
            "flagcast_link_received_bytes_total",
            "Bytes of MQTT read from the broker.",
            [({}, activity.received_bytes)],
        ),
        _counter(
            "flagcast_link_sent_bytes_total",
            "Bytes of MQTT written to the broker.",
            [({}, activity.sent_bytes)],
        ),
        _counter("flagcast_evaluations_total", "Questions answered from a flag.", [({}, evaluations)]),
        _counter(
            "flagcast_targeting_key_missing_total",
            "Questions without a targeting key that reached a percentage.",
            [({}, targeting_keys_missing)],
        ),
        _gauge("flagcast_local_connections", "Open connections of applications.", [({}, local_connections)]),
        _gauge(
            "flagcast_local_calls",
            "Calls of applications in progress, streams among them.",
            [({}, local_calls)],
        ),
    ]
    return "".join(families).encode()


def _of_each(
    namespaces: Iterable[NamespaceStatus],
    name: str,
    explanation: str,
    value: Callable[[NamespaceStatus], int],
) -> str:
    samples = [({"namespace": each.namespace}, value(each)) for each in namespaces]
    return _gauge(f"flagcast_namespace_{name}", explanation, samples)


def _gauge(name: str, explanation: str, samples: Iterable[_Sample]) -> str:
    return _family(name, "gauge", explanation, samples)


def _counter(name: str, explanation: str, samples: Iterable[_Sample]) -> str:
    return _family(name, "counter", explanation, samples)


def _family(name: str, kind: str, explanation: str, samples: Iterable[_Sample]) -> str:
    lines = [f"# HELP {name} {explanation}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{shown}}} {value}" if shown else f"{name} {value}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
