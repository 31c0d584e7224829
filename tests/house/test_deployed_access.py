"""What the files of deploy/ let devices and the publisher read and write, against the topics that Flagcast really uses."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from access_rules import (
    Access,
    Action,
    Decision,
    aws_rules,
    covers,
    emqx_rules,
    hivemq_rules,
    mosquitto_rules,
)
from repository import ROOT

from flagcast_shared.ids import DeviceId, Environment, Namespace, Version
from flagcast_shared.limits import MESSAGE_MAX_BYTES
from flagcast_shared.topics import (
    DeltaAddress,
    DeviceAddress,
    HeadAddress,
    RootAddress,
    SnapshotAddress,
    Topics,
)

DEPLOY = ROOT / "deploy"
TOPICS = Topics("flagcast", Environment("production"))
OWN, OTHER = DeviceId("charger-17"), DeviceId("charger-18")
DEFAULT = Namespace("default")
AWS_POLICY_MAX = 2048
"""Characters of a policy of AWS IoT Core, white space left out."""

ROOT_TOPIC = TOPICS.of(RootAddress(2))
HEAD = TOPICS.of(HeadAddress(DEFAULT))
PART = TOPICS.of(SnapshotAddress(DEFAULT, Version(41), 0))
DELTA = TOPICS.of(DeltaAddress(DEFAULT, Version(41), Version(40)))
PUBLISHED = (ROOT_TOPIC, HEAD, PART, DELTA)


def said_by(device: DeviceId) -> dict[str, str]:
    return {what: TOPICS.of(DeviceAddress(device, what)) for what in ("report", "metrics", "refresh")}


def both(device: Callable[[Path], Decision], name: str, publisher: str) -> Decision:
    """A device under one file and the publisher under another."""
    of_devices, of_publishers = device(DEPLOY / name), device(DEPLOY / publisher)
    return lambda access: (of_publishers if access.user == "publisher" else of_devices)(access)


BROKERS: dict[str, Decision] = {
    "mosquitto": mosquitto_rules(DEPLOY / "mosquitto" / "acl"),
    "emqx": emqx_rules(DEPLOY / "emqx" / "acl.conf"),
    "hivemq": hivemq_rules(DEPLOY / "hivemq" / "credentials.xml"),
    "aws-iot": both(aws_rules, "aws-iot/device-policy.json", "aws-iot/publisher-policy.json"),
}
every_broker = pytest.mark.parametrize("decide", BROKERS.values(), ids=BROKERS)


def refused(decide: Decision, user: str, action: Action, *topics: str) -> list[str]:
    return [topic for topic in topics if not decide(Access(user, action, topic))]


def allowed(decide: Decision, user: str, *topics: str) -> list[str]:
    actions: tuple[Action, ...] = ("publish", "retain")
    return [topic for topic in topics if any(decide(Access(user, action, topic)) for action in actions)]


@every_broker
def test_a_device_reads_roots_and_flags(decide: Decision) -> None:
    parts = TOPICS.snapshot_filter(DEFAULT, Version(41))
    assert refused(decide, OWN, "subscribe", *PUBLISHED, parts) == []


@every_broker
def test_a_device_speaks_for_itself(decide: Decision) -> None:
    own = said_by(OWN)
    assert decide(Access(OWN, "retain", own["report"]))
    assert refused(decide, OWN, "publish", own["metrics"], own["refresh"]) == []


@every_broker
def test_a_device_writes_no_flags_no_roots_and_nothing_of_another(decide: Decision) -> None:
    elsewhere = TOPICS.of(DeviceAddress(OWN, "report")) + "/x"
    assert allowed(decide, OWN, *PUBLISHED, *said_by(OTHER).values(), elsewhere, "anything", "$SYS/x") == []


@every_broker
def test_a_device_reads_nothing_that_devices_say(decide: Decision) -> None:
    wanted = [
        *said_by(OTHER).values(),
        *(TOPICS.all_devices(what) for what in said_by(OTHER)),
        "#",
        "+/#",
        "$SYS/#",
    ]
    assert refused(decide, OWN, "subscribe", *wanted) == wanted


@every_broker
def test_the_publisher_writes_and_reads_back_what_it_publishes(decide: Decision) -> None:
    assert refused(decide, "publisher", "retain", *PUBLISHED) == []
    everything = [TOPICS.all_roots(), TOPICS.all_heads(), TOPICS.all_flags(), *PUBLISHED]
    assert refused(decide, "publisher", "subscribe", *everything) == []


@every_broker
def test_the_publisher_hears_devices_and_does_not_speak_for_them(decide: Decision) -> None:
    assert (
        refused(decide, "publisher", "subscribe", *(TOPICS.all_devices(what) for what in said_by(OWN))) == []
    )
    assert allowed(decide, "publisher", *said_by(OWN).values()) == []


@every_broker
def test_another_environment_is_out_of_reach(decide: Decision) -> None:
    other = Topics("flagcast", Environment("staging"))
    topics = [other.of(HeadAddress(DEFAULT)), other.of(RootAddress(1))]
    for user in (OWN, "publisher"):
        assert refused(decide, user, "subscribe", *topics) == topics
        assert allowed(decide, user, *topics) == []


@pytest.mark.parametrize(
    ("rule", "wanted", "is_covered"),
    [
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/+", "a/+", True),
        ("a/+", "a/#", False),
        ("a/b", "a/+", False),
        ("a/+", "a/b/c", False),
        ("#", "$SYS/x", False),
        ("a/#", "#", False),
    ],
)
def test_a_rule_covers_what_its_filter_stands_for(rule: str, wanted: str, is_covered: bool) -> None:
    assert covers(rule, wanted) is is_covered


def test_a_policy_of_aws_is_within_its_limits_and_lets_a_device_connect_as_itself_alone() -> None:
    for path in (DEPLOY / "aws-iot").glob("*.json"):
        policy = json.loads(path.read_text(encoding="utf-8"))
        assert len(re.sub(r"\s", "", path.read_text(encoding="utf-8"))) <= AWS_POLICY_MAX
        assert policy["Version"] == "2012-10-17"
        granted = {
            each["Action"]: each["Resource"]
            for each in policy["Statement"]
            if isinstance(each["Action"], str)
        }
        asked_for = [resource.replace(":topicfilter/", ":topic/") for resource in granted["iot:Subscribe"]]
        assert granted["iot:Receive"] == asked_for
    policy = json.loads((DEPLOY / "aws-iot" / "device-policy.json").read_text(encoding="utf-8"))
    (connect,) = [each for each in policy["Statement"] if each["Action"] == "iot:Connect"]
    assert connect["Resource"].endswith(":client/flagcast-${iot:Certificate.Subject.CommonName}")
    # Without it a device may not bring its will along, and AWS ends the connection.
    assert connect["Condition"]["ForAllValues:StringEquals"] == {"iot:ConnectAttributes": ["LastWill"]}


def test_every_topic_that_aws_carries_has_at_most_seven_slashes() -> None:
    assert max(topic.count("/") for topic in (*PUBLISHED, *said_by(OWN).values())) <= 7


def test_mosquitto_takes_the_largest_message_that_may_be_configured() -> None:
    text = (DEPLOY / "mosquitto" / "mosquitto.conf").read_text(encoding="utf-8")
    (limit,) = re.findall(r"^max_packet_size (\d+)$", text, re.MULTILINE)
    assert int(limit) >= MESSAGE_MAX_BYTES + 1024


def test_no_file_of_deploy_holds_a_password() -> None:
    text = (DEPLOY / "hivemq" / "credentials.xml").read_text(encoding="utf-8")
    assert set(re.findall(r"<password>(.*?)</password>", text)) == {"HASH"}
