"""OFREP's provider for Python, as applications install it, against the agent's loopback port."""

from collections.abc import Iterator

import pytest
from flagd_calls import FLAGS
from local_server import RunningServer, running
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext

NORTH = EvaluationContext("e", {"region": "north"})


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(FLAGS) as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[OpenFeatureClient]:
    provider = OFREPProvider(f"http://127.0.0.1:{server.port}")
    api.set_provider_and_wait(provider, "ofrep")
    yield api.get_client("ofrep")
    api.clear_providers()
    provider.session.close()


def test_flags_answer(client: OpenFeatureClient) -> None:
    boolean = client.get_boolean_details("in-north", default_value=False, evaluation_context=NORTH)
    assert (boolean.value, boolean.variant, boolean.reason) == (True, "true", "TARGETING_MATCH")
    assert boolean.flag_metadata["namespace"] == "default"
    assert client.get_boolean_value("off", default_value=True) is False
    assert client.get_string_value("plain", "x") == "red"
    assert client.get_integer_value("ten", 3) == 10
    assert client.get_float_value("ratio", 0.5) == 0.25
    assert client.get_object_value("theme", {}, NORTH) == {"ink": "white"}


def test_no_value_is_the_applications_default(client: OpenFeatureClient) -> None:
    found = client.get_string_details("bare", "mine")
    assert (found.value, found.reason, found.error_code) == ("mine", "DEFAULT", None)


@pytest.mark.parametrize(
    ("key", "code"), [("nope", "FLAG_NOT_FOUND"), ("plain", "TYPE_MISMATCH"), ("broken", "GENERAL")]
)
def test_mistakes_have_openfeatures_codes(client: OpenFeatureClient, key: str, code: str) -> None:
    found = client.get_boolean_details(key, default_value=True)
    assert (found.value, found.reason, found.error_code) == (True, "ERROR", code)


def test_values_of_many_types_make_a_context(client: OpenFeatureClient) -> None:
    context = EvaluationContext(
        "e", {"n": 3, "f": 0.5, "b": True, "list": [1, "a"], "object": {"a": [True]}, "region": "north"}
    )
    assert client.get_boolean_value("in-north", default_value=False, evaluation_context=context) is True
