"""Where the passphrase of an encrypted key comes from: a person at a terminal, or a file for scripts.

The file is named on the command line or by FLAGCAST_PASSPHRASE_FILE; it holds the passphrase alone, and a line end after it is
not part of it. Nothing is asked and nothing is read before a key needs it.
"""

import getpass
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from flagcast_bridge import files
from flagcast_shared.errors import InvalidConfiguration
from flagcast_shared.printing import printable

VARIABLE: Final = "FLAGCAST_PASSPHRASE_FILE"
PASSPHRASE_MAX_BYTES: Final = 1_023
"""OpenSSL takes no longer one."""

Unlock = Callable[[Path], bytes | None]
"""The passphrase of a key file; None where there is none to be had. Raises InvalidConfiguration."""


def from_environment(path: Path) -> bytes | None:
    """What the file that FLAGCAST_PASSPHRASE_FILE names holds, for any key. Raises InvalidConfiguration."""
    return source()(path)


def source(file: Path | None = None, *, asks: bool = False, allow_group: bool = False) -> Unlock:
    """A person where `asks`, else the file, else the file that the environment names; with `allow_group` also its group's."""
    if asks:
        return lambda path: _ask(f"passphrase of {printable(str(path))}: ")
    named = _named(file)
    return lambda _: None if named is None else _read(named, allow_group=allow_group)


def remembered(unlock: Unlock) -> Unlock:
    """The same source, but each key's passphrase is asked for once, for a process that signs again and again."""
    return cache(unlock)


def for_new_key(file: Path | None = None, *, asks: bool = False, allow_group: bool = False) -> bytes | None:
    """The passphrase that new keys get; None where none is wanted. A person is asked twice. Raises InvalidConfiguration."""
    if not asks:
        named = _named(file)
        return None if named is None else _read(named, allow_group=allow_group)
    first = _ask("passphrase of the new key: ")
    if _ask("the same again: ") != first:
        raise InvalidConfiguration("the two passphrases differ; nothing was done")
    return first


def _named(file: Path | None) -> Path | None:
    from_variable = os.environ.get(VARIABLE)
    return file or (Path(from_variable) if from_variable else None)


def _read(path: Path, *, allow_group: bool) -> bytes:
    try:
        content = files.read_secret(path, PASSPHRASE_MAX_BYTES + 2, "passphrase", allow_group=allow_group)
    except OSError as error:
        raise InvalidConfiguration(f"{path}: the passphrase cannot be read: {error.strerror}") from error
    return _checked((content or b"").rstrip(b"\r\n") if content is not None else None, str(path))


def _ask(prompt: str) -> bytes:
    try:
        with warnings.catch_warnings():
            # Without a terminal it would echo what is typed, and says so by a warning.
            warnings.simplefilter("error", getpass.GetPassWarning)
            given = getpass.getpass(prompt)
    except (getpass.GetPassWarning, EOFError, OSError):
        raise InvalidConfiguration(
            f"there is no terminal to ask for the passphrase at; name a file with --passphrase-file or {VARIABLE}"
        ) from None
    return _checked(given.encode(errors="surrogateescape"), "the passphrase")


def _checked(passphrase: bytes | None, where: str) -> bytes:
    if not passphrase or len(passphrase) > PASSPHRASE_MAX_BYTES:
        raise InvalidConfiguration(f"{where}: a passphrase has 1 to {PASSPHRASE_MAX_BYTES} bytes")
    return passphrase
