"""Where flags come from. The only modules of the bridge that read flags files from the disk."""

from .folder import GitState, SourceFile, git_state, read_path

__all__ = ["GitState", "SourceFile", "git_state", "read_path"]
