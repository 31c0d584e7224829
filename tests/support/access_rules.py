"""The rules of deploy/ about who may read and write which topic, read as their brokers read them.

Each `*_rules` function takes the file of one broker and returns a decision: may `user` publish (retained or not) to a topic, or
subscribe to a filter? It covers what those files use of their formats, and raises ValueError for anything else.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree as ET

Action = Literal["publish", "retain", "subscribe"]


@dataclass(frozen=True, slots=True)
class Access:
    """One wish of one user; `retain` is a retained publish."""

    user: str
    action: Action
    topic: str


Decision = Callable[[Access], bool]


def covers(rule: str, wanted: str) -> bool:
    """Whether an MQTT filter lets everything pass that a topic or filter stands for (MQTT 5, 4.7)."""
    levels, wishes = rule.split("/"), wanted.split("/")
    if wishes[0].startswith("$") and levels[0] in {"+", "#"}:
        return False
    for place, level in enumerate(levels):
        if level == "#":
            return True
        if place >= len(wishes) or wishes[place] == "#" or (level != "+" and level != wishes[place]):
            return False
    return len(levels) == len(wishes)


def mosquitto_rules(path: Path) -> Decision:
    """An `acl_file`."""
    granted: list[tuple[str | None, str, str]] = []
    owner = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        match line.split():
            case [] | ["#", *_]:
                continue
            case ["user", name]:
                owner = name
            case ["topic", ("read" | "write" | "readwrite") as rights, topic]:
                granted.append((owner, rights, topic))
            case ["pattern", ("read" | "write" | "readwrite") as rights, topic]:
                granted.append((None, rights, topic))
            case _:
                raise ValueError(line)

    def decide(access: Access) -> bool:
        needed = "read" if access.action == "subscribe" else "write"
        return any(
            owner in {None, access.user}
            and needed in rights
            and covers(topic.replace("%u", access.user) if owner is None else topic, access.topic)
            for owner, rights, topic in granted
        )

    return decide


def emqx_rules(path: Path) -> Decision:
    """An `acl.conf` of EMQX 5: Erlang terms, of which the first that fits decides."""
    text = re.sub(r"^%.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    rules = list(_erlang_terms(text))
    if rules[-1] != ("deny", "all"):
        raise ValueError("something is allowed to everybody at the end")

    def decide(access: Access) -> bool:
        action = "subscribe" if access.action == "subscribe" else "publish"
        for permission, who, *rest in rules:
            if who not in ("all", ("username", access.user)):
                continue
            if not rest:
                return bool(permission == "allow")
            for_action, topics = rest
            if for_action in (action, "all") and any(
                covers(topic.replace("${username}", access.user), access.topic) for topic in topics
            ):
                return bool(permission == "allow")
        raise ValueError(access)

    return decide


def hivemq_rules(path: Path) -> Decision:
    """A `credentials.xml` of the File RBAC extension: what no permission allows is denied. The user has to be in it."""
    root = ET.parse(path).getroot()
    if root.tag != "file-rbac":
        raise ValueError(root.tag)
    known = {"topic", "activity", "qos", "retain", "shared-subscription", "shared-group"}
    roles: dict[str, list[dict[str, str]]] = {}
    for role in root.findall("./roles/role"):
        permissions = [
            {part.tag: part.text or "" for part in each} for each in role.findall("./permissions/permission")
        ]
        for permission in permissions:
            if not set(permission) <= known or "topic" not in permission:
                raise ValueError(str(permission))
        roles[role.findtext("id", "")] = permissions
    users = {
        user.findtext("name", ""): [
            permission for role in user.findall("./roles/id") for permission in roles[role.text or ""]
        ]
        for user in root.findall("./users/user")
    }

    def decide(access: Access) -> bool:
        activity = "SUBSCRIBE" if access.action == "subscribe" else "PUBLISH"
        retain = {"subscribe": "ALL", "publish": "NOT_RETAINED", "retain": "RETAINED"}[access.action]
        return any(
            permission.get("activity", "ALL") in {"ALL", activity}
            and (retain == "ALL" or permission.get("retain", "ALL") in {"ALL", retain})
            and covers(permission["topic"].replace("${{username}}", access.user), access.topic)
            for permission in users[access.user]
        )

    return decide


def aws_rules(path: Path) -> Decision:
    """A policy of AWS IoT Core; the user is the common name of the certificate. `*` is any text, `+` and `#` are themselves."""
    statements = json.loads(path.read_text(encoding="utf-8"))["Statement"]

    def has(action: str, user: str, resource: str) -> bool:
        for statement in statements:
            if statement["Effect"] != "Allow":
                raise ValueError(statement["Effect"])
            if action in _listed(statement["Action"]):
                for pattern in _listed(statement["Resource"]):
                    _, _, _, _, _, own = pattern.split(":", 5)
                    own = own.replace("${iot:Certificate.Subject.CommonName}", user)
                    if re.fullmatch(re.escape(own).replace(r"\*", ".*"), resource):
                        return True
        return False

    def decide(access: Access) -> bool:
        match access.action:
            case "publish":
                return has("iot:Publish", access.user, f"topic/{access.topic}")
            case "retain":
                return all(
                    has(action, access.user, f"topic/{access.topic}")
                    for action in ("iot:Publish", "iot:RetainPublish")
                )
            case "subscribe":
                # What a filter with + or # brings is judged by iot:Receive, topic by topic; see the test.
                return has("iot:Subscribe", access.user, f"topicfilter/{access.topic}") and has(
                    "iot:Receive", access.user, f"topic/{access.topic}"
                )

    return decide


def _listed(value: Any) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _erlang_terms(text: str) -> Iterator[Any]:
    # Tuples, lists, atoms and strings, each term ended by a full stop.
    tokens = re.findall(r'"(?:[^"\\])*"|[a-z_]+|[{}\[\],.]|\S', text)
    place = 0

    def term() -> Any:
        nonlocal place
        token = tokens[place]
        place += 1
        if token in "{[":
            end = "}" if token == "{" else "]"
            found: list[Any] = []
            while tokens[place] != end:
                found.append(term())
                if tokens[place] == ",":
                    place += 1
                    if tokens[place] == end:
                        raise ValueError("a comma before the end")
                elif tokens[place] != end:
                    raise ValueError(tokens[place])
            place += 1
            return tuple(found) if token == "{" else found
        if token.startswith('"'):
            return token[1:-1]
        if re.fullmatch("[a-z_]+", token):
            return token
        raise ValueError(token)

    while place < len(tokens):
        yield term()
        if tokens[place] != ".":
            raise ValueError(f"{tokens[place]} where a term ends")
        place += 1
