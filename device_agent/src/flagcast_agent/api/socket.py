"""The Unix socket that applications connect to, and the lock that keeps a second agent away from it.

A socket's path can be bound anew while another process listens on it; the first one then serves nobody and does not
notice. So a lock file beside the path comes first, held until the end and never removed: removing a lock file that
another process may already have opened would let two of them hold "the" lock. The socket is bound under a umask that
lets nobody else in, then gets its group and mode, so that at no instant it is open wider than configured.
"""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from flagcast_agent.limits import SOCKET_PATH_MAX_BYTES
from flagcast_shared.errors import InvalidConfiguration

_FIRST_HANDED_OVER = 3  # SD_LISTEN_FDS_START

SOCKET_MODE = 0o660
"""Unless configured: the agent's user and the socket's group may connect, which on Linux means write."""


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """Where the socket stands and who may connect. `group` is a name or a number; None keeps the agent's own."""

    path: Path
    mode: int = SOCKET_MODE
    group: str | None = None


def handed_over(environment: MutableMapping[str, str]) -> socket.socket | None:
    """The socket that the service manager has bound for this process, taken out of the environment; None without one.

    Raises InvalidConfiguration for several, or one that is not a listening Unix socket.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = environment.get("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environment.pop(name, None)
    if count != "1":
        raise InvalidConfiguration(f"the service manager hands over {count or 'no'} sockets; it must be one")
    try:
        found = socket.socket(fileno=_FIRST_HANDED_OVER)
    except OSError as error:
        raise InvalidConfiguration(
            f"what the service manager hands over is no socket: {_reason(error)}"
        ) from error
    listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if found.family != socket.AF_UNIX or found.type != socket.SOCK_STREAM or not listens:
        found.close()
        raise InvalidConfiguration(
            "what the service manager hands over is no listening Unix socket; it takes ListenStream= with a path"
        )
    os.set_inheritable(found.fileno(), False)  # noqa: FBT003  # the os module's own switch
    return found


class UnixSocket:
    """A bound Unix socket and its lock; a context manager that gives both back.

    `given` is a socket that the service manager has bound to the same path.

    Raises:
        InvalidConfiguration: the path is too long, held by another process, occupied by something that is not a
            socket, or in a folder that is missing or not writable; the group is unknown or may not be given; the given
            socket has another path.
    """

    def __init__(self, options: SocketOptions, given: socket.socket | None = None) -> None:
        self.path = options.path
        _require_short(options.path)
        if given is not None:
            if given.getsockname() != str(options.path):
                raise InvalidConfiguration(
                    f"socket path {options.path}: the service manager has bound {given.getsockname()!r}; they must be the same"
                )
            self._lock = _lock(options.path)
            self.socket, self._identity = given, None
            return
        group = _group_id(options.group)
        self._lock = _lock(options.path)
        try:
            _remove_stale(options.path)
            self.socket = _bind(options.path)
            try:
                self._identity = _identity(options.path)
                if group is not None:
                    _give_to_group(options.path, group, options.group)
                options.path.chmod(options.mode)
            except BaseException:
                self.socket.close()
                options.path.unlink(missing_ok=True)
                raise
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Closes the socket, removes its path and gives the lock back. A path that is not ours any more stays."""
        if self._lock < 0:
            return
        self.socket.close()
        if self._identity is not None and _identity(self.path) == self._identity:
            self.path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def bind_loopback(port: int) -> socket.socket:
    """A TCP socket on 127.0.0.1, for applications that cannot use a Unix socket; port 0 lets the system choose.

    Every user of the machine can connect to it. Raises InvalidConfiguration.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise InvalidConfiguration(f"TCP port {port}: {_reason(error)}") from error
    return listener


def _require_short(path: Path) -> None:
    size = len(os.fsencode(path))
    if size > SOCKET_PATH_MAX_BYTES:
        raise InvalidConfiguration(
            f"socket path {path}: {size} bytes; a Unix socket's path has at most {SOCKET_PATH_MAX_BYTES}"
        )


def _group_id(group: str | None) -> int | None:
    if group is None:
        return None
    if group.isascii() and group.isdigit():
        return int(group)
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise InvalidConfiguration(f"socket group {group!r}: this device has no such group") from None


def _lock(path: Path) -> int:
    lock_path = path.with_name(f"{path.name}.lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InvalidConfiguration(f"socket path {path}: {_folder_problem(path.parent, error)}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        os.close(lock)
        if error.errno not in {errno.EAGAIN, errno.EACCES}:
            raise InvalidConfiguration(f"lock {lock_path}: {_reason(error)}") from error
        raise InvalidConfiguration(
            f"socket path {path}: another agent is listening there (process {holder or 'unknown'} holds "
            f"{lock_path}); stop it, or give this one another socket path"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidConfiguration(f"socket path {path}: {_reason(error)}") from error
    if not stat.S_ISSOCK(mode):
        raise InvalidConfiguration(
            f"socket path {path}: something that is not a socket stands there; it is left alone"
        )
    if _somebody_listens(path):
        raise InvalidConfiguration(f"socket path {path}: another program is listening there")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidConfiguration(
            f"socket path {path}: the socket left there cannot be removed: {_reason(error)}"
        ) from error


def _somebody_listens(path: Path) -> bool:
    # Only a program that does not use our lock can: a socket without a listener refuses the connection.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.errno not in {errno.ECONNREFUSED, errno.ENOENT}
        return True


def _bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The umask is the whole process's: the agent binds before it starts any thread that creates files.
    umask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise InvalidConfiguration(f"socket path {path}: {_folder_problem(path.parent, error)}") from error
    finally:
        os.umask(umask)
    return listener


def _give_to_group(path: Path, group: int, name: str | None) -> None:
    try:
        os.chown(path, -1, group)
    except (OSError, OverflowError) as error:
        raise InvalidConfiguration(
            f"socket group {name!r}: the agent's user may not give the socket to it: {_reason(error)}"
        ) from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _folder_problem(folder: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"the folder {folder} does not exist; create it"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"the folder {folder} is not writable for the agent's user"
        case errno.ENOTDIR:
            return f"{folder} is not a folder"
        case errno.ELOOP:
            return f"its lock file in {folder} is a symbolic link, which is not followed"
        case _:
            return _reason(error)


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
