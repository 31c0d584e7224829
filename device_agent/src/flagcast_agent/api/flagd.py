"""flagd's evaluation service without a transport: questions and answers as protobuf messages or as JSON, events, error codes.

Both versions of the service have the same messages on the wire, so one set of classes serves both. In the second version a
response without value and variant means the caller's default; clients of the first would take the zero value for the flag's, so
they get NOT_FOUND.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from flagcast_agent.evaluator import Knowledge
from flagcast_agent.limits import CONTEXT_MAX_ENTRIES, KEEP_ALIVE_SECONDS, SLICE_FLAGS
from flagcast_agent.values import Metadata, kind_of, metadata_of, reason_of
from flagcast_shared.errors import (
    CallTooLarge,
    FlagNotFound,
    InvalidCall,
    InvalidContext,
    NamespaceNotFound,
)
from flagcast_shared.evaluation import Answer, Resolution, VariantAnswer
from flagcast_shared.ids import Namespace

from .changes import Changes
from .flagd_events import KEEP_ALIVE, READY, Encode, WrittenEvents
from .protos import flagd_evaluation_v2_pb2 as flagd
from .questions import Question, require_question_size
from .resolutions import WANTED_BY, Asked, Encodings, Resolutions, Resolved, Wanted, error_code

if TYPE_CHECKING:
    from google.protobuf.struct_pb2 import Struct, Value

    Request = (
        flagd.ResolveBooleanRequest
        | flagd.ResolveStringRequest
        | flagd.ResolveFloatRequest
        | flagd.ResolveIntRequest
        | flagd.ResolveObjectRequest
    )

_Message = TypeVar("_Message", bound=Message)
_Encoded = TypeVar("_Encoded")

_DECODER: Final = json.JSONDecoder()
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Method:
    """One Resolve call: what it asks for, and its messages."""

    wanted: Wanted
    request: "type[Request]"
    response: type[Message]


METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        name: Method(wanted, getattr(flagd, f"{name}Request"), getattr(flagd, f"{name}Response"))
        for name, wanted in WANTED_BY.items()
    }
)


class BadSelector(InvalidCall):
    """A call's headers choose a namespace of which nothing is known."""


class Unreadable(InvalidCall):
    """The bytes of a request are not the message."""


class Flagd:
    """flagd's calls. `is_first_version` of a call decides how "no value" is said.

    `namespaces` are the configured ones, of which something may be known only later.
    """

    def __init__(
        self, resolutions: Resolutions, changes: Callable[[], Changes], namespaces: Collection[Namespace] = ()
    ) -> None:
        self._resolutions = resolutions
        self._changes = changes
        self._namespaces = namespaces
        self._struct: tuple[object, Any, bytes] = (None, None, b"")
        self._encodings = Encodings()
        self._written = WrittenEvents()

    def resolve(
        self, method: Method, request: "Request", namespace: str, *, is_first_version: bool = False
    ) -> bytes:
        """The encoded response to a Resolve call's message. Raises InvalidCall: one of its leaves, or BadSelector."""
        asked = Asked(request.flag_key, _context_of(request.context), namespace)

        def encode(answer: Answer, knowledge: Knowledge) -> bytes:
            def response(answer: Answer) -> bytes:
                return _response(method, self._resolved(answer, knowledge, method.wanted))

            return self._encodings.of(knowledge, method.wanted, response)(answer)

        begun, metadata = self._resolve(method, asked, encode, is_first_version=is_first_version)
        self._struct_of(metadata)
        # Two encodings after each other are one message with the fields of both (protobuf's encoding guide, "Last One Wins").
        return begun + self._struct[2]

    def resolve_json(
        self, method: Method, body: bytes, namespace: str, *, is_first_version: bool = False
    ) -> bytes:
        """The same in protobuf's JSON. Raises as `resolve`, and Unreadable."""
        document = _document(body)
        key = document.get("flagKey", document.get("flag_key", ""))
        if not isinstance(key, str):
            raise Unreadable("flagKey is not a text")
        asked = Asked(key, _context(document), namespace)

        def encode(answer: Answer, knowledge: Knowledge) -> Resolved:
            return self._resolved(answer, knowledge, method.wanted)

        resolved, metadata = self._resolve(method, asked, encode, is_first_version=is_first_version)
        answer: dict[str, object] = {}
        if resolved.value is not None:
            # Protobuf's JSON writes whole numbers of 64 bits as text, because JavaScript's numbers do not hold them.
            answer["value"] = str(resolved.value) if method.wanted is Wanted.INTEGER else resolved.value
            answer["variant"] = resolved.variant
        answer |= {"reason": resolved.reason, "metadata": metadata}
        return compact(answer)

    def question_for_all(self, request: flagd.ResolveAllRequest, namespace: str) -> Question:
        """The question of a ResolveAll call's message. Raises InvalidCall: one of its leaves, or BadSelector."""
        return self._question_for_all(_context_of(request.context), namespace)

    def question_for_all_json(self, body: bytes, namespace: str) -> Question:
        """The same of protobuf's JSON. Raises as `question_for_all`, and Unreadable."""
        return self._question_for_all(_context(_document(body)), namespace)

    async def resolve_all(self, question: Question) -> list[bytes]:
        """The encoded response in parts: every flag that has a value for a context.

        Raises:
            InvalidCall: one of its leaves, or BadSelector.
        """
        # So that nobody waits for all of it; one behind the other they are the whole message (as in `resolve`).
        response, number = flagd.ResolveAllResponse(), 0
        parts: list[bytes] = []
        async for resolved, metadata in self._resolve_all(question):
            number += 1
            if not number % SLICE_FLAGS:
                parts.append(response.SerializeToString())
                response = flagd.ResolveAllResponse()
            flag = response.flags[resolved.flag_key]
            flag.reason, flag.variant = resolved.reason, resolved.variant
            match resolved.value:
                case bool():
                    flag.bool_value = resolved.value
                case int() | float():
                    flag.double_value = resolved.value
                case str():
                    flag.string_value = resolved.value
                case dict():
                    fill(flag.object_value, resolved.value)
            flag.metadata.CopyFrom(self._struct_of(metadata))
        fill(response.metadata, self._metadata(question.namespace))
        parts.append(response.SerializeToString())
        return parts

    async def resolve_all_json(self, question: Question) -> bytes:
        """The same in protobuf's JSON."""
        flags: dict[str, object] = {}
        parts: list[bytes] = []
        async for resolved, metadata in self._resolve_all(question):
            if len(flags) == SLICE_FLAGS:
                parts.append(compact(flags)[1:-1])
                flags = {}
            kind = {bool: "boolValue", str: "stringValue", dict: "objectValue"}.get(
                type(resolved.value), "doubleValue"
            )
            flags[resolved.flag_key] = {
                "reason": resolved.reason,
                "variant": resolved.variant,
                kind: resolved.value,
                "metadata": metadata,
            }
        if flags:
            parts.append(compact(flags)[1:-1])
        metadata_json = compact(self._metadata(question.namespace))
        return b'{"flags":{%b},"metadata":%b}' % (b",".join(parts), metadata_json)

    def events(self, namespace: str, encode: Encode) -> AsyncGenerator[bytes, None]:
        """The encoded events of an EventStream: ready, at once all flags, then what changes, a keep-alive in every long silence.

        They name flags of one namespace, the default one unless another is chosen. All flags are named, and those that were
        removed, because a provider may hold answers from before the agent was started anew, or from before its last stream was
        cut. Raises BadSelector at once for a namespace that this device never has; the generator raises Stopping when the agent
        stops.
        """
        chosen = Namespace(namespace) or self._resolutions.default_namespace
        if chosen != self._resolutions.default_namespace and chosen not in self._namespaces:
            try:
                self._resolutions.knowledge(chosen)
            except NamespaceNotFound as error:
                raise _selector_error(namespace, error) from None
        return self._events(chosen, encode, is_ready_with_any=not namespace)

    async def _events(
        self, chosen: Namespace, encode: Encode, *, is_ready_with_any: bool
    ) -> AsyncGenerator[bytes, None]:
        changes = self._changes()
        # Node's provider chooses a namespace in its questions and not in its stream: it is not to wait for the default one.
        with changes.subscription(None if is_ready_with_any else chosen) as beginning:
            while not beginning.known():
                if await beginning.next(KEEP_ALIVE_SECONDS) is None:
                    yield await encode(KEEP_ALIVE, {})
        with changes.subscription(chosen) as subscription, self._written.reader():
            yield await encode(READY, {})
            # Nothing of this version stays in a variable: a stream lasts for days.
            for event in await self._written.all(
                encode, [known.compiled for known in subscription.known()], changes.removed(chosen)
            ):
                yield event
            while True:
                change = await subscription.next(KEEP_ALIVE_SECONDS)
                if change is None:
                    yield await encode(KEEP_ALIVE, {})
                elif change.flags:
                    for event in await self._written.change(encode, change.flags):
                        yield event

    def _resolve(
        self,
        method: Method,
        asked: Asked,
        encode: Callable[[Answer, Knowledge], _Encoded],
        *,
        is_first_version: bool,
    ) -> tuple[_Encoded, Metadata]:
        def encode_value(answer: Answer, knowledge: Knowledge) -> _Encoded | FlagNotFound:
            # An answer without a value is an answer all the same, and counted as one.
            if is_first_version and isinstance(answer, VariantAnswer) and not answer.variant_key:
                reason = reason_of(answer).value
                return FlagNotFound(f"flag {answer.flag_key!r} has no value for this context: {reason}")
            return encode(answer, knowledge)

        try:
            encoded, knowledge = self._resolutions.resolve(asked, method.wanted, encode_value)
        except NamespaceNotFound as error:
            raise _selector_error(asked.namespace, error) from None
        if isinstance(encoded, FlagNotFound):
            raise encoded
        return encoded, self._resolutions.metadata_of(knowledge, asked.flag_key)

    def _resolved(self, answer: Answer, knowledge: Knowledge, wanted: Wanted) -> Resolved:
        return self._kept_up_to_date(self._resolutions.resolved(answer, wanted), knowledge)

    def _question_for_all(self, context: Mapping[str, object], namespace: str) -> Question:
        try:
            return self._resolutions.question_for_all(context, namespace)
        except NamespaceNotFound as error:
            raise _selector_error(namespace, error) from None

    async def _resolve_all(self, question: Question) -> AsyncIterator[tuple[Resolved, Metadata]]:
        try:
            slices, knowledge = await self._resolutions.resolve_all(question)
        except NamespaceNotFound as error:
            raise _selector_error(question.namespace, error) from None
        shared = self._resolutions.metadata(knowledge)
        metadata_text = knowledge.compiled.metadata
        async for found in slices:
            for resolved in found:
                if isinstance(resolved, Resolved) and resolved.value is not None:
                    own = metadata_text(resolved.flag_key)
                    metadata = {**metadata_of(own), **shared} if own else shared
                    yield self._kept_up_to_date(resolved, knowledge), metadata

    def _kept_up_to_date(self, resolved: Resolved, knowledge: Knowledge) -> Resolved:
        # Providers keep what is STATIC until their stream names the flag, and a stream without a selector, as Node's always is,
        # names the default namespace's.
        is_told = knowledge.namespace == self._resolutions.default_namespace
        if is_told or resolved.reason != Resolution.STATIC:
            return resolved
        return resolved._replace(reason=Resolution.DEFAULT.value)

    def _struct_of(self, metadata: Metadata) -> "Struct":
        # Answers of one second have one metadata object, unless their flag has its own: what is made of it serves all of them.
        of, struct, _ = self._struct
        if of is not metadata:
            # The field has one number in all responses for one flag.
            response = flagd.ResolveBooleanResponse()
            struct = response.metadata
            fill(struct, metadata)
            self._struct = (metadata, struct, response.SerializeToString())
        return cast("Struct", struct)

    def _metadata(self, namespace: str) -> Metadata:
        return self._resolutions.metadata(self._resolutions.knowledge(namespace))


def _response(method: Method, resolved: Resolved) -> bytes:
    # The response without its metadata.
    response: Any = method.response(reason=resolved.reason)
    if resolved.value is not None:
        response.variant = resolved.variant
        if isinstance(resolved.value, dict):
            fill(response.value, resolved.value)
        else:
            response.value = resolved.value
    return response.SerializeToString()  # type: ignore[no-any-return]  # made by the method's own class


def decoded(kind: type[_Message], body: bytes) -> _Message:
    """A request's message. Raises Unreadable, CallTooLarge."""
    require_question_size(body)
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise Unreadable(f"the request is not a {kind.DESCRIPTOR.full_name}: {error}") from None


def code_of(error: InvalidCall) -> str:
    """The error's name among gRPC's and Connect's codes, so that a provider makes the right error of it.

    NOT_FOUND becomes FLAG_NOT_FOUND there, INVALID_ARGUMENT TYPE_MISMATCH, DATA_LOSS PARSE_ERROR, and INTERNAL GENERAL.
    UNKNOWN and UNAVAILABLE are never said of an evaluation: providers ask again then, and get the same answer seconds later.
    """
    if isinstance(error, BadSelector):
        return "invalid_argument"
    if isinstance(error, Unreadable):
        return "data_loss"
    return {
        "FLAG_NOT_FOUND": "not_found",
        "PROVIDER_NOT_READY": "not_found",
        "TYPE_MISMATCH": "invalid_argument",
    }.get(error_code(error), "internal")


def dictionary(struct: "Struct") -> dict[str, object]:
    """A Struct as a dictionary."""
    # Most values are texts, and asking for a text costs least.
    return {key: value.string_value or _plain(value) for key, value in struct.fields.items()}


def fill(struct: "Struct", values: Mapping[str, object]) -> None:
    """Puts values as JSON has them into a Struct."""
    if not values:
        struct.SetInParent()
    fields = struct.fields
    for key, value in values.items():
        _fill_value(fields[key], value)


def compact(document: object) -> bytes:
    """JSON without spaces; text stays text."""
    return _ENCODER.encode(document).encode("utf-8", "replace")


def _context_of(struct: "Struct") -> dict[str, object]:
    # Refused before its values are read.
    if len(struct.fields) > CONTEXT_MAX_ENTRIES + 1:  # the targeting key is none of them
        raise CallTooLarge(f"a context of too many entries; at most {CONTEXT_MAX_ENTRIES}")
    return dictionary(struct)


def _plain(value: "Value") -> object:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            return value.number_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return dictionary(value.struct_value)
        case "list_value":
            return [_plain(each) for each in value.list_value.values]
        case _:
            return None


def _fill_value(target: "Value", value: object) -> None:
    match value:
        case str():
            target.string_value = value
        case bool():
            target.bool_value = value
        case int() | float():
            try:
                target.number_value = value
            except (OverflowError, ValueError):  # more than a double holds: its digits are all there is
                target.string_value = str(value)
        case dict():
            fill(target.struct_value, value)
        case list():
            target.list_value.SetInParent()
            for each in value:
                _fill_value(target.list_value.values.add(), each)
        case _:
            target.null_value = 0  # type: ignore[assignment]  # NULL_VALUE, whose enum is another pool's


def _document(body: bytes) -> dict[str, object]:
    require_question_size(body)
    try:
        document = _DECODER.decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the request is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Unreadable("the request is not a JSON object")
    return document


def _context(document: Mapping[str, object]) -> dict[str, object]:
    context = document.get("context")
    if context is None:
        return {}
    if not isinstance(context, dict):
        raise InvalidContext(f"the context is {kind_of(context)}; it must be an object")
    return context


def _selector_error(namespace: str, error: NamespaceNotFound) -> InvalidCall:
    return BadSelector(str(error)) if namespace else error
