import subprocess
from pathlib import Path

import pytest
from publishing import Flagcast, configure, make_project
from repository import ROOT

from flagcast_bridge import project
from flagcast_bridge.publishing import publish as publisher
from flagcast_bridge.signing import keychain
from flagcast_shared import trust
from flagcast_shared.errors import FlagcastError, InvalidConfiguration, InvalidInput
from flagcast_shared.ids import Environment
from flagcast_shared.root import Role

URL = "mqtt://127.0.0.1:1883"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_project_has_its_configuration_keys_and_a_root_that_devices_can_start_from(
    tmp_path: Path,
) -> None:
    made = make_project(tmp_path / "fleet", "mqtts://broker.example.com")
    assert (made.environment, made.topics.base) == ("test", "flagcast/1/test")
    assert (made.broker.host, made.broker.port, made.broker.uses_tls) == ("broker.example.com", 8883, True)
    assert made.message_limit == 60_000
    assert made.head_lifetime == 7 * 24 * 3600
    assert made.root_key.stat().st_mode & 0o777 == 0o600
    assert made.publisher_key.stat().st_mode & 0o777 == 0o600
    (data,) = project.read_roots(made)
    root = trust.anchor(data, Environment("test"))
    assert (root.number, root.epoch, root.roles[Role.PUBLISHER].threshold) == (1, 1, 1)
    assert root.expires - root.issued == made.root_lifetime
    assert set(tree(tmp_path / "fleet")) == {
        ".gitignore",
        "flagcast.toml",
        "keys/.gitignore",
        "keys/root.key",
        "keys/root.key.pub",
        "keys/publisher.key",
        "keys/publisher.key.pub",
        "roots/1.root",
    }


def test_a_project_can_be_made_beside_other_files(tmp_path: Path) -> None:
    (tmp_path / "features.yml").write_text("flags: []")
    make_project(tmp_path, URL)
    assert (tmp_path / "features.yml").read_text() == "flags: []"
    assert not list(tmp_path.glob(".flagcast-init-*"))


def test_ledger_usage_and_passwords_never_enter_a_repository(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    folder = make_project(tmp_path / "fleet", URL).folder
    secret = [
        "ledger.sqlite",
        "ledger.sqlite-wal",
        "usage.sqlite",
        "broker.password",
        "password",
        "ledger.pgpass",
        "publisher-tls.key",
    ]
    for name in (*secret, "keys/publisher.key", "features.yml"):
        (folder / name).touch()
    done = subprocess.run(
        ["git", "status", "--porcelain", "-uall", "."], cwd=folder, check=True, capture_output=True, text=True
    )
    seen = {line.split()[1].removeprefix("fleet/") for line in done.stdout.splitlines()}
    assert seen == {".gitignore", "flagcast.toml", "roots/1.root", "features.yml"}


def test_a_gitignore_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("mine")
    make_project(tmp_path, URL)
    assert (tmp_path / ".gitignore").read_text() == "mine"


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        (None, ()),
        ("mine\n*.key\n", ("ledger.sqlite*", "usage.sqlite*", "*password*", "*passphrase*", "*.pgpass")),
    ],
)
def test_init_names_what_a_gitignore_that_is_there_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str | None, missing: tuple[str, ...]
) -> None:
    if there is not None:
        (tmp_path / ".gitignore").write_text(there)
    done = Flagcast(tmp_path, capsys)("init", tmp_path, "--environment", "test", "--broker", URL)
    told = [line for line in done.out.splitlines() if line.startswith("add to ")]
    expected = f"add to {tmp_path / '.gitignore'}, which was there before: {' '.join(missing)}"
    assert told == ([expected] if missing else [])


def test_a_project_is_never_overwritten(tmp_path: Path) -> None:
    make_project(tmp_path / "fleet", URL)
    before = tree(tmp_path / "fleet")
    with pytest.raises(InvalidConfiguration, match="nothing is ever overwritten"):
        publisher.found(tmp_path / "fleet", "other", URL)
    assert tree(tmp_path / "fleet") == before


@pytest.mark.parametrize("name", ["flagcast.toml", "keys", "roots", "ledger.sqlite"])
def test_nothing_is_made_where_one_piece_of_a_project_stands(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InvalidConfiguration, match=name):
        publisher.found(tmp_path, "test", URL)
    assert tree(tmp_path) == {name: b"mine"}


def test_nothing_half_made_is_left_when_making_fails(tmp_path: Path) -> None:
    def make_half() -> None:
        text = project.template("test", URL, "flagcast")
        with project.founding(tmp_path / "fleet", text) as new:
            new.root_key.write_bytes(b"half a key")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_half()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_existed_is_left_as_it_was_when_making_fails(tmp_path: Path) -> None:
    (tmp_path / "features.yml").write_text("flags: []")
    text = project.template("test", URL, "flagcast")
    with pytest.raises(KeyError), project.founding(tmp_path, text):
        raise KeyError
    assert tree(tmp_path) == {"features.yml": b"flags: []"}


@pytest.mark.parametrize(
    ("environment", "url", "says"),
    [
        ("no/slash", URL, "environment"),
        ("", URL, "environment"),
        ("test", "http://broker", r"broker\.url"),
        ("test", "mqtt://", r"broker\.url"),
        ("test", "mqtt://host:99999", r"broker\.url"),
        ("test", "mqtt://user:secret@host", "password_file"),
        ("test", 'mqtt://h"\nprefix = "x', r"broker\.url"),
    ],
)
def test_a_name_or_url_that_is_not_allowed_makes_nothing(
    tmp_path: Path, environment: str, url: str, says: str
) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        publisher.found(tmp_path / "fleet", environment, url)
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"environment": '"a/b"'}, r"environment .*letters, digits"),
        ({"environment": "7"}, "environment must be a text"),
        ({"prefix": '"a/b"'}, r"prefix .*one level"),
        ({"protocol": '"4"'}, r"broker\.protocol is '4'; allowed: auto, 5, 3\.1\.1"),
        ({"message_limit_bytes": "100"}, r"publish\.message_limit_bytes is 100; allowed is 4096 to 262144"),
        ({"message_limit_bytes": "true"}, r"publish\.message_limit_bytes must be a whole number"),
        ({"head_lifetime_hours": "0"}, r"publish\.head_lifetime_hours is 0; allowed is 1 to"),
        ({"lifetime_days": '"10"'}, r"root\.lifetime_days must be a whole number"),
        ({"password_file": '"p"'}, r"broker\.password_file needs broker\.user"),
        ({"ledger": '"mysql://host/flagcast"'}, r"ledger .*allowed is postgresql://"),
        ({"ledger": '"ledger.sqlite"'}, r"ledger .*allowed is postgresql://"),
        ({"ledger": '"postgresql://[host/flagcast"'}, r"ledger .*allowed is postgresql://"),
        ({"ledger": '"postgresql://flagcast:secret@host/flagcast"'}, r"ledger .*passfile"),
        ({"ledger": '"postgresql://host/flagcast?password=secret"'}, r"ledger .*passfile"),
        ({"ca_file": '"ca.pem"'}, r"broker\.url is without TLS"),
        ({"url": '"mqtts://h"', "cert_file": '"c.pem"'}, r"broker\.key_file is missing"),
    ],
)
def test_a_wrong_value_is_one_line_with_file_key_and_what_is_allowed(
    tmp_path: Path, settings: dict[str, str], says: str
) -> None:
    make_project(tmp_path, URL)
    configure(tmp_path, settings)
    with pytest.raises(InvalidConfiguration, match=says) as caught:
        project.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'flagcast.toml'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("enviroment = 'x'", "enviroment is not a known key; did you mean 'environment'?"),
        ("[brokers]", "brokers is not a known key; did you mean 'broker'?"),
        (
            "[publish.x]\ny = 1",
            "publish.x is not a known key; allowed: message_limit_bytes, head_lifetime_hours",
        ),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(tmp_path: Path, line: str, says: str) -> None:
    make_project(tmp_path, URL)
    path = tmp_path / "flagcast.toml"
    text = path.read_text()
    path.write_text(f"{line}\n{text}" if line.startswith("env") else f"{text}\n{line}\n")
    with pytest.raises(InvalidConfiguration) as caught:
        project.load(tmp_path)
    assert says in str(caught.value)


@pytest.mark.parametrize("content", [b"not toml", b"\xff\xfe", b"x = [", b"broker = 1\nenvironment='a'"])
def test_a_configuration_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "flagcast.toml").write_bytes(content)
    with pytest.raises(InvalidConfiguration, match=r"flagcast\.toml") as caught:
        project.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_ledger_is_a_file_of_the_project_unless_a_url_is_named(tmp_path: Path) -> None:
    made = publisher.found(tmp_path, "test", URL)
    assert made.ledger == made.folder / "ledger.sqlite"
    url = "postgresql://flagcast@db.example.com/flagcast?sslmode=verify-full&passfile=/etc/flagcast/pgpass"
    configure(tmp_path, {"ledger": f'"{url}"'})
    assert project.load(tmp_path).ledger == url


def test_a_missing_configuration_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="flagcast init"):
        project.load(tmp_path)


def test_the_password_comes_from_its_file_without_the_line_end(tmp_path: Path) -> None:
    make_project(tmp_path, URL)
    (tmp_path / "broker.password").write_text("pass word \n")
    configure(tmp_path, {"user": '"publisher"', "password_file": '"broker.password"'})
    assert project.read_password(project.load(tmp_path).broker) == "pass word "


def test_roots_are_read_in_order_up_to_the_first_gap(tmp_path: Path) -> None:
    made = make_project(tmp_path, URL)
    first = made.root_file(1).read_bytes()
    project.write_root(made, 2, b"second")
    project.write_root(made, 4, b"fourth")
    assert project.read_roots(made) == (first, b"second")
    with pytest.raises(InvalidConfiguration, match="File exists"):
        project.write_root(made, 2, b"other")


def test_the_environment_of_a_project_never_changes_and_its_configuration_and_the_guide_say_so(
    tmp_path: Path,
) -> None:
    made = make_project(tmp_path / "fleet", URL)
    configure(made.folder, {"environment": '"other"'})
    with pytest.raises(FlagcastError, match="test"):
        keychain.chain(project.load(made.folder))
    text = (made.folder / "flagcast.toml").read_text()
    guide = " ".join((ROOT / "docs" / "operations.md").read_text().split())
    assert "It never changes: for another" in text
    assert "signed into everything and never changes; for another one make another project" in guide
    for each in (" ".join(text.split()), guide):
        assert "cannot change without a new root" not in each
        assert "changes only together with" in each
