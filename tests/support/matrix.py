"""What the matrix of brokers and scenarios says: its rows, its columns, and where a broker needs help or cannot do it.

tests/matrix checks every cell, also those with a note; docs/brokers.md shows the table as `table` makes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

VARIANTS = ("mosquitto-3.1.1", "mosquitto-tls")
"""Of a broker that is there already; `make test` leaves them to `make test-brokers`."""
SITES = {
    "mosquitto-5": "mosquitto, MQTT 5",
    "mosquitto-3.1.1": "mosquitto, MQTT 3.1.1",
    "mosquitto-tls": "mosquitto, TLS",
    "amqtt": "amqtt",
    "rabbitmq": "RabbitMQ",
    "aedes": "aedes",
    "ejabberd": "ejabberd, two nodes",
}

AFTER = "test_a_device_that_comes_after_the_flags_gets_them"
BEFORE = "test_a_device_that_comes_before_the_flags_gets_them_and_each_change_live"
PARTS = "test_a_snapshot_in_parts_arrives_whole"
AWAY = "test_a_device_that_was_away_over_several_versions_catches_up"
ROLLOUT = "test_a_staged_rollout_reaches_its_devices_and_its_abort_takes_nobody_down"
KEYS = "test_new_keys_reach_devices_that_are_there_and_that_were_away"
KILLED = "test_a_broker_that_was_killed_is_found_again_by_both_sides"
FORGOT = "test_a_broker_that_forgot_everything_has_it_again_from_serve"
FLEET = "test_birth_reports_and_will_of_a_device_are_seen_by_the_publisher"
USAGE = "test_evaluations_are_counted_once"
HEADLESS = "test_a_device_that_hears_no_head_asks_and_serve_answers"
CONTENT = "test_content_that_is_gone_comes_again_when_a_device_asks"
OLD = "test_old_versions_do_not_stay_on_the_broker"
NODE = "test_one_node_that_is_killed_takes_nobody_else_with_it"

SCENARIOS = {
    AFTER: "a device that comes after the flags gets them",
    BEFORE: "a device that was there first gets them, and a change of one flag live",
    PARTS: "a snapshot above the message limit arrives whole",
    AWAY: "a device that was away over several versions catches up",
    ROLLOUT: "candidate, abort and promotion of a staged rollout",
    KEYS: "a rotated key reaches devices that are there and that were away",
    KILLED: "a broker that was killed is found again by both sides",
    FORGOT: "a broker that forgot everything gets it again from `flagcast serve`",
    FLEET: "`flagcast fleet` sees birth, reports and will",
    USAGE: "evaluations are counted once",
    HEADLESS: "a head that is missing is asked for and comes",
    CONTENT: "content that is missing is asked for and comes",
    OLD: "old versions do not stay on the broker",
    NODE: "one node is killed: devices on the others answer, and follow",
}
"""A test of tests/matrix and its row."""


@dataclass(frozen=True, slots=True)
class Note:
    """Why a cell is not a plain ✓. `works`: it does all the same, by what the text says."""

    works: bool
    text: str


SERVE = Note(
    works=True,
    text="With `flagcast serve`. A node sends a subscriber nothing that was retained through another node since it started. "
    "Devices on other nodes than the publisher's hear no head and no content, ask for them, and get them live.",
)
BY_NAME = Note(
    works=True,
    text="By name, with `flagcast fleet --device ID`. The broker sends nothing retained to a subscription with wildcards, so "
    "that nobody can list the devices; `flagcast fleet` says so.",
)
OTHER_NODE = Note(
    works=False,
    text="A node does not show the publisher what devices on another node reported, for the reason of note 1. Ask each node, "
    "from a project whose `broker.url` names it.",
)
ONE_SERVER = Note(works=False, text="One server: there is no other node.")

NOTES: Mapping[tuple[str, str], Note] = {
    **{
        (scenario, "ejabberd"): SERVE
        for scenario in (AFTER, BEFORE, PARTS, AWAY, ROLLOUT, KEYS, KILLED, FORGOT, USAGE, NODE)
    },
    (FLEET, "rabbitmq"): BY_NAME,
    (FLEET, "ejabberd"): OTHER_NODE,
    **{(NODE, site): ONE_SERVER for site in SITES if site != "ejabberd"},
}


def notes() -> list[Note]:
    """The notes in the order of their numbers."""
    return list(dict.fromkeys(NOTES[at] for at in sorted(NOTES, key=_place)))


def cell(scenario: str, site: str) -> str:
    """What stands in a cell: ✓ or –, and the number of its note."""
    note = NOTES.get((scenario, site))
    if note is None:
        return "✓"
    return f"{'✓' if note.works else '–'} [{notes().index(note) + 1}]"


def table() -> str:
    """The whole table in Markdown, and its notes below."""
    lines = ["| | " + " | ".join(SITES.values()) + " |", "| --- |" + " --- |" * len(SITES)]
    lines += [
        f"| {title} | " + " | ".join(cell(scenario, site) for site in SITES) + " |"
        for scenario, title in SCENARIOS.items()
    ]
    listed = [f"{number}. {note.text}" for number, note in enumerate(notes(), 1)]
    return "\n".join([*lines, "", *listed, ""])


def _place(at: tuple[str, str]) -> tuple[int, int]:
    return list(SCENARIOS).index(at[0]), list(SITES).index(at[1])
