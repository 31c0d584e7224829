"""Between our values and the protobuf messages of Flipt's service.

No transport: what a gRPC server sends and a Connect server would send are the same messages.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from flagcast_agent.limits import CONTEXT_MAX_ENTRIES, SLICE_BYTES, SLICE_FLAGS
from flagcast_shared.evaluation import Reason

from .answers import BatchReply, BooleanReply, ErrorReply, Stamp, VariantReply, varying_bytes
from .protos import flipt_evaluation_pb2 as flipt
from .questions import Question

_REASONS: Final = {
    Reason.UNKNOWN: flipt.UNKNOWN_EVALUATION_REASON,
    Reason.FLAG_DISABLED: flipt.FLAG_DISABLED_EVALUATION_REASON,
    Reason.MATCH: flipt.MATCH_EVALUATION_REASON,
    Reason.DEFAULT: flipt.DEFAULT_EVALUATION_REASON,
}


def question(request: flipt.EvaluationRequest) -> Question:
    """What a Flipt client asks."""
    context = request.context
    return Question(
        request.flag_key,
        request.entity_id,
        # Of more than is allowed, one too many is enough to be refused.
        dict(
            context
            if len(context) <= CONTEXT_MAX_ENTRIES
            else islice(context.items(), CONTEXT_MAX_ENTRIES + 1)
        ),
        request.namespace_key,
        request.environment_key,
        request.request_id,
    )


def boolean_response(reply: BooleanReply) -> flipt.BooleanEvaluationResponse:
    """Flipt's message of a boolean answer."""
    response = flipt.BooleanEvaluationResponse()
    _fill_boolean(response, reply)
    return response


def variant_response(reply: VariantReply) -> flipt.VariantEvaluationResponse:
    """Flipt's message of a variant answer."""
    response = flipt.VariantEvaluationResponse()
    _fill_variant(response, reply)
    return response


def batch_response(reply: BatchReply) -> flipt.BatchEvaluationResponse:
    """Flipt's message of a batch."""
    response = _batch_end(reply)
    for entry in reply.replies:
        _fill_entry(response.responses.add(), entry)
    return response


def batch_parts(reply: BatchReply) -> Iterator[bytes]:
    """The same encoded, in parts of SLICE_FLAGS answers or SLICE_BYTES.

    One behind the other they are the whole message (protobuf's encoding guide, "Last One Wins").
    """
    response, size = flipt.BatchEvaluationResponse(), 0
    for entry in reply.replies:
        _fill_entry(response.responses.add(), entry)
        size += SLICE_BYTES // SLICE_FLAGS
        if not isinstance(entry, ErrorReply):
            size += varying_bytes(entry.answer)
        if size >= SLICE_BYTES:
            yield response.SerializeToString()
            response, size = flipt.BatchEvaluationResponse(), 0
    response.MergeFrom(_batch_end(reply))
    yield response.SerializeToString()


def _batch_end(reply: BatchReply) -> flipt.BatchEvaluationResponse:
    # The fields of a batch's message that stand once.
    return flipt.BatchEvaluationResponse(
        request_id=reply.stamp.request_id, request_duration_millis=reply.stamp.milliseconds
    )


def _fill_entry(message: flipt.EvaluationResponse, entry: BooleanReply | VariantReply | ErrorReply) -> None:
    # Filled in place: a message that is made first and put into another one is copied.
    match entry:
        case BooleanReply():
            message.type = flipt.BOOLEAN_EVALUATION_RESPONSE_TYPE
            _fill_boolean(message.boolean_response, entry)
        case VariantReply():
            message.type = flipt.VARIANT_EVALUATION_RESPONSE_TYPE
            _fill_variant(message.variant_response, entry)
        case ErrorReply():
            message.type = flipt.ERROR_EVALUATION_RESPONSE_TYPE
            _fill_error(message.error_response, entry)


def _fill_boolean(response: flipt.BooleanEvaluationResponse, reply: BooleanReply) -> None:
    answer, stamp = reply
    response.enabled = answer.enabled
    response.reason = _REASONS[answer.reason]
    response.flag_key = answer.flag_key
    response.segment_keys.extend(answer.segment_keys)
    _fill_stamp(response, stamp)


def _fill_variant(response: flipt.VariantEvaluationResponse, reply: VariantReply) -> None:
    answer, stamp = reply
    response.match = answer.match
    response.reason = _REASONS[answer.reason]
    response.flag_key = answer.flag_key
    response.segment_keys.extend(answer.segment_keys)
    response.variant_key = answer.variant_key
    response.variant_attachment = answer.attachment
    _fill_stamp(response, stamp)


def _fill_error(response: flipt.ErrorEvaluationResponse, reply: ErrorReply) -> None:
    response.flag_key = reply.flag_key
    response.namespace_key = reply.namespace
    response.reason = (
        flipt.NOT_FOUND_ERROR_EVALUATION_REASON
        if reply.is_not_found
        else flipt.UNKNOWN_ERROR_EVALUATION_REASON
    )


def _fill_stamp(
    response: flipt.BooleanEvaluationResponse | flipt.VariantEvaluationResponse, stamp: Stamp
) -> None:
    response.request_id = stamp.request_id
    response.request_duration_millis = stamp.milliseconds
    response.timestamp.seconds = stamp.seconds
    response.timestamp.nanos = stamp.nanoseconds
