"""The command line's side of the socket: ask the agent that runs on this device, wait, return values.

Each call opens a connection, asks and closes it; for a program that asks often, the socket is there in every language.
"""

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flagcast_agent import clock
from flagcast_shared.errors import FlagcastError, FlagNotFound, InvalidCall

if TYPE_CHECKING:
    from flagcast_agent.status import Caught, Status

    from .questions import Question

_SERVICE = "/flagcast.agent.v1.Agent"
_ANSWER_MAX_BYTES = 64 * 1024 * 1024  # of whatever listens on the socket
ANSWER_TIMEOUT_SECONDS = 5.0
"""An agent answers within a millisecond; one that does not within seconds hangs."""


class AgentNotReachable(FlagcastError):
    """No agent answers on the socket; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One flag's answer as the command line shows it. `type` is "boolean" or "variant".

    `value` is "true" or "false" of a boolean flag, the variant's key of a variant flag ("" when there is none). `reason` is
    OpenFeature's word.
    """

    flag_key: str
    type: str
    value: str
    reason: str
    match: bool
    segment_keys: tuple[str, ...] = ()
    attachment: str = ""

    def as_json(self) -> dict[str, object]:
        """A dictionary that `json` can write; a boolean flag's value is a JSON boolean."""
        return {
            "flag": self.flag_key,
            "type": self.type,
            "value": self.value == "true" if self.type == "boolean" else self.value,
            "reason": self.reason,
            "match": self.match,
            "segments": list(self.segment_keys),
            "attachment": self.attachment,
        }


@dataclass(frozen=True, slots=True)
class ListedFlag:
    """One flag of a namespace. `type` is "boolean", "variant" or "unknown"; `problem` says why it cannot be used."""

    key: str
    type: str
    enabled: bool
    problem: str


@dataclass(frozen=True, slots=True)
class ListedFlags:
    """The flags of the version of a namespace that the agent answers from, sorted by key."""

    namespace: str
    epoch: int
    version: int
    flags: tuple[ListedFlag, ...]


@dataclass(frozen=True, slots=True)
class Explained:
    """One evaluation with its steps, and the version it was made from: lines for people, JSON text for programs."""

    namespace: str
    epoch: int
    version: int
    lines: tuple[str, ...]
    json: str


@dataclass(frozen=True, slots=True)
class LocalClient:
    """Asks the agent behind the Unix socket at `path`.

    Every method raises AgentNotReachable, and InvalidCall where the agent says that the question has no answer.
    """

    path: Path
    timeout: float = ANSWER_TIMEOUT_SECONDS

    def evaluate(self, question: "Question") -> Evaluation:
        """The flag's answer, whatever its type; the agent does not count it as usage."""
        return _evaluation(json.loads(self.explain(question).json))

    def status(self) -> "Status":
        """What the agent says about itself."""
        return _status(self._ask("Status", {}))

    def sync(self, seconds: float) -> "Caught":
        """Asks the agent to be up to date with the broker now, and waits so long for it."""
        from flagcast_agent.status import Caught

        answer = self._ask("Sync", {"timeout_milliseconds": round(seconds * 1000)}, waits=seconds)
        return Caught(tuple(answer.get("why", ())), _status(answer["status"]))

    def flags(self, namespace: str = "") -> ListedFlags:
        """The flags of a namespace; blank means the agent's default one."""
        answer = self._ask("ListFlags", {"namespace": namespace})
        return ListedFlags(
            answer["namespace"],
            int(answer["epoch"]),
            int(answer["version"]),
            tuple(
                ListedFlag(flag["key"], flag["type"], flag.get("enabled", False), flag.get("problem", ""))
                for flag in answer.get("flags", ())
            ),
        )

    def explain(self, question: "Question") -> Explained:
        """The flag's answer with the steps that led to it."""
        answer = self._ask(
            "Explain",
            {
                "namespace": question.namespace,
                "flag_key": question.flag_key,
                "entity_id": question.entity_id,
                "context": dict(question.context),
            },
        )
        return Explained(
            answer["namespace"],
            int(answer["epoch"]),
            int(answer["version"]),
            tuple(answer["lines"]),
            answer["json"],
        )

    def _ask(self, call: str, request: Mapping[str, object], *, waits: float = 0.0) -> dict[str, Any]:
        try:
            status, body = _post(self.path, f"{_SERVICE}/{call}", json.dumps(request), self.timeout + waits)
        except (FileNotFoundError, ConnectionRefusedError):
            raise AgentNotReachable(
                f"no agent is listening at {self.path}; start one with: flagcast-agent run"
            ) from None
        except PermissionError:
            raise AgentNotReachable(
                f"this user may not connect to {self.path}; its owner and its group may (see: ls -l {self.path})"
            ) from None
        except TimeoutError:
            raise AgentNotReachable(
                f"the agent at {self.path} did not answer within {self.timeout:g} s"
            ) from None
        except OSError as error:
            raise AgentNotReachable(f"the agent at {self.path} cannot be asked: {error}") from error
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise AgentNotReachable(f"the agent at {self.path} cannot be asked: its answer is no JSON object")
        if status != b"200":
            raise _error(str(document.get("code", "")), str(document.get("message", "")))
        return document


def _post(path: Path, target: str, body: str, timeout: float) -> tuple[bytes, bytes]:
    # Status and body. The library's own client costs as much time as all the rest of the command: it reads headers as mail has
    # them, and loads TLS. Here the agent closes after one answer, which ends there.
    data = body.encode()
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    until = clock.monotonic() + timeout
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = bytearray()
        while part := connection.recv(65_536):
            answer += part
            if len(answer) > _ANSWER_MAX_BYTES:
                raise OSError(f"an answer of more than {_ANSWER_MAX_BYTES} bytes")
            connection.settimeout(max(until - clock.monotonic(), 0.001))
    start, end, rest = bytes(answer).partition(b"\r\n\r\n")
    words = start.split(b" ", 2)
    if not end or len(words) < 2 or not words[0].startswith(b"HTTP/1."):
        raise OSError("its answer is not HTTP" if answer else "it closed the connection without an answer")
    return words[1], rest


def _status(document: Mapping[str, Any]) -> "Status":
    # Protobuf's JSON: what is zero is left out, and numbers of 64 bits are texts.
    from flagcast_agent.status import LinkStatus, NamespaceStatus, Rejection, Status

    link = document.get("link", {})

    def rejection(found: Mapping[str, Any] | None) -> Rejection | None:
        if found is None:
            return None
        return Rejection(found["attack"], found["why"], int(found["at"]))

    return Status(
        agent_version=document.get("agent_version", ""),
        device=document.get("device", ""),
        environment=document.get("environment", ""),
        started=int(document.get("started", 0)),
        now=int(document.get("now", 0)),
        clock_is_trusted=document.get("clock_is_trusted", False),
        link=LinkStatus(
            link.get("state", ""),
            int(link.get("since", 0)),
            link.get("last_error", ""),
            int(link.get("last_error_at", 0)),
            link.get("report_refused", ""),
        ),
        namespaces=tuple(
            NamespaceStatus(
                each.get("namespace", ""),
                each.get("freshness", ""),
                int(each.get("epoch", 0)),
                int(each.get("version", 0)),
                each.get("digest", ""),
                int(each.get("issued", 0)),
                int(each.get("expires", 0)),
                int(each.get("age_seconds", 0)),
                int(each.get("flags", 0)),
                rejection(each.get("last_rejection")),
            )
            for each in document.get("namespaces", ())
        ),
    )


def _evaluation(explained: Mapping[str, Any]) -> Evaluation:
    answer = explained["answer"]
    kind, segments = explained["type"], tuple(answer["segments"])
    if kind == "boolean":
        value = "true" if answer["enabled"] else "false"
        return Evaluation(
            explained["flag"], kind, value, answer["resolution"], answer["reason"] == "match", segments
        )
    return Evaluation(
        explained["flag"],
        kind,
        answer["variant"],
        answer["resolution"],
        answer["match"],
        segments,
        answer["attachment"],
    )


def _error(code: str, message: str) -> FlagcastError:
    match code:
        case "not_found":
            return FlagNotFound(message)
        case "invalid_argument" | "internal" | "resource_exhausted":
            return InvalidCall(message)
        case "" | "unimplemented":
            return AgentNotReachable(
                message or "the agent is of another release than this command: it has no such call"
            )
        case _:
            return AgentNotReachable(f"the agent did not answer: {code}: {message}")
