"""Between our values and the protobuf messages of Flagcast's own service, in both directions."""

import json
from collections.abc import Iterator

from flagcast_agent.limits import SNAPSHOT_PART_BYTES
from flagcast_agent.status import Caught, NamespaceStatus, Status

from .answers import ExplainedReply, FlagList, Snapshot
from .changes import Change, ChangeKind
from .protos import flagcast_agent_pb2 as agent
from .questions import Question


def question_to_explain(request: agent.ExplainRequest) -> Question:
    """What somebody wants explained."""
    return Question(request.flag_key, request.entity_id, dict(request.context), request.namespace)


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


def watch_response(change: Change) -> agent.WatchResponse:
    """Our message of what changed."""
    return agent.WatchResponse(
        namespace=change.knowledge.namespace,
        epoch=change.knowledge.epoch,
        version=change.knowledge.version,
        changed=[key for key, kind in change.flags.items() if kind is not ChangeKind.DELETE],
        removed=[key for key, kind in change.flags.items() if kind is ChangeKind.DELETE],
    )


def snapshot_responses(snapshot: Snapshot) -> Iterator[agent.SnapshotResponse]:
    """Our messages of a snapshot, in parts."""
    part = agent.SnapshotResponse(
        namespace=snapshot.namespace,
        epoch=snapshot.epoch,
        version=snapshot.version,
        digest=snapshot.digest,
        head=snapshot.head,
        records_in_all=len(snapshot.records),
    )
    size = 0
    for record in snapshot.records:
        if size and size + len(record) > SNAPSHOT_PART_BYTES:
            yield part
            part, size = agent.SnapshotResponse(), 0
        part.records.append(record)
        size += len(record)
    yield part


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
            report_refused=status.link.report_refused,
        ),
        namespaces=[_namespace_message(namespace) for namespace in status.namespaces],
    )


def sync_response(caught: Caught) -> agent.SyncResponse:
    """Our message of how far the agent came."""
    return agent.SyncResponse(why=caught.why, status=status_response(caught.status))


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
