"""An application with a client that grpcio-tools generates from Flipt's service, as the README shows it."""

import json
import sys
from typing import Any

import grpc  # type: ignore[import-untyped]  # it ships no types

messages: Any
services: Any
messages, services = grpc.protos_and_services("flipt_evaluation.proto")


def answer(stub: Any, kind: str, default: object, request: Any) -> dict[str, object]:
    try:
        if kind == "boolean":
            found = stub.Boolean(request, timeout=100)
            value, variant = found.enabled, None
        else:
            found = stub.Variant(request, timeout=100)
            value = variant = found.variant_key
    except grpc.RpcError as error:
        return {"value": default, "reason": "ERROR", "variant": None, "error": error.code().name}
    reason = messages.EvaluationReason.Name(found.reason)
    return {"value": value, "reason": reason, "variant": variant, "error": None}


def say(document: object) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


with grpc.insecure_channel(f"unix:{sys.argv[1]}") as channel:
    flags = services.EvaluationServiceStub(channel)
    grpc.channel_ready_future(channel).result(timeout=100)
    say({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        context = question["context"]
        entity = context.pop("targetingKey", "")
        request = messages.EvaluationRequest(flag_key=question["key"], entity_id=entity, context=context)
        say(answer(flags, question["kind"], question["default"], request))
