"""An application with flagd's provider for Python, which runs where that is installed: see test_flagd_providers.py."""

import json
import sys

from openfeature import api
from openfeature.contrib.provider.flagd import FlagdProvider  # type: ignore[import-not-found]  # in .venv/oracles
from openfeature.contrib.provider.flagd.config import ResolverType  # type: ignore[import-not-found]  # as above
from openfeature.evaluation_context import EvaluationContext


def say(document: object) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


where = {"host": "unix", "port": sys.argv[1]} if sys.argv[1] != "-" else {}
api.set_provider_and_wait(
    FlagdProvider(
        resolver_type=ResolverType.RPC,
        retry_backoff_max_ms=500,
        deadline_ms=5000,
        # Not so soon does it forget by itself what it has kept.
        retry_grace_period=60,
        **where,
    )
)
client = api.get_client()
say({"ready": True})
for line in sys.stdin:
    question = json.loads(line)
    context = question["context"]
    entity = context.pop("targetingKey", None)
    details = getattr(client, f"get_{question['kind']}_details")(
        question["key"], question["default"], EvaluationContext(entity, context)
    )
    say(
        {
            "value": details.value,
            "reason": str(getattr(details.reason, "value", details.reason)),
            "variant": details.variant,
            "error": details.error_code.value if details.error_code else None,
        }
    )
