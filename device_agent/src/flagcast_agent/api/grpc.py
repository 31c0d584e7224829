"""gRPC's methods by their paths: Flipt's service, and the others once somebody asks for one of them.

No decision about flags is made here: a request becomes a Question, a reply a message, an InvalidCall a status.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from flagcast_agent.limits import BATCH_AT_ONCE_BYTES, BATCH_AT_ONCE_REQUESTS, SLICE_BYTES, SLICE_FLAGS

from . import messages
from .answers import (
    ENVIRONMENT_HEADER,
    NAMESPACE_HEADER,
    NO_FILLING,
    Answers,
    BatchReply,
    Filling,
    require_batch_size,
)
from .calls import Call, CallFailed, Lasting, Method, Status, Unary, decoded
from .http2.headers import Fields
from .protos import flipt_evaluation_pb2 as flipt
from .questions import Question, require_question_size

EVALUATION_SERVICE: Final = "flipt.evaluation.EvaluationService"
AGENT_SERVICE: Final = "flagcast.agent.v1.Agent"


class GrpcMethods:
    """Everything that gRPC's clients can ask.

    `others` makes the methods beside Flipt's, and is called by the first call of one that is not Flipt's.
    """

    def __init__(self, answers: Answers, others: Callable[[], Mapping[str, Method]]) -> None:
        self._answers = answers
        self._others: Callable[[], Mapping[str, Method]] | None = others
        self._methods: dict[str, Method] = {
            f"/{EVALUATION_SERVICE}/Boolean": Unary(self._boolean),
            f"/{EVALUATION_SERVICE}/Variant": Unary(self._variant),
            f"/{EVALUATION_SERVICE}/Batch": Unary(self._batch),
        }

    def find(self, path: str) -> Method:
        """The method of a path; one that fails where there is none."""
        found = self._methods.get(path)
        if found is None and self._others is not None:
            self._methods |= self._others()
            self._others = None
            found = self._methods.get(path)
        return found or _NO_METHOD

    # Flipt's service (FLIPT: evaluation.proto).

    def _boolean(self, body: bytes, fields: Fields) -> bytes:
        require_question_size(body)
        request = decoded(flipt.EvaluationRequest, body)
        reply = self._answers.boolean(messages.question(request), _filling(fields))
        return messages.boolean_response(reply).SerializeToString()

    def _variant(self, body: bytes, fields: Fields) -> bytes:
        require_question_size(body)
        request = decoded(flipt.EvaluationRequest, body)
        reply = self._answers.variant(messages.question(request), _filling(fields))
        return messages.variant_response(reply).SerializeToString()

    def _batch(self, body: bytes, fields: Fields) -> bytes | Lasting:
        # A large one is answered in its turn and in slices, so that nobody waits for all of it.
        if len(body) > BATCH_AT_ONCE_BYTES:
            return Lasting(self._large_batch)
        request = decoded(flipt.BatchEvaluationRequest, body)
        if len(request.requests) > BATCH_AT_ONCE_REQUESTS:
            return Lasting(self._large_batch)
        questions = [messages.question(entry) for entry in request.requests]
        slices = self._answers.batch_in_slices(questions, request.request_id, _filling(fields))
        for found in slices:
            if isinstance(found, BatchReply):
                return messages.batch_response(found).SerializeToString()
            if found > SLICE_BYTES:
                break
        return Lasting(self._large_batch)

    async def _large_batch(self, call: Call) -> None:
        async with call.turn():
            request = decoded(flipt.BatchEvaluationRequest, call.request)
            require_batch_size(len(request.requests))
            questions: list[Question] = []
            for start in range(0, len(request.requests), SLICE_FLAGS):
                questions += map(messages.question, request.requests[start : start + SLICE_FLAGS])
                await asyncio.sleep(0)  # a turn of others, not a wait
            slices = self._answers.batch_in_slices(questions, request.request_id, _filling(call.fields))
            parts: list[bytes] = []
            for found in slices:
                await asyncio.sleep(0)
                if isinstance(found, BatchReply):
                    for part in messages.batch_parts(found):
                        parts.append(part)
                        await asyncio.sleep(0)
        await call.send(*parts)


def _filling(fields: Fields) -> Filling:
    headers = fields.headers
    namespace, environment = headers.get(NAMESPACE_HEADER, ""), headers.get(ENVIRONMENT_HEADER, "")
    return Filling(namespace, environment) if namespace or environment else NO_FILLING


def _unimplemented(body: bytes, fields: Fields) -> bytes:  # noqa: ARG001  # a method's signature
    raise CallFailed(Status.UNIMPLEMENTED, "no such method; reflection lists the services")


_NO_METHOD: Final = Unary(_unimplemented)
