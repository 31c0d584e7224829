"""What stands under which path of the agent's HTTP/1.1: Connect's calls, OFREP's, metrics, liveness and readiness."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from flagcast_agent.evaluator import Evaluator
from flagcast_agent.status import Activity, Status

from . import metrics
from .changes import Changes
from .connect import Connect
from .flagd import Flagd
from .grpc import AGENT_SERVICE
from .http1 import Request
from .load import Load
from .ofrep import Ofrep
from .resolutions import Resolutions
from .web import JSON, TEXT, Answer, Reply

if TYPE_CHECKING:
    from .agent_pages import AgentPages
    from .calls import Method

LIVE = "/livez"
READY = "/readyz"
METRICS = "/metrics"
_AGENT = f"/{AGENT_SERVICE}/"


class Pages:
    """Answers any request."""

    def __init__(
        self,
        *,
        evaluator: Evaluator,
        resolutions: Resolutions,
        flagd: Flagd,
        changes: Changes,
        load: Load,
        status: Callable[[], Status],
        activity: Callable[[], Activity],
        method: "Callable[[str], Method]",
        salt: str,
    ) -> None:
        self._evaluator = evaluator
        self._changes = changes
        self._load = load
        self._status = status
        self._activity = activity
        self._connect = Connect(flagd)
        self._ofrep = Ofrep(resolutions, lambda: changes, salt)
        self._method = method
        self._agent: AgentPages | None = None
        self._own = {LIVE: self._live, READY: self._ready, METRICS: self._metrics}

    def answer(self, request: Request) -> Answer:
        """The answer to any request."""
        path = request.target.partition("?")[0]
        if self._ofrep.serves(path):
            return self._ofrep.answer(path, request)
        if self._connect.serves(path):
            return self._connect.answer(path, request)
        page = self._own.get(path)
        if page is None and path.startswith(_AGENT):
            if self._agent is None:
                # Imported by the first such call: protobuf's JSON is needed for nothing else.
                from .agent_pages import AgentPages

                self._agent = AgentPages(self._method)
            if self._agent.serves(path):
                return self._agent.answer(path, request)
        if page is None:
            return Reply(404, JSON, json.dumps({"errorDetails": "nothing stands under this path"}).encode())
        if request.method not in {"GET", "HEAD"}:
            return Reply(
                405,
                JSON,
                json.dumps({"errorDetails": "this path takes GET"}).encode(),
                {"allow": "GET, HEAD"},
            )
        return page()

    def _live(self) -> Reply:
        return Reply(200, TEXT, b"alive\n")

    def _ready(self) -> Reply:
        if self._evaluator.namespaces():
            return Reply(200, TEXT, b"ready\n")
        return Reply(503, TEXT, b"nothing was ever admitted\n")

    def _metrics(self) -> Reply:
        body = metrics.render(
            self._status(),
            self._activity(),
            evaluations=self._evaluator.evaluations,
            targeting_keys_missing=self._evaluator.entities_missing,
            activations=self._changes.activations,
            local_connections=len(self._load.connections),
            local_calls=self._load.calls,
        )
        return Reply(200, metrics.CONTENT_TYPE, body)
