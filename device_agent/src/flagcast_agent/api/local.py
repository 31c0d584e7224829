"""The command line's side of the socket: ask the agent that runs on this device, wait, return values.

Each call opens a connection, asks and closes it; for a program that asks often, the socket is there in every language.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from grpclib.client import Channel
from grpclib.const import Status as GrpcStatus
from grpclib.exceptions import GRPCError, StreamTerminatedError

from flagcast_agent.status import Caught, Status
from flagcast_shared.errors import FlagcastError, FlagNotFound, InvalidCall

from . import agent_messages
from .answers import Question
from .protos import flagcast_agent_pb2 as agent
from .protos.flagcast_agent_grpc import AgentStub

ANSWER_TIMEOUT_SECONDS = 5.0
"""An agent answers within a millisecond; one that does not within seconds hangs."""

_Result = TypeVar("_Result")


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
    """Asks the agent behind the Unix socket at `path`; not to be used inside an event loop.

    Every method raises AgentNotReachable, and InvalidCall where the agent says that the question has no answer.
    """

    path: Path
    timeout: float = ANSWER_TIMEOUT_SECONDS

    def evaluate(self, question: Question) -> Evaluation:
        """The flag's answer, whatever its type; the agent does not count it as usage."""
        return _evaluation(json.loads(self.explain(question).json))

    def status(self) -> Status:
        """What the agent says about itself."""

        async def ask(channel: Channel) -> Status:
            return agent_messages.status_of(await AgentStub(channel).Status(agent.StatusRequest()))

        return self._run(ask)

    def sync(self, seconds: float) -> Caught:
        """Asks the agent to be up to date with the broker now, and waits so long for it."""

        async def ask(channel: Channel) -> Caught:
            request = agent.SyncRequest(timeout_milliseconds=round(seconds * 1000))
            return agent_messages.caught_of(await AgentStub(channel).Sync(request))

        return self._run(ask, waits=seconds)

    def flags(self, namespace: str = "") -> ListedFlags:
        """The flags of a namespace; blank means the agent's default one."""

        async def ask(channel: Channel) -> ListedFlags:
            response = await AgentStub(channel).ListFlags(agent.ListFlagsRequest(namespace=namespace))
            return ListedFlags(
                response.namespace,
                response.epoch,
                response.version,
                tuple(ListedFlag(flag.key, flag.type, flag.enabled, flag.problem) for flag in response.flags),
            )

        return self._run(ask)

    def explain(self, question: Question) -> Explained:
        """The flag's answer with the steps that led to it."""
        request = agent.ExplainRequest(
            namespace=question.namespace,
            flag_key=question.flag_key,
            entity_id=question.entity_id,
            context=question.context,
        )

        async def ask(channel: Channel) -> Explained:
            response = await AgentStub(channel).Explain(request)
            return Explained(
                response.namespace, response.epoch, response.version, tuple(response.lines), response.json
            )

        return self._run(ask)

    def _run(self, ask: Callable[[Channel], Awaitable[_Result]], *, waits: float = 0.0) -> _Result:
        async def run() -> _Result:
            async with Channel(path=str(self.path)) as channel, asyncio.timeout(self.timeout + waits):
                return await ask(channel)

        try:
            return asyncio.run(run())
        except GRPCError as error:
            raise _error(error) from None
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
        except (OSError, StreamTerminatedError) as error:
            raise AgentNotReachable(f"the agent at {self.path} cannot be asked: {error}") from error


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


def _error(error: GRPCError) -> FlagcastError:
    message = error.message or error.status.name
    match error.status:
        case GrpcStatus.NOT_FOUND:
            return FlagNotFound(message)
        case GrpcStatus.INVALID_ARGUMENT | GrpcStatus.INTERNAL | GrpcStatus.RESOURCE_EXHAUSTED:
            return InvalidCall(message)
        case GrpcStatus.UNIMPLEMENTED:
            return AgentNotReachable("the agent is of another release than this command: it has no such call")
        case _:
            return AgentNotReachable(f"the agent did not answer: {error.status.name}: {message}")
