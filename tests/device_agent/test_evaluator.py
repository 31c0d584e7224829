"""What the agent answers from: swapped whole, shared where nothing changed, and cheap to import."""

import subprocess
import sys
import threading

import pytest
from admitted import History
from local_server import ENTRIES

from flagcast_agent.evaluator import Evaluator, Knowledge
from flagcast_shared.errors import DeltaMismatch, FlagNotFound, NamespaceNotFound, TypeMismatch
from flagcast_shared.evaluation import CompiledFlags
from flagcast_shared.ids import EntityId, FlagKey, Namespace, RecordId
from flagcast_shared.model import BooleanFlag

DEFAULT = Namespace("default")
NOBODY = EntityId("")


def on(evaluator: Evaluator, key: str, namespace: Namespace = DEFAULT) -> bool:
    return evaluator.boolean(namespace, FlagKey(key), NOBODY, {}).enabled


def flag(key: str, *, enabled: bool) -> BooleanFlag:
    return BooleanFlag(FlagKey(key), enabled=enabled)


def test_before_anything_was_admitted_no_namespace_is_known() -> None:
    evaluator = Evaluator({})
    assert evaluator.namespaces() == ()
    for ask in (evaluator.knowledge, evaluator.flags):
        with pytest.raises(NamespaceNotFound, match="'default'"):
            ask(DEFAULT)
    with pytest.raises(NamespaceNotFound):
        on(evaluator, "on")


def test_what_was_activated_is_answered() -> None:
    evaluator = Evaluator({"device.model": "cam-2"})
    evaluator.activate(History().begin(ENTRIES))
    assert on(evaluator, "on")
    assert on(evaluator, "on-this-device")
    variant = evaluator.variant(DEFAULT, FlagKey("theme"), NOBODY, {"region": "north"})
    assert variant.variant_key == "dark"
    explained = evaluator.explain(DEFAULT, FlagKey("theme"), NOBODY, {"region": "north"})
    assert explained.answer == variant
    assert FlagKey("half") in evaluator.flags(DEFAULT)
    with pytest.raises(FlagNotFound):
        on(evaluator, "nope")
    with pytest.raises(TypeMismatch):
        on(evaluator, "theme")


def test_knowledge_says_which_version_it_is_and_how_old() -> None:
    evaluator = Evaluator({})
    update = History(issued=1000, expires=2000).begin(ENTRIES)
    returned = evaluator.activate(update)
    known = evaluator.knowledge(DEFAULT)
    assert known is returned
    assert (known.namespace, known.epoch, known.version) == ("default", 1, 1)
    assert known.digest == update.holding.digest
    assert (known.issued, known.expires) == (1000, 2000)
    assert not known.is_stale(1999)
    assert known.is_stale(2000)


def test_a_change_changes_only_what_it_names_and_old_knowledge_stays_as_it_was() -> None:
    evaluator, history = Evaluator({}), History()
    before = evaluator.activate(history.begin([flag("a", enabled=True), flag("b", enabled=True)]))
    evaluator.activate(history.change([flag("a", enabled=False)], [RecordId("flag", "b")]))
    assert not on(evaluator, "a")
    with pytest.raises(FlagNotFound):
        on(evaluator, "b")
    assert before.compiled.boolean("a", "", {}).enabled
    assert before.compiled.boolean("b", "", {}).enabled
    assert evaluator.knowledge(DEFAULT).version == 2


def test_a_complete_update_replaces_everything() -> None:
    evaluator = Evaluator({})
    evaluator.activate(History().begin([flag("a", enabled=True)]))
    evaluator.activate(History().begin([flag("b", enabled=True)]))
    assert list(evaluator.flags(DEFAULT)) == ["b"]


def test_a_new_head_over_the_same_content_only_renews_its_age() -> None:
    evaluator, history = Evaluator({}), History()
    before = evaluator.activate(history.begin(ENTRIES))
    after = evaluator.activate(history.sign_again(issued=5000, expires=6000))
    assert after.compiled is before.compiled, "nothing is compiled again"
    assert (after.issued, after.expires, after.version) == (5000, 6000, before.version)


def test_namespaces_know_nothing_of_one_another() -> None:
    evaluator = Evaluator({})
    evaluator.activate(History("b").begin([flag("a", enabled=True)]))
    evaluator.activate(History("a").begin([flag("a", enabled=False)]))
    assert evaluator.namespaces() == ("a", "b")
    assert on(evaluator, "a", Namespace("b"))
    assert not on(evaluator, "a", Namespace("a"))


def test_a_change_of_what_was_never_activated_is_refused_and_nothing_changes() -> None:
    evaluator = Evaluator({})
    with pytest.raises(DeltaMismatch):
        evaluator.activate(History().change([flag("a", enabled=True)]))
    assert evaluator.namespaces() == ()


def test_listeners_hear_of_every_activation_until_they_stop_listening() -> None:
    evaluator, history = Evaluator({}), History()
    heard: list[Knowledge] = []
    stop = evaluator.listen(heard.append)
    first = evaluator.activate(history.begin([flag("a", enabled=True)]))
    second = evaluator.activate(history.sign_again(issued=2, expires=3))
    stop()
    evaluator.activate(history.sign_again(issued=4, expires=5))
    assert heard == [first, second]


def test_readers_in_other_threads_never_see_half_an_activation() -> None:
    # Every version has both flags, and both have the same value in it.
    evaluator, history = Evaluator({}), History()
    evaluator.activate(history.begin([flag("a", enabled=True), flag("b", enabled=True)]))
    torn: list[int] = []
    reads = [0]
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            compiled: CompiledFlags = evaluator.knowledge(DEFAULT).compiled
            if compiled.boolean("a", "", {}).enabled != compiled.boolean("b", "", {}).enabled:
                torn.append(1)
            reads[0] += 1

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(300):
        value = bool(number % 2)
        evaluator.activate(history.change([flag("a", enabled=value), flag("b", enabled=value)]))
    done.set()
    for reader in readers:
        reader.join()
    assert reads[0] > 100
    assert torn == []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("flagcast_agent.evaluator", {"hpack", "google", "h2", "asyncio", "sqlite3", "paho", "logging"}),
        ("flagcast_agent.status", {"hpack", "google", "h2", "asyncio", "cbor2", "cryptography"}),
        ("flagcast_agent.api.answers", {"hpack", "google", "h2", "asyncio"}),
        ("flagcast_agent.api.socket", {"hpack", "google", "h2", "asyncio", "cbor2", "cryptography"}),
    ],
)
def test_importing_it_imports_no_more_than_it_needs(module: str, unwanted: set[str]) -> None:
    program = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    imported = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert unwanted & set(imported) == set()
