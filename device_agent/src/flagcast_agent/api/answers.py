"""Flipt's three calls as plain functions of values: no bytes, no socket, no clock of its own.

Every transport turns its requests into Questions and these replies into its responses, so that gRPC, Connect or
anything later say the same. The rules are Flipt's v2 server's: a blank namespace or environment is filled from the
call's metadata, then from the agent's configuration; a blank request id gets a fresh one, and in a batch the entries
share the batch's; a reply carries the instant its evaluation ended.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from flagcast_agent.evaluator import Evaluator, Knowledge
from flagcast_agent.limits import (
    BATCH_ANSWER_MAX_BYTES,
    BATCH_MAX_REQUESTS,
    CONTEXT_MAX_BYTES,
    CONTEXT_MAX_ENTRIES,
    ENTITY_ID_MAX_BYTES,
    SLICE_BYTES,
    SLICE_FLAGS,
)
from flagcast_agent.values import reason_of
from flagcast_shared.errors import (
    AnswerTooLarge,
    CallTooLarge,
    FlagNotFound,
    InvalidCall,
    NamespaceNotFound,
)
from flagcast_shared.evaluation import (
    BooleanAnswer,
    CompiledFlags,
    FlagState,
    FlagType,
    VariantAnswer,
)
from flagcast_shared.ids import EntityId, Environment, FlagKey, Namespace

from .questions import Question

if TYPE_CHECKING:
    from flagcast_shared.explanation import Explanation

NAMESPACE_HEADER = "x-flipt-namespace"
ENVIRONMENT_HEADER = "x-flipt-environment"
DEFAULT_ENVIRONMENT = "default"
"""What Flipt's clients call the environment of a server when they were told none: here, the agent's own."""


@dataclass(frozen=True, slots=True)
class Filling:
    """What a call's metadata says for the fields that a request leaves blank."""

    namespace: str = ""
    environment: str = ""


NO_FILLING = Filling()


class Stamp(NamedTuple):
    """Which request a reply belongs to, how long it took, and when it was ready (Unix time)."""

    request_id: str
    milliseconds: float
    seconds: int
    nanoseconds: int


class BooleanReply(NamedTuple):
    """A boolean flag's answer to one question."""

    answer: BooleanAnswer
    stamp: Stamp


class VariantReply(NamedTuple):
    """A variant flag's answer to one question."""

    answer: VariantAnswer
    stamp: Stamp


class ErrorReply(NamedTuple):
    """A batch's entry that has no answer."""

    flag_key: str
    namespace: str
    error: InvalidCall

    @property
    def is_not_found(self) -> bool:
        """Whether the flag or its namespace is unknown; Flipt tells this apart from every other failure."""
        return isinstance(self.error, FlagNotFound | NamespaceNotFound)


@dataclass(frozen=True, slots=True)
class BatchReply:
    """Replies in the order of the questions."""

    replies: tuple[BooleanReply | VariantReply | ErrorReply, ...]
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class FlagList:
    """The flags of one admitted version of a namespace, sorted by key."""

    namespace: Namespace
    epoch: int
    version: int
    flags: tuple[tuple[FlagKey, FlagState], ...]


@dataclass(frozen=True, slots=True)
class ExplainedReply:
    """One evaluation with the steps that led to it, and the version it was made from."""

    namespace: Namespace
    epoch: int
    version: int
    explanation: "Explanation"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One admitted version of a namespace as it is on disk: the publisher's signed head, and every record's bytes."""

    namespace: Namespace
    epoch: int
    version: int
    digest: bytes
    head: bytes
    records: tuple[bytes, ...]


class Answers:
    """Flipt's calls over an evaluator.

    `environment` is the agent's own, `default_namespace` what a question without one means. `now` gives Unix seconds with
    their fraction, `monotonic` seconds of a clock that never jumps, `fresh_id` a new request id.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        environment: Environment,
        default_namespace: Namespace,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        fresh_id: Callable[[], str],
    ) -> None:
        self._evaluator = evaluator
        self._environment = environment
        self._default_namespace = default_namespace
        self._now = now
        self._monotonic = monotonic
        self._fresh_id = fresh_id

    def boolean(self, question: Question, filling: Filling = NO_FILLING) -> BooleanReply:
        """Raises InvalidCall: one of its leaves."""
        began = self._monotonic()
        namespace = self._admit(question, filling)
        answer = self._evaluator.boolean(
            namespace, FlagKey(question.flag_key), EntityId(question.entity_id), question.context
        )
        return BooleanReply(answer, self._stamp(question.request_id, began))

    def variant(self, question: Question, filling: Filling = NO_FILLING) -> VariantReply:
        """Raises InvalidCall: one of its leaves."""
        began = self._monotonic()
        namespace = self._admit(question, filling)
        answer = self._evaluator.variant(
            namespace, FlagKey(question.flag_key), EntityId(question.entity_id), question.context
        )
        return VariantReply(answer, self._stamp(question.request_id, began))

    def batch(
        self, questions: Sequence[Question], request_id: str = "", filling: Filling = NO_FILLING
    ) -> BatchReply:
        """Every question's answer or error; one that fails does not keep the others from theirs.

        All answers of one namespace come from the same version, whatever is activated meanwhile.

        Raises:
            CallTooLarge: more questions than BATCH_MAX_REQUESTS.
            AnswerTooLarge: attachments and segments over BATCH_ANSWER_MAX_BYTES.
        """
        slices = self.batch_in_slices(questions, request_id, filling)
        return next(each for each in slices if isinstance(each, BatchReply))

    def batch_in_slices(
        self, questions: Sequence[Question], request_id: str = "", filling: Filling = NO_FILLING
    ) -> Iterator[BatchReply | int]:
        """The same at the end; others may have their turn before each item.

        After every SLICE_FLAGS questions or SLICE_BYTES, the bytes of attachments and segments so far. Raises as `batch`.
        """
        began = self._monotonic()
        require_batch_size(len(questions))
        held: dict[Namespace, CompiledFlags] = {}
        answers: list[BooleanAnswer | VariantAnswer | InvalidCall] = []
        size, due = 0, SLICE_BYTES
        for question in questions:
            if size > due or (answers and not len(answers) % SLICE_FLAGS):
                due = size + SLICE_BYTES
                yield size
            answer = self._answer(question, filling, held)
            size += varying_bytes(answer)
            if size > BATCH_ANSWER_MAX_BYTES:
                raise AnswerTooLarge(
                    f"attachments and segments of over {BATCH_ANSWER_MAX_BYTES} bytes in one batch; ask for fewer flags at once"
                )
            answers.append(answer)
        # Counted last: a batch that is refused, or asked again in slices, has answered nothing.
        for question, answer in zip(questions, answers, strict=True):
            if not isinstance(answer, InvalidCall):
                namespace = self._namespace(question.namespace, filling)
                self._evaluator.count(namespace, answer)
                if not question.entity_id:
                    self._evaluator.lacks_entity(held[namespace], question.flag_key, question.context)
        stamp = self._stamp(request_id, began)
        replies: list[BooleanReply | VariantReply | ErrorReply] = []
        for question, answer in zip(questions, answers, strict=True):
            own = question.request_id
            entry = stamp._replace(request_id=own) if own else stamp
            match answer:
                case BooleanAnswer():
                    replies.append(BooleanReply(answer, entry))
                case VariantAnswer():
                    replies.append(VariantReply(answer, entry))
                case InvalidCall():
                    replies.append(
                        ErrorReply(question.flag_key, self._namespace(question.namespace, filling), answer)
                    )
        yield BatchReply(tuple(replies), stamp)

    def flags(self, namespace: str = "") -> FlagList:
        """The flags of a namespace; blank means the default one. Raises NamespaceNotFound."""
        known = self._evaluator.knowledge(self._namespace(namespace, NO_FILLING))
        return FlagList(
            known.namespace,
            known.epoch,
            known.version,
            tuple(sorted(known.compiled.flags.items())),
        )

    def admit(self, question: Question, filling: Filling = NO_FILLING) -> Knowledge:
        """What a question is to be answered from, once it keeps to the limits. Raises NamespaceNotFound, CallTooLarge."""
        return self._evaluator.knowledge(self._admit(question, filling))

    def knowledge(self, namespace: str = "") -> Knowledge:
        """What is known of a namespace; blank means the default one. Raises NamespaceNotFound."""
        return self._evaluator.knowledge(self._namespace(namespace, NO_FILLING))

    @property
    def default_namespace(self) -> Namespace:
        """What a question without a namespace means."""
        return self._default_namespace

    def count(self, namespace: Namespace, answer: BooleanAnswer | VariantAnswer) -> None:
        """An answer that was given to an application by whoever asked `admit`."""
        self._evaluator.count(namespace, answer)

    def lacks_entity(self, knowledge: Knowledge, question: Question) -> bool:
        """Whether a question has no entity and reached a percentage; counted if so."""
        return not question.entity_id and self._evaluator.lacks_entity(
            knowledge.compiled, question.flag_key, question.context
        )

    def fresh_id(self) -> str:
        """A text that nobody had before."""
        return self._fresh_id()

    def now(self) -> tuple[int, bool]:
        """What time it is at least, in Unix seconds, and whether the device's own clock may be believed."""
        wall, floor = int(self._now()), self._evaluator.floor
        return floor.now(wall, self._monotonic()), floor.allows(wall)

    def explain(self, question: Question) -> ExplainedReply:
        """Raises InvalidCall: one of its leaves."""
        known = self._evaluator.knowledge(self._admit(question, NO_FILLING))
        explanation = known.compiled.explain(
            FlagKey(question.flag_key), EntityId(question.entity_id), question.context
        )
        # The reason that an application gets for it.
        answer = replace(explanation.answer, resolution=reason_of(explanation.answer))
        return ExplainedReply(
            known.namespace, known.epoch, known.version, replace(explanation, answer=answer)
        )

    def _answer(
        self, question: Question, filling: Filling, held: dict[Namespace, CompiledFlags]
    ) -> BooleanAnswer | VariantAnswer | InvalidCall:
        key, entity = FlagKey(question.flag_key), EntityId(question.entity_id)
        try:
            namespace = self._admit(question, filling)
            compiled = held.get(namespace)
            if compiled is None:
                compiled = held[namespace] = self._evaluator.knowledge(namespace).compiled
            state = compiled.flags.get(key)
            answer: BooleanAnswer | VariantAnswer
            if state is not None and state.type is FlagType.VARIANT:
                answer = compiled.variant(key, entity, question.context)
            else:
                answer = compiled.boolean(key, entity, question.context)
        except InvalidCall as error:
            return error
        return answer

    def _admit(self, question: Question, filling: Filling) -> Namespace:
        environment = question.environment or filling.environment
        if environment and environment not in {self._environment, DEFAULT_ENVIRONMENT}:
            raise NamespaceNotFound(
                f"no environment {environment!r}: this device is in {self._environment!r}"
            )
        _require_small(question)
        return self._namespace(question.namespace, filling)

    def _namespace(self, text: str, filling: Filling) -> Namespace:
        return Namespace(text or filling.namespace or self._default_namespace)

    def _stamp(self, request_id: str, began: float) -> Stamp:
        milliseconds = (self._monotonic() - began) * 1000
        # A float of today's Unix seconds holds fractions of a microsecond; more digits would be noise.
        seconds, microseconds = divmod(round(self._now() * 1_000_000), 1_000_000)
        return Stamp(request_id or self._fresh_id(), milliseconds, seconds, microseconds * 1000)


def require_batch_size(number: int) -> None:
    """A batch of so many questions is within BATCH_MAX_REQUESTS. Raises CallTooLarge."""
    if number > BATCH_MAX_REQUESTS:
        raise CallTooLarge(f"{number} requests in one batch; at most {BATCH_MAX_REQUESTS}")


def _require_small(question: Question) -> None:
    context = question.context
    if len(context) > CONTEXT_MAX_ENTRIES:
        raise CallTooLarge(f"a context of too many entries; at most {CONTEXT_MAX_ENTRIES}")
    # Characters bound the bytes from below and, four times, from above: only a large context is encoded to be measured.
    characters = sum(map(len, context)) + sum(map(len, context.values()))
    if characters * 4 > CONTEXT_MAX_BYTES:
        size = sum(_bytes(key) + _bytes(value) for key, value in context.items())
        if size > CONTEXT_MAX_BYTES:
            raise CallTooLarge(f"a context of {size} bytes; at most {CONTEXT_MAX_BYTES}")
    if len(question.entity_id) * 4 > ENTITY_ID_MAX_BYTES and _bytes(question.entity_id) > ENTITY_ID_MAX_BYTES:
        raise CallTooLarge(
            f"an entity id of {_bytes(question.entity_id)} bytes; at most {ENTITY_ID_MAX_BYTES}"
        )


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def varying_bytes(answer: BooleanAnswer | VariantAnswer | InvalidCall) -> int:
    """The size of what has no small limit of its own in an answer; all else is within the size of its request."""
    if isinstance(answer, InvalidCall):
        return 0
    size = 0
    for key in answer.segment_keys:
        size += len(key.encode())
    if isinstance(answer, VariantAnswer):
        text = answer.attachment
        size += len(text) if text.isascii() else len(text.encode())
    return size
