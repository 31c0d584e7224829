"""Between our values and the protobuf messages of the local interfaces, in both directions.

No transport: what a gRPC server sends and a Connect server would send are the same messages.
"""

import json
from typing import Final, cast

from flagcast_agent.status import Freshness, LinkState, LinkStatus, NamespaceStatus, Rejection, Status
from flagcast_shared.evaluation import Reason

from .answers import (
    BatchReply,
    BooleanReply,
    ErrorReply,
    ExplainedReply,
    FlagList,
    Question,
    Stamp,
    VariantReply,
)
from .protos import flagcast_agent_pb2 as agent
from .protos import flipt_evaluation_pb2 as flipt

_REASONS: Final = {
    Reason.UNKNOWN: flipt.UNKNOWN_EVALUATION_REASON,
    Reason.FLAG_DISABLED: flipt.FLAG_DISABLED_EVALUATION_REASON,
    Reason.MATCH: flipt.MATCH_EVALUATION_REASON,
    Reason.DEFAULT: flipt.DEFAULT_EVALUATION_REASON,
}


def question(request: flipt.EvaluationRequest) -> Question:
    """What a Flipt client asks."""
    return Question(
        request.flag_key,
        request.entity_id,
        dict(request.context),
        request.namespace_key,
        request.environment_key,
        request.request_id,
    )


def question_to_explain(request: agent.ExplainRequest) -> Question:
    """What somebody wants explained."""
    return Question(request.flag_key, request.entity_id, dict(request.context), request.namespace)


def boolean_response(reply: BooleanReply) -> flipt.BooleanEvaluationResponse:
    """Flipt's message of a boolean answer."""
    response = flipt.BooleanEvaluationResponse(
        enabled=reply.answer.enabled,
        reason=_REASONS[reply.answer.reason],
        request_id=reply.stamp.request_id,
        request_duration_millis=reply.stamp.milliseconds,
        flag_key=reply.answer.flag_key,
        segment_keys=reply.answer.segment_keys,
    )
    _set_timestamp(response, reply.stamp)
    return response


def variant_response(reply: VariantReply) -> flipt.VariantEvaluationResponse:
    """Flipt's message of a variant answer."""
    response = flipt.VariantEvaluationResponse(
        match=reply.answer.match,
        segment_keys=reply.answer.segment_keys,
        reason=_REASONS[reply.answer.reason],
        variant_key=reply.answer.variant_key,
        variant_attachment=reply.answer.attachment,
        request_id=reply.stamp.request_id,
        request_duration_millis=reply.stamp.milliseconds,
        flag_key=reply.answer.flag_key,
    )
    _set_timestamp(response, reply.stamp)
    return response


def batch_response(reply: BatchReply) -> flipt.BatchEvaluationResponse:
    """Flipt's message of a batch."""
    return flipt.BatchEvaluationResponse(
        request_id=reply.stamp.request_id,
        responses=[_entry(entry) for entry in reply.replies],
        request_duration_millis=reply.stamp.milliseconds,
    )


def flags_response(listed: FlagList) -> agent.ListFlagsResponse:
    """Our message of a namespace's flags."""
    return agent.ListFlagsResponse(
        namespace=listed.namespace,
        epoch=listed.epoch,
        version=listed.version,
        flags=[
            agent.Flag(key=key, type=state.type, enabled=state.enabled, problem=state.problem)
            for key, state in listed.flags
        ],
    )


def explain_response(reply: ExplainedReply) -> agent.ExplainResponse:
    """Our message of an explained evaluation."""
    return agent.ExplainResponse(
        namespace=reply.namespace,
        epoch=reply.epoch,
        version=reply.version,
        lines=reply.explanation.lines(),
        json=json.dumps(reply.explanation.as_dict(), ensure_ascii=False),
    )


def status_response(status: Status) -> agent.StatusResponse:
    """Our message of the agent's status."""
    return agent.StatusResponse(
        agent_version=status.agent_version,
        device=status.device,
        environment=status.environment,
        started=status.started,
        now=status.now,
        clock_is_trusted=status.clock_is_trusted,
        link=agent.Link(
            state=status.link.state,
            since=status.link.since,
            last_error=status.link.last_error,
            last_error_at=status.link.last_error_at,
        ),
        namespaces=[_namespace_message(namespace) for namespace in status.namespaces],
    )


def status_of(response: agent.StatusResponse) -> Status:
    """The status that an agent sent."""
    return Status(
        agent_version=response.agent_version,
        device=response.device,
        environment=response.environment,
        started=response.started,
        now=response.now,
        clock_is_trusted=response.clock_is_trusted,
        link=LinkStatus(
            cast("LinkState", response.link.state),
            response.link.since,
            response.link.last_error,
            response.link.last_error_at,
        ),
        namespaces=tuple(_namespace_status(namespace) for namespace in response.namespaces),
    )


def _entry(reply: BooleanReply | VariantReply | ErrorReply) -> flipt.EvaluationResponse:
    match reply:
        case BooleanReply():
            return flipt.EvaluationResponse(
                type=flipt.BOOLEAN_EVALUATION_RESPONSE_TYPE, boolean_response=boolean_response(reply)
            )
        case VariantReply():
            return flipt.EvaluationResponse(
                type=flipt.VARIANT_EVALUATION_RESPONSE_TYPE, variant_response=variant_response(reply)
            )
        case ErrorReply():
            error = flipt.ErrorEvaluationResponse(
                flag_key=reply.flag_key,
                namespace_key=reply.namespace,
                reason=flipt.NOT_FOUND_ERROR_EVALUATION_REASON
                if reply.is_not_found
                else flipt.UNKNOWN_ERROR_EVALUATION_REASON,
            )
            return flipt.EvaluationResponse(type=flipt.ERROR_EVALUATION_RESPONSE_TYPE, error_response=error)


def _set_timestamp(
    response: flipt.BooleanEvaluationResponse | flipt.VariantEvaluationResponse, stamp: Stamp
) -> None:
    # A float of today's Unix seconds holds fractions of a microsecond; more digits would be noise.
    seconds, microseconds = divmod(round(stamp.at * 1_000_000), 1_000_000)
    response.timestamp.seconds = seconds
    response.timestamp.nanos = microseconds * 1000


def _namespace_message(status: NamespaceStatus) -> agent.NamespaceStatus:
    rejection = status.last_rejection
    return agent.NamespaceStatus(
        namespace=status.namespace,
        freshness=status.freshness,
        epoch=status.epoch,
        version=status.version,
        digest=status.digest,
        issued=status.issued,
        expires=status.expires,
        age_seconds=status.age,
        flags=status.flags,
        last_rejection=None
        if rejection is None
        else agent.Rejection(attack=rejection.attack, why=rejection.why, at=rejection.at),
    )


def _namespace_status(message: agent.NamespaceStatus) -> NamespaceStatus:
    rejection = message.last_rejection
    return NamespaceStatus(
        message.namespace,
        cast("Freshness", message.freshness),
        message.epoch,
        message.version,
        message.digest,
        message.issued,
        message.expires,
        message.age_seconds,
        message.flags,
        Rejection(rejection.attack, rejection.why, rejection.at)
        if message.HasField("last_rejection")
        else None,
    )
