"""The socket's path, lock, mode and end, with real processes."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagcast_agent.api.socket import SocketOptions, UnixSocket, bind_loopback, handed_over
from flagcast_shared.errors import InvalidConfiguration

HOLDER = """
import sys
from pathlib import Path
from flagcast_agent.api.socket import SocketOptions, UnixSocket
bound = UnixSocket(SocketOptions(Path(sys.argv[1])))
bound.socket.listen()
print("bound", flush=True)
sys.stdin.read()
bound.close()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    # pytest's own folders have names too long for a socket's path.
    with tempfile.TemporaryDirectory(prefix="fc-") as name:
        yield Path(name)


def start_holder(path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "bound\n"
    return process


def test_the_socket_takes_connections_and_is_gone_at_the_end(folder: Path) -> None:
    path = folder / "agent.sock"
    with UnixSocket(SocketOptions(path)) as bound:
        bound.socket.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o666])
def test_its_mode_is_the_configured_one_whatever_the_umask(folder: Path, mode: int) -> None:
    path = folder / "agent.sock"
    umask = os.umask(0o022)
    try:
        with UnixSocket(SocketOptions(path, mode)):
            assert stat.S_IMODE(path.stat().st_mode) == mode
        assert os.umask(0o022) == 0o022, "the process's umask is left as it was"
    finally:
        os.umask(umask)


def test_until_it_has_its_group_only_the_agents_user_may_connect(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "agent.sock"
    seen = []
    chown = os.chown

    def spy(name: Path, user: int, group: int) -> None:
        seen.append(stat.S_IMODE(path.stat().st_mode))
        chown(name, user, group)

    monkeypatch.setattr(os, "chown", spy)
    with UnixSocket(SocketOptions(path, group=str(os.getgid()))):
        assert seen == [0o600]


def test_its_group_is_the_configured_one(folder: Path) -> None:
    path = folder / "agent.sock"
    with UnixSocket(SocketOptions(path, group=str(os.getgid()))):
        assert path.stat().st_gid == os.getgid()


def test_an_unknown_group_is_named_and_nothing_is_left(folder: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="socket group 'no-such-group'"):
        UnixSocket(SocketOptions(folder / "agent.sock", group="no-such-group"))
    assert list(folder.iterdir()) == []


def test_a_second_agent_is_refused_and_the_first_keeps_its_socket(folder: Path) -> None:
    path = folder / "agent.sock"
    holder = start_holder(path)
    try:
        with pytest.raises(InvalidConfiguration, match=f"{path}: another agent .*process {holder.pid} holds"):
            UnixSocket(SocketOptions(path))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    finally:
        holder.communicate()
    assert holder.returncode == 0
    assert not path.exists()


def test_after_a_sigkill_the_socket_left_behind_is_replaced(folder: Path) -> None:
    path = folder / "agent.sock"
    holder = start_holder(path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert stat.S_ISSOCK(path.stat().st_mode), "the dead process left its socket"
    with UnixSocket(SocketOptions(path)) as bound:
        bound.socket.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_socket_that_another_program_listens_on_is_left_alone(folder: Path) -> None:
    path = folder / "agent.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(InvalidConfiguration, match="another program is listening there"):
            UnixSocket(SocketOptions(path))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_something_that_is_not_a_socket_is_left_alone(folder: Path, kind: str) -> None:
    path = folder / "agent.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(folder / "elsewhere")
    with pytest.raises(InvalidConfiguration, match="is not a socket"):
        UnixSocket(SocketOptions(path))
    assert path.is_symlink() if kind == "link" else path.exists()


def test_a_lock_that_is_a_symbolic_link_is_not_followed(folder: Path) -> None:
    (folder / "agent.sock.lock").symlink_to(folder / "victim")
    with pytest.raises(InvalidConfiguration, match="symbolic link"):
        UnixSocket(SocketOptions(folder / "agent.sock"))
    assert not (folder / "victim").exists()


def test_a_refused_start_gives_the_lock_back(folder: Path) -> None:
    path = folder / "agent.sock"
    path.write_text("in the way")
    with pytest.raises(InvalidConfiguration):
        UnixSocket(SocketOptions(path))
    path.unlink()
    UnixSocket(SocketOptions(path)).close()


def test_a_path_that_another_process_took_meanwhile_is_not_removed(folder: Path) -> None:
    path = folder / "agent.sock"
    bound = UnixSocket(SocketOptions(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        bound.close()
        assert path.exists()


def test_closing_twice_is_closing_once(folder: Path) -> None:
    bound = UnixSocket(SocketOptions(folder / "agent.sock"))
    bound.close()
    bound.close()


def test_a_path_of_107_bytes_works_and_108_are_refused(folder: Path) -> None:
    room = 107 - len(os.fsencode(folder)) - 1
    UnixSocket(SocketOptions(folder / ("x" * room))).close()
    with pytest.raises(InvalidConfiguration, match="108 bytes; a Unix socket's path has at most 107"):
        UnixSocket(SocketOptions(folder / ("x" * (room + 1))))
    with pytest.raises(InvalidConfiguration, match="108 bytes"):
        UnixSocket(SocketOptions(folder / ("ü" * (room // 2) + "x" * (room % 2 + 1))))


def test_a_missing_folder_is_named(folder: Path) -> None:
    with pytest.raises(InvalidConfiguration, match=rf"{folder}/none does not exist; create it"):
        UnixSocket(SocketOptions(folder / "none" / "agent.sock"))


def test_a_file_where_the_folder_should_be_is_named(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(InvalidConfiguration, match=f"{folder}/file is not a folder"):
        UnixSocket(SocketOptions(folder / "file" / "agent.sock"))


def test_a_folder_that_is_not_writable_is_named(folder: Path) -> None:
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)  # root may write everywhere
    try:
        with pytest.raises(InvalidConfiguration, match=f"{folder} is not writable"):
            UnixSocket(SocketOptions(folder / "agent.sock"))
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_loopback_listens_on_127_0_0_1_alone() -> None:
    with bind_loopback(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(InvalidConfiguration, match=f"TCP port {port}"):
        bind_loopback(port)


def test_a_port_in_use_is_refused() -> None:
    with bind_loopback(0) as listener:
        listener.listen()
        with pytest.raises(InvalidConfiguration, match="in use"):
            bind_loopback(listener.getsockname()[1])


# A service manager's socket.

HANDED_OVER = """
import os, socket, sys
from pathlib import Path
from flagcast_agent.api.socket import SocketOptions, UnixSocket, handed_over
from flagcast_shared.errors import InvalidConfiguration
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    with UnixSocket(SocketOptions(Path(sys.argv[1])), handed_over(os.environ)) as bound:
        print("bound", sorted(name for name in os.environ if name.startswith("LISTEN")), flush=True)
        connection, _ = bound.socket.accept()
        connection.sendall(b"hello")
except InvalidConfiguration as error:
    print("refused:", error, flush=True)
"""


def hand_over(given: socket.socket, path: Path, *, count: str = "1") -> "subprocess.Popen[str]":
    """A process that finds a socket as the first descriptor after the standard ones."""
    shell = f'exec 3<&{given.fileno()}; exec "$@"'
    return subprocess.Popen(
        ["bash", "-c", shell, "bash", sys.executable, "-c", HANDED_OVER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LISTEN_FDS": count},
        pass_fds=[given.fileno()],
    )


def test_who_connects_while_the_agent_is_started_anew_waits_and_is_answered(folder: Path) -> None:
    path = folder / "agent.sock"
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))
        given.listen()
        for _ in range(2):  # the second time after the first process has ended
            with socket.socket(socket.AF_UNIX) as early:
                early.settimeout(100)
                early.connect(str(path))
                with hand_over(given, path) as process:
                    assert early.recv(10) == b"hello"
                    assert process.stdout is not None
                    assert process.stdout.read() == "bound []\n"
            assert path.exists()


def test_a_handed_over_socket_that_does_not_fit_is_refused(folder: Path) -> None:
    path = folder / "agent.sock"
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))

        def said(where: Path, count: str = "1") -> str:
            with hand_over(given, where, count=count) as process:
                assert process.stdout is not None
                return process.stdout.read()

        assert "no listening Unix socket" in said(path)
        given.listen()
        assert "they must be the same" in said(folder / "other.sock")
        assert "hands over 2 sockets" in said(path, "2")


def test_a_socket_that_was_handed_to_another_process_is_not_taken() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    assert handed_over(environment) is None
    assert environment == {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
