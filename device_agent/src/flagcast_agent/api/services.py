"""gRPC's services beside Flipt's: Flagcast's own service, flagd's, health, reflection.

Imported by the first call that is not for Flipt's service, so that a start does not wait for it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from flagcast_agent.evaluator import Evaluator
from flagcast_agent.limits import (
    KEEP_ALIVE_SECONDS,
    SNAPSHOTS_MAX,
    SYNC_MAX_SECONDS,
    SYNC_SECONDS,
    SYNCS_MAX,
    UNREAD_SECONDS,
)
from flagcast_agent.status import Caught, Status
from flagcast_shared.errors import FlagcastError, InvalidCall
from flagcast_shared.ids import Namespace

from . import agent_messages, reflection
from .answers import Answers, Snapshot
from .calls import Call, CallFailed, Lasting, Method, Unary, decoded, failed
from .calls import Status as CallStatus
from .changes import Change, Changes, Stopping
from .grpc import AGENT_SERVICE, EVALUATION_SERVICE
from .http2.headers import Fields
from .protos import flagcast_agent_pb2 as agent
from .protos import health_pb2 as health
from .questions import require_question_size
from .resolutions import FLAGD_V1_SERVICE, FLAGD_V2_SERVICE, SELECTOR_HEADER, WANTED_BY, selected
from .resolutions import NAMESPACE_HEADER as FLAGCAST_HEADER

if TYPE_CHECKING:
    from .flagd import Flagd

HEALTH_SERVICE = "grpc.health.v1.Health"
OF_GRPC = (HEALTH_SERVICE, *reflection.SERVICES)
"""Services of gRPC itself, which answer as long as the agent does."""

CatchUp = Callable[[float], Awaitable[Caught]]
ReadSnapshot = Callable[[Namespace], Snapshot]

log = logging.getLogger(__name__)


class OtherServices:
    """Everything but Flipt's service, by the paths of its calls."""

    def __init__(
        self,
        *,
        answers: Answers,
        evaluator: Evaluator,
        flagd: "Callable[[], Flagd]",
        changes: Callable[[], Changes],
        status: Callable[[], Status],
        catch_up: CatchUp | None,
        snapshot: ReadSnapshot | None,
    ) -> None:
        # Of gRPC's own services and the agent's, health is that of the agent; evaluations need something admitted.
        evaluating = (EVALUATION_SERVICE, FLAGD_V1_SERVICE, FLAGD_V2_SERVICE)
        self._health = _Health(evaluator, evaluating, ("", AGENT_SERVICE, *OF_GRPC))
        described = reflection.Reflection((*evaluating, AGENT_SERVICE, *OF_GRPC))
        methods: dict[str, Mapping[str, Method]] = {
            AGENT_SERVICE: _Agent(answers, status, changes, catch_up, snapshot).methods,
            FLAGD_V1_SERVICE: _Flagd(flagd, is_first_version=True).methods,
            FLAGD_V2_SERVICE: _Flagd(flagd, is_first_version=False).methods,
            HEALTH_SERVICE: self._health.methods,
            **{service: {reflection.METHOD: described.method} for service in reflection.SERVICES},
        }
        self.methods: Mapping[str, Method] = {
            f"/{service}/{name}": method
            for service, named in methods.items()
            for name, method in named.items()
        }

    def changed(self) -> None:
        """Something was activated."""
        self._health.changed()


class _Agent:
    # Flagcast's own service (flagcast_agent.proto).

    def __init__(
        self,
        answers: Answers,
        status: Callable[[], Status],
        changes: Callable[[], Changes],
        catch_up: CatchUp | None,
        snapshot: ReadSnapshot | None,
    ) -> None:
        self._answers = answers
        self._status = status
        self._changes = changes
        self._catch_up = catch_up
        self._snapshot = snapshot
        self._syncs = _Places(SYNCS_MAX, "calls of Sync wait")
        self._snapshots = _Places(SNAPSHOTS_MAX, "snapshots are being read")
        # One thread: what is being read from the disk is in memory twice, and a caller who left while it was read starts no
        # second read beside it.
        self._reader = ThreadPoolExecutor(1, "snapshot")
        self.methods: Mapping[str, Method] = {
            "Status": Unary(self._answer_status),
            "ListFlags": Unary(self._list_flags),
            "Explain": Unary(self._explain),
            "Sync": Lasting(self._sync),
            "Watch": Lasting(self._watch),
            "Snapshot": Lasting(self._send_snapshot),
        }

    def _answer_status(self, body: bytes, fields: Fields) -> bytes:  # noqa: ARG002  # a method's signature
        decoded(agent.StatusRequest, body)
        return agent_messages.status_response(self._status()).SerializeToString()

    def _list_flags(self, body: bytes, fields: Fields) -> bytes:  # noqa: ARG002  # a method's signature
        request = decoded(agent.ListFlagsRequest, body)
        return agent_messages.flags_response(self._answers.flags(request.namespace)).SerializeToString()

    def _explain(self, body: bytes, fields: Fields) -> bytes:  # noqa: ARG002  # a method's signature
        question = agent_messages.question_to_explain(decoded(agent.ExplainRequest, body))
        return agent_messages.explain_response(self._answers.explain(question)).SerializeToString()

    async def _sync(self, call: Call) -> None:
        request = decoded(agent.SyncRequest, call.request)
        if self._catch_up is None:
            raise CallFailed(CallStatus.UNIMPLEMENTED, "this agent follows no broker")
        seconds = request.timeout_milliseconds / 1000 or SYNC_SECONDS
        if not 0 < seconds <= SYNC_MAX_SECONDS:
            raise CallFailed(
                CallStatus.INVALID_ARGUMENT,
                f"a wait of {seconds:g} s; allowed are up to {SYNC_MAX_SECONDS:g}",
            )
        with self._syncs.take():
            caught = await self._catch_up(seconds)
        await call.send(agent_messages.sync_response(caught).SerializeToString())

    async def _watch(self, call: Call) -> None:
        request = decoded(agent.WatchRequest, call.request)
        call.begin()
        told: dict[str, tuple[int, int]] = {}
        with self._changes().subscription(Namespace(request.namespace) or None) as subscription:
            for known in subscription.known():
                told[known.namespace] = (known.epoch, known.version)
                await call.send(agent_messages.watch_response(Change(known, {})).SerializeToString())
            while True:
                try:
                    change = await subscription.next(KEEP_ALIVE_SECONDS)
                except Stopping:
                    raise CallFailed(CallStatus.UNAVAILABLE, "the agent stops") from None
                if change is None:
                    continue
                known = change.knowledge
                if change.flags or told.get(known.namespace) != (known.epoch, known.version):
                    told[known.namespace] = (known.epoch, known.version)
                    await call.send(agent_messages.watch_response(change).SerializeToString())

    async def _send_snapshot(self, call: Call) -> None:
        request = decoded(agent.SnapshotRequest, call.request)
        if self._snapshot is None:
            raise CallFailed(CallStatus.UNIMPLEMENTED, "this agent keeps nothing on disk")
        # Each holds a whole snapshot in memory until its client has read it, so there are few, and none for long: the wait for
        # the disk is within the time.
        with self._snapshots.take():
            try:
                async with asyncio.timeout(UNREAD_SECONDS):
                    namespace = self._answers.knowledge(request.namespace).namespace
                    loop = asyncio.get_running_loop()
                    found = await loop.run_in_executor(self._reader, self._snapshot, namespace)
                    for part in agent_messages.snapshot_responses(found):
                        await call.send(part.SerializeToString())
            except TimeoutError:
                raise CallFailed(CallStatus.DEADLINE_EXCEEDED, "the snapshot was not read in time") from None
            except InvalidCall as error:
                raise failed(error) from None
            except FlagcastError as error:
                log.warning("a snapshot could not be read: %s", error)
                raise CallFailed(
                    CallStatus.INTERNAL, "the snapshot cannot be read; the agent's log says why"
                ) from None


class _Places:
    # So many calls of one kind at once; one more is refused at once, because a queue would only hide that somebody does not read.

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._taken = 0

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        if self._taken >= self._most:
            raise CallFailed(
                CallStatus.RESOURCE_EXHAUSTED, f"{self._most} {self._what} already; ask again later"
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class _Flagd:
    # flagd's service, in one of its versions; both have the same messages on the wire. What speaks its language is imported by
    # the first call.

    def __init__(self, flagd: "Callable[[], Flagd]", *, is_first_version: bool) -> None:
        self._flagd = flagd
        self._is_first_version = is_first_version
        self.methods: Mapping[str, Method] = {
            **{name: Unary(self._resolving(name)) for name in WANTED_BY},
            "ResolveAll": Lasting(self._resolve_all),
            "EventStream": Lasting(self._event_stream),
        }

    def _resolving(self, name: str) -> Callable[[bytes, Fields], bytes]:
        def resolve(body: bytes, fields: Fields) -> bytes:
            from .flagd import METHODS

            flagd, method = self._flagd(), METHODS[name]
            try:
                require_question_size(body)
                request = decoded(method.request, body)
                return flagd.resolve(
                    method, request, _selected(fields), is_first_version=self._is_first_version
                )
            except InvalidCall as error:
                raise failed(error, _flagd_status) from None

        return resolve

    async def _resolve_all(self, call: Call) -> None:
        from .protos.flagd_evaluation_v2_pb2 import ResolveAllRequest

        flagd = self._flagd()
        try:
            require_question_size(call.request)
            request = decoded(ResolveAllRequest, call.request)
            question = flagd.question_for_all(request, _selected(call.fields))
            async with call.turn():
                parts = await flagd.resolve_all(question)
        except InvalidCall as error:
            raise failed(error, _flagd_status) from None
        await call.send(*parts)

    async def _event_stream(self, call: Call) -> None:
        from .flagd_events import as_message
        from .protos.flagd_evaluation_v2_pb2 import EventStreamRequest

        decoded(EventStreamRequest, call.request)
        try:
            found = self._flagd().events(_selected(call.fields), as_message)
        except InvalidCall as error:
            raise failed(error, _flagd_status) from None
        call.begin()
        try:
            async with contextlib.aclosing(found) as events:
                async for event in events:
                    await call.send(event)
        except Stopping:
            # Never OK: Node's provider would not subscribe again.
            raise CallFailed(CallStatus.UNAVAILABLE, "the agent stops") from None


class _Health:
    # Serving means that something was admitted; the agent being alive is the health of "".

    def __init__(self, evaluator: Evaluator, ready: tuple[str, ...], alive: tuple[str, ...]) -> None:
        self._evaluator = evaluator
        self._ready = ready
        self._alive = alive
        self._watchers: set[asyncio.Event] = set()
        self.methods: Mapping[str, Method] = {"Check": Unary(self._check), "Watch": Lasting(self._watch)}

    def changed(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    def _status(self, service: str) -> "health.HealthCheckResponse.ServingStatus.ValueType":
        if service in self._alive or (service in self._ready and self._evaluator.namespaces()):
            return health.HealthCheckResponse.SERVING
        if service in self._ready:
            return health.HealthCheckResponse.NOT_SERVING
        return health.HealthCheckResponse.SERVICE_UNKNOWN

    def _check(self, body: bytes, fields: Fields) -> bytes:  # noqa: ARG002  # a method's signature
        status = self._status(decoded(health.HealthCheckRequest, body).service)
        if status == health.HealthCheckResponse.SERVICE_UNKNOWN:
            raise CallFailed(CallStatus.NOT_FOUND, "no such service; reflection lists the services")
        return health.HealthCheckResponse(status=status).SerializeToString()

    async def _watch(self, call: Call) -> None:
        service = decoded(health.HealthCheckRequest, call.request).service
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        try:
            told = None
            while True:
                status = self._status(service)
                if status != told:
                    told = status
                    await call.send(health.HealthCheckResponse(status=status).SerializeToString())
                await watcher.wait()
                watcher.clear()
        finally:
            self._watchers.discard(watcher)


def _flagd_status(error: InvalidCall) -> CallStatus:
    from .flagd import code_of

    return CallStatus[code_of(error).upper()]


def _selected(fields: Fields) -> str:
    headers = fields.headers
    return selected(headers.get(SELECTOR_HEADER, ""), headers.get(FLAGCAST_HEADER, ""))
