"""OpenFeature's questions over Flipt's flags, as plain functions of values: what flagd's services and OFREP answer.

A boolean flag answers a boolean. A variant flag answers its variant's key as a string, and the variant's attachment, where it
is of that type, as a number or an object. The entity is the context's `targetingKey`.

Providers keep an answer whose reason is STATIC by the flag's key alone, whatever type was asked for, until an event names the
flag. So STATIC is said only where neither a context nor another type of question could get another answer: for a boolean flag
without rollouts, and for a variant flag without rules whose variant answers as a string and nothing else.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

from flagcast_agent.evaluator import Knowledge
from flagcast_agent.limits import SLICE_FLAGS
from flagcast_agent.values import (
    Metadata,
    integer_of,
    kind_of,
    metadata_of,
    number_of,
    object_of,
    reason_of,
    texts,
)
from flagcast_shared.errors import (
    CallTooLarge,
    FlagNotFound,
    InvalidCall,
    InvalidContext,
    NamespaceNotFound,
    TargetingKeyMissing,
    TypeMismatch,
)
from flagcast_shared.evaluation import (
    Answer,
    BooleanAnswer,
    CompiledFlags,
    FlagType,
    Resolution,
    VariantAnswer,
)
from flagcast_shared.ids import FlagKey, Namespace

from .answers import Answers
from .questions import Question

FLAGD_V1_SERVICE: Final = "flagd.evaluation.v1.Service"
FLAGD_V2_SERVICE: Final = "flagd.evaluation.v2.Service"
SELECTOR_HEADER: Final = "flagd-selector"
NAMESPACE_HEADER: Final = "flagcast-namespace"
KEPT_MAX_ENTRIES: Final = 4_096
"""Encoded answers that are kept of one namespace and protocol, at most 3 MB: a thousand flags with four each."""
KEPT_MAX_BYTES: Final = 512
"""Of a longer one, such as a large attachment, a second copy would cost more than encoding it again."""
TARGETING_KEY: Final = "targetingKey"
_FLAG_SET: Final = "flagSetId="
_INT64: Final = range(-(2**63), 2**63)
_Encoded = TypeVar("_Encoded")


class Wanted(StrEnum):
    """The type of value that a question asks for; ANY is the flag's own."""

    BOOLEAN = "boolean"
    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    OBJECT = "object"
    ANY = "any"


WANTED_BY: Final[Mapping[str, Wanted]] = MappingProxyType(
    {
        "ResolveBoolean": Wanted.BOOLEAN,
        "ResolveString": Wanted.STRING,
        "ResolveFloat": Wanted.NUMBER,
        "ResolveInt": Wanted.INTEGER,
        "ResolveObject": Wanted.OBJECT,
    }
)
"""What each of flagd's calls for one flag asks for."""


class Asked(NamedTuple):
    """One question. `context` has whatever values its protocol brings; a blank `namespace` means the agent's default one."""

    flag_key: str
    context: Mapping[str, object]
    namespace: str = ""


class Resolved(NamedTuple):
    """One answer. `value` None means that the flag gives none: the caller's default is to be used, and `variant` is blank.

    `reason` is OpenFeature's word.
    """

    flag_key: str
    value: bool | str | int | float | dict[str, object] | None
    variant: str
    reason: str


class Unresolved(NamedTuple):
    """A flag among all flags that has no answer, with the error that asking for it alone would raise."""

    flag_key: str
    error: InvalidCall


class Encodings:
    """Encoded answers, kept while their version of the flags is answered from.

    A flag has a few answers, whoever asks: its value or variant and the reason. Most of them were encoded before.
    """

    def __init__(self) -> None:
        self._kept: dict[Namespace, tuple[CompiledFlags, dict[object, bytes]]] = {}

    def of(
        self, knowledge: Knowledge, form: str, encode: Callable[[Answer], bytes]
    ) -> Callable[[Answer], bytes]:
        """`encode` with a memory. `form` tells encodings of one answer apart; no error of `encode` is kept."""
        compiled, kept = self._kept.get(knowledge.namespace, (None, {}))
        if compiled is not knowledge.compiled:
            kept = {}
            self._kept[knowledge.namespace] = (knowledge.compiled, kept)

        def remembered(answer: Answer) -> bytes:
            value = answer.enabled if isinstance(answer, BooleanAnswer) else answer.variant_key
            what = (form, answer.flag_key, value, answer.resolution)
            encoded = kept.get(what)
            if encoded is None:
                encoded = encode(answer)
                if len(kept) < KEPT_MAX_ENTRIES and len(encoded) <= KEPT_MAX_BYTES:
                    kept[what] = encoded
            return encoded

        return remembered


class Resolutions:
    """OpenFeature's questions over the agent's answers. `tells_static`: whether providers may keep answers."""

    def __init__(self, answers: Answers, *, tells_static: bool = True) -> None:
        self._answers = answers
        self._tells_static = tells_static
        self._metadata: tuple[Knowledge | None, tuple[int, bool], Metadata] = (None, (0, True), {})
        self._order: tuple[CompiledFlags | None, list[tuple[FlagKey, bool]]] = (None, [])

    def resolve(
        self,
        asked: Asked,
        wanted: Wanted,
        encode: Callable[[Answer, Knowledge], _Encoded],
        *,
        requires_key: bool = False,
    ) -> tuple[_Encoded, Knowledge]:
        """The flag's answer as `encode` makes it, and what it was given from. Raises InvalidCall: one of its leaves.

        `encode` may raise TypeMismatch. `requires_key`: TargetingKeyMissing where a percentage is reached without a targeting
        key. A protocol without a word for that gets Flipt's answer for an empty entity id.
        """
        knowledge, question = self._admit(asked)
        answer = self._ask(knowledge, question, wanted)
        encoded = encode(answer, knowledge)
        if self._answers.lacks_entity(knowledge, question) and requires_key:
            raise _key_missing(asked.flag_key)
        # Counted is what was answered; where the value is of another type, the caller got its default.
        self._answers.count(knowledge.namespace, answer)
        return encoded, knowledge

    def question_for_all(self, context: Mapping[str, object], namespace: str = "") -> Question:
        """The question for all flags, checked against the limits.

        It may wait, because it keeps nothing else of its request. Raises NamespaceNotFound, InvalidContext, CallTooLarge.
        """
        _, question = self._admit(Asked("", context, namespace))
        return question

    async def resolve_all(
        self, question: Question
    ) -> tuple[AsyncIterator[list[Resolved | Unresolved]], Knowledge]:
        """Every flag's answer, as `answer_all` gives them."""
        slices, knowledge = self.answer_all(question)

        async def resolved() -> AsyncIterator[list[Resolved | Unresolved]]:
            async for found in slices:
                yield [each if isinstance(each, Unresolved) else self.resolved(each) for each in found]

        return resolved(), knowledge

    def answer_all(
        self, question: Question, *, requires_key: bool = False
    ) -> tuple[AsyncIterator[list[Answer | Unresolved]], Knowledge]:
        """Every flag's answer in the order of keys, in slices between which others have their turn; all from one version.

        With `requires_key`, a flag that reaches a percentage without a targeting key is unresolved: TargetingKeyMissing.
        Raises NamespaceNotFound, CallTooLarge. These answers are not counted as evaluations: nobody has asked for any of
        the flags yet.
        """
        knowledge = self._answers.admit(question)

        async def slices() -> AsyncIterator[list[Answer | Unresolved]]:
            compiled, entity, texts_of = knowledge.compiled, question.entity_id, question.context
            flags = self._in_order(compiled)
            lacks_key = requires_key and not entity
            for start in range(0, len(flags), SLICE_FLAGS):
                if start:
                    await asyncio.sleep(0)
                found: list[Answer | Unresolved] = []
                for key, is_variant in flags[start : start + SLICE_FLAGS]:
                    ask = compiled.variant if is_variant else compiled.boolean
                    if lacks_key and compiled.needs_entity(key, texts_of):
                        found.append(Unresolved(key, _key_missing(key)))
                        continue
                    try:
                        found.append(ask(key, entity, texts_of))
                    except InvalidCall as error:
                        found.append(Unresolved(key, error))
                yield found

        return slices(), knowledge

    def resolved(self, answer: Answer, wanted: Wanted = Wanted.ANY) -> Resolved:
        """An answer as a value of the type that is asked for. Raises TypeMismatch."""
        key = answer.flag_key
        reason = reason_of(answer)
        if reason is Resolution.STATIC and not self._tells_static:
            reason = Resolution.DEFAULT
        if isinstance(answer, BooleanAnswer):
            return Resolved(key, answer.enabled, "true" if answer.enabled else "false", reason.value)
        if not answer.variant_key:
            return Resolved(key, None, "", reason.value)
        return Resolved(key, _value_of(answer, wanted), str(answer.variant_key), reason.value)

    def knowledge(self, namespace: str = "") -> Knowledge:
        """What is known of a namespace; blank means the default one. Raises NamespaceNotFound."""
        return self._answers.knowledge(namespace)

    @property
    def default_namespace(self) -> Namespace:
        """What a blank namespace means."""
        return self._answers.default_namespace

    def metadata(self, knowledge: Knowledge) -> Metadata:
        """What every answer says of what it was given from; the same object for a second, so not to be changed.

        `clock_trusted` is there where it is false: age and staleness are then what they are at least.
        """
        time = self._answers.now()
        of, at, found = self._metadata
        if of is knowledge and at == time:
            return found
        now, clock_is_trusted = time
        found = {
            "namespace": knowledge.namespace,
            "epoch": knowledge.epoch,
            "version": knowledge.version,
            "age_seconds": knowledge.age(now),
            "stale": knowledge.is_stale(now),
        }
        if not clock_is_trusted:
            found["clock_trusted"] = False
        self._metadata = (knowledge, time, found)
        return found

    def metadata_of(self, knowledge: Knowledge, flag_key: str) -> Metadata:
        """The same for the answer of one flag, with the flag's own metadata; not to be changed either."""
        shared = self.metadata(knowledge)
        own = knowledge.compiled.metadata(flag_key)
        return {**metadata_of(own), **shared} if own else shared

    def _in_order(self, compiled: CompiledFlags) -> list[tuple[FlagKey, bool]]:
        # Keys ascending, and whether each is a variant flag's. Whoever asks for all flags asks again with every change.
        of, order = self._order
        if of is not compiled:
            order = sorted((key, state.type is FlagType.VARIANT) for key, state in compiled.flags.items())
            self._order = (compiled, order)
        return order

    def _admit(self, asked: Asked) -> tuple[Knowledge, Question]:
        context = dict(asked.context)
        entity = context.pop(TARGETING_KEY, None)
        if entity is None:
            entity = ""
        elif not isinstance(entity, str):
            raise InvalidContext(f"{TARGETING_KEY} is {kind_of(entity)}; it must be a text")
        try:
            question = Question(asked.flag_key, entity, texts(context), asked.namespace)
        except RecursionError:
            raise InvalidContext("a value of the context is nested too deep") from None
        return self._answers.admit(question), question

    @staticmethod
    def _ask(knowledge: Knowledge, question: Question, wanted: Wanted) -> BooleanAnswer | VariantAnswer:
        compiled = knowledge.compiled
        key, entity, context = question.flag_key, question.entity_id, question.context
        if wanted is Wanted.BOOLEAN:
            return compiled.boolean(key, entity, context)
        if wanted is Wanted.ANY:
            state = compiled.flags.get(FlagKey(key))
            if state is None or state.type is not FlagType.VARIANT:
                return compiled.boolean(key, entity, context)
        return compiled.variant(key, entity, context)


def selected(selector: str, namespace: str = "") -> str:
    """The namespace that a call's headers ask for, blank for the agent's default one."""
    return namespace or selector.removeprefix(_FLAG_SET)


def memory_of(question: Question) -> int:
    """Bytes of memory that a question's texts take."""
    context = question.context
    texts_of = (question.entity_id, question.namespace, *context, *context.values())
    return sum(map(sys.getsizeof, texts_of))


def error_code(error: InvalidCall) -> str:
    """OpenFeature's code of an error."""
    match error:
        case FlagNotFound():
            return "FLAG_NOT_FOUND"
        case NamespaceNotFound():
            return "PROVIDER_NOT_READY"
        case TypeMismatch():
            return "TYPE_MISMATCH"
        case InvalidContext() | CallTooLarge():
            return "INVALID_CONTEXT"
        case TargetingKeyMissing():
            return "TARGETING_KEY_MISSING"
        case _:
            return "GENERAL"


def _key_missing(flag_key: str) -> TargetingKeyMissing:
    return TargetingKeyMissing(
        f"flag {flag_key!r} gives its values to percentages of targeting keys, and the context has no {TARGETING_KEY}"
    )


def _value_of(answer: VariantAnswer, wanted: Wanted) -> str | int | float | dict[str, object]:
    match wanted:
        case Wanted.STRING:
            return str(answer.variant_key)
        case Wanted.INTEGER:
            whole = integer_of(answer)
            if whole not in _INT64:
                raise TypeMismatch(f"flag {answer.flag_key!r}: {whole} does not fit into 64 bits")
            return whole
        case Wanted.NUMBER:
            return number_of(answer)
        case Wanted.OBJECT:
            return object_of(answer)
        case _:
            return _own_value(answer)


def _own_value(answer: VariantAnswer) -> str | int | float | dict[str, object]:
    # Where the question names no type: the attachment, if it is of a type that a question could name; else the key.
    if answer.attachment:
        bare = _without_key(answer)
        for read in (object_of, _whole_of, number_of):
            try:
                return read(bare)
            except TypeMismatch:
                continue
    return str(answer.variant_key)


def _whole_of(answer: VariantAnswer) -> int:
    # 3.0 is a number with a fraction to whoever wrote it.
    if any(mark in answer.attachment for mark in ".eE"):
        raise TypeMismatch("not written as a whole number")
    return integer_of(answer)


def _without_key(answer: VariantAnswer) -> VariantAnswer:
    return VariantAnswer(
        answer.flag_key,
        answer.match,
        "",
        answer.attachment,
        answer.reason,
        answer.segment_keys,
        answer.resolution,
    )
