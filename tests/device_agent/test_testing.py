"""`flagcast_agent.testing`: what a test of an application sees is what a device answers, and what an override makes of it."""

import json
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from followed import FollowedAgent
from repository import ROOT

from flagcast_agent.client import Change, Client
from flagcast_agent.testing import OverridableClient, client_of, provider_of
from flagcast_bridge import check
from flagcast_shared.errors import (
    FlagNotFound,
    InvalidCall,
    InvalidDocument,
    InvalidIdentifier,
    NamespaceNotFound,
    TypeMismatch,
)
from flagcast_shared.model import BooleanFlag, Segment, VariantFlag

EXAMPLES = ROOT / "examples"
FLAGS: dict[str, object] = {
    "version": "1.6",
    "flags": [
        {
            "key": "night-mode",
            "name": "night-mode",
            "type": "BOOLEAN_FLAG_TYPE",
            "rollouts": [{"segment": {"key": "oslo", "value": True}}],
        },
        {"key": "printer", "name": "Printer", "type": "BOOLEAN_FLAG_TYPE", "enabled": True},
        {
            "key": "current-limit",
            "name": "current-limit",
            "type": "VARIANT_FLAG_TYPE",
            "enabled": True,
            "variants": [
                {"key": "low", "attachment": 16, "default": True},
                {"key": "high", "attachment": 32},
            ],
            "rules": [{"segment": "oslo", "distributions": [{"variant": "high", "rollout": 100}]}],
        },
        {
            "key": "retired",
            "name": "retired",
            "type": "VARIANT_FLAG_TYPE",
            "enabled": False,
            "variants": [{"key": "old"}, {"key": "older"}],
        },
    ],
    "segments": [
        {
            "key": "oslo",
            "name": "Oslo",
            "match_type": "ALL_MATCH_TYPE",
            "constraints": [
                {
                    "type": "STRING_COMPARISON_TYPE",
                    "property": "site",
                    "operator": "eq",
                    "value": "oslo",
                }
            ],
        },
    ],
}
OSLO = {"site": "oslo"}
PATIENCE_SECONDS = 100.0
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def client() -> Iterator[OverridableClient]:
    with client_of(FLAGS) as made:
        yield made


def answers(client: Client, namespace: str = "") -> list[tuple[object, ...]]:
    """Of every flag, for entities and contexts that its rules tell apart, and without an entity."""
    found: list[tuple[object, ...]] = []
    for flag, kind in sorted(client.flags(namespace).items()):
        for number in range(60):
            default: object = False if kind == "boolean" else "none"
            context = {"site": ("oslo", "bergen")[number % 2], "plan": ("gold", "free")[number % 3 == 0]}
            entity = f"charger-{number}" if number % 10 else ""
            asked = client.evaluate(flag, default, entity, context, namespace=namespace)
            found.append(
                (
                    flag, asked.value, asked.reason, asked.variant, asked.segments, asked.error,
                    asked.lacks_entity, tuple(asked.metadata.items()),
                )
            )  # fmt: skip
    return found


def test_a_file_answers_as_a_device_that_admitted_it(tmp_path: Path) -> None:
    entries = check.load(EXAMPLES).namespaces["default"]  # type: ignore[index]  # a name of this namespace
    agent = FollowedAgent(tmp_path / "agent.sqlite", labels={"ring": "pilot"})
    agent.publish(*(entry for entry in entries if isinstance(entry, BooleanFlag | VariantFlag | Segment)))
    attributes = agent.shell.sync.trusted.device
    with Client(tmp_path / "agent.sqlite") as device:
        known = device.status().namespaces[0]
        expected = answers(device)
    agent.close()
    for flags in (EXAMPLES, str(EXAMPLES / "default" / "features.yml")):
        with client_of(flags, device=attributes.id, labels={"ring": "pilot"}) as mine:
            assert answers(mine) == expected
            assert mine.status().namespaces[0].digest == known.digest
    assert len({row[1:] for row in expected}) > 10
    assert {row[6] for row in expected} == {False, True}
    assert {row[7] for row in expected} >= {(), (("owner", "screen-team"), ("ticket", "UX-1204"))}


def test_an_override_takes_the_percentage_away_and_keeps_the_metadata() -> None:
    client = client_of(
        {
            "flags": [
                {
                    "key": "share", "name": "Share", "type": "BOOLEAN_FLAG_TYPE", "metadata": {"owner": "ui"},
                    "rollouts": [{"threshold": {"percentage": 50, "value": True}}],
                }
            ]
        }
    )  # fmt: skip

    def asked(entity: str = "") -> tuple[bool, bool, dict[str, object]]:
        found = client.evaluate("share", False, entity)
        return found.value, found.lacks_entity, dict(found.metadata)

    lacking = asked()
    assert lacking[1:] == (True, {"owner": "ui"})
    assert asked("charger-1")[1:] == (False, {"owner": "ui"})
    for entity in (None, ""):
        with client.override("share", not lacking[0], entity):
            assert asked() == (not lacking[0], False, {"owner": "ui"})
    with client.override("share", not lacking[0], "charger-1"):
        assert asked() == lacking
    assert asked() == lacking


def test_a_dictionary_answers_as_the_same_file(tmp_path: Path, client: OverridableClient) -> None:
    (tmp_path / "features.yml").write_text(yaml.safe_dump(FLAGS), encoding="utf-8")
    (tmp_path / "features.json").write_text(json.dumps(FLAGS), encoding="utf-8")
    for name in ("features.yml", "features.json"):
        assert answers(client_of(tmp_path / name)) == answers(client)


def test_nothing_has_to_be_closed_and_no_thread_runs() -> None:
    before = threading.active_count()
    client = client_of(FLAGS)
    assert threading.active_count() == before
    client.close()
    assert client.boolean("printer", False)
    with client.override("printer", False):
        assert not client.boolean("printer", True)


def test_the_namespace_of_a_question_is_default_else_the_first(tmp_path: Path) -> None:
    with client_of(EXAMPLES) as client:
        assert client.default_namespace == "default"
        assert [each.namespace for each in client.status().namespaces] == ["default", "charging"]
        assert client.flags("charging")
    with client_of(EXAMPLES / "charging" / "features.yml") as client:
        assert client.default_namespace == "charging"
        assert client.flags() == client.flags("charging")
    with client_of(EXAMPLES, namespace="charging") as client:
        assert client.flags() == client.flags("charging")
    with pytest.raises(NamespaceNotFound, match="'chargin'"):
        client_of(EXAMPLES, namespace="chargin")


def test_the_device_is_in_every_context() -> None:
    constraint = {"type": "STRING_COMPARISON_TYPE", "operator": "eq"}
    flags = {
        **FLAGS,
        "segments": [
            {
                "key": "oslo",
                "name": "Oslo",
                "match_type": "ALL_MATCH_TYPE",
                "constraints": [
                    {**constraint, "property": name, "value": value}
                    for name, value in (
                        ("device.id", "d-1"),
                        ("device.label.site", "oslo"),
                        ("device.model", "m"),
                        ("device.firmware", "7"),
                    )
                ],
            }
        ],
    }
    assert client_of(flags, device="d-1", labels=OSLO, model="m", firmware="7").boolean("night-mode", False)
    assert not client_of(flags, device="d-1", labels=OSLO, model="m").boolean("night-mode", True)
    with pytest.raises(InvalidIdentifier):
        client_of(FLAGS, device="a/b")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"flags": [{"key": "a b"}]}, "error FC116"),
        (
            {"flags": [{"key": "x", "rules": [{"segment": "oslp"}]}], "segments": FLAGS["segments"]},
            "unknown segment 'oslp'",
        ),
        ({"flags": [{"key": object()}]}, "no form for"),
        ({"flags": [{"key": "x", "variants": [{"key": "y", "attachment": float("nan")}]}]}, "no form for"),
        ({"flags": [{"key": "\ud800"}]}, "no form for"),
        ({"flags": [{"key": f"{n} x", "name": "x"} for n in range(50)]}, "30 more errors"),
    ],
    ids=["key", "segment", "object", "nan", "surrogate", "many"],
)
def test_flags_that_could_not_be_published_are_refused(flags: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidDocument) as raised:
        client_of(flags)
    assert said in str(raised.value)
    assert "dictionary.json" not in str(raised.value)
    assert r"\n" not in str(raised.value)  # a break of the message, escaped


def test_a_file_that_is_wrong_is_refused_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "features.yml"
    path.write_text("flags:\n  - key: a b\n", encoding="utf-8")
    with pytest.raises(InvalidDocument, match=r"features\.yml:2:10: error FC116"):
        client_of(path)
    with pytest.raises(InvalidDocument, match=r"gone\.yml"):
        client_of(tmp_path / "gone.yml")


@pytest.mark.parametrize("text", ["\N{GRINNING FACE} æ", "\u2028\x85\x7f", '\\ " \n\t: #', "\ufeff"])
def test_any_text_of_a_dictionary_arrives(text: str) -> None:
    variants = [{"key": "only", "default": True, "attachment": {"text": text}}]
    flag = {
        "key": "greeting",
        "name": "Greeting",
        "type": "VARIANT_FLAG_TYPE",
        "enabled": True,
        "variants": variants,
    }
    with client_of({"flags": [flag]}) as client:
        assert client.object("greeting", {}) == {"text": text}


def test_a_nested_dictionary_without_end_is_refused() -> None:
    endless: dict[str, object] = {}
    endless["flags"] = [endless]
    with pytest.raises(InvalidDocument, match="no form for"):
        client_of(endless)


@pytest.mark.parametrize("flags", [[], None, 7])
def test_what_is_neither_a_path_nor_a_dictionary_is_refused(flags: object) -> None:
    with pytest.raises(
        InvalidDocument, match="flags are a path or a document of a flags file as a dictionary"
    ):
        client_of(flags)  # type: ignore[arg-type]  # the point of it


# Overrides


def test_an_override_holds_within_its_block_alone(client: OverridableClient) -> None:
    before = answers(client)
    with client.override("night-mode", True):
        assert client.boolean("night-mode", False, "e", {"site": "bergen"})
        with client.override("night-mode", False):
            assert not client.boolean("night-mode", True, "e", OSLO)
        assert client.boolean("night-mode", False, "e")
        assert client.boolean("printer", False)
    assert answers(client) == before


def test_an_overridden_variant_comes_with_its_attachment(client: OverridableClient) -> None:
    assert client.integer("current-limit", 0, "e") == 16
    with client.override("current-limit", "high"):
        assert client.integer("current-limit", 0, "e") == 32
        found = client.evaluate("current-limit", "", "e", {"site": "bergen"})
        assert (found.value, found.reason, found.error) == ("high", "DEFAULT", "")
    assert client.integer("current-limit", 0, "e") == 16


def test_a_disabled_flag_can_be_overridden_for_one_and_stays_disabled_for_others(
    client: OverridableClient,
) -> None:
    with client.override("retired", "older", "e-1"):
        assert client.variant("retired", "none", "e-1") == "older"
        assert client.evaluate("retired", "none", "e-2").reason == "DISABLED"
    assert client.evaluate("retired", "none", "e-1").reason == "DISABLED"


def test_an_override_for_one_entity_changes_no_other(client: OverridableClient) -> None:
    with client.override("night-mode", True, "e-1"), client.override("current-limit", "high", entity="e-1"):
        assert client.boolean("night-mode", False, "e-1", {"site": "bergen"})
        assert not client.boolean("night-mode", True, "e-2", {"site": "bergen"})
        others = client.evaluate("night-mode", False, "e-2", OSLO)
        assert (others.value, others.reason, others.segments) == (True, "TARGETING_MATCH", ("oslo",))
        assert client.integer("current-limit", 0, "e-1") == 32
        assert client.integer("current-limit", 0, "e-2") == 16
        assert not client.boolean("night-mode", True)  # nobody in particular
    assert not client.boolean("night-mode", True, "e-1", {"site": "bergen"})


def test_the_override_that_was_entered_last_holds(client: OverridableClient) -> None:
    with client.override("printer", False, "e"), client.override("printer", True):
        assert client.boolean("printer", False, "e")
    with client.override("printer", True), client.override("printer", False, "e"):
        assert not client.boolean("printer", True, "e")
        assert client.boolean("printer", False, "f")


def test_blocks_may_be_left_in_any_order(client: OverridableClient) -> None:
    first, second = client.override("printer", False), client.override("printer", True)
    with first:
        second.__enter__()
    assert client.boolean("printer", False)
    third = client.override("printer", False)
    third.__enter__()
    second.__exit__(None, None, None)
    assert not client.boolean("printer", True)
    third.__exit__(None, None, None)
    assert client.boolean("printer", False)


def test_an_exception_ends_an_override_and_goes_on(client: OverridableClient) -> None:
    before = answers(client)
    with (
        pytest.raises(ZeroDivisionError),
        client.override("printer", False),
        client.override("retired", "old"),
    ):
        _ = 1 // 0
    assert answers(client) == before


@pytest.mark.parametrize(
    ("flag", "value", "error", "said"),
    [
        ("pritner", True, FlagNotFound, "no flag 'pritner'"),
        ("printer", "on", TypeMismatch, "boolean flag, which answers True or False, not 'on'"),
        ("current-limit", True, TypeMismatch, "variant flag, which answers a variant's key, not True"),
        ("current-limit", 32, TypeMismatch, "not 32"),
        ("current-limit", "hihg", InvalidCall, "no variant 'hihg'; its variants: 'low', 'high'"),
    ],
)
def test_an_override_that_cannot_be_is_an_error_of_the_test(
    client: OverridableClient, flag: str, value: bool | str, error: type[Exception], said: str
) -> None:
    before = answers(client)
    with pytest.raises(error, match=said), client.override(flag, value):
        pytest.fail("the block was entered")
    with pytest.raises(NamespaceNotFound), client.override("printer", False, namespace="elsewhere"):
        pytest.fail("the block was entered")
    assert answers(client) == before


def test_an_override_is_of_one_namespace() -> None:
    with client_of(EXAMPLES) as client:
        flag = next(key for key, kind in client.flags("charging").items() if kind == "boolean")
        before = answers(client)
        was = client.boolean(flag, False, "e", namespace="charging")
        with client.override(flag, not was, namespace="charging"):
            assert client.boolean(flag, was, "e", namespace="charging") is not was
            assert answers(client) == before


def test_listeners_hear_of_an_override_before_the_block_and_of_its_end(client: OverridableClient) -> None:
    heard: list[Change] = []
    client.listen(heard.append)
    with client.override("night-mode", True):
        assert [sorted(change.keys) for change in heard] == [["night-mode"]]
        with client.override("current-limit", "high", "e"):
            assert [sorted(change.keys) for change in heard[1:]] == [["current-limit"]]
    assert [sorted(change.keys) for change in heard[2:]] == [["current-limit"], ["night-mode"]]
    assert [change.version for change in heard] == [2, 3, 4, 5]
    assert {change.freshness for change in heard} == {"fresh"}


def test_threads_override_at_the_same_time_and_leave_nothing_behind(client: OverridableClient) -> None:
    before = answers(client)
    wrong: list[tuple[object, ...]] = []
    together = threading.Barrier(8)

    def work(number: int) -> None:
        entity = f"thread-{number}"
        together.wait(PATIENCE_SECONDS)
        for turn in range(100):
            variant, is_on = ("low", "high")[turn % 2], bool(turn % 2)
            with (
                client.override("current-limit", variant, entity),
                client.override("night-mode", is_on, entity),
            ):
                seen = (
                    client.variant("current-limit", "", entity, OSLO),
                    client.boolean("night-mode", not is_on, entity, OSLO),
                )
            if seen != (variant, is_on):
                wrong.append((number, turn, seen))
            if client.variant("current-limit", "", entity) != "low":
                wrong.append((number, turn, "after"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert answers(client) == before


def _in_child(client: OverridableClient) -> None:
    assert client.boolean("printer", False) is False  # as in the parent's block
    with client.override("current-limit", "high"):
        assert client.integer("current-limit", 0) == 32
    assert client.integer("current-limit", 0) == 16


def test_a_forked_process_has_the_flags_and_may_override(client: OverridableClient) -> None:
    with client.override("printer", False):
        child = FORK.Process(target=_in_child, args=(client,))
        child.start()
        child.join(PATIENCE_SECONDS)
    assert child.exitcode == 0
    assert client.integer("current-limit", 0) == 16


def test_a_provider_answers_through_openfeature_and_hears_of_overrides(client: OverridableClient) -> None:
    pytest.importorskip("openfeature.api", reason="needs openfeature-sdk, the extra `openfeature`")
    from openfeature import api
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.event import EventDetails, ProviderEvent

    heard = threading.Event()
    keys: list[str] = []

    def note(details: EventDetails) -> None:
        keys.extend(details.flags_changed or ())
        heard.set()

    try:
        api.set_provider_and_wait(provider_of(client))
        asking = api.get_client()
        asking.add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, note)
        context = EvaluationContext("e", {"site": "oslo"})
        assert asking.get_boolean_value("night-mode", False, context)
        assert asking.get_integer_value("current-limit", 0, context) == 32
        with client.override("night-mode", False):
            assert not asking.get_boolean_value("night-mode", True, context)
            assert heard.wait(PATIENCE_SECONDS)
        assert keys[0] == "night-mode"
        api.set_provider_and_wait(provider_of(FLAGS))
        assert asking.get_boolean_value("night-mode", False, context)
    finally:
        api.clear_providers()
