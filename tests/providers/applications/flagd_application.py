"""An application with flagd's provider for Python, which runs where that is installed: see test_flagd_providers.py."""

import json
import sys
import threading
from collections.abc import Callable

from openfeature import api
from openfeature.contrib.provider.flagd import FlagdProvider  # type: ignore[import-not-found]  # in .venv/oracles
from openfeature.contrib.provider.flagd.config import ResolverType  # type: ignore[import-not-found]  # as above
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent

turn = threading.Lock()


def say(document: object) -> None:
    # The SDK calls its handlers from threads of its own.
    with turn:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()


def telling(event: ProviderEvent) -> Callable[[EventDetails], None]:
    def tell(details: EventDetails) -> None:
        # A new handler is told that the SDK's own provider, which is in use until ours is, is ready.
        if details.provider_name == FlagdProvider.__name__:
            say({"event": event.value, "flags": details.flags_changed or []})

    return tell


for event in ProviderEvent:
    api.add_handler(event, telling(event))
where = {"host": "unix", "port": sys.argv[1]} if sys.argv[1] != "-" else {}
api.set_provider_and_wait(FlagdProvider(resolver_type=ResolverType.RPC, retry_backoff_max_ms=500, **where))
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
