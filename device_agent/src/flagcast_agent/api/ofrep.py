"""OFREP, OpenFeature's protocol over plain HTTP and JSON, version 0.3: one flag, all flags, a stream that says when to ask anew.

It has no type in its questions. A boolean flag answers a boolean; a variant flag its variant's attachment where that is a JSON
object or a number, else the variant's key, which `variant` always names.
"""

import hashlib
import json
import sys
from collections.abc import AsyncGenerator, Callable
from typing import Final
from urllib.parse import parse_qs, quote, unquote

from flagcast_agent.evaluator import Knowledge
from flagcast_agent.limits import ERROR_MAX_CHARACTERS, KEEP_ALIVE_SECONDS
from flagcast_agent.values import kind_of, metadata_of
from flagcast_shared.errors import FlagNotFound, InvalidCall, NamespaceNotFound
from flagcast_shared.evaluation import Answer
from flagcast_shared.ids import Namespace

from . import web
from .changes import Changes, Stopping
from .http1 import Request
from .questions import Question, require_question_size
from .resolutions import (
    NAMESPACE_HEADER,
    SELECTOR_HEADER,
    Asked,
    Encodings,
    Resolutions,
    Resolved,
    Unresolved,
    Wanted,
    error_code,
    memory_of,
    selected,
)
from .web import JSON, Large, Reply, Stream

ALL_FLAGS: Final = "/ofrep/v1/evaluate/flags"
ONE_FLAG: Final = "/ofrep/v1/evaluate/flags/"
EVENTS: Final = "/ofrep/v1/events"
EVENT_STREAM: Final = "text/event-stream"
_DECODER: Final = json.JSONDecoder()
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


class _NotReadable(Exception):
    # A body that is no request.

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


class Ofrep:
    """OFREP's calls. `salt` is drawn anew for every start: what the agent knows of its device is part of every answer."""

    def __init__(self, resolutions: Resolutions, changes: Callable[[], Changes], salt: str) -> None:
        self._resolutions = resolutions
        self._changes = changes
        self._salt = salt
        self._metadata: tuple[object, bytes] = (None, b"")
        self._encodings = Encodings()

    def serves(self, path: str) -> bool:
        """Whether a path is one of OFREP's."""
        return path in {ALL_FLAGS, EVENTS} or path.startswith(ONE_FLAG)

    def answer(self, path: str, request: Request) -> web.Answer:
        """The answer to a request for a path that is served."""
        method = "GET" if path == EVENTS else "POST"
        if request.method != method:
            return _json(405, {"errorDetails": f"this path takes {method}"}, {"allow": method})
        headers = request.headers
        namespace = selected(headers.get(SELECTOR_HEADER, ""), headers.get(NAMESPACE_HEADER, ""))
        if path == EVENTS:
            asked = parse_qs(request.target.partition("?")[2]).get("namespace", [namespace])[0]
            last_seen = headers.get("last-event-id", "")
            keeps = sys.getsizeof(asked) + sys.getsizeof(last_seen)
            return Stream(EVENT_STREAM, self._events(asked, last_seen), keeps)
        if path == ALL_FLAGS:
            return self._evaluate_all(request, namespace)
        key = path[len(ONE_FLAG) :]
        return self._evaluate(unquote(key, errors="replace") if "%" in key else key, request, namespace)

    def _evaluate(self, key: str, request: Request, namespace: str) -> Reply:
        try:
            asked = Asked(key, _context(request.body), namespace)
            begun, knowledge = self._resolutions.resolve(asked, Wanted.ANY, self._begun, requires_key=True)
        except (FlagNotFound, NamespaceNotFound) as error:
            return _json(404, _failure(key, "FLAG_NOT_FOUND", error))
        except (_NotReadable, InvalidCall) as error:
            return _json(400, _failure(key, _code(error), error))
        metadata = self._encoded_metadata(knowledge, key)
        return Reply(200, JSON, b'%b,"metadata":%b}' % (begun, metadata))

    def _evaluate_all(self, request: Request, namespace: str) -> web.Answer:
        try:
            question = self._resolutions.question_for_all(_context(request.body), namespace)
        except (_NotReadable, InvalidCall) as error:
            return _refused(error)
        known = request.headers.get("if-none-match", "")
        return Large(lambda: self._answer_all(question, known), memory_of(question) + sys.getsizeof(known))

    async def _answer_all(self, question: Question, known: str) -> Reply:
        try:
            slices, knowledge = self._resolutions.answer_all(question, requires_key=True)
        except InvalidCall as error:
            return _refused(error)
        metadata = self._resolutions.metadata(knowledge)
        freshness = (metadata["stale"], metadata.get("clock_trusted", True))
        etag = self._etag(knowledge, question, freshness)
        if _matches(known, etag):
            return Reply(304, JSON, b"", {"etag": etag})
        # Each slice becomes text at once, so that no caller waits for all of them.
        entries = self._entries_of(knowledge)
        flags = [b",".join([entries(each) for each in found]) async for found in slices]
        stream = {
            "type": "sse",
            "endpoint": {"requestUri": f"{EVENTS}?namespace={quote(knowledge.namespace)}"},
        }
        rest = _encoded({"metadata": metadata, "eventStreams": [stream]})
        return Reply(200, JSON, b'{"flags":[' + b",".join(flags) + b"]," + rest[1:], {"etag": etag})

    async def _events(self, namespace: str, last_seen: str) -> AsyncGenerator[bytes, None]:
        # What was missed while nobody listened is one event: to ask anew is all that an event ever means.
        told = last_seen
        name = Namespace(namespace) or self._resolutions.default_namespace
        with self._changes().subscription(name) as subscription:
            for knowledge in subscription.known():
                if _version(knowledge) != told:
                    told = _version(knowledge)
                    yield _refetch(told)
            yield b": listening\n\n"
            while True:
                try:
                    change = await subscription.next(KEEP_ALIVE_SECONDS)
                except Stopping:
                    return  # a client of server-sent events comes again by itself
                if change is None:
                    yield b": keep-alive\n\n"
                elif _version(change.knowledge) != told:
                    told = _version(change.knowledge)
                    yield _refetch(told)

    def _begun(self, answer: Answer, knowledge: Knowledge) -> bytes:
        # The answer for one flag, up to its metadata.
        def encode(answer: Answer) -> bytes:
            return _encoded(_success(self._resolutions.resolved(answer)))[:-1]

        return self._encodings.of(knowledge, "one", encode)(answer)

    def _entries_of(self, knowledge: Knowledge) -> Callable[[Answer | Unresolved], bytes]:
        metadata_text = knowledge.compiled.metadata

        def encode(answer: Answer) -> bytes:
            success = _success(self._resolutions.resolved(answer))
            # The agent's own metadata stand once, beside all flags.
            if own := metadata_of(metadata_text(answer.flag_key)):
                success["metadata"] = own
            return _encoded(success)

        remembered = self._encodings.of(knowledge, "of all", encode)

        def entry(answer: Answer | Unresolved) -> bytes:
            if isinstance(answer, Unresolved):
                return _encoded(_failure(answer.flag_key, error_code(answer.error), answer.error))
            return remembered(answer)

        return entry

    def _encoded_metadata(self, knowledge: Knowledge, key: str) -> bytes:
        # Answers of one second have one metadata object, unless their flag has its own: what is made of it serves all of them.
        metadata = self._resolutions.metadata_of(knowledge, key)
        of, encoded = self._metadata
        if of is not metadata:
            encoded = _encoded(metadata)
            self._metadata = (metadata, encoded)
        return encoded

    def _etag(self, knowledge: Knowledge, question: Question, freshness: tuple[object, object]) -> str:
        version = (knowledge.digest.hex(), _version(knowledge))
        asked = (question.entity_id, dict(question.context))
        basis = json.dumps([self._salt, knowledge.namespace, *version, *freshness, *asked], sort_keys=True)
        return f'"{hashlib.sha256(basis.encode()).hexdigest()[:32]}"'


def _context(body: bytes) -> dict[str, object]:
    require_question_size(body)
    if not body.strip():
        return {}
    try:
        document = _DECODER.decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise _NotReadable("PARSE_ERROR", f"the request is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise _NotReadable("PARSE_ERROR", "the request is not a JSON object")
    context = document.get("context")
    if context is None:
        return {}
    if not isinstance(context, dict):
        raise _NotReadable("INVALID_CONTEXT", f"the context is {kind_of(context)}; it must be an object")
    return context


def _success(resolved: Resolved) -> dict[str, object]:
    # Python's provider wants a variant in every case, and a value that is left out rather than null.
    answer: dict[str, object] = {"key": resolved.flag_key}
    if resolved.value is not None:
        answer["value"] = resolved.value
    answer["reason"], answer["variant"] = resolved.reason, resolved.variant
    return answer


def _failure(key: str, code: str, error: Exception) -> dict[str, object]:
    return {"key": key[:ERROR_MAX_CHARACTERS], "errorCode": code, "errorDetails": _shown(error)}


def _refused(error: _NotReadable | InvalidCall) -> Reply:
    code = "PROVIDER_NOT_READY" if isinstance(error, NamespaceNotFound) else _code(error)
    return _json(400, {"errorCode": code, "errorDetails": _shown(error)})


def _code(error: _NotReadable | InvalidCall) -> str:
    return error.code if isinstance(error, _NotReadable) else error_code(error)


def _shown(error: Exception) -> str:
    return str(error)[:ERROR_MAX_CHARACTERS]


def _matches(header: str, etag: str) -> bool:
    # RFC 9110, section 13.1.2: weak comparison.
    words = [word.strip().removeprefix("W/") for word in header.split(",")]
    return etag in words or "*" in words


def _version(knowledge: Knowledge) -> str:
    return f"{knowledge.namespace}-{knowledge.epoch}-{knowledge.version}"


def _refetch(version: str) -> bytes:
    event = _encoded({"type": "refetchEvaluation", "etag": f'"{version}"'})
    return b"id: " + version.encode() + b"\nevent: message\ndata: " + event + b"\n\n"


def _encoded(document: object) -> bytes:
    return _ENCODER.encode(document).encode("utf-8", "replace")


def _json(status: int, document: object, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status, JSON, _encoded(document), headers or {})
