"""Between our values and the protobuf messages of Flipt's service.

No transport: what a gRPC server sends and a Connect server would send are the same messages.
"""

from itertools import islice
from typing import Final

from flagcast_agent.limits import CONTEXT_MAX_ENTRIES
from flagcast_shared.evaluation import Reason

from .answers import BatchReply, BooleanReply, ErrorReply, Stamp, VariantReply
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
    response = batch_part(reply, 0, len(reply.replies))
    response.MergeFrom(batch_end(reply))
    return response


def batch_end(reply: BatchReply) -> flipt.BatchEvaluationResponse:
    """The fields of a batch's message that stand once.

    Encoded behind its parts it makes the whole message (protobuf's encoding guide, "Last One Wins").
    """
    return flipt.BatchEvaluationResponse(
        request_id=reply.stamp.request_id, request_duration_millis=reply.stamp.milliseconds
    )


def batch_part(reply: BatchReply, start: int, count: int) -> flipt.BatchEvaluationResponse:
    """So many answers of it from `start` on."""
    response = flipt.BatchEvaluationResponse()
    # Filled in place: a message that is made first and put into another one is copied.
    for entry in reply.replies[start : start + count]:
        message = response.responses.add()
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
    return response


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
