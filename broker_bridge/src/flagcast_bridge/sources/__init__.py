"""Where flags come from. The only modules of the bridge that read flags files from the disk."""

from flagcast_bridge.flags.nodes import SourceFile

from .folder import GitState, git_state, read_path

__all__ = ["GitState", "SourceFile", "git_state", "read_path"]
