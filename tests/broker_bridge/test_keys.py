"""The commands around keys, and what several people sign, over a real broker and judged by the core of a device."""

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from believing import Believer
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from publishing import Flagcast, Result, features, make_project
from thief import forged

from brokers import start_mosquitto
from flagcast_bridge import clock, files, project
from flagcast_bridge.broker import connection as mqtt
from flagcast_bridge.cli import main
from flagcast_bridge.publishing import rotation as keys
from flagcast_bridge.signing import keychain, passphrase, pkcs8, signer
from flagcast_bridge.signing.signer import encode_public
from flagcast_shared.errors import InvalidConfiguration
from flagcast_shared.limits import NUMBER_MAX
from flagcast_shared.root import PublicKey, Role

PROGRAM = Path(sys.executable).with_name("flagcast")
ACTS = ("list", "make", "rotate", "revoke", "sign", "apply", "passphrase")


@dataclass(frozen=True, slots=True)
class Site:
    """A project, the command, and the broker if there is one."""

    folder: Path
    flagcast: Flagcast
    port: int = 1

    def keys(self, *words: str | Path) -> Result:
        return self.flagcast("keys", *words, "--project", self.folder)

    def publish(self, flags: Mapping[str, bool], *words: str | Path, namespace: str = "default") -> Result:
        path = self.folder / f"{namespace}.yml"
        path.write_text(features(flags, namespace))
        return self.flagcast("publish", path, *words, "--project", self.folder)

    def release(self, path: Path) -> Result:
        return self.flagcast("publish", "--release", path, "--project", self.folder)

    @property
    def chain(self) -> keychain.Chain:
        return keychain.chain(project.load(self.folder))

    @property
    def anchor(self) -> bytes:
        return (self.folder / "roots" / "1.root").read_bytes()

    def listed(self) -> dict[str, Any]:
        done = self.keys("list", "--format", "json")
        assert done.code == 0, done.err
        found: dict[str, Any] = json.loads(done.out)
        return found

    def retained(self) -> dict[str, bytes]:
        with self.connect() as connection:
            return connection.read_all(["flagcast/#"])

    def put(self, messages: Mapping[str, bytes]) -> None:
        """Retain anything, as anybody on the broker's network could."""
        with self.connect() as connection:
            connection.publish(list(messages.items()))

    def connect(self) -> mqtt.Connection:
        return mqtt.connect("127.0.0.1", self.port, mqtt.Login(), protocol="5")

    def device(self) -> Believer:
        return Believer("test", self.anchor)


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.delenv(passphrase.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "fleet"
    make_project(folder, "mqtt://127.0.0.1:1")
    return Site(folder, Flagcast(folder, capsys))


@pytest.fixture
def live(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.delenv(passphrase.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "fleet"
    with start_mosquitto(tmp_path / "broker") as broker:
        make_project(folder, broker.url)
        yield Site(folder, Flagcast(folder, capsys), broker.port)


def make(flagcast: Flagcast, folder: Path, name: str) -> Path:
    """A key that somebody made on a machine of their own."""
    folder.mkdir(exist_ok=True)
    done = flagcast("keys", "make", folder / f"{name}.key", "--name", name)
    assert done.code == 0, done.err
    return folder / f"{name}.key"


def pub(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# The commands


@pytest.mark.parametrize("act", ACTS)
def test_every_act_has_help_and_an_example_that_it_would_take(
    act: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["keys", act, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"usage: flagcast keys {act} " in said
    before, _, example = said.partition("\nexample:\n")
    assert example.strip().startswith(f"flagcast keys {act} ")
    assert all(word in before for word in example.split() if word.startswith("--"))


def test_a_key_is_made_without_a_project_and_its_public_half_is_what_goes_to_others(
    site: Site, tmp_path: Path
) -> None:
    done = site.flagcast("keys", "make", tmp_path / "alice.key", "--name", "alice")
    assert done.code == 0, done.err
    assert (tmp_path / "alice.key").stat().st_mode & 0o777 == 0o600
    public = signer.load_public(tmp_path / "alice.key.pub")
    assert public == signer.load(tmp_path / "alice.key", "alice").public
    assert (tmp_path / "alice.key.pub").read_text() in done.out
    assert public.id.hex() in done.out
    secret = (tmp_path / "alice.key").read_text().splitlines()[1]
    assert secret not in done.out + done.err
    openssl = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", tmp_path / "alice.key.pub", "-noout", "-text_pub"],
        capture_output=True,
        text=True,
        check=True,
    )
    digits = "".join(line.strip() for line in openssl.stdout.splitlines()[2:]).replace(":", "")
    assert bytes.fromhex(digits) == public.raw


@pytest.mark.parametrize("taken", ["alice.key", "alice.key.pub"])
def test_making_a_key_overwrites_nothing(site: Site, tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    before = tree(tmp_path)
    done = site.flagcast("keys", "make", tmp_path / "alice.key", "--name", "alice")
    assert (done.code, "never overwritten" in done.err) == (2, True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["", " ", "two\nlines", "x" * 257, "\x1b[2K"])
def test_a_name_prints_in_one_line(site: Site, tmp_path: Path, name: str) -> None:
    done = site.flagcast("keys", "make", tmp_path / "alice.key", "--name", name)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert not (tmp_path / "alice.key").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key"),
        (b"x" * 20_000, "not a public key"),
        (b"\xff\xfe-----BEGIN PUBLIC KEY-----", "not a public key"),
        (encode_public(PublicKey(b"\x01" + bytes(31), "x")), "of small order: anybody can sign for it"),
        (encode_public(PublicKey(b"\xf0" + b"\xff" * 30 + b"\x7f", "x")), "not in its canonical encoding"),
        (encode_public(PublicKey(b"\x02" + bytes(31), "x")), "not a point of the curve"),
        (None, "a private key, which stays where it is; take alice.key.pub"),
    ],
)
def test_what_is_no_public_key_is_refused_in_one_line(
    site: Site, tmp_path: Path, content: bytes | None, says: str
) -> None:
    key = make(site.flagcast, tmp_path / "alice", "alice")
    given = key
    if content is not None:
        given = tmp_path / "given.pub"
        given.write_bytes(content)
    before = tree(site.folder)
    done = site.keys("rotate", "publisher", "--add", given)
    assert (done.code, says in done.err, len(done.err.splitlines())) == (2, True, 1)
    assert tree(site.folder) == before


def test_the_list_tells_the_chain_who_signed_it_and_which_keys_are_here(site: Site) -> None:
    assert site.keys("rotate", "publisher").code == 0
    found = site.listed()
    chain = site.chain
    root_key = next(iter(chain.root.roles[Role.ROOT].keys)).hex()
    assert [
        (each["number"], each["epoch"], [by["id"] for by in each["signed_by"]]) for each in found["roots"]
    ] == [(1, 1, [root_key]), (2, 2, [root_key])]
    held = {Path(each["file"]).name: each["roles"] for each in found["held"]}
    assert held == {"publisher-1.key": [], "publisher.key": ["publisher"], "root.key": ["root"]}
    said = site.keys("list").out
    assert "in force: root 2" in said
    assert "publisher: 1 of 1 must sign" in said
    assert f"root 2  epoch 2  issued {clock.as_text(chain.root.issued)}" in said
    assert "publisher-1.key: " in said
    assert "of no use under this root" in said


def test_the_list_says_that_the_root_has_expired(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    later = site.chain.root.expires
    monkeypatch.setattr(clock, "now", lambda: later)
    assert "EXPIRED: devices take nothing new; flagcast keys rotate root" in site.keys("list").out
    assert site.keys("rotate", "root").code == 0
    assert "EXPIRED" not in site.keys("list").out


# Rotating


def test_a_rotation_puts_a_new_key_in_the_place_of_the_old_which_is_kept(site: Site) -> None:
    before = tree(site.folder)
    done = site.keys("rotate", "publisher")
    assert done.code == 0, done.err
    after = tree(site.folder)
    assert after["keys/publisher-1.key"] == before["keys/publisher.key"]
    assert after["keys/publisher-1.key.pub"] == before["keys/publisher.key.pub"]
    assert after["keys/root.key"] == before["keys/root.key"]
    assert set(after) - set(before) == {"keys/publisher-1.key", "keys/publisher-1.key.pub", "roots/2.root"}
    new = signer.load(site.folder / "keys" / "publisher.key", "x").public
    assert site.chain.root.roles[Role.PUBLISHER].keys == {new.id}
    assert "a new epoch, 2 (was 1)" in done.out
    assert "a device believes the keys of before until it hears of root 2" in done.out
    assert "it puts root 2 on the broker, and every namespace anew under epoch 2" in done.out


def test_rotations_go_on_one_after_another(site: Site) -> None:
    for role in ("publisher", "root", "root", "publisher"):
        assert site.keys("rotate", role).code == 0
    root = site.chain.root
    assert (root.number, root.epoch) == (5, 3)
    assert {path.name for path in (site.folder / "keys").glob("*.key")} == {
        "root.key", "root-1.key", "root-2.key", "publisher.key", "publisher-1.key", "publisher-2.key",
    }  # fmt: skip
    device = site.device()
    device.hear(
        {f"flagcast/1/test/root/{link.root.number}": link.data for link in site.chain.links}, now=clock.now()
    )
    assert (device.root, device.refused) == (5, [])


def test_a_new_root_key_begins_no_epoch(site: Site) -> None:
    done = site.keys("rotate", "root")
    assert "no new epoch" in done.out
    assert "every namespace anew" not in done.out


def test_a_root_key_that_is_elsewhere_signs_there(site: Site, tmp_path: Path) -> None:
    away = tmp_path / "safe"
    away.mkdir()
    (site.folder / "keys" / "root.key").rename(away / "root.key")
    done = site.keys("rotate", "publisher")
    assert done.code == 0, done.err
    assert "not in force yet; written to root-2.ceremony" in done.out
    assert site.chain.root.number == 1
    early = site.keys("apply", "root-2.ceremony")
    assert (early.code, "0 of 1 root keys of root 1 have signed" in early.err) == (1, True)
    waiting = signer.load(site.folder / "keys" / "publisher.next.key", "x").public

    signed = site.flagcast("keys", "sign", "root-2.ceremony", "--key", away / "root.key", "--yes")
    assert signed.code == 0, signed.err
    assert f"takes in publisher key {waiting.id.hex()} (publisher-2)" in signed.out
    assert "next: flagcast keys apply root-2.ceremony" in signed.out
    done = site.keys("apply", "root-2.ceremony")
    assert done.code == 0, done.err
    assert site.chain.root.roles[Role.PUBLISHER].keys == {waiting.id}
    assert signer.load(site.folder / "keys" / "publisher.key", "x").public.id == waiting.id
    assert not (site.folder / "keys" / "publisher.next.key").exists()
    again = site.keys("apply", "root-2.ceremony")
    assert (again.code, "is in roots/ already" in again.out) == (0, True)


def test_a_key_file_from_elsewhere_signs_at_once(site: Site, tmp_path: Path) -> None:
    (site.folder / "keys" / "root.key").rename(tmp_path / "root.key")
    assert site.keys("rotate", "publisher", "--key", tmp_path / "root.key").code == 0
    assert site.chain.root.number == 2


def test_a_rotation_that_waits_for_signatures_keeps_its_key_when_it_is_begun_again(
    site: Site, tmp_path: Path
) -> None:
    (site.folder / "keys" / "root.key").rename(tmp_path / "root.key")
    assert site.keys("rotate", "publisher", "--out", "first.ceremony").code == 0
    key = (site.folder / "keys" / "publisher.next.key").read_bytes()
    taken = site.keys("rotate", "publisher", "--out", "first.ceremony")
    assert (taken.code, "never overwritten" in taken.err) == (2, True)
    assert site.keys("rotate", "publisher", "--out", "second.ceremony").code == 0
    assert (site.folder / "keys" / "publisher.next.key").read_bytes() == key


def test_which_of_several_keys_goes_has_to_be_said(site: Site, tmp_path: Path) -> None:
    for name in ("alice", "bob"):
        assert (
            site.keys("rotate", "publisher", "--add", pub(make(site.flagcast, tmp_path / name, name))).code
            == 0
        )
    own = site.keys("rotate", "publisher")  # of three, the project holds one
    assert own.code == 0, own.err
    assert {key.name for key in site.chain.root.keys.values()} == {"root", "publisher-4", "alice", "bob"}
    for name in ("publisher", "publisher-1"):
        (site.folder / "keys" / f"{name}.key").unlink()
    done = site.keys("rotate", "publisher")
    assert (done.code, "Root 4 has 3 publisher keys, and this project holds none of them" in done.err) == (
        1,
        True,
    )
    assert len(done.err.splitlines()) == 1


def test_nothing_to_change_is_no_root(site: Site) -> None:
    done = site.keys("rotate", "publisher", "--threshold", "1")
    assert (done.code, "nothing would change" in done.err) == (1, True)
    assert site.chain.root.number == 1


# Revoking


def test_a_revoked_key_is_in_no_role_and_revoking_it_again_says_so(site: Site, tmp_path: Path) -> None:
    key = make(site.flagcast, tmp_path / "alice", "alice")
    assert site.keys("rotate", "publisher", "--add", pub(key)).code == 0
    done = site.keys("revoke", "alice")
    assert done.code == 0, done.err
    assert "takes out publisher key" in done.out
    assert (site.chain.root.number, site.chain.root.epoch) == (3, 3)
    assert "alice" not in {each.name for each in site.chain.root.keys.values()}
    again = site.keys("revoke", signer.load_public(pub(key)).id.hex())
    assert (again.code, "it was taken out before" in again.err) == (1, True)


def test_the_last_key_is_not_revoked_and_the_answer_says_what_to_do(site: Site) -> None:
    before = tree(site.folder)
    for name in ("publisher", "root"):
        done = site.keys("revoke", name)
        assert (done.code, len(done.err.splitlines())) == (1, 1)
        assert f"1 {name} keys must sign and 0 would be left" in done.err
        assert f"flagcast keys rotate {name}" in done.err
    assert "no such key in root 1; name it by its id" in site.keys("revoke", "nobody").err
    assert tree(site.folder) == before


# Signing


@pytest.fixture
def waiting(site: Site, tmp_path: Path) -> Path:
    """A root that waits for the root key, which is at `tmp_path / "root.key"`."""
    (site.folder / "keys" / "root.key").rename(tmp_path / "root.key")
    assert site.keys("rotate", "publisher").code == 0
    return tmp_path / "root-2.ceremony"


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_a_person_is_shown_what_is_signed_and_asked(
    site: Site, waiting: Path, tmp_path: Path, answer: str, code: int
) -> None:
    before = waiting.read_bytes()
    done = subprocess.run(
        [PROGRAM, "keys", "sign", waiting, "--key", tmp_path / "root.key"],
        input=answer,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == code, done.stderr
    assert "root 2 of environment test, which follows root 1" in done.stdout
    assert "sign this with key " in done.stdout
    assert (waiting.read_bytes() == before) == bool(code)


def test_signing_needs_neither_project_nor_network(site: Site, waiting: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    waiting = waiting.rename(elsewhere / waiting.name)
    key = (tmp_path / "root.key").rename(elsewhere / "root.key")
    (site.folder).rename(tmp_path / "gone")
    done = subprocess.run(
        ["unshare", "--net", PROGRAM, "keys", "sign", waiting, "--key", key, "--yes"],
        capture_output=True,
        text=True,
        check=False,
        cwd=elsewhere,
    )
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no network namespaces here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert "signed by 1 of 1 root keys of root 1" in done.stdout


def test_a_key_without_a_say_or_that_has_signed_is_refused(site: Site, waiting: Path, tmp_path: Path) -> None:
    stranger = make(site.flagcast, tmp_path / "stranger", "stranger")
    before = waiting.read_bytes()
    done = site.flagcast("keys", "sign", waiting, "--key", stranger, "--yes")
    assert (done.code, "has no say in this" in done.err) == (1, True)
    assert waiting.read_bytes() == before
    assert site.flagcast("keys", "sign", waiting, "--key", tmp_path / "root.key", "--yes").code == 0
    before = waiting.read_bytes()
    done = site.flagcast("keys", "sign", waiting, "--key", tmp_path / "root.key", "--yes")
    assert (done.code, "has signed this already" in done.err) == (1, True)
    assert waiting.read_bytes() == before


def test_a_file_that_is_no_ceremony_is_refused_in_one_line(site: Site, tmp_path: Path) -> None:
    for content, says in (
        (b"", "the file is empty"),
        (b"not this", "cut short"),
        (b"\xa0", "field 1: not a text"),
    ):
        (tmp_path / "x.ceremony").write_bytes(content)
        for words in (
            ("sign", "x.ceremony", "--key", site.folder / "keys" / "root.key"),
            ("apply", "x.ceremony"),
        ):
            done = site.keys(*words) if words[0] == "apply" else site.flagcast("keys", *words)
            assert (done.code, says in done.err, len(done.err.splitlines())) == (2, True, 1), done.err


def test_a_root_of_another_environment_or_another_chain_is_not_applied(
    site: Site, waiting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.flagcast("keys", "sign", waiting, "--key", tmp_path / "root.key", "--yes").code == 0
    twin = tmp_path / "twin"
    make_project(twin, "mqtt://127.0.0.1:1")
    done = Site(twin, Flagcast(twin, capsys)).keys("apply", waiting)
    assert (done.code, "was made to follow another root 1" in done.err) == (1, True)
    assert Flagcast(twin, capsys)("init", tmp_path / "other", "--environment", "other").code == 0
    done = Site(tmp_path / "other", Flagcast(twin, capsys)).keys("apply", waiting)
    assert (done.code, "for environment 'test', and this project is 'other'" in done.err) == (1, True)
    assert not (twin / "roots" / "2.root").exists()


def test_a_project_that_has_moved_on_does_not_apply_an_older_ceremony(
    site: Site, waiting: Path, tmp_path: Path
) -> None:
    assert site.flagcast("keys", "sign", waiting, "--key", tmp_path / "root.key", "--yes").code == 0
    key = make(site.flagcast, tmp_path / "alice", "alice")
    assert site.keys("rotate", "publisher", "--add", pub(key), "--key", tmp_path / "root.key").code == 0
    done = site.keys("apply", waiting)
    assert (done.code, "this project has moved on, make the change anew" in done.err) == (1, True)
    assert site.chain.root.number == 2


def test_two_of_three_root_keys_make_the_next_root(site: Site, tmp_path: Path) -> None:
    keys = {name: make(site.flagcast, tmp_path / name, name) for name in ("alice", "bob", "carol")}
    added = [word for key in keys.values() for word in ("--add", pub(key))]
    done = site.keys(
        "rotate", "root", *added, "--remove", "root", "--threshold", "2",
        "--key", keys["alice"], "--key", keys["bob"],
    )  # fmt: skip
    assert done.code == 0, done.err
    root = site.chain.root
    assert (root.number, root.epoch, root.roles[Role.ROOT].threshold) == (2, 1, 2)

    assert site.keys("rotate", "publisher", "--key", keys["carol"]).code == 0  # one of two is missing
    one = site.keys("apply", "root-3.ceremony")
    assert (one.code, "1 of 2 root keys of root 2 have signed; still to sign, 1 of: " in one.err) == (1, True)
    assert site.flagcast("keys", "sign", "root-3.ceremony", "--key", keys["bob"], "--yes").code == 0
    assert site.keys("apply", "root-3.ceremony").code == 0
    device = site.device()
    device.hear(
        {f"flagcast/1/test/root/{link.root.number}": link.data for link in site.chain.links}, now=clock.now()
    )
    assert (device.root, device.refused) == (3, [])


# A crash in the middle

DIE_AT = """
import os, signal, sys
left, folder = [int(sys.argv[1])], sys.argv[2]
def hook(event, arguments):
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (writes or event in ("os.rename", "os.link", "os.remove")) and str(arguments[0]).startswith(folder):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
sys.addaudithook(hook)
from flagcast_bridge.signing import pkcs8
pkcs8.SCRYPT_N, pkcs8.SCRYPT_P = int(sys.argv[4]), 1
from flagcast_bridge.cli import main
sys.exit(main(["keys", "rotate", sys.argv[3], "--project", folder]))
"""


CHEAP_N = 2**4


@pytest.mark.parametrize(("role", "protected"), [("publisher", True), ("root", False)])
def test_a_rotation_that_is_killed_anywhere_is_finished_by_the_next(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    role: str,
    protected: bool,
) -> None:
    flagcast = Flagcast(tmp_path, capsys)
    monkeypatch.delenv(passphrase.VARIABLE, raising=False)
    if protected:
        write_secret(tmp_path / "secret", "open sesame\n")
        monkeypatch.setenv(passphrase.VARIABLE, str(tmp_path / "secret"))
    unlock = passphrase.from_environment
    # Hundreds of keys are opened here, and the order of files does not depend on how hard that is.
    monkeypatch.setattr(pkcs8, "SCRYPT_N", CHEAP_N)
    monkeypatch.setattr(pkcs8, "SCRYPT_P", 1)
    for steps in range(100):
        folder = tmp_path / str(steps)
        assert flagcast("init", folder, "--environment", "test").code == 0
        old = signer.load(folder / "keys" / f"{role}.key", "x", unlock).public.id
        killed = subprocess.run(
            [sys.executable, "-c", DIE_AT, str(steps), folder, role, str(CHEAP_N)],
            capture_output=True,
            check=False,
        )
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        # Whatever stands there, a publisher finds the key that the root in force names.
        chain = keychain.chain(project.load(folder))
        (found,) = keychain.publishers(project.load(folder), chain.root, unlock)
        assert found.public.id in chain.root.roles[Role.PUBLISHER].keys

        done = flagcast("keys", "rotate", role, "--project", folder)
        assert done.code == 0, done.err
        chain = keychain.chain(project.load(folder))
        assert chain.root.number == 2, f"killed at step {steps}"
        new = signer.load(folder / "keys" / f"{role}.key", "x", unlock).public.id
        assert chain.root.roles[Role(role)].keys == {new}
        assert signer.load_public(folder / "keys" / f"{role}.key.pub").id == new
        assert signer.load(folder / "keys" / f"{role}-1.key", "x", unlock).public.id == old
        assert signer.load_public(folder / "keys" / f"{role}-1.key.pub").id == old
        assert {each for each in tree(folder) if "next" in each or each.endswith(".new")} == set()
    else:
        raise AssertionError("it never came to its end")
    assert steps > 10


# Clocks


@pytest.mark.parametrize("act", ["sign", "apply"])
@pytest.mark.parametrize("ahead", [299, 301])
def test_a_root_that_is_issued_ahead_of_the_clock_is_neither_signed_nor_applied(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str, ahead: int
) -> None:
    root_key = tmp_path / "root.key"
    (site.folder / "keys" / "root.key").rename(root_key)
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now + ahead)
    assert site.keys("rotate", "publisher").code == 0
    if act == "apply":
        assert site.flagcast("keys", "sign", "root-2.ceremony", "--key", root_key, "--yes").code == 0
    monkeypatch.setattr(clock, "now", lambda: now)
    before = tree(tmp_path)
    words = ("--key", root_key, "--yes") if act == "sign" else ("--project", site.folder)
    done = site.flagcast("keys", act, "root-2.ceremony", *words)
    if ahead < 300:
        assert done.code == 0, done.err
        return
    says = f"root 2 is issued at {clock.as_text(now + ahead)}, and this machine's clock is at {clock.as_text(now)}"
    assert (done.code, says in done.err, "Set this clock if it is behind" in done.err) == (1, True, True), (
        done.err
    )
    assert tree(tmp_path) == before


# Passphrases


def write_secret(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return write_secret(tmp_path / "secret", "open sesame\n")


def test_a_protected_key_opens_with_its_passphrase_alone(site: Site, tmp_path: Path, secret: Path) -> None:
    path = tmp_path / "alice.key"
    done = site.flagcast("keys", "make", path, "--name", "alice", "--passphrase-file", secret)
    assert done.code == 0, done.err
    assert path.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert "open sesame" not in done.out + done.err
    public = signer.load_public(pub(path))
    assert signer.load(path, "alice", lambda _: b"open sesame").public == public
    with pytest.raises(
        InvalidConfiguration, match="the passphrase is wrong, or the file is damaged"
    ) as caught:
        signer.load(path, "alice", lambda _: b"open")
    assert "\n" not in str(caught.value)
    with pytest.raises(
        InvalidConfiguration, match=r"give --passphrase to be asked for it, or name a file"
    ) as caught:
        signer.load(path, "alice")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 1_024, b"x" * 5_000])
def test_a_passphrase_has_a_length(site: Site, tmp_path: Path, content: bytes) -> None:
    write_secret(tmp_path / "bad", content)
    done = site.flagcast(
        "keys", "make", tmp_path / "a.key", "--name", "a", "--passphrase-file", tmp_path / "bad"
    )
    assert (done.code, "a passphrase has 1 to 1023 bytes" in done.err) == (2, True)
    assert not (tmp_path / "a.key").exists()


def test_a_passphrase_file_that_is_not_there_is_named(site: Site, tmp_path: Path) -> None:
    done = site.flagcast("keys", "make", tmp_path / "a.key", "--name", "a", "--passphrase-file", "absent")
    assert (done.code, "absent: the passphrase cannot be read: No such file" in done.err) == (2, True)


def test_a_project_of_protected_keys_publishes_and_rotates_with_their_passphrase(
    live: Site, tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "protected"
    url = f"mqtt://127.0.0.1:{live.port}"
    done = live.flagcast(
        "init", folder, "--environment", "test", "--broker", url, "--passphrase-file", secret
    )
    assert done.code == 0, done.err
    site = Site(folder, live.flagcast, live.port)
    for name in ("root", "publisher"):
        assert signer.is_encrypted(folder / "keys" / f"{name}.key")
    assert "publisher, protected by a passphrase" in site.keys("list").out  # known without it
    locked = site.publish({"a": True})
    assert (locked.code, "publisher.key: protected by a passphrase" in locked.err) == (2, True)
    assert site.publish({"a": True}, "--passphrase-file", secret).code == 0
    monkeypatch.setenv(passphrase.VARIABLE, str(secret))
    assert site.publish({"a": False}).code == 0
    assert site.keys("rotate", "publisher").code == 0
    assert signer.is_encrypted(folder / "keys" / "publisher.key")
    assert site.publish({"a": False}).code == 0
    write_secret(tmp_path / "other", "wrong")
    wrong = site.publish({"a": True}, "--passphrase-file", tmp_path / "other")
    assert (wrong.code, "the passphrase is wrong" in wrong.err, len(wrong.err.splitlines())) == (2, True, 1)
    device = site.device()
    device.hear(site.retained(), now=clock.now())
    assert (device.root, device.refused) == (2, [])


def at_terminal(words: Sequence[str | Path], typed: list[str], folder: Path) -> tuple[int, str]:
    """Run a command at a terminal of its own, and type; the exit code, and all that the terminal showed."""
    ours, theirs = pty.openpty()
    # Opening a terminal in a session that has none makes it the one to ask at.
    start = "import os, sys; os.open(os.ttyname(0), os.O_RDWR); os.execv(sys.argv[1], sys.argv[1:])"
    child = subprocess.Popen(
        [sys.executable, "-c", start, str(PROGRAM), *(str(word) for word in words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        cwd=folder,
    )
    os.close(theirs)
    shown = b""
    try:
        while True:
            try:
                more = os.read(ours, 4096)
            except OSError:  # the terminal's other end was closed
                break
            if not more:
                break
            shown += more
            if typed and shown.rstrip(b" ").endswith(b":"):
                os.write(ours, typed.pop(0).encode() + b"\n")
                shown += b"\n"
    finally:
        code = child.wait(30)
        os.close(ours)
    return code, shown.decode()


def test_a_passphrase_is_asked_for_at_the_terminal_and_never_shown(site: Site, tmp_path: Path) -> None:
    made: list[str | Path] = ["keys", "make", tmp_path / "a.key", "--name", "a", "--passphrase"]
    code, shown = at_terminal(made, ["one thing", "another"], tmp_path)
    assert (code, "the two passphrases differ" in shown) == (2, True)
    assert not (tmp_path / "a.key").exists()
    code, shown = at_terminal(made, ["correct horse", "correct horse"], tmp_path)
    assert code == 0, shown
    assert "correct" not in shown
    assert signer.load(tmp_path / "a.key", "a", lambda _: b"correct horse").public.name == "a"

    assert (
        site.keys(
            "rotate", "root", "--add", tmp_path / "a.key.pub", "--key", site.folder / "keys" / "root.key"
        ).code
        == 0
    )
    (site.folder / "keys" / "root.key").rename(tmp_path / "root.key")
    assert site.keys("rotate", "publisher").code == 0
    signing: list[str | Path] = [
        "keys",
        "sign",
        "root-3.ceremony",
        "--key",
        tmp_path / "a.key",
        "--passphrase",
        "--yes",
    ]
    code, shown = at_terminal(signing, ["wrong"], tmp_path)
    assert (code, "the passphrase is wrong" in shown) == (2, True)
    code, shown = at_terminal(signing, ["correct horse"], tmp_path)
    assert code == 0, shown
    assert f"passphrase of {tmp_path / 'a.key'}: " in shown
    assert "correct" not in shown


def test_without_a_terminal_nobody_is_asked(tmp_path: Path) -> None:
    done = subprocess.run(
        [PROGRAM, "keys", "make", tmp_path / "a.key", "--name", "a", "--passphrase"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert (done.returncode, "there is no terminal to ask" in done.stderr) == (2, True)
    assert len(done.stderr.splitlines()) == 1


def test_a_public_half_of_another_key_beside_a_protected_one_is_found(
    site: Site, tmp_path: Path, secret: Path
) -> None:
    path = site.folder / "keys" / "publisher.key"
    kept = pub(path).read_bytes()
    path.unlink()
    signer.create("other").save(path, b"open sesame")
    pub(path).write_bytes(kept)
    with pytest.raises(
        InvalidConfiguration, match=r"publisher\.key\.pub beside it is the public half of another key"
    ):
        keychain.publishers(project.load(site.folder), site.chain.root, lambda _: b"open sesame")


# Files that others may read


@pytest.mark.parametrize(
    ("mode", "words", "says"),
    [
        (0o640, (), "its group may use this signing key; run: chmod 600"),
        (0o660, (), "its group may use this signing key"),
        (0o604, (), "every user of this machine may use this signing key; run: chmod 600"),
        (0o644, ("--allow-group",), "every user of this machine may use this signing key"),
        (
            0o660,
            ("--allow-group",),
            "its group may write this signing key, which --allow-group does not cover",
        ),
    ],
)
def test_a_key_that_others_may_read_is_refused_by_every_command_that_signs(
    live: Site, mode: int, words: tuple[str, ...], says: str
) -> None:
    key = live.folder / "keys" / "publisher.key"
    key.chmod(mode)
    before = tree(live.folder)
    path = live.folder / "default.yml"
    done = live.publish({"a": True}, *words)
    assert (done.code, says in done.err, len(done.err.splitlines())) == (2, True, 1), done.err
    assert live.retained() == {}
    assert says in live.keys("list", *words).out
    (live.folder / "keys" / "root.key").chmod(mode)
    done = live.keys("rotate", "publisher", "--key", live.folder / "keys" / "root.key", *words)
    assert (done.code, says in done.err) == (2, True), done.err
    after = tree(live.folder)
    kept = {name: data for name, data in after.items() if name.startswith(("keys/", "roots/"))}
    assert kept.items() >= {name: data for name, data in before.items() if name.startswith("keys/")}.items()
    assert [name for name in kept if name.startswith("roots/")] == ["roots/1.root"]
    assert path.exists()


@pytest.mark.parametrize("mode", [0o640, 0o440])
def test_a_key_and_a_passphrase_of_the_group_are_read_where_that_is_meant(
    live: Site, tmp_path: Path, secret: Path, mode: int
) -> None:
    folder = tmp_path / "protected"
    words = (
        "--environment",
        "test",
        "--broker",
        f"mqtt://127.0.0.1:{live.port}",
        "--passphrase-file",
        secret,
    )
    assert live.flagcast("init", folder, *words).code == 0
    site = Site(folder, live.flagcast, live.port)
    for path in (secret, *(folder / "keys").glob("*.key")):
        path.chmod(mode)
    assert site.publish({"a": True}, "--passphrase-file", secret).code == 2
    assert site.publish({"a": True}, "--passphrase-file", secret, "--allow-group").code == 0
    done = site.keys("rotate", "publisher", "--passphrase-file", secret, "--allow-group")
    assert done.code == 0, done.err


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_passphrase_file_that_others_may_read_is_refused(site: Site, tmp_path: Path, mode: int) -> None:
    secret = write_secret(tmp_path / "secret", "open sesame", mode)
    made = ("keys", "make", tmp_path / "a.key", "--name", "a", "--passphrase-file", secret)
    done = site.flagcast(*made)
    assert (done.code, "may use this passphrase; run: chmod 600" in done.err) == (2, True), done.err
    assert not (tmp_path / "a.key").exists()
    assert site.flagcast(*made, "--allow-group").code == (0 if mode == 0o640 else 2)


# Key files of before


def weaken(path: Path, phrase: bytes) -> None:
    """The same key as releases before wrote it."""
    key = load_pem_private_key(path.read_bytes(), password=phrase)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(phrase)))


def test_a_key_file_of_before_signs_with_a_warning_until_it_is_written_anew(
    live: Site, tmp_path: Path, secret: Path
) -> None:
    folder = tmp_path / "protected"
    words = (
        "--environment",
        "test",
        "--broker",
        f"mqtt://127.0.0.1:{live.port}",
        "--passphrase-file",
        secret,
    )
    assert live.flagcast("init", folder, *words).code == 0
    site = Site(folder, live.flagcast, live.port)
    path = folder / "keys" / "publisher.key"
    public = signer.load_public(pub(path))
    weaken(path, b"open sesame")
    says = f"PBKDF2 with 2048 rounds alone; write it anew with: flagcast keys passphrase {path}"
    assert says in site.keys("list").out
    assert [each["weakness"] for each in site.listed()["held"]] == ["PBKDF2 with 2048 rounds", None]
    done = site.publish({"a": True}, "--passphrase-file", secret)
    assert (done.code, done.err.count(says)) == (0, 1), done.err

    before = path.read_bytes()
    wrong = write_secret(tmp_path / "wrong", "close sesame")
    assert site.flagcast("keys", "passphrase", path, "--passphrase-file", wrong).code == 2
    assert path.read_bytes() == before
    done = site.flagcast("keys", "passphrase", path, "--passphrase-file", secret)
    assert done.code == 0, done.err
    assert signer.load(path, "x", lambda _: b"open sesame").public.raw == public.raw
    assert path.stat().st_mode & 0o777 == 0o600
    assert site.listed()["held"][0]["weakness"] is None
    done = site.publish({"a": False}, "--passphrase-file", secret)
    assert (done.code, "rounds" in done.err) == (0, False), done.err


def test_a_key_gets_its_first_passphrase_and_another_one(site: Site, tmp_path: Path, secret: Path) -> None:
    key = make(site.flagcast, tmp_path / "alice", "alice")
    public = signer.load_public(pub(key))
    done = site.flagcast("keys", "passphrase", key)
    assert (done.code, "has no passphrase yet; give --new-passphrase" in done.err) == (2, True)
    assert site.flagcast("keys", "passphrase", key, "--new-passphrase-file", secret).code == 0
    assert signer.load(key, "alice", lambda _: b"open sesame").public == public
    other = write_secret(tmp_path / "other", "correct horse")
    link = tmp_path / "link.key"
    link.symlink_to(key)
    words: list[str | Path] = ["keys", "passphrase", link, "--passphrase-file", secret]
    assert site.flagcast(*words, "--new-passphrase-file", other).code == 0
    assert link.is_symlink()
    assert signer.load(key, "alice", lambda _: b"correct horse").public == public
    asked: list[str | Path] = ["keys", "passphrase", key, "--passphrase", "--new-passphrase"]
    code, shown = at_terminal(asked, ["correct horse", "battery", "battery"], tmp_path)
    assert (code, "correct" in shown) == (0, False), shown
    assert signer.load(key, "alice", lambda _: b"battery").public == public


GROUP, USER = 1_234, 65_534  # neither has to have a name on this machine
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")


@needs_root
@pytest.mark.parametrize("mode", [0o640, 0o440, 0o600])
def test_a_key_that_is_written_anew_keeps_its_group(
    site: Site, tmp_path: Path, secret: Path, mode: int
) -> None:
    key = make(site.flagcast, tmp_path / "alice", "alice")
    os.chown(key, -1, GROUP)
    key.chmod(mode)
    done = site.flagcast("keys", "passphrase", key, "--new-passphrase-file", secret, "--allow-group")
    assert (done.code, "its group" in done.out + done.err) == (0, False), done.err
    found = key.stat()
    assert (found.st_gid, found.st_mode & 0o777) == (GROUP, mode | 0o600)


@needs_root
def test_a_key_that_cannot_keep_its_group_is_its_owner_s_alone(tmp_path: Path, secret: Path) -> None:
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:  # where another user gets to
        key = Path(folder) / "alice.key"
        signer.create("alice").save(key)
        key.chmod(0o640)
        for path, group in ((Path(folder), USER), (key, GROUP)):
            os.chown(path, USER, group)
        groups = os.getgroups()
        os.setgroups([])
        os.setegid(USER)
        os.seteuid(USER)
        try:
            keys.change_passphrase(
                key, unlock=lambda _: None, protect=lambda: b"open sesame", allow_group=True, say=said.append
            )
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)
        found = key.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (USER, USER, 0o600)
    assert (
        f"its group may not read it any more; as root, run: chgrp {GROUP} {key} && chmod g+r {key}"
        in "".join(said)
    )


# Several publishers


@pytest.fixture
def team(live: Site, tmp_path: Path) -> dict[str, Path]:
    """Three publishers of whom two must sign; none of their keys is in the project."""
    keys = {name: make(live.flagcast, tmp_path / name, name) for name in ("alice", "bob", "carol")}
    added = [word for key in keys.values() for word in ("--add", pub(key))]
    done = live.keys("rotate", "publisher", *added, "--remove", "publisher", "--threshold", "2")
    assert done.code == 0, done.err
    return keys


def sign(site: Site, path: Path | str, *keys: Path) -> None:
    for key in keys:
        done = site.flagcast("keys", "sign", path, "--key", key, "--yes")
        assert done.code == 0, done.err


@pytest.mark.mosquitto
def test_two_of_three_publishers_sign_a_release_that_devices_admit(live: Site, team: dict[str, Path]) -> None:
    prepared = live.publish({"a": True}, "--prepare", "one.release")
    assert prepared.code == 0, prepared.err
    assert "signed by 0 of 2 publisher keys of root 2; 2 more of: " in prepared.out
    assert live.retained() == {}
    sign(live, "one.release", team["alice"])
    early = live.release(Path("one.release"))
    assert (early.code, "1 of 2 publisher keys of root 2 have signed" in early.err) == (1, True)
    assert live.retained() == {}
    sign(live, "one.release", team["carol"])
    done = live.release(Path("one.release"))
    assert done.code == 0, done.err
    assert "published root 2" in done.out
    assert "published 1 namespace" in done.out
    device = live.device()
    device.hear(live.retained(), now=clock.now())
    assert (device.root, device.versions, device.refused) == (2, {"default": (2, 1)}, [])
    assert live.release(Path("one.release")).code == 0  # as after a run that was ended

    assert live.publish({"a": False}, "--prepare", "two.release").code == 0
    shown = live.flagcast("keys", "sign", "two.release", "--key", team["bob"], "--yes").out
    assert "default: head 2, after 1" in shown
    assert "compared with version 1:" in shown
    assert "~ flag a" in shown
    sign(live, "two.release", team["alice"])
    assert live.release(Path("two.release")).code == 0
    device.hear(live.retained(), now=clock.now())
    assert (device.versions, device.refused) == ({"default": (2, 2)}, [])
    log = json.loads(live.flagcast("log", "--project", live.folder, "--format", "json").out)
    assert [each["state"] for each in log] == ["published", "published"]


@pytest.mark.mosquitto
def test_a_release_is_refused_when_things_moved_on(
    live: Site, team: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        assert live.publish({name: True}, "--prepare", f"{name}.release").code == 0
        sign(live, f"{name}.release", team["alice"], team["bob"])
    assert live.release(Path("two.release")).code == 0
    before = live.retained()
    for name in ("one", "three"):
        done = live.release(Path(f"{name}.release"))
        assert (done.code, "head 2 was published since this was prepared after head none" in done.err) == (
            1,
            True,
        )
    assert live.publish({"four": True}, "--prepare", "four.release", "--yes").code == 0
    sign(live, "four.release", team["alice"], team["bob"])
    with monkeypatch.context() as patched:
        later = clock.now() + 8 * 86_400
        patched.setattr(clock, "now", lambda: later)
        done = live.release(Path("four.release"))
        assert (done.code, "before it was published; prepare it anew" in done.err) == (1, True)
    assert live.keys("revoke", "carol").code == 0
    done = live.release(Path("four.release"))
    assert (done.code, "it was signed under root 2, and root 3 is in force; prepare it anew" in done.err) == (
        1,
        True,
    )
    assert live.retained() == before


@pytest.mark.mosquitto
def test_a_release_that_is_issued_ahead_of_the_clock_is_neither_signed_nor_published(
    live: Site, team: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now + 3_600)
    assert live.publish({"a": True}, "--prepare", "next.release").code == 0
    for name in ("alice", "bob"):
        monkeypatch.setattr(clock, "now", lambda: now)
        words = ("keys", "sign", "next.release", "--key", team[name], "--yes")
        refused = live.flagcast(*words)
        assert (refused.code, "is issued at" in refused.err) == (1, True), refused.err
        monkeypatch.setattr(clock, "now", lambda: now + 3_600)
        assert live.flagcast(*words).code == 0
    monkeypatch.setattr(clock, "now", lambda: now)
    before = live.retained()
    refused = live.release(Path("next.release"))
    assert (refused.code, "default: head 1 is issued at" in refused.err) == (1, True), refused.err
    assert live.retained() == before


def test_a_release_is_published_where_it_was_prepared(live: Site, team: dict[str, Path]) -> None:
    assert live.publish({"a": True}, "--prepare", "one.release").code == 0
    sign(live, "one.release", team["alice"], team["bob"])
    (live.folder / "ledger.sqlite").unlink()
    done = live.release(Path("one.release"))
    assert (done.code, "this ledger has not issued head 1" in done.err) == (1, True)
    assert live.retained() == {}


@pytest.mark.mosquitto
def test_what_is_prepared_is_written_to_a_new_file_before_numbers_are_taken(
    live: Site, team: dict[str, Path]
) -> None:
    Path("taken").write_text("mine")
    done = live.publish({"a": True}, "--prepare", "taken")
    assert (done.code, "never overwritten" in done.err) == (2, True)
    assert not (live.folder / "ledger.sqlite").exists()


@pytest.mark.mosquitto
def test_keys_at_hand_that_suffice_sign_without_a_ceremony(live: Site, team: dict[str, Path]) -> None:
    (live.folder / "keys" / "alice.key").write_bytes(team["alice"].read_bytes())
    (live.folder / "keys" / "alice.key").chmod(0o600)
    one = live.publish({"a": True})
    assert (one.code, "2 publisher keys must sign and 1 are here" in one.err) == (2, True)
    assert "--prepare FILE" in one.err
    assert not [each for each in live.retained() if "flags" in each]
    (live.folder / "keys" / "bob.key").write_bytes(team["bob"].read_bytes())
    (live.folder / "keys" / "bob.key").chmod(0o600)
    assert live.publish({"a": True}).code == 0
    device = live.device()
    device.hear(live.retained(), now=clock.now())
    assert (device.versions, device.refused) == ({"default": (2, 1)}, [])


# What publishing does after a rotation


@pytest.mark.mosquitto
def test_the_next_publish_signs_every_namespace_anew_under_the_new_epoch(live: Site) -> None:
    assert live.publish({"a": True}).code == 0
    assert live.publish({"b": True}, namespace="other").code == 0
    device = live.device()
    device.hear(live.retained(), now=clock.now())
    assert device.versions == {"default": (1, 1), "other": (1, 1)}
    assert live.keys("rotate", "publisher").code == 0
    done = live.publish({"a": True})  # of the other one nobody speaks
    assert done.code == 0, done.err
    assert "published root 2" in done.out
    device.hear(live.retained(), now=clock.now())
    assert (device.root, device.versions, device.refused) == (2, {"default": (2, 2), "other": (2, 2)}, [])
    fresh = live.device()
    fresh.hear(live.retained(), now=clock.now())
    assert fresh.versions == device.versions


@pytest.mark.mosquitto
def test_a_higher_threshold_is_met_by_what_was_published_before(live: Site, tmp_path: Path) -> None:
    alice = make(live.flagcast, live.folder / "keys", "alice")
    assert live.keys("rotate", "publisher", "--add", pub(alice)).code == 0
    assert live.publish({"a": True}).code == 0
    assert live.publish({"b": True}, namespace="other").code == 0
    assert live.keys("rotate", "publisher", "--threshold", "2").code == 0  # the same keys, the same epoch
    assert live.publish({"a": True}).code == 0
    device = live.device()
    device.hear(live.retained(), now=clock.now())
    assert (device.root, device.versions, device.refused) == (3, {"default": (2, 1), "other": (2, 1)}, [])


@pytest.mark.mosquitto
def test_a_new_root_key_reaches_the_broker_with_the_next_publish(live: Site) -> None:
    assert live.publish({"a": True}).code == 0
    assert live.keys("rotate", "root").code == 0
    done = live.publish({"a": True})
    assert (done.code, "published root 2" in done.out) == (0, True)
    device = live.device()
    device.hear(live.retained(), now=clock.now())
    assert (device.root, device.versions, device.refused) == (2, {"default": (1, 1)}, [])


@pytest.mark.mosquitto
@pytest.mark.parametrize("number", [NUMBER_MAX, NUMBER_MAX - 1, NUMBER_MAX - 100])
def test_numbers_that_a_thief_pushed_to_the_end_are_left_behind_by_a_rotation(
    live: Site, number: int
) -> None:
    assert live.publish({"a": True}).code == 0
    device = live.device()
    stolen = live.folder / "keys" / "publisher.key"
    live.put(forged(stolen, {"a": False}, number=number, epoch=1, now=clock.now()))
    device.hear(live.retained(), now=clock.now())
    assert device.versions == {"default": (1, number)}
    evil = device.digest()
    done = live.publish({"a": True, "b": True})
    if number < NUMBER_MAX - 1:
        # The ledger then knows such numbers too, as its own.
        assert done.code == 0, done.err
    else:
        assert (done.code, "begin the next epoch with flagcast keys rotate publisher" in done.err) == (
            2,
            True,
        )
    assert live.keys("rotate", "publisher").code == 0
    for flags in ({"a": True}, {"a": True, "c": True}):
        done = live.publish(flags, "--yes")
        assert done.code == 0, done.err
        device.hear(live.retained(), now=clock.now())
        assert device.refused == []
        assert device.digest() != evil
    epoch, version = device.versions["default"]
    assert (epoch, version < 10) == (2, True)
    live.put(
        forged(
            live.folder / "keys" / "publisher-1.key",
            {"a": False},
            number=NUMBER_MAX,
            epoch=1,
            now=clock.now(),
        )
    )
    before = device.versions
    device.hear(live.retained(), now=clock.now())
    assert (device.refused, device.versions) == (["unknown_key"], before)
    assert live.publish({"a": True, "c": True}).code == 0
    device.hear(live.retained(), now=clock.now())
    assert device.refused == []


# Files


def test_a_file_is_complete_or_absent(tmp_path: Path) -> None:
    files.write_new(tmp_path / "x", b"one", files.PRIVATE_MODE)
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "x", b"two")
    files.replace(tmp_path / "y", b"three")
    assert tree(tmp_path) == {"x": b"one", "y": b"three"}
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "y").stat().st_mode & 0o777 == 0o644
    assert files.read(tmp_path / "y", 5) == b"three"
    assert files.read(tmp_path / "y", 4) is None
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        files.replace(tmp_path / "folder", b"x")
    assert {path.name for path in tmp_path.iterdir()} == {"x", "y", "folder"}
