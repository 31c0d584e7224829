"""A ledger, broker or project restored from a backup, beside real devices that have seen more, on a real mosquitto."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from devices import Device, provision
from publishing import Flagcast, Result, configure, features, make_project
from serving import Serve

from brokers import Broker, start_mosquitto
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.ledger.ledger import RECOVERY_MARGIN
from flagcast_bridge.project import Project
from flagcast_bridge.publishing import publish as publisher
from flagcast_shared.ids import DeviceId, Epoch, Namespace, Version
from flagcast_shared.messages import Head
from flagcast_shared.reports import Applied, Report, encode_report
from flagcast_shared.topics import DeviceAddress

pytestmark = pytest.mark.mosquitto

DEFAULT = Namespace("default")


@dataclass(slots=True)
class Site:
    """A broker that keeps nothing through a restart, a project on it, and its devices."""

    broker: Broker
    project: Project
    flagcast: Flagcast
    folder: Path
    _open: ExitStack
    devices: list[Device] = field(default_factory=list)

    def publish(self, *arguments: str, **flags: bool) -> Result:
        path = self.folder / "features.yml"
        path.write_text(features(flags))
        return self.flagcast.on_project("publish", path, *arguments)

    def published(self, *arguments: str, **flags: bool) -> Result:
        """Publish, which must not fail."""
        done = self.publish(*arguments, **flags)
        assert done.code == 0, done.err
        return done

    def device(self, name: str = "device-1") -> Device:
        """A device that runs, and ends with the site."""
        made = provision(self.folder / name, self.project.root_file(1), self.broker.url, device=name)
        self.devices.append(self._open.enter_context(made))
        made.start()
        return made

    def back_up(self, *names: str) -> Path:
        """Copy parts of the project, or all of it."""
        copy = self.folder / f"backup-{len(list(self.folder.glob('backup-*')))}"
        shutil.copytree(self.project.folder, copy)
        if names:
            for path in copy.iterdir():
                if not path.name.startswith(names):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        return copy

    def restore_ledger(self, copy: Path | None) -> None:
        """The ledger as it was backed up, or none."""
        for path in self.project.folder.glob("ledger.sqlite*"):
            path.unlink()
        if copy is not None:
            for path in copy.glob("ledger.sqlite*"):
                shutil.copy(path, self.project.folder)

    def restore_project(self, copy: Path) -> None:
        """The whole folder as it was backed up."""
        shutil.rmtree(self.project.folder)
        shutil.copytree(copy, self.project.folder)

    def empty_broker(self) -> None:
        """The broker with nothing retained; devices connect again and report."""
        self.broker.kill()
        self.broker.start()
        self.wait_for_reports()

    def wait_for_reports(self) -> None:
        """Wait until every device's report is on the broker, online."""
        for device in self.devices:
            device.wait_until(lambda device=device: self.member(device).get("is_online"), "its report")  # type: ignore[misc]

    def wait_until_reported(self, device: Device, version: int) -> None:
        """Wait until the broker has a device's report of this version."""
        device.wait_until(
            lambda: self.member(device).get("applied", {}).get("default", {}).get("version") == version,  # type: ignore[attr-defined]
            f"a report of version {version}",
        )

    def member(self, device: Device) -> dict[str, object]:
        """One device in `flagcast fleet`; empty where it is not there."""
        done = self.flagcast.on_project("fleet", "--format", "json")
        listed = json.loads(done.out or '{"devices": []}')["devices"]
        return next((each for each in listed if each["device"] == device.folder.name), {})

    def summary(self) -> dict[str, object]:
        document = json.loads(self.flagcast.on_project("fleet", "--format", "json").out)
        found = document["summary"]
        assert isinstance(found, dict)
        return found

    def head(self) -> Head | None:
        live = publisher.read_broker(self.project).live.get(DEFAULT)
        return None if live is None else live.head

    def version(self) -> int:
        """The stable version on the broker; 0 for none, or no broker."""
        with suppress(mqtt.BrokerError):
            head = self.head()
            return 0 if head is None else head.stable.version
        return 0

    def put_report(self, name: str, report: Report) -> None:
        """Retain a report, as any device could."""
        topic = self.project.topics.of(DeviceAddress(DeviceId(name), "report"))
        with mqtt.connect(self.broker.host, self.broker.port, mqtt.Login()) as connection:
            connection.publish([(topic, encode_report(report))])


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine a broker has sent all retained messages long before the time that networks are given."""
    monkeypatch.setattr(mqtt, "QUIET_SECONDS", 0.2)


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Site]:
    with start_mosquitto(tmp_path / "broker") as broker, ExitStack() as stack:
        made = make_project(tmp_path / "fleet", broker.url)
        yield Site(broker, made, Flagcast(made.folder, capsys), tmp_path, stack)


def claim(version: int, sequence: int, epoch: int = 1, digest: bytes = b"") -> Report:
    applied = {DEFAULT: Applied(Epoch(epoch), Version(version), sequence, digest)}
    return Report(1, 1, is_online=True, at=1_800_000_000, agent="1.0", root=1, applied=applied)


def refused(done: Result, *words: str) -> None:
    assert done.code == 1, done.out + done.err
    for word in words:
        assert word in done.err
    assert "confirmed" not in done.out


def test_a_ledger_restored_beside_its_broker_goes_on_above_what_is_live(site: Site) -> None:
    site.published(a=True)
    copy = site.back_up("ledger")
    device = site.device()
    for state in (False, True, False):
        site.published(a=state)
    device.holds(4)
    site.restore_ledger(copy)
    done = site.published(a=True)
    assert "ledger knows of 1" in done.err
    device.holds(5)
    assert device.enabled("a") == (True,)


def test_a_broker_restored_beside_its_ledger_is_brought_to_the_present(site: Site) -> None:
    device = site.device()
    for state in (True, False):
        site.published(a=state)
    device.holds(2)
    site.empty_broker()
    site.published(a=False)
    assert site.version() == 2
    newcomer = site.device("newcomer")
    newcomer.holds(2)
    assert "equivocation" not in device.log


def test_a_ledger_restored_beside_an_empty_broker_reuses_no_number(site: Site) -> None:
    device = site.device()
    site.published(a=True)
    copy = site.back_up("ledger")
    for state in (False, True):
        site.published(a=state)
    device.holds(3)
    site.restore_ledger(copy)
    site.empty_broker()
    why = "default: device device-1 holds version 3, head 3, and this ledger knows of version 1, head 1"
    tried = site.publish("--dry-run", a=True, b=True)
    assert tried.code == 0
    assert f"warning: flagcast publish would refuse this: {why}" in tried.err
    refused(site.publish(a=True, b=True), why, "flagcast ledger recovered")
    assert site.version() == 0, "nothing was published"
    shown = site.flagcast.on_project("fleet").out
    assert "version 3 of epoch 1: 1 device  <- its head is not on the broker" in shown
    assert "a head that is not on the broker: flagcast serve puts back" in shown
    assert "action" not in site.flagcast.on_project("rollback", "--dry-run").err
    dry = site.flagcast.on_project("ledger", "recovered", "--dry-run")
    assert dry.code == 0, dry.err
    refused(site.publish(a=True, b=True), "flagcast ledger recovered")
    done = site.flagcast.on_project("ledger", "recovered")
    assert done.code == 0, done.err
    assert dry.out.splitlines()[0] == done.out.splitlines()[0]
    assert f"default: numbers go on above version {3 + RECOVERY_MARGIN}" in done.out
    site.published(a=True, b=True)
    device.holds(3 + RECOVERY_MARGIN + 1)
    assert device.enabled("a", "b") == (True, True)
    assert "equivocation" not in device.log
    assert "recovered" in site.flagcast.on_project("log").out


def test_serve_publishes_nothing_from_a_restored_ledger_until_somebody_does(site: Site) -> None:
    device = site.device()
    site.published(a=True)
    copy = site.back_up("ledger")
    for state in (False, True, False):
        site.published(a=state)
    device.holds(4)
    site.restore_ledger(copy)
    site.empty_broker()
    with Serve(site.project.folder, site.folder / "serve.log") as serve:
        serve.wait_until(lambda: "default: device device-1 holds version 4" in serve.log, "the device's word")
        assert site.version() == 0, serve.log
        assert site.flagcast.on_project("ledger", "recovered").code == 0
        site.empty_broker()
        serve.wait_until(lambda: "its numbers were recovered" in serve.log, "a word on the recovery")
        assert site.version() == 0, "old flags under a new number"
        site.published(a=False)
        device.holds(4 + RECOVERY_MARGIN + 1)
        site.broker.kill()
        site.broker.start()
        serve.wait_until(lambda: site.version() == 4 + RECOVERY_MARGIN + 1, "what was published last")
    assert device.enabled("a") == (False,)


def test_a_project_and_a_broker_restored_together_refuse_by_epoch_and_by_number(site: Site) -> None:
    device = site.device()
    site.published(a=True)
    copy = site.back_up()
    site.published(a=False)
    device.holds(2)
    site.restore_project(copy)
    site.empty_broker()
    refused(site.publish(a=True, b=True), "holds version 2", "flagcast ledger recovered")
    assert site.flagcast.on_project("ledger", "recovered").code == 0
    site.published(a=False)
    device.holds(2 + RECOVERY_MARGIN + 1)
    copy = site.back_up()
    assert site.flagcast.on_project("keys", "rotate", "publisher").code == 0
    site.published(a=False)
    device.wait_until(lambda: site.member(device).get("root") == 2, "a report of root 2")
    after = site.back_up("roots")
    site.restore_project(copy)
    site.empty_broker()
    done = site.publish(a=True)
    refused(done, "device device-1 holds epoch 2", "roots end at root 1, epoch 1", "roots/")
    recovered = site.flagcast.on_project("ledger", "recovered")
    assert "epoch 2" in recovered.err
    shutil.copy(after / "roots" / "2.root", site.project.folder / "roots")
    assert "roots end at" not in site.publish(a=True).err


def test_numbers_that_were_used_twice_are_a_split_fleet_and_recovered_heals_it(
    site: Site,
) -> None:
    device = site.device()
    site.published(a=True)
    copy = site.back_up("ledger")
    site.published(a=False)
    device.holds(2)
    site.restore_ledger(copy)
    device.kill()
    site.devices.clear()
    site.empty_broker()  # no report is there that could have been read
    site.published(a=True, b=True)
    assert site.version() == 2
    device.start()
    site.devices.append(device)
    device.wait_for("attack=")
    site.wait_for_reports()
    assert (site.summary()["behind"], site.summary()["split"]) == (0, 1)
    assert site.member(device)["split"] == ["default"]
    shown = site.flagcast.on_project("fleet")
    assert (shown.code, "1 split" in shown.out, "split in default" in shown.out) == (0, True, True)
    refused(site.publish("--refresh", a=True, b=True), "another content of version 2", "ledger recovered")
    assert site.flagcast.on_project("ledger", "recovered").code == 0
    site.published(a=True, b=True)
    device.holds(2 + RECOVERY_MARGIN + 1)
    assert device.enabled("a", "b") == (True, True)
    site.wait_until_reported(device, 2 + RECOVERY_MARGIN + 1)
    assert (site.summary()["behind"], site.summary()["split"]) == (0, 0)


@pytest.mark.parametrize("version", [5_000_000, 2**63 - 1])
def test_a_lying_device_beyond_the_bound_stops_nobody_and_pushes_nothing(site: Site, version: int) -> None:
    site.published(a=True)
    site.put_report("liar", claim(version, version))
    done = site.published(a=False)
    assert f"device liar reports version {version}" in done.err
    assert site.version() == 2
    done = site.flagcast.on_project("ledger", "recovered")
    assert (done.code, "device liar reports" in done.err) == (0, True)
    site.published(a=True)
    assert site.version() == 2 + RECOVERY_MARGIN + 1


@pytest.mark.parametrize("report", [claim(900_000, 5), claim(1, 1, epoch=2)], ids=["number", "epoch"])
def test_a_lying_device_within_the_bound_is_refused_with_words_and_can_be_left_out(
    site: Site, report: Report
) -> None:
    site.published(a=True)
    site.put_report("liar", report)
    refused(site.publish(a=False), "device liar holds", "publish.ignored_reports")
    assert site.version() == 1
    configure(site.project.folder, {"ignored_reports": '["liar"]'})
    site.published(a=False)
    assert site.version() == 2


@pytest.mark.parametrize("value", ['"liar"', "[1]", '["a/b"]', json.dumps([f"d{n}" for n in range(1_001)])])
def test_ignored_reports_are_a_list_of_device_ids(site: Site, value: str) -> None:
    configure(site.project.folder, {"ignored_reports": value})
    done = site.publish(a=True)
    assert (done.code, "publish.ignored_reports" in done.err) == (2, True), done.err


def test_a_runner_without_the_ledger_is_refused_unless_it_says_so(site: Site) -> None:
    device = site.device()
    site.published(a=True)
    device.holds(1)
    site.restore_ledger(None)
    for agrees in (False, True):
        tried = site.publish("--dry-run", *(["--without-ledger"] if agrees else []), a=False)
        assert tried.code == 0
        assert ("would refuse this" in tried.err) == (not agrees), tried.err
    refused(site.publish(a=False), "no ledger", "--without-ledger")
    refused(site.flagcast.on_project("rollout", "set", "5"), "--without-ledger")
    assert site.version() == 1
    site.published("--without-ledger", a=False)
    device.holds(2)
    site.wait_until_reported(device, 2)
    site.restore_ledger(None)
    site.empty_broker()
    refused(
        site.publish("--without-ledger", a=True), "holds version 2", "ledger recovered --namespace default"
    )
    assert site.flagcast.on_project("ledger", "recovered", "--namespace", "default").code == 0
    site.published(a=True)
    device.holds(2 + RECOVERY_MARGIN + 1)


def test_a_runner_that_caches_its_ledger_is_a_publisher_like_any_other(site: Site) -> None:
    device = site.device()
    site.published(a=True)
    cached: Sequence[bool] = (False, True, False)
    for number, state in enumerate(cached, 2):
        cache = site.back_up("ledger")
        site.restore_ledger(None)  # another runner
        site.restore_ledger(cache)
        site.published(a=state)
        device.holds(number)


def test_serve_puts_nothing_old_over_what_its_own_keys_signed(site: Site) -> None:
    # Its ledger ends at version 2 under head 4; a runner without it goes on, and begins anew where the broker is empty.
    site.published(a=True)
    for _ in range(2):
        site.published("--refresh", a=True)
    site.published(a=False)
    own = site.back_up("ledger")
    with Serve(site.project.folder, site.folder / "serve.log") as serve:
        serve.wait_for("checked")
        serve.stop()
    site.restore_ledger(None)
    site.published("--without-ledger", a=True, b=True)
    assert site.version() == 3
    site.restore_ledger(own)
    with Serve(site.project.folder, site.folder / "serve.log") as serve:
        serve.wait_for("checked")
        site.broker.kill()
        site.broker.start()
        serve.wait_for('"put back"')
        assert site.version() == 3, serve.log
        device = site.device()
        device.holds(3)
        assert device.enabled("b") == (True,)


def test_serve_leaves_a_newer_version_under_a_lower_head(site: Site) -> None:
    site.published(a=True)
    for _ in range(5):
        site.published("--refresh", a=True)
    own = site.back_up("ledger")
    site.restore_ledger(None)
    site.broker.kill()
    site.broker.start()
    for state in (True, False, True):
        site.published("--without-ledger", b=state)
    head = site.head()
    assert head is not None
    assert (head.stable.version, head.sequence) == (3, 3)
    site.restore_ledger(own)  # version 1 under head 6
    with Serve(site.project.folder, site.folder / "serve.log") as serve:
        serve.wait_for("checked")
        assert site.version() == 3, serve.log
        assert "version 3 under head 3" in serve.log
        site.broker.kill()
        site.broker.start()
        serve.wait_for('"put back"')  # the root, and nothing else
        assert site.version() == 0, "version 1 again"
    site.published(a=True, b=True)
    head = site.head()
    assert head is not None
    assert (head.stable.version, head.sequence) > (3, 6)


def test_doctor_leaves_what_a_device_has_reported(site: Site) -> None:
    """A device that is away still guards its numbers, also after somebody has examined it."""
    site.published(a=True)
    device = site.device()
    site.wait_until_reported(device, 1)
    site.published(a=False)
    site.wait_until_reported(device, 2)
    device.stop()
    reported = site.member(device)
    assert reported["is_online"] is False
    for _ in range(6):  # whether the goodbye or the end of the process came first was a toss
        done = device.run("doctor")
        assert "the broker lets this device in" in done.stdout
        assert site.member(device) == reported
