"""What stands under which path of the agent's HTTP/1.1: Connect's calls, OFREP's, metrics, liveness and readiness."""

import json
from collections.abc import Callable

from flagcast_agent.evaluator import Evaluator
from flagcast_agent.status import Activity, Status

from . import metrics
from .changes import Changes
from .connect import Connect
from .flagd import Flagd
from .http1 import Request
from .load import Load
from .ofrep import Ofrep
from .resolutions import Resolutions
from .web import JSON, TEXT, Answer, Reply

LIVE = "/livez"
READY = "/readyz"
METRICS = "/metrics"


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
        salt: str,
    ) -> None:
        self._evaluator = evaluator
        self._changes = changes
        self._load = load
        self._status = status
        self._activity = activity
        self._connect = Connect(flagd)
        self._ofrep = Ofrep(resolutions, lambda: changes, salt)
        self._own = {LIVE: self._live, READY: self._ready, METRICS: self._metrics}

    def answer(self, request: Request) -> Answer:
        """The answer to any request."""
        path = request.target.partition("?")[0]
        if self._ofrep.serves(path):
            return self._ofrep.answer(path, request)
        if self._connect.serves(path):
            return self._connect.answer(path, request)
        page = self._own.get(path)
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
