"""Memories of encoded answers and parsed heads: never an answer of another version, namespace, type or request."""

import json

import pytest
from admitted import History
from flagd_calls import FLAGS, MESSAGES, VERSIONS, Failed, calling, choosing, switch
from local_server import RunningServer, running
from raw_http1 import HttpClient

from flagcast_agent.api import http1, resolutions
from flagcast_agent.api.http1 import BadRequest, Request, RequestReader
from flagcast_agent.api.resolutions import Encodings
from flagcast_agent.evaluator import Evaluator
from flagcast_shared.ids import FlagKey, Namespace
from flagcast_shared.model import BooleanFlag, VariantFlag

ONE = "/ofrep/v1/evaluate/flags/it"
CONNECT = "/flagd.evaluation.v2.Service/ResolveObject"


def objects(server: RunningServer, namespace: str = "") -> list[object]:
    """The flag's object by every protocol that remembers answers; each is asked twice."""
    header = {"flagd-selector": namespace} if namespace else {}
    found: list[object] = []
    for _ in range(2):
        with HttpClient(server.path) as http:
            found += [http.post_json(ONE, {}, header).json["value"]]
            found += [http.post_json(CONNECT, {"flagKey": "it"}, header).json["value"]]
        for version in VERSIONS:
            with calling(server.path, version) as flagd:
                found.append(dict(flagd.resolve("ResolveObject", "it", selector=namespace).value))
    return found


def test_a_new_version_with_another_attachment_is_answered_from_at_once() -> None:
    history = History()
    with running(None) as server:
        for number in (1, 2, 3):
            content = [choosing("it", "same", json.dumps({"n": number}))]
            server.evaluator.activate(history.begin(content) if number == 1 else history.change(content))
            assert objects(server) == [{"n": number}] * 8


def test_two_namespaces_that_are_asked_by_turns_keep_their_own_answers() -> None:
    with running(None) as server:
        for number, name in enumerate(("default", "other")):
            content = [choosing("it", "same", json.dumps({"n": number}))]
            server.evaluator.activate(History(name).begin(content))
        for _ in range(2):
            assert objects(server) == [{"n": 0}] * 8
            assert objects(server, "other") == [{"n": 1}] * 8


def test_what_providers_may_keep_is_told_of_the_default_namespace_alone() -> None:
    with running(None, namespaces=[Namespace("other")]) as server:
        for name in ("default", "other"):
            server.evaluator.activate(History(name).begin([switch("on", enabled=True)]))
        with calling(server.path) as flagd:
            for _ in range(2):
                assert flagd.resolve("ResolveBoolean", "on").reason == "STATIC"
                assert flagd.resolve("ResolveBoolean", "on", selector="other").reason == "DEFAULT"


@pytest.mark.parametrize("version", VERSIONS)
def test_one_flag_asked_for_as_every_type_answers_each(version: str) -> None:
    with running([choosing("it", "7", "12")]) as server, calling(server.path, version) as flagd:
        for _ in range(2):
            assert flagd.resolve("ResolveString", "it").value == "7"
            assert flagd.resolve("ResolveInt", "it").value == 12
            assert flagd.resolve("ResolveFloat", "it").value == 12.0
            with pytest.raises(Failed, match="INVALID_ARGUMENT"):
                flagd.resolve("ResolveObject", "it")
            with pytest.raises(Failed, match="INVALID_ARGUMENT"):
                flagd.resolve("ResolveBoolean", "it")


def test_no_value_is_an_error_in_the_first_version_alone_and_counted_in_both() -> None:
    content = [flag for flag in FLAGS if isinstance(flag, VariantFlag) and flag.key == "off-without"]
    with (
        running(content) as server,
        calling(server.path, "v1") as first,
        calling(server.path, "v2") as second,
    ):
        for _ in range(2):
            assert not second.resolve("ResolveString", "off-without").HasField("value")
            with pytest.raises(Failed, match=r"NOT_FOUND.*has no value for this context: DISABLED"):
                first.resolve("ResolveString", "off-without")
        assert server.evaluator.evaluations == 4


def test_metadata_has_one_number_in_all_responses_for_one_flag() -> None:
    # The encoded metadata of one response stands behind the rest of another.
    numbers = {
        getattr(messages, f"Resolve{kind}Response").DESCRIPTOR.fields_by_name["metadata"].number
        for messages in MESSAGES.values()
        for kind in ("Boolean", "String", "Float", "Int", "Object")
    }
    assert numbers == {4}


def test_a_memory_ends_at_its_limit_and_large_answers_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolutions, "KEPT_MAX_ENTRIES", 3)
    evaluator = Evaluator({})
    keys = [FlagKey(f"flag-{number}") for number in range(5)]
    knowledge = evaluator.activate(History().begin([BooleanFlag(key, enabled=True) for key in keys]))
    asked: list[str] = []

    def encode_all(size: int) -> None:
        def encode(answer: object) -> bytes:
            asked.append(str(answer))
            return bytes(size)

        remembered = encodings.of(knowledge, "form", encode)
        for key in keys:
            remembered(knowledge.compiled.boolean(key, "", {}))

    encodings = Encodings()
    encode_all(resolutions.KEPT_MAX_BYTES)
    assert len(asked) == 5
    encode_all(resolutions.KEPT_MAX_BYTES)
    assert len(asked) == 5 + 2
    encodings = Encodings()
    encode_all(resolutions.KEPT_MAX_BYTES + 1)
    encode_all(resolutions.KEPT_MAX_BYTES + 1)
    assert len(asked) == 7 + 10


# Heads of requests.


def head(target: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {target} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def read(reader: RequestReader, data: bytes) -> Request:
    reader.feed(data)
    request = reader.next()
    assert request is not None
    return request


def test_the_same_head_again_brings_its_own_body() -> None:
    reader = RequestReader()
    for body in (b"abc", b"def", b"", b"ghi"):
        found = read(reader, head("/a", f"Content-Length: {len(body)}") + body)
        assert (found.target, found.body) == ("/a", body)
    chunked = head("/b", "Transfer-Encoding: chunked")
    for body in (b"abc", b"", b"de"):
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        found = read(reader, chunked + chunks)
        assert (found.target, found.body) == ("/b", body)


def test_more_heads_than_are_kept_are_all_read() -> None:
    reader = RequestReader()
    for _ in range(3):
        for number in range(http1._REMEMBERED_MAX * 2 + 1):
            assert read(reader, head(f"/{number}", "Content-Length: 1") + b"x").target == f"/{number}"
            assert len(reader._heads) <= http1._REMEMBERED_MAX
    long = "x" * http1._REMEMBERED_MAX_BYTES
    for _ in range(2):
        assert read(reader, head("/long", f"X: {long}")).headers["x"] == long
        assert all(len(text) <= http1._REMEMBERED_MAX_BYTES for text in reader._heads)


def test_a_head_that_is_refused_is_refused_again() -> None:
    # A connection ends with its first refusal; the memory holds nothing of it even so.
    reader = RequestReader()
    for _ in range(2):
        reader.feed(head("/a", "Content-Length: 1", "Content-Length: 1"))
        with pytest.raises(BadRequest, match="twice"):
            reader.next()
        assert reader._heads == {}
