"""gRPC's methods by their paths: Flipt's service, and the others once somebody asks for one of them.

No decision about flags is made here: a request becomes a Question, a reply a message, an InvalidCall a status.
"""

from collections.abc import Callable, Mapping
from typing import Final

from . import messages
from .answers import ENVIRONMENT_HEADER, NAMESPACE_HEADER, NO_FILLING, Answers, Filling
from .calls import CallFailed, Method, Status, Unary, decoded
from .http2.headers import Fields
from .protos import flipt_evaluation_pb2 as flipt

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
            f"/{EVALUATION_SERVICE}/{name}": Unary(answer)
            for name, answer in (
                ("Boolean", self._boolean),
                ("Variant", self._variant),
                ("Batch", self._batch),
            )
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
        request = decoded(flipt.EvaluationRequest, body)
        reply = self._answers.boolean(messages.question(request), _filling(fields))
        return messages.boolean_response(reply).SerializeToString()

    def _variant(self, body: bytes, fields: Fields) -> bytes:
        request = decoded(flipt.EvaluationRequest, body)
        reply = self._answers.variant(messages.question(request), _filling(fields))
        return messages.variant_response(reply).SerializeToString()

    def _batch(self, body: bytes, fields: Fields) -> bytes:
        request = decoded(flipt.BatchEvaluationRequest, body)
        questions = [messages.question(entry) for entry in request.requests]
        reply = self._answers.batch(questions, request.request_id, _filling(fields))
        return messages.batch_response(reply).SerializeToString()


def _filling(fields: Fields) -> Filling:
    headers = fields.headers
    namespace, environment = headers.get(NAMESPACE_HEADER, ""), headers.get(ENVIRONMENT_HEADER, "")
    return Filling(namespace, environment) if namespace or environment else NO_FILLING


def _unimplemented(body: bytes, fields: Fields) -> bytes:  # noqa: ARG001  # a method's signature
    raise CallFailed(Status.UNIMPLEMENTED, "no such method; reflection lists the services")


_NO_METHOD: Final = Unary(_unimplemented)
