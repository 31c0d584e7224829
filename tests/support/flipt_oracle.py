"""Flipt's own engine as an oracle: the library inside the wheel `flipt-client`, in a process of its own.

A panic inside the library aborts its process, so it never runs in the test's. The child serves each snapshot to
the engine from a loopback HTTP server, asks it by ctypes, and talks with the parent in JSON lines.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

NAMESPACE = "oracle"


class Request(NamedTuple):
    """One question; `kind` is "boolean" or "variant"."""

    kind: str
    flag: str
    entity: str
    context: Mapping[str, str]


class FliptOracle:
    """The parent's side. `ask` sends one snapshot and its requests, and returns the engine's results in order."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "RUST_BACKTRACE": "0", "PYTHONIOENCODING": "utf-8"},
        )
        assert self._child.stderr is not None
        self._said: list[str] = []
        self._listener = threading.Thread(target=self._listen, name="oracle-stderr", daemon=True)
        self._listener.start()

    def ask(self, snapshot: Mapping[str, Any], requests: Sequence[Request]) -> list[dict[str, Any]]:
        """For each request the engine's `result`, or `{"error": text}`."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        json.dump({"snapshot": snapshot, "requests": requests}, self._child.stdin)
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            self._child.wait(timeout=100)
            raise AssertionError(f"Flipt's engine died ({self._child.returncode}): {''.join(self._said)}")
        answers: list[dict[str, Any]] = json.loads(line)
        return answers

    def close(self) -> None:
        """Ends the child."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        self._child.stdin.close()
        try:
            self._child.wait(timeout=100)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._listener.join(timeout=100)
        self._child.stdout.close()
        self._child.stderr.close()

    def _listen(self) -> None:
        assert self._child.stderr is not None
        for line in self._child.stderr:
            self._said.append(line)


@contextlib.contextmanager
def flipt_oracle() -> Iterator[FliptOracle]:
    """A running oracle."""
    oracle = FliptOracle()
    try:
        yield oracle
    finally:
        oracle.close()


def engine_library() -> Path:
    """The library inside the wheel."""
    package = importlib.util.find_spec("flipt_client")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent.parent / "ext" / "linux_x86_64" / "libfliptengine.so"


@contextlib.contextmanager
def served(snapshot: Mapping[str, Any]) -> Iterator[str]:
    """The URL of a loopback server that answers every path with the snapshot."""
    body = json.dumps(snapshot).encode()

    class Stub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.daemon_threads = True
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="stub", daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Engine:
    """Flipt's engine with one snapshot, in this process. Only for a process that may die."""

    def __init__(self, url: str) -> None:
        self._library = ctypes.CDLL(str(engine_library()))
        for name in ("evaluate_boolean", "evaluate_variant"):
            function = getattr(self._library, name)
            function.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
            function.restype = ctypes.c_void_p
        self._library.destroy_string.argtypes = [ctypes.c_void_p]
        self._library.destroy_string.restype = None
        self._library.destroy_engine.argtypes = [ctypes.c_void_p]
        self._library.destroy_engine.restype = None
        self._library.initialize_engine.argtypes = [ctypes.c_char_p]
        self._library.initialize_engine.restype = ctypes.c_void_p
        self.boolean_call = self._library.evaluate_boolean
        self.variant_call = self._library.evaluate_variant
        options = {"namespace": NAMESPACE, "url": url, "update_interval": 86_400, "request_timeout": 10}
        self.handle = self._library.initialize_engine(json.dumps(options).encode())

    def ask(self, request: Sequence[Any]) -> dict[str, Any]:
        """The engine's `result`, or `{"error": text}`."""
        kind, flag, entity, context = request
        question = json.dumps({"flag_key": flag, "entity_id": entity, "context": context}).encode()
        response = json.loads(self.raw(kind, question))
        if response["status"] != "success":
            return {"error": str(response["error_message"])}
        result: dict[str, Any] = response["result"]
        return result

    def raw(self, kind: str, question: bytes) -> bytes:
        """The call itself: JSON in, JSON out."""
        call = self.boolean_call if kind == "boolean" else self.variant_call
        pointer = call(self.handle, question)
        text = ctypes.string_at(pointer)
        self._library.destroy_string(pointer)
        return text

    def close(self) -> None:
        """Frees the engine."""
        self._library.destroy_engine(self.handle)


def _answer_requests() -> None:
    for line in sys.stdin:
        work = json.loads(line)
        with served(work["snapshot"]) as url:
            engine = Engine(url)
            answers = [engine.ask(request) for request in work["requests"]]
            engine.close()
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _answer_requests()
