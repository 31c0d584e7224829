"""The command line's side of the socket: ask the agent that runs on this device, wait, return values.

Each call opens a connection, asks and closes it; for a program that asks often, the socket is there in every language.
"""

import contextlib
import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from flagcast_agent import clock
from flagcast_shared.errors import FlagcastError, FlagNotFound, InvalidCall

if TYPE_CHECKING:
    from flagcast_agent.status import Caught, Freshness, LinkState, NamespaceStatus, Status

    from .questions import Question

_Read = TypeVar("_Read")

_SERVICE = "/flagcast.agent.v1.Agent"
_OK = 200
_ANOTHER_RELEASE = "the agent is of another release than this command: it has no such call"
_ANSWER_MAX_BYTES = 64 * 1024 * 1024  # of whatever listens on the socket
ANSWER_TIMEOUT_SECONDS = 5.0
"""An agent answers within a millisecond; one that does not within seconds hangs."""


class AgentNotReachable(FlagcastError):
    """No agent answers on the socket; the message says why and what to do."""


# Named tuples: the standard library's dataclasses would be a sixth of what a command costs.


class Evaluation(NamedTuple):
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


class ListedFlag(NamedTuple):
    """One flag of a namespace. `type` is "boolean", "variant" or "unknown"; `problem` says why it cannot be used."""

    key: str
    type: str
    enabled: bool
    problem: str


class ListedFlags(NamedTuple):
    """The flags of the version of a namespace that the agent answers from, sorted by key."""

    namespace: str
    epoch: int
    version: int
    flags: tuple[ListedFlag, ...]


class Explained(NamedTuple):
    """One evaluation with its steps, and the version it was made from: lines for people, JSON text for programs."""

    namespace: str
    epoch: int
    version: int
    lines: tuple[str, ...]
    json: str


class LocalClient(NamedTuple):
    """Asks the agent behind the Unix socket at `path`.

    Every method raises AgentNotReachable, and InvalidCall where the agent says that the question has no answer.
    """

    path: Path
    timeout: float = ANSWER_TIMEOUT_SECONDS

    def evaluate(self, question: "Question") -> Evaluation:
        """The flag's answer, whatever its type; the agent does not count it as usage."""
        return self._explain(question, lambda answer: _evaluation(_parsed(answer.text("json"))))

    def status(self) -> "Status":
        """What the agent says about itself."""
        return self._ask("Status", {}, _status)

    def sync(self, seconds: float) -> "Caught":
        """Asks the agent to be up to date with the broker now, and waits so long for it."""
        return self._ask("Sync", {"timeout_milliseconds": round(seconds * 1000)}, _caught, waits=seconds)

    def flags(self, namespace: str = "") -> ListedFlags:
        """The flags of a namespace; blank means the agent's default one."""
        return self._ask("ListFlags", {"namespace": namespace}, _listed)

    def explain(self, question: "Question") -> Explained:
        """The flag's answer with the steps that led to it."""
        return self._explain(question, _explained)

    def _explain(self, question: "Question", read: "Callable[[_Document], _Read]") -> _Read:
        request = {
            "namespace": question.namespace,
            "flag_key": question.flag_key,
            "entity_id": question.entity_id,
            "context": dict(question.context),
        }
        return self._ask("Explain", request, read)

    def _ask(
        self,
        call: str,
        request: Mapping[str, object],
        read: "Callable[[_Document], _Read]",
        *,
        waits: float = 0.0,
    ) -> _Read:
        # As UTF-8, which weighs what protobuf's texts weigh; an argument of other bytes is for the agent to refuse.
        data = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
        try:
            status, body = _post(self.path, f"{_SERVICE}/{call}", data, self.timeout + waits)
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
            document = _parsed(body)
            if status == _OK:
                return read(document)
            failure = _error(
                status, document.text("code"), document.text("message") or document.text("errorDetails")
            )
        except _Unreadable as error:
            raise AgentNotReachable(f"the agent at {self.path} cannot be asked: {error}") from None
        raise failure


def _post(path: Path, target: str, data: bytes, timeout: float) -> tuple[int, bytes]:
    # Status and body. The library's own client costs as much time as all the rest of the command: it reads headers as mail has
    # them, and loads TLS. Here the agent closes after one answer, which ends there.
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    until = clock.monotonic() + timeout
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        answer = bytearray()
        # An agent that refuses a request does not read it to its end; the refusal is there to be read all the same.
        with contextlib.suppress(ConnectionError):
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        with contextlib.suppress(ConnectionError):
            while part := _received(connection, until):
                answer += part
                if len(answer) > _ANSWER_MAX_BYTES:
                    raise OSError(f"an answer of more than {_ANSWER_MAX_BYTES} bytes")
    start, end, rest = bytes(answer).partition(b"\r\n\r\n")
    version, _, status = start.partition(b" ")
    if not end or not version.startswith(b"HTTP/1.") or not status[:3].isdigit():
        raise OSError("its answer is not HTTP" if answer else "it closed the connection without an answer")
    return int(status[:3]), rest


def _received(connection: socket.socket, until: float) -> bytes:
    remaining = until - clock.monotonic()
    if remaining <= 0:
        raise TimeoutError
    connection.settimeout(remaining)
    return connection.recv(65_536)


class _Unreadable(Exception):
    # An answer of another form than the agent's.
    pass


class _Document:
    # A JSON object of an answer. In protobuf's JSON whatever is zero may be left out, and numbers of 64 bits are texts.

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise _Unreadable("its answer is no JSON object")
        self._value = value

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def require(self, *names: str) -> None:
        for name in names:
            if name not in self._value:
                raise _Unreadable(f"its answer has no {name!r}")

    def text(self, name: str) -> str:
        value = self._value.get(name, "")
        if not isinstance(value, str):
            raise _Unreadable(f"in its answer {name!r} is no text")
        return value

    def number(self, name: str) -> int:
        value = self._value.get(name, 0)
        try:
            if isinstance(value, str) or type(value) is int:
                return int(value)
        except ValueError:
            pass
        raise _Unreadable(f"in its answer {name!r} is no number")

    def truth(self, name: str) -> bool:
        value = self._value.get(name, False)
        if not isinstance(value, bool):
            raise _Unreadable(f"in its answer {name!r} is neither true nor false")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._list(name)
        if not all(isinstance(value, str) for value in values):
            raise _Unreadable(f"in its answer {name!r} is no list of texts")
        return tuple(values)

    def object(self, name: str) -> "_Document":
        return _Document(self._value.get(name, {}))

    def objects(self, name: str) -> "tuple[_Document, ...]":
        return tuple(_Document(value) for value in self._list(name))

    def _list(self, name: str) -> list[str]:
        value = self._value.get(name, [])
        if not isinstance(value, list):
            raise _Unreadable(f"in its answer {name!r} is no list")
        return value


def _parsed(text: str | bytes) -> _Document:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return _Document(value)


def _status(document: _Document) -> "Status":
    from flagcast_agent.status import LinkStatus, Status

    link = document.object("link")
    return Status(
        agent_version=document.text("agent_version"),
        device=document.text("device"),
        environment=document.text("environment"),
        started=document.number("started"),
        now=document.number("now"),
        clock_is_trusted=document.truth("clock_is_trusted"),
        link=LinkStatus(
            cast("LinkState", link.text("state")),
            link.number("since"),
            link.text("last_error"),
            link.number("last_error_at"),
            link.text("report_refused"),
        ),
        namespaces=tuple(_namespace(each) for each in document.objects("namespaces")),
    )


def _namespace(document: _Document) -> "NamespaceStatus":
    from flagcast_agent.status import NamespaceStatus, Rejection

    rejection = None
    if "last_rejection" in document:
        last = document.object("last_rejection")
        rejection = Rejection(last.text("attack"), last.text("why"), last.number("at"))
    return NamespaceStatus(
        document.text("namespace"),
        cast("Freshness", document.text("freshness")),
        document.number("epoch"),
        document.number("version"),
        document.text("digest"),
        document.number("issued"),
        document.number("expires"),
        document.number("age_seconds"),
        document.number("flags"),
        rejection,
    )


def _caught(document: _Document) -> "Caught":
    from flagcast_agent.status import Caught

    document.require("status")
    return Caught(document.texts("why"), _status(document.object("status")))


def _listed(document: _Document) -> ListedFlags:
    document.require("namespace", "epoch", "version")
    return ListedFlags(
        document.text("namespace"),
        document.number("epoch"),
        document.number("version"),
        tuple(
            ListedFlag(flag.text("key"), flag.text("type"), flag.truth("enabled"), flag.text("problem"))
            for flag in document.objects("flags")
        ),
    )


def _explained(document: _Document) -> Explained:
    document.require("namespace", "epoch", "version")
    text = document.text("json")
    _parsed(text)  # whoever reads it need not look at it first
    return Explained(
        document.text("namespace"),
        document.number("epoch"),
        document.number("version"),
        document.texts("lines"),
        text,
    )


def _evaluation(explained: _Document) -> Evaluation:
    explained.require("flag", "type", "answer")
    flag, kind, answer = explained.text("flag"), explained.text("type"), explained.object("answer")
    answer.require("resolution", "segments")
    reason, segments = answer.text("resolution"), answer.texts("segments")
    if kind == "boolean":
        answer.require("enabled", "reason")
        value = "true" if answer.truth("enabled") else "false"
        return Evaluation(flag, kind, value, reason, answer.text("reason") == "match", segments)
    answer.require("variant", "match", "attachment")
    return Evaluation(
        flag, kind, answer.text("variant"), reason, answer.truth("match"), segments, answer.text("attachment")
    )


def _error(status: int, code: str, message: str) -> FlagcastError:
    match code:
        case "not_found":
            return FlagNotFound(message)
        case "invalid_argument" | "internal" | "resource_exhausted":
            return InvalidCall(message)
        case "unimplemented":
            return AgentNotReachable(message or _ANOTHER_RELEASE)
        case "":
            return _http_error(status, message)
        case _:
            return AgentNotReachable(f"the agent did not answer: {code}: {message}")


def _http_error(status: int, message: str) -> FlagcastError:
    # A refusal before it was known which call this is.
    match status:
        case 404:
            return AgentNotReachable(_ANOTHER_RELEASE)
        case 413:
            return InvalidCall(message)
        case _:
            return AgentNotReachable(f"the agent did not answer: {status}: {message}")
