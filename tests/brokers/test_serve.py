"""`flagcast serve` beside a real mosquitto and a real agent: what was published stays published, without anybody's help."""

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from devices import provision
from publishing import Flagcast, configure, features, make_project
from serving import Serve

from brokers import Broker, free_port, start_mosquitto
from flagcast_bridge import clock, project
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.ledger.ledger import Ledger
from flagcast_bridge.project import Project
from flagcast_bridge.publishing import publish as publisher
from flagcast_shared.ids import Namespace
from flagcast_shared.messages import Head
from flagcast_shared.reports import Refresh, encode_refresh

pytestmark = pytest.mark.mosquitto

DEFAULT = Namespace("default")
HEAD = "flags/default/head"


@dataclass(frozen=True, slots=True)
class Site:
    """A broker, a project on it, and the command."""

    broker: Broker
    project: Project
    flagcast: Flagcast

    def publish(self, *arguments: str, **flags: bool) -> None:
        path = self.project.folder / "features.yml"
        path.write_text(features(flags))
        done = self.flagcast.on_project("publish", path, *arguments)
        assert done.code == 0, done.err

    def head(self) -> Head | None:
        """The head that stands on the broker, verified."""
        live = publisher.read_broker(self.project).live.get(DEFAULT)
        return None if live is None else live.head

    def sequence(self) -> int:
        """The number of that head; 0 where there is none, or no broker."""
        with suppress(mqtt.BrokerError):
            head = self.head()
            return 0 if head is None else head.sequence
        return 0

    def retained(self) -> dict[str, bytes]:
        with self.connect() as connection:
            found = connection.read_all(["flagcast/#"])
        return {topic.removeprefix("flagcast/1/test/"): data for topic, data in found.items() if data}

    def put(self, topic: str, data: bytes) -> None:
        with self.connect() as connection:
            connection.publish([(f"flagcast/1/test/{topic}", data)])

    @contextmanager
    def lease(self, holder: str) -> Iterator[None]:
        with closing(Ledger(self.project.ledger, self.project.environment)) as ledger, ledger.lease(holder):
            yield

    def connect(self) -> mqtt.Connection:
        return mqtt.connect(self.broker.host, self.broker.port, mqtt.Login())


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine a broker has sent all retained messages long before the time that networks are given."""
    monkeypatch.setattr(mqtt, "QUIET_SECONDS", 0.2)


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Site]:
    with start_mosquitto(tmp_path / "broker") as broker:
        made = make_project(tmp_path / "fleet", broker.url)
        yield Site(broker, made, Flagcast(made.folder, capsys))


@pytest.fixture
def serve(site: Site, tmp_path: Path) -> Iterator[Serve]:
    """It runs beside a broker that shows version 1 under head 1, and has looked at it once."""
    site.publish(a=True)
    with Serve(site.project.folder, tmp_path / "serve.log") as running:
        running.wait_for("checked")
        yield running


def test_a_broker_restored_from_an_old_save_is_brought_to_the_present(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save = tmp_path / "mosquitto.db"
    with start_mosquitto(tmp_path / "broker", persistence=True) as broker:
        made = make_project(tmp_path / "fleet", broker.url)
        site = Site(broker, made, Flagcast(made.folder, capsys))
        site.publish(a=True)
        broker.stop()
        shutil.copy(broker.folder / "mosquitto.db", save)
        broker.start()
        site.publish(a=False)
        with (
            provision(tmp_path / "device", made.root_file(1), broker.url) as device,
            Serve(made.folder, tmp_path / "serve.log") as serve,
        ):
            device.start()
            device.wait_for("version=2")
            serve.wait_for("checked")
            broker.kill()
            shutil.copy(save, broker.folder / "mosquitto.db")
            broker.start()
            serve.wait_for('"put back"')
            head = site.head()
            assert head is not None
            assert (head.stable.version, head.sequence) == (2, 2)
            assert device.evaluate("a", "e")["value"] is False


def test_a_head_topic_that_somebody_cleared_or_wrote_on_comes_back(site: Site, serve: Serve) -> None:
    head = site.retained()[HEAD]
    for number, lie in enumerate((b"", b"forged"), 1):
        site.put(HEAD, lie)
        serve.wait_for('"put back"', number)
        assert site.retained()[HEAD] == head


def test_an_older_head_of_our_own_does_not_stay(site: Site, serve: Serve) -> None:
    old = site.retained()[HEAD]
    site.publish(a=False)
    serve.wait_for("checked", 2)
    new = site.retained()[HEAD]
    site.put(HEAD, old)
    serve.wait_for('"put back"')
    assert site.retained()[HEAD] == new


def test_a_snapshot_that_is_lost_is_put_back_when_a_device_asks(site: Site, serve: Serve) -> None:
    before = site.retained()
    site.put("flags/default/snapshot/1/0", b"")
    ask(site, encode_refresh(Refresh((Namespace("default"),))))
    serve.wait_for('"put back"')
    assert site.retained() == before


def ask(site: Site, request: bytes) -> None:
    with site.connect() as connection:
        connection._client.publish(
            "flagcast/1/test/devices/charger-17/refresh", request, qos=1
        ).wait_for_publish(10)


def test_only_what_a_device_names_is_published_again(site: Site, tmp_path: Path) -> None:
    both = tmp_path / "both.yml"
    both.write_text(features({"a": True}) + "---\n" + features({"b": True}, "charging"))
    assert site.flagcast.on_project("publish", both).code == 0
    with Serve(site.project.folder, tmp_path / "serve.log") as serve, site.connect() as listening:
        serve.wait_for("checked")
        received: SimpleQueue[str] = SimpleQueue()
        topics = ["flagcast/1/test/root/+", "flagcast/1/test/flags/#"]
        listening.watch(topics, lambda topic, _: received.put(topic), lambda _: None)
        # What is retained comes first.
        again = {
            "flagcast/1/test/root/1",
            f"flagcast/1/test/{HEAD}",
            "flagcast/1/test/flags/default/snapshot/1/0",
        }
        other = {topic.replace("default", "charging") for topic in again if "default" in topic}
        assert {received.get(timeout=100) for _ in range(5)} == again | other
        ask(site, b"x")
        serve.wait_for('"a device\'s request cannot be read and is passed over"')
        ask(site, encode_refresh(Refresh((Namespace("default"), Namespace("unheard-of")))))
        serve.wait_for('"put back"')
        ask(site, encode_refresh(Refresh(())))
        serve.wait_for('"put back"', 2)
        found = [received.get(timeout=100) for _ in range(3 + 5)]
        assert (set(found[:3]), set(found[3:])) == (again, again | other)
        assert received.empty()


def test_a_head_is_signed_again_when_half_of_its_life_is_over(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(site.project.folder, {"head_lifetime_hours": "1"})
    now = clock.now
    with monkeypatch.context() as patched:
        patched.setattr(clock, "now", lambda: now() - 1_800 + 8)  # in eight seconds half of it is over
        site.publish(a=True)
    with Serve(site.project.folder, tmp_path / "serve.log") as serve:
        serve.wait_for("checked")
        assert site.sequence() == 1
        serve.wait_for("published")
        assert "action=refresh" in serve.lines("published")[0]
        head = site.head()
        assert head is not None
        assert (head.sequence, head.stable.version) == (2, 1)
        assert head.expires > now() + 3_500
    (entry, _) = site.flagcast.on_project("log").out.splitlines()
    assert "head 2  version 1  refresh  published" in entry


def test_what_no_head_names_is_cleared_after_the_grace_period_and_not_before(
    site: Site, tmp_path: Path
) -> None:
    configure(site.project.folder, {"grace_seconds": "6"})
    site.publish(a=True)
    site.publish(a=False)
    assert "flags/default/snapshot/1/0" in site.retained()
    with Serve(site.project.folder, tmp_path / "serve.log") as serve:
        serve.wait_for("cleared")
        assert set(site.retained()) == {"root/1", HEAD, "flags/default/snapshot/2/0"}


def test_a_namespace_that_the_flags_no_longer_hold_is_looked_after_like_any_other(
    site: Site, tmp_path: Path
) -> None:
    both = tmp_path / "both.yml"
    both.write_text(features({"a": True}) + "---\n" + features({"b": True}, "charging"))
    assert site.flagcast.on_project("publish", both).code == 0
    site.publish(a=False)
    head = site.retained()["flags/charging/head"]
    with Serve(site.project.folder, tmp_path / "serve.log") as serve:
        serve.wait_for("checked")
        site.put("flags/charging/head", b"")
        serve.wait_for('"put back"')
        assert site.retained()["flags/charging/head"] == head


def test_a_namespace_that_its_ledger_never_issued_is_left_alone_and_said_to_expire(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(site.project.folder, {"head_lifetime_hours": "1"})
    now = clock.now
    with monkeypatch.context() as patched:
        patched.setattr(clock, "now", lambda: now() - 2_000)  # more than half of it is over
        site.publish(a=True)
    for path in site.project.folder.glob("ledger.sqlite*"):
        path.unlink()
    with Serve(site.project.folder, tmp_path / "serve.log") as serve:
        serve.wait_for("checked")
        assert "default: head 1 expires at " in serve.log
        assert "is not renewed from here, because this ledger has not issued it" in serve.log
        assert site.sequence() == 1
        site.publish("--without-ledger", a=True)  # takes it over
        assert site.sequence() == 2
        serve.wait_for("checked", 2)
        site.put(HEAD, b"")
        serve.wait_for('"put back"')


def test_it_signs_with_a_key_that_a_passphrase_protects(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, secret, wrong = tmp_path / "locked", tmp_path / "passphrase", tmp_path / "wrong"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    wrong.write_text("battery staple\n")
    wrong.chmod(0o600)
    publisher.found(folder, "test", site.broker.url, passphrase=b"correct horse")
    configure(folder, {"head_lifetime_hours": "1"})
    (tmp_path / "features.yml").write_text(features({"a": True}))
    now = clock.now
    with monkeypatch.context() as patched:
        patched.setattr(clock, "now", lambda: now() - 2_000)
        done = site.flagcast(
            "publish", tmp_path / "features.yml", "--project", folder, "--passphrase-file", secret
        )
        assert done.code == 0, done.err
    with Serve(folder, tmp_path / "wrong.log", "--passphrase-file", wrong) as serve:
        serve.wait_until(lambda: "the passphrase is wrong" in serve.log, "a warning")
    with Serve(folder, tmp_path / "asks.log", "--passphrase") as serve:
        assert serve._process.wait(20) == 2
        assert "there is no terminal to ask for the passphrase at" in serve.log
    with Serve(folder, tmp_path / "serve.log", "--passphrase-file", secret) as serve:
        serve.wait_for("published")
        assert "action=refresh" in serve.lines("published")[0]


def test_a_key_file_of_before_is_logged_with_what_to_do(site: Site, tmp_path: Path) -> None:
    folder, secret = tmp_path / "locked", tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    publisher.found(folder, "test", site.broker.url, passphrase=b"correct horse")
    path = folder / "keys" / "publisher.key"
    key = load_pem_private_key(path.read_bytes(), b"correct horse")
    weak = BestAvailableEncryption(b"correct horse")
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, weak))
    with Serve(folder, tmp_path / "weak.log", "--passphrase-file", secret) as serve:
        serve.wait_until(
            lambda: f"write it anew with: flagcast keys passphrase {path}" in serve.log, "a warning"
        )
    path.chmod(0o640)
    with Serve(folder, tmp_path / "group.log", "--passphrase-file", secret, "--allow-group") as serve:
        serve.wait_until(
            lambda: f"write it anew with: flagcast keys passphrase {path}" in serve.log, "a warning"
        )


def test_at_a_terminal_it_asks_once_and_begins_when_the_passphrase_is_right(
    site: Site, tmp_path: Path
) -> None:
    folder = tmp_path / "locked"
    publisher.found(folder, "test", site.broker.url, passphrase=b"correct horse")
    program = Path(sys.executable).with_name("flagcast")
    for given, expected in (("battery staple", b"the passphrase is wrong"), ("correct horse", b'"put back"')):
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [program, "serve", "--project", folder, "--passphrase"],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            assert process.stderr is not None
            said = b""
            try:
                for awaited in (b"publisher.key: ", expected):
                    while awaited not in said and (read := os.read(process.stderr.fileno(), 4_096)):
                        said += read
                    assert awaited in said
                    if awaited is not expected:
                        os.write(ours, f"{given}\n".encode())
                assert said.count(b"passphrase of ") == 1
            finally:
                process.kill()
        os.close(ours)
        os.close(theirs)


def test_publish_runs_beside_it(site: Site, serve: Serve) -> None:
    site.publish(a=False)
    serve.wait_for("checked", 2)
    site.publish(a=True)
    serve.wait_for("checked", 3)
    assert not serve.lines('"put back"') + serve.lines("published")
    assert site.sequence() == 3


def test_it_waits_while_another_publisher_holds_the_ledger(site: Site, serve: Serve) -> None:
    with site.lease("process 1 on elsewhere"):
        site.put(HEAD, b"")
        serve.wait_for("waiting")
        assert "process 1 on elsewhere" in serve.lines("waiting")[0]
        assert HEAD not in site.retained()
    serve.wait_for('"put back"')
    assert HEAD in site.retained()
    assert len(serve.lines("waiting")) == 1


def test_it_begins_before_the_broker_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    made = make_project(tmp_path / "fleet", f"mqtt://127.0.0.1:{port}")
    with Serve(made.folder, tmp_path / "serve.log") as serve:
        serve.wait_for('"no connection"')
        with start_mosquitto(tmp_path / "broker", port=port):
            serve.wait_for("connected")
            serve.wait_for('"put back"')  # the root, which was never there


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(site: Site, serve: Serve, number: signal.Signals) -> None:
    assert serve.stop(number) == 0
    assert serve.log.splitlines()[-1].endswith("message=stopped")
    with site.lease("me"):
        pass


def test_a_project_that_is_not_there_is_exit_code_2(tmp_path: Path) -> None:
    with Serve(tmp_path / "absent", tmp_path / "serve.log") as serve:
        assert serve._process.wait(20) == 2
        assert "flagcast init" in serve.log


def test_without_a_key_it_keeps_what_is_there_and_says_that_it_cannot_renew(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(site.project.folder, {"head_lifetime_hours": "1"})
    now = clock.now
    with monkeypatch.context() as patched:
        patched.setattr(clock, "now", lambda: now() - 2_000)
        site.publish(a=True)
    before = site.retained()
    project.load(site.project.folder).publisher_key.unlink()
    with Serve(site.project.folder, tmp_path / "serve.log") as serve:
        serve.wait_until(lambda: "a new head is due and cannot be signed here" in serve.log, "a warning")
        site.put(HEAD, b"")
        serve.wait_for('"put back"')
        assert site.retained() == before


def test_with_fewer_keys_than_must_sign_it_keeps_what_is_there_and_names_the_way_to_renew_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(site.project.folder, {"head_lifetime_hours": "1"})
    now = clock.now
    colleague, here = tmp_path / "colleague.key", site.project.folder / "keys" / "colleague.key"
    assert site.flagcast("keys", "make", colleague, "--name", "colleague").code == 0
    public = f"{colleague}.pub"
    done = site.flagcast.on_project("keys", "rotate", "publisher", "--add", public, "--threshold", "2")
    assert done.code == 0, done.err
    shutil.copy(colleague, here)
    with monkeypatch.context() as patched:
        patched.setattr(clock, "now", lambda: now() - 2_000)
        site.publish(a=True)
    here.unlink()
    before = site.retained()
    with Serve(site.project.folder, tmp_path / "serve.log") as serve:
        serve.wait_until(lambda: "2 keys must sign it and 1 are here" in serve.log, "a warning")
        assert "flagcast publish --prepare" in serve.log
        site.put(HEAD, b"")
        serve.wait_for('"put back"')
        assert site.retained() == before
    assert len(site.flagcast.on_project("log").out.splitlines()) == 1
