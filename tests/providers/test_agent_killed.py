"""Clients of others on a real agent process: a change reaches them, the agent is killed under them, and is started again.

What a client does while nobody answers is its own affair, and docs/applications.md says what that is.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from flagd_calls import choosing, switch
from local_server import ENTRIES
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from provided import FLAGD_LANGUAGES, Application, flagd_application, flipt_application, with_rust
from scenes import Scene, scene

from brokers import free_port
from flagcast_shared.model import AnySegment, Flag

pytestmark = pytest.mark.mosquitto

READY, CHANGED = "PROVIDER_READY", "PROVIDER_CONFIGURATION_CHANGED"
STALE, ERROR = "PROVIDER_STALE", "PROVIDER_ERROR"
SHARED_OUT = next(entry for entry in ENTRIES if entry.key == "half")


def version(number: int) -> list[Flag | AnySegment]:
    """`word` says the version and can be kept by whoever asks, `half` cannot, and one flag is of this version alone."""
    return [choosing("word", f"v{number}"), SHARED_OUT, switch(f"only-{number}", enabled=True)]


def changed_to(number: int) -> tuple[str, ...]:
    """The flags that the event of this version names, and no other event."""
    return (f"only-{number - 1}", f"only-{number}", "word")


@pytest.fixture
def it() -> Iterator[Scene]:
    with scene() as made:
        made.device.start()
        made.publish(*version(1))
        made.device.wait_for("message=admitted")
        yield made


@dataclass(frozen=True)
class Manner:
    """What flagd's provider does in one language when the agent is gone: what it tells, in this order, and answers."""

    tells: tuple[str, ...]
    code: str
    keeps: bool
    """Whether it goes on with an answer that it kept until it tells of an error."""
    seconds: float
    """What a question takes at most on an idle machine, with this deadline."""
    deadline: int = 2
    """Seconds; a provider is not ready unless it has reached the agent within one or two of them."""


MANNERS = {
    "python": Manner((STALE, ERROR), "GENERAL", keeps=True, seconds=2),
    "node": Manner((STALE, ERROR), "FLAG_NOT_FOUND", keeps=False, seconds=8),
    "go": Manner((ERROR,), "PROVIDER_NOT_READY", keeps=False, seconds=0.1),
    "java": Manner((STALE, ERROR), "GENERAL", keeps=True, seconds=5, deadline=5),
}
BUSY_SECONDS = 8.0
"""What a question may take in addition where other tests have the cores."""


@pytest.mark.parametrize("language", FLAGD_LANGUAGES)
def test_what_flagds_provider_has_kept_changes_with_its_flag_and_does_not_outlive_the_agent(
    it: Scene, language: str
) -> None:
    leaving = choosing("leaving", "here")
    it.publish(*version(2), leaving)
    it.device.wait_until(lambda: 2 in it.device.logged_versions, "version 2")
    with flagd_application(language, it.device.socket) as application:
        application.hear(READY)
        assert kept(application, "leaving") == "here"
        assert kept(application, "word") == "v2"
        assert application.ask("boolean", "half", False, {"targetingKey": "e"})["reason"] == "SPLIT"
        it.publish(*version(3), leaving)
        application.hear(CHANGED, *changed_to(3))
        assert kept(application, "word") == "v3"
        it.device.kill()
        it.publish(*version(4))
        # It hears of the change and of the removal while nobody listens to it.
        assert it.device.run("run", "--once").returncode == 0
        it.device.start()
        application.hear(READY)
        application.until(lambda: word(application) == "v4", "what was published meanwhile")
        application.until(
            lambda: application.ask("string", "leaving", "mine")["error"] == "FLAG_NOT_FOUND", "the removal"
        )
        it.publish(*version(5))
        application.hear(CHANGED, *changed_to(5))
        assert kept(application, "word") == "v5"


@pytest.mark.parametrize("language", FLAGD_LANGUAGES)
def test_flagds_provider_tells_that_its_agent_is_gone_and_that_it_is_back(it: Scene, language: str) -> None:
    manner = MANNERS[language]
    settings = {"FLAGD_DEADLINE_MS": f"{manner.deadline}000", "FLAGD_RETRY_GRACE_PERIOD": "3"}
    with flagd_application(language, it.device.socket, settings=settings) as application:
        application.hear(READY)
        assert kept(application, "word") == "v1"
        it.device.kill()
        for event in manner.tells:
            application.hear(event)
            if event == STALE and manner.keeps:
                assert kept(application, "word") == "v1"
        for question in (("string", "word", "mine"), ("boolean", "half", True)):
            assert_dead(application, question, manner.code, manner.seconds)
        it.device.start()
        application.hear(READY)
        application.until(lambda: word(application) == "v1", "what the device's disk says")
        it.publish(*version(2))
        application.hear(CHANGED, *changed_to(2))
        assert word(application) == "v2"


@with_rust
def test_rusts_provider_receives_no_change_and_keeps_an_answer_unless_its_cache_is_disabled(
    it: Scene,
) -> None:
    socket = it.device.socket
    with (
        flagd_application("rust", socket, settings={"FLAGD_CACHE": "disabled"}) as asking,
        flagd_application("rust", socket) as keeping,
    ):
        assert kept(keeping, "word") == "v1"
        assert [asking.ask("string", "word", "mine")["reason"] for _ in range(3)] == ["STATIC"] * 3
        it.publish(*version(2))
        asking.until(lambda: word(asking) == "v2", "the change")
        assert keeping.ask("boolean", "only-2", False)["value"] is True
        assert word(keeping) == "v1"
        it.device.kill()
        assert_dead(asking, ("string", "word", "mine"), "GENERAL", 0.1)
        assert_dead(keeping, ("boolean", "half", True), "GENERAL", 0.1)
        assert word(keeping) == "v1"
        it.publish(*version(3))
        it.device.start()
        asking.until(lambda: word(asking) == "v3", "what was published meanwhile")
        assert word(keeping) == "v1"


@with_rust
def test_rusts_provider_keeps_an_answer_no_longer_than_it_is_told(it: Scene) -> None:
    with flagd_application("rust", it.device.socket, settings={"FLAGD_CACHE_TTL": "1"}) as application:
        assert kept(application, "word") == "v1"
        it.publish(*version(2))
        application.until(lambda: word(application) == "v2", "the change, a second later")


def assert_dead(
    application: Application, question: tuple[str, str, object], code: str, seconds: float
) -> None:
    """The caller's default with this error, in bounded time."""
    began = time.monotonic()
    found = application.ask(*question)
    took = time.monotonic() - began
    assert (found["value"], found["reason"], found["error"]) == (question[2], "ERROR", code)
    assert took < seconds + BUSY_SECONDS


def word(application: Application) -> str:
    return str(application.ask("string", "word", "mine")["value"])


def kept(application: Application, flag: str) -> str:
    """The flag's answer, asked for often enough that the provider has kept it."""
    return str(application.ask_until_kept("string", flag, "mine")["value"])


def test_a_generated_flipt_client_outlives_its_agent(it: Scene) -> None:
    with flipt_application(it.device.socket) as application:
        assert application.ask("string", "word", "mine") == {
            "value": "v1",
            "reason": "DEFAULT_EVALUATION_REASON",
            "variant": "v1",
            "error": None,
        }
        assert application.ask("boolean", "only-1", False)["value"] is True
        assert application.ask("boolean", "nope", True)["error"] == "NOT_FOUND"
        assert application.ask("boolean", "word", True)["error"] == "INVALID_ARGUMENT"
        it.publish(*version(2))
        application.until(lambda: word(application) == "v2", "the change")
        it.device.kill()
        found = application.ask("string", "word", "mine")
        assert (found["value"], found["error"]) == ("mine", "UNAVAILABLE")
        it.publish(*version(3))
        it.device.start()
        application.until(lambda: word(application) == "v3", "what was published meanwhile")
        it.publish(*version(4))
        application.until(lambda: word(application) == "v4", "the change")


def test_ofreps_provider_outlives_its_agent() -> None:
    # It has no option for a Unix socket.
    port = free_port()
    with scene(first=[f"tcp_port = {port}"]) as it:
        it.device.start()
        it.publish(*version(1))
        it.device.wait_for("message=admitted")
        provider = OFREPProvider(f"http://127.0.0.1:{port}")
        api.set_provider_and_wait(provider, "killed")
        client = api.get_client("killed")
        try:
            _ask_over_a_restart(it, client)
        finally:
            api.clear_providers()
            provider.session.close()


def _ask_over_a_restart(it: Scene, client: OpenFeatureClient) -> None:
    def has(word: str) -> bool:
        found = client.get_string_details("word", "mine")
        assert (found.error_code is None) == (found.value != "mine")
        return found.value == word

    def says(word: str) -> None:
        it.device.wait_until(lambda: has(word), word)

    assert has("v1")
    assert client.get_boolean_details("half", True, EvaluationContext("e")).reason == "SPLIT"
    assert client.get_boolean_details("half", True).error_code is ErrorCode.TARGETING_KEY_MISSING
    it.publish(*version(2))
    says("v2")
    it.device.kill()
    found = client.get_string_details("word", "mine")
    assert (found.value, found.reason, found.error_code) == ("mine", "ERROR", "GENERAL")
    it.publish(*version(3))
    it.device.start()
    says("v3")
    it.publish(*version(4))
    says("v4")
