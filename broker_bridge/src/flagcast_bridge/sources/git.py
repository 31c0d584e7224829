"""The git repository that flags files come from: which of two commits is the older one.

Only asks; where there is no git, no repository or not both commits, there is no answer.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Final

PATIENCE_SECONDS: Final = 10.0
"""Time that git may take: comparing commits of a large history takes a second; publishing does not wait for a disk that hangs."""

_COMMIT: Final = re.compile("[0-9a-f]{7,64}")
# Words of others; nothing that git could take for an option or a revision of another form.


def is_ancestor(path: Path, commit: str, of: str) -> bool:
    """Whether the repository around `path` holds both commits and `of` was made, in any number of steps, from `commit`."""
    commit, of = commit.lower(), of.lower()
    if not _COMMIT.fullmatch(commit) or not _COMMIT.fullmatch(of):
        return False
    if commit.startswith(of) or of.startswith(commit):
        return False
    folder = path if path.is_dir() else path.parent
    # A partial clone would fetch what it lacks.
    environment = {**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", folder, "merge-base", "--is-ancestor", commit, of],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
