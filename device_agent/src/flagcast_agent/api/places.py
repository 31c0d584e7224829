"""Places for connections on the agent's sockets: who has how many, and who gives way when they are full.

A client that forgets to close its connections, or opens them on purpose, keeps nobody else out: one user has at most half of the
places, and the connection that has been silent for longest gives way to a new one.
"""

import logging
import socket
import struct
from typing import Final, NamedTuple

from flagcast_agent.limits import CONNECTIONS_MAX, SILENT_SECONDS, USER_CONNECTIONS_MAX

from .load import Load, OpenConnection

log = logging.getLogger(__name__)

_CREDENTIALS: Final = struct.Struct("3i")
_LINE_SECONDS: Final = 1.0  # at most one line in so long: a flood of connections must not fill the log


class Peer(NamedTuple):
    """The process that has connected. All clients of the TCP port are one, which is nobody's: `uid` is -1."""

    pid: int
    uid: int
    gid: int


NOBODY: Final = Peer(0, -1, -1)


def peer_of(connected: socket.socket) -> Peer:
    """Who has connected (unix(7), SO_PEERCRED)."""
    if connected.family != socket.AF_UNIX:
        return NOBODY
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Peer(*_CREDENTIALS.unpack(raw))


class Places:
    """CONNECTIONS_MAX places, USER_CONNECTIONS_MAX of them for each user."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._told_at = -_LINE_SECONDS
        self._untold = 0

    def enter(self, connection: OpenConnection, peer: Peer, now: float) -> bool:
        """Whether a new connection has a place; another one may be closed for it. `now` is the loop's time."""
        peers = self._load.peers
        of_user = [each for each, other in peers.items() if other.uid == peer.uid]
        rivals, of_whom = (list(peers), "in all") if len(peers) >= CONNECTIONS_MAX else ([], "")
        if len(of_user) >= USER_CONNECTIONS_MAX:
            rivals, of_whom = of_user, "of this user"
        if rivals:
            silent = [
                (since, at) for at, each in enumerate(rivals) if (since := each.silent_since) is not None
            ]
            since, at = min(silent, default=(now, -1))
            if now - since < SILENT_SECONDS:
                self._tell(now, "a connection was refused", peer, len(rivals), of_whom)
                return False
            self._tell(
                now, "a silent connection gave way to a new one", peers[rivals[at]], len(rivals), of_whom
            )
            self._load.closed(rivals[at])
            rivals[at].abort()
        peers[connection] = peer
        return True

    def _tell(self, now: float, what: str, peer: Peer, number: int, of_whom: str) -> None:
        if now - self._told_at < _LINE_SECONDS:
            self._untold += 1
            return
        whose = "of the TCP port" if peer == NOBODY else f"of process {peer.pid}, user {peer.uid}"
        more = f"; {self._untold} more since the last such line" if self._untold else ""
        log.warning("%s: %s; %d %s are open%s", what, whose, number, of_whom, more)
        self._told_at, self._untold = now, 0
