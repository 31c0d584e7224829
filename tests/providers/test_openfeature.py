"""The agent's OpenFeature provider, through OpenFeature's own SDK."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from followed import FollowedAgent, boolean, for_segment, segment, split, variant, wait_until

pytest.importorskip("openfeature.api", reason="needs openfeature-sdk, the extra `openfeature`")

from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode, ProviderNotReadyError
from openfeature.flag_evaluation import FlagEvaluationDetails
from openfeature.hook import Hook, HookContext
from openfeature.provider import ProviderStatus
from openfeature.track import TrackingEventDetails

from flagcast_agent import clock
from flagcast_agent.client import Client
from flagcast_agent.openfeature import FlagcastProvider


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FollowedAgent]:
    followed = FollowedAgent(tmp_path / "agent.sqlite", labels={"ring": "pilot"})
    yield followed
    followed.close()


@pytest.fixture
def flagcast(agent: FollowedAgent) -> Iterator[Client]:
    with Client(agent.path) as client:
        yield client


@pytest.fixture(autouse=True)
def sdk() -> Iterator[None]:
    yield
    api.clear_providers()
    api.clear_hooks()


class Heard:
    """Events of the SDK, in the order in which they came."""

    def __init__(self) -> None:
        self.events: list[tuple[ProviderEvent, EventDetails]] = []
        self._handlers = {event: self._keep(event) for event in ProviderEvent}
        for event, handler in self._handlers.items():
            api.add_handler(event, handler)

    def _keep(self, event: ProviderEvent) -> Callable[[EventDetails], None]:
        return lambda details: self.events.append((event, details))

    def of(self, event: ProviderEvent) -> list[EventDetails]:
        return [details for one, details in self.events if one is event]

    def close(self) -> None:
        for event, handler in self._handlers.items():
            api.remove_handler(event, handler)


@pytest.fixture
def heard() -> Iterator[Heard]:
    made = Heard()
    # A new handler is told of the provider in use, the SDK's own, from another thread.
    wait_until(lambda: made.of(ProviderEvent.PROVIDER_READY))
    made.events.clear()
    yield made
    made.close()


def use(client: Client, **options: float) -> OpenFeatureClient:
    api.set_provider_and_wait(FlagcastProvider(client, **options))  # type: ignore[arg-type]  # seconds
    return api.get_client()


def test_every_type_is_resolved(agent: FollowedAgent, flagcast: Client) -> None:
    agent.publish(
        boolean("on", enabled=True), variant("theme", "dark"), variant("limit", "high", 16),
        variant("share", "some", 0.25), variant("box", "wide", {"width": 3}),
    )  # fmt: skip
    wait_until(lambda: flagcast.wait_until_ready(1))
    client = use(flagcast)
    assert client.get_boolean_value("on", False) is True
    assert client.get_string_value("theme", "light") == "dark"
    assert client.get_integer_value("limit", 1) == 16
    assert client.get_float_value("share", 1.0) == 0.25
    assert client.get_float_value("limit", 1.0) == 16.0
    assert client.get_object_value("box", {}) == {"width": 3}
    details = client.get_string_details("theme", "light")
    assert (details.variant, details.reason, details.error_code) == ("dark", "STATIC", None)
    assert details.flag_metadata["version"] == 1
    assert details.flag_metadata["namespace"] == "default"
    assert details.flag_metadata["stale"] is False
    assert 0 <= int(details.flag_metadata["age_seconds"]) < 60


def test_the_method_and_not_the_default_says_which_type_is_asked_for(
    agent: FollowedAgent, flagcast: Client
) -> None:
    agent.publish(
        boolean("on", enabled=True), variant("theme", "dark"), variant("limit", "high", 16),
        variant("box", "wide", {"width": 3}), split("bare", "a", "b"), segment("everybody", "level", "3"),
    )  # fmt: skip
    wait_until(lambda: flagcast.wait_until_ready(1))
    client: Any = use(flagcast)  # any: defaults of other types than the SDK declares
    for default in (None, [], [1]):
        assert client.get_object_value("box", default) == {"width": 3}
        details = client.get_object_details("nope", default)
        assert (details.value, details.error_code) == (default, ErrorCode.FLAG_NOT_FOUND)
        details = client.get_object_details("theme", default)
        assert (details.value, details.error_code) == (default, ErrorCode.TYPE_MISMATCH)
    assert client.get_boolean_value("on", None) is True
    assert client.get_string_value("theme", None) == "dark"
    assert client.get_integer_value("limit", None) == 16
    assert client.get_float_value("limit", None) == 16.0
    # Nothing matches, so the flag has no value.
    details = client.get_object_details("bare", [1])
    assert (details.value, details.reason, details.error_code) == ([1], "DEFAULT", None)
    details = client.get_float_details("bare", 1)
    assert (details.value, type(details.value), details.error_code) == (1.0, float, None)
    assert client.get_string_value("bare", None) is None


def test_a_percentage_without_a_targeting_key_is_an_error(agent: FollowedAgent, flagcast: Client) -> None:
    agent.publish(split("theme", "a", "b"), segment("everybody", "level", "3"), boolean("on", enabled=True))
    wait_until(lambda: flagcast.wait_until_ready(1))
    client = use(flagcast)
    for context in (EvaluationContext("", {"level": 3}), EvaluationContext(None, {"level": 3})):
        details = client.get_string_details("theme", "mine", context)
        assert (details.value, details.reason, details.variant) == ("mine", "ERROR", None)
        assert details.error_code is ErrorCode.TARGETING_KEY_MISSING
        assert "'theme'" in str(details.error_message)
    assert client.get_string_details("theme", "mine", EvaluationContext("e", {"level": 3})).reason == "SPLIT"
    assert client.get_string_details("theme", "mine").error_code is None
    assert client.get_boolean_details("on", False).error_code is None


def test_the_entity_is_the_targeting_key_and_attributes_are_the_context(
    agent: FollowedAgent, flagcast: Client
) -> None:
    agent.publish(
        split("theme", "a", "b"), segment("everybody", "level", "3"), for_segment("pilot", "everybody")
    )
    wait_until(lambda: flagcast.wait_until_ready(1))
    client = use(flagcast)
    for number in range(50):
        context = EvaluationContext(f"e{number}", {"level": 3.0})
        expected = flagcast.variant("theme", "none", f"e{number}", {"level": "3"})
        assert client.get_string_value("theme", "none", context) == expected != "none"
    details = client.get_string_details("theme", "none", EvaluationContext("e", {"level": 4}))
    assert (details.value, details.reason, details.variant) == ("none", "DEFAULT", None)
    assert (
        client.get_boolean_details("pilot", False, EvaluationContext("e", {"level": 3})).reason
        == "TARGETING_MATCH"
    )


@pytest.mark.parametrize(
    ("flag", "code"), [("missing", ErrorCode.FLAG_NOT_FOUND), ("theme", ErrorCode.TYPE_MISMATCH)]
)
def test_a_question_without_an_answer_gives_the_default_and_the_code(
    agent: FollowedAgent, flagcast: Client, flag: str, code: ErrorCode
) -> None:
    agent.publish(variant("theme", "dark"))
    wait_until(lambda: flagcast.wait_until_ready(1))
    details = use(flagcast).get_boolean_details(flag, True)
    assert (details.value, details.reason, details.error_code) == (True, "ERROR", code)
    assert details.error_message


def test_a_disabled_variant_flag_is_said_to_be_disabled_and_a_boolean_one_is_off_for_everybody(
    agent: FollowedAgent, flagcast: Client
) -> None:
    agent.publish(boolean("off", enabled=False), variant("theme", "dark", enabled=False))
    wait_until(lambda: flagcast.wait_until_ready(1))
    client = use(flagcast)
    off = client.get_boolean_details("off", True)
    assert (off.value, off.variant, off.reason, off.error_code) == (False, "false", "STATIC", None)
    # Flipt's disabled flag still carries its default variant.
    assert client.get_string_details("theme", "light").value == "dark"
    assert client.get_string_details("theme", "light").reason == "DISABLED"


def test_changes_are_events_with_their_keys(agent: FollowedAgent, flagcast: Client, heard: Heard) -> None:
    agent.publish(boolean("a", enabled=True), boolean("b", enabled=True))
    wait_until(lambda: flagcast.wait_until_ready(1))
    client = use(flagcast)
    wait_until(lambda: heard.of(ProviderEvent.PROVIDER_READY))
    agent.publish(boolean("a", enabled=False), boolean("b", enabled=True))
    wait_until(lambda: heard.of(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED))
    (changed,) = heard.of(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED)
    assert (changed.flags_changed, changed.provider_name) == (["a"], "flagcast")
    assert client.get_boolean_value("a", True) is False


def test_flags_that_expire_and_are_renewed_are_stale_and_ready(
    agent: FollowedAgent, flagcast: Client, heard: Heard
) -> None:
    agent.publish(boolean("a", enabled=True))
    wait_until(lambda: flagcast.wait_until_ready(1))
    client = use(flagcast)
    wait_until(lambda: heard.of(ProviderEvent.PROVIDER_READY))
    agent.sign_again(seconds_ago=8 * 86_400)
    wait_until(lambda: client.get_provider_status() is ProviderStatus.STALE)
    # The SDK runs handlers in several threads: only what was heard before the next event came has an order.
    wait_until(lambda: heard.of(ProviderEvent.PROVIDER_STALE))
    details = client.get_boolean_details("a", False)
    assert (details.value, details.flag_metadata["stale"]) == (True, True)
    agent.sign_again(seconds_ago=0)
    wait_until(lambda: client.get_provider_status() is ProviderStatus.READY)
    told = [ProviderEvent.PROVIDER_READY, ProviderEvent.PROVIDER_STALE, ProviderEvent.PROVIDER_READY]
    wait_until(lambda: [event for event, _ in heard.events][-3:] == told)


def test_stale_flags_at_the_start_are_said_to_be_stale(agent: FollowedAgent, flagcast: Client) -> None:
    agent.publish(boolean("a", enabled=True))
    agent.sign_again(seconds_ago=8 * 86_400)
    wait_until(lambda: flagcast.evaluate("a", False).is_stale)
    client = use(flagcast)
    assert client.get_boolean_value("a", False) is True
    wait_until(lambda: client.get_provider_status() is ProviderStatus.STALE)


def test_flags_go_stale_on_a_device_without_a_clock_too(
    agent: FollowedAgent, flagcast: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.publish(boolean("a", enabled=True))
    wait_until(lambda: flagcast.wait_until_ready(1))
    client = use(flagcast)
    assert "clock_trusted" not in client.get_boolean_details("a", False).flag_metadata
    passed = [0.0]
    monkeypatch.setattr(clock, "now", lambda: 0)
    monotonic = clock.monotonic
    monkeypatch.setattr(clock, "monotonic", lambda: monotonic() + passed[0])
    metadata = client.get_boolean_details("a", False).flag_metadata
    assert (metadata["stale"], metadata["clock_trusted"]) == (False, False)
    passed[0] = 8 * 86_400.0
    wait_until(lambda: client.get_provider_status() is ProviderStatus.STALE)
    metadata = client.get_boolean_details("a", False).flag_metadata
    assert (metadata["stale"], round(float(metadata["age_seconds"]) / 86_400)) == (True, 8)


def test_an_agent_that_cannot_be_heard_makes_the_flags_stale(agent: FollowedAgent, flagcast: Client) -> None:
    agent.publish(boolean("a", enabled=True))
    wait_until(lambda: flagcast.wait_until_ready(1))
    client = use(flagcast)
    agent.close()
    agent.path.rename(agent.path.with_name("elsewhere"))
    wait_until(lambda: client.get_provider_status() is ProviderStatus.STALE)
    assert client.get_boolean_value("a", False) is True
    agent.path.with_name("elsewhere").rename(agent.path)
    wait_until(lambda: client.get_provider_status() is ProviderStatus.READY)


def test_without_flags_the_provider_is_not_ready_until_there_are_some(
    agent: FollowedAgent, flagcast: Client, heard: Heard
) -> None:
    began = time.monotonic()
    with pytest.raises(ProviderNotReadyError):
        api.set_provider_and_wait(FlagcastProvider(flagcast, ready_seconds=0.2))
    assert time.monotonic() - began < 5
    client = api.get_client()
    assert client.get_provider_status() is ProviderStatus.ERROR
    details = client.get_boolean_details("a", True)
    assert (details.value, details.error_code) == (True, ErrorCode.PROVIDER_NOT_READY)
    assert "nothing was ever admitted" in str(details.error_message)
    agent.publish(boolean("a", enabled=False))
    wait_until(lambda: client.get_provider_status() is ProviderStatus.READY)
    assert client.get_boolean_value("a", True) is False
    wait_until(lambda: heard.of(ProviderEvent.PROVIDER_READY))


def test_a_provider_of_its_own_closes_its_client_and_a_given_one_stays_open(
    agent: FollowedAgent, flagcast: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.publish(boolean("a", enabled=True))
    wait_until(lambda: flagcast.wait_until_ready(1))
    use(flagcast)
    api.shutdown()
    agent.publish(boolean("a", enabled=False))
    wait_until(lambda: flagcast.boolean("a", True) is False)
    monkeypatch.setenv("FLAGCAST_AGENT_STORE", str(agent.path))
    own = FlagcastProvider()
    api.set_provider_and_wait(own)
    assert api.get_client().get_boolean_value("a", True) is False
    made = own._client
    assert made is not None
    api.shutdown()
    assert own._client is None
    assert made._is_closed
    assert own.resolve_boolean_details("a", True).error_code is ErrorCode.PROVIDER_NOT_READY
    api.set_provider_and_wait(own)  # and it can be used again
    assert api.get_client().get_boolean_value("a", True) is False


def test_asyncio_hooks_and_tracking_work_as_the_sdk_has_them(agent: FollowedAgent, flagcast: Client) -> None:
    agent.publish(boolean("a", enabled=True))
    wait_until(lambda: flagcast.wait_until_ready(1))
    client = use(flagcast)
    seen: list[object] = []

    class Note(Hook):
        def after(
            self, hook_context: HookContext, details: FlagEvaluationDetails[object], hints: object
        ) -> None:
            seen.append((hook_context.flag_key, details.value))

    client.add_hooks([Note()])

    async def ask() -> bool:
        return await client.get_boolean_value_async("a", False)

    assert asyncio.run(ask()) is True
    assert seen == [("a", True)]
    client.track("bought", EvaluationContext("e"), TrackingEventDetails(3.0))


def test_a_namespace_of_its_own(agent: FollowedAgent, flagcast: Client) -> None:
    agent.publish(boolean("a", enabled=True))
    wait_until(lambda: flagcast.wait_until_ready(1))
    api.set_provider_and_wait(FlagcastProvider(flagcast, namespace="default"), domain="one")
    assert api.get_client("one").get_boolean_value("a", False) is True
    with pytest.raises(ProviderNotReadyError, match="does not follow"):
        api.set_provider_and_wait(
            FlagcastProvider(flagcast, namespace="other", ready_seconds=0.1), domain="other"
        )
